"""The head as the last stage of a run: on top of a student, frozen or learning on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezxmc.config_head import HeadConfig
from ezxmc.feedback.targets import Targets
from ezxmc.records import Document, Label
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.retrieval.index import LabelIndex
from ezxmc.retrieval.sparse_head import SparseHead
from ezxmc.training.dataset import examples
from ezxmc.training.embedding import Embedder
from ezxmc.training.head.fit import Encode, fit_head, judged_pairs
from ezxmc.training.head.fuse import FusionChoice, choose_fusion, quality_alone

_ENCODER_RATE, _WEIGHT_DECAY = 2e-5, 0.01


def train_head(
    encoder: BiEncoder,
    documents: Sequence[Document],
    labels: Sequence[Label],
    targets: Targets,
    index: LabelIndex,
    config: HeadConfig,
    *,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SparseHead:
    """Train a sparse head on the teacher's judgments; see `fit_head`.

    Args:
        encoder: The student. With `config.fine_tune` its weights change in place.
        documents: To train on; those nobody judged are skipped.
        labels: All labels, in the rows of the index.
        targets: Of the documents.
        index: The student's label vectors.
        config: Sizes and weights.
        precision: Of the student's passes where it learns too.
        seed: Of order, new connections and groups.
        progress: Called with (steps done, steps).

    Returns:
        The head, not fused yet: `weighed`.

    Raises:
        TrainingError: No label has enough positives, or fan-in exceeds the vectors.
    """
    pool = examples(documents, labels, targets)
    judged = judged_pairs(pool, config.least_positives)
    shown = [documents[example.document].shown for example in pool]
    device = encoder.model.device
    shared: list[torch.optim.Optimizer] = []
    encode: Encode
    if config.fine_tune:
        embed = Embedder(encoder, shown, precision)
        shared.append(
            torch.optim.AdamW(encoder.model.parameters(), lr=_ENCODER_RATE, weight_decay=_WEIGHT_DECAY)
        )

        def encode(members: NDArray[np.int64]) -> Tensor:
            return torch.nn.functional.normalize(embed([shown[row] for row in members]), dim=1)

    else:
        vectors = torch.from_numpy(encoder.encode_documents(shown)).to(device)

        def encode(members: NDArray[np.int64]) -> Tensor:
            return vectors[torch.from_numpy(members).to(device)]

    return fit_head(
        encode, judged, index.vectors, config, device=device, seed=seed, shared=shared, progress=progress
    )


def weighed(
    head: SparseHead,
    encoder: BiEncoder,
    held_out: Sequence[Document],
    labels: Sequence[Label],
    targets: Targets,
    index: LabelIndex,
    *,
    beat: NDArray[np.float64] | None = None,
) -> FusionChoice:
    """`choose_fusion` on held-out documents.

    Args:
        head: Trained on other documents.
        encoder: The student, as it is now.
        held_out: Documents.
        labels: All labels, in the rows of the index.
        targets: Of the held-out documents at least.
        index: The student's label vectors.
        beat: Of `unaided`, where the student has changed since.
    """
    pool = examples(held_out, labels, targets)
    vectors = encoder.encode_documents([document.shown for document in held_out])
    return choose_fusion(head, index, vectors, pool, beat=beat)


def unaided(
    encoder: BiEncoder,
    held_out: Sequence[Document],
    labels: Sequence[Label],
    targets: Targets,
    index: LabelIndex,
) -> NDArray[np.float64]:
    """`quality_alone` of a student on held-out documents; arguments as in `weighed`."""
    vectors = encoder.encode_documents([document.shown for document in held_out])
    return quality_alone(index, vectors, examples(held_out, labels, targets))
