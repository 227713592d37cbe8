"""What a run needs of memory and disk, estimated before it starts."""

from __future__ import annotations

import psutil

from ezxmc.config import TrainingConfig
from ezxmc.data import Catalog
from ezxmc.retrieval import BiEncoder
from ezxmc.training.schedule import configured_schedule

# Of one judgment, measured on 100,000: key, numbers, status, SQLite's own.
_ROW_BYTES = 80
# A uid is kept once, and once more in its index.
_UID_COPIES = 2
# float32 weights are there already; gradients and Adam's two moments come on top.
_TRAINED_PARAMETER = 12
# What one layer keeps of one token for its backward pass, per hidden unit.
_ACTIVATION = 72


def training_memory(config: TrainingConfig, encoder: BiEncoder, documents: int) -> int:
    """About the peak of a training round, in bytes: this process with its encoder, and what training adds.

    Args:
        config: Batch size.
        encoder: The loaded student; documents are taken to fill its `max_length`.
        documents: How many are trained on.
    """
    parameters: int = sum(weights.numel() for weights in encoder.model.parameters())
    layers: int = getattr(encoder.model[0].model.config, "num_hidden_layers", 0)
    tokens = configured_schedule(config, documents).batch_size * encoder.max_length
    added: int = parameters * _TRAINED_PARAMETER + tokens * layers * encoder.dimension * _ACTIVATION
    return psutil.Process().memory_info().rss + added


def disk_use(
    catalog: Catalog, encoder: BiEncoder, cycles: int, pairs: int, shortlist_bytes: float
) -> dict[str, int]:
    """Bytes a run directory will hold, by what takes them.

    Args:
        catalog: Its inputs.
        encoder: The student.
        cycles: Each leaves a student and its shortlists.
        pairs: Judgments stored.
        shortlist_bytes: Mean of one document's shortlist.
    """
    documents, labels = catalog.documents, catalog.labels
    uids = sum(len(document.uid) for document in documents) + sum(len(label.uid) for label in labels)
    student = sum(weights.numel() * weights.element_size() for weights in encoder.model.parameters())
    return {
        "judgments": pairs * _ROW_BYTES + uids * _UID_COPIES,
        "students": cycles * student,
        "bundle": student + len(labels) * encoder.dimension * 4,
        "shortlists": round(cycles * len(documents) * shortlist_bytes),
    }
