"""What a plan says: pairs, tokens, time, memory and disk of a run, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from ezxmc.config import TrainingConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import Catalog
from ezxmc.feedback.probe import ProbeFigures, Speed
from ezxmc.models.teachers import Machine, teacher_models
from ezxmc.retrieval import BiEncoder
from ezxmc.training.step import configured_schedule

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


PRIORS = "label priors"
"""Name of the part that asks about all labels on some random documents."""
COMPARISON = "comparison"
"""Name of the part that asks what students answer on documents that select."""


@dataclass(frozen=True, slots=True)
class PartPlan:
    """One part of a run in which the teacher is asked: a cycle, the calibration, or comparing students.

    Attributes:
        name: `label priors`, `cycle 1`, ..., `comparison`, `calibration`.
        documents: Documents asked about.
        pairs: Pairs the part needs.
        known: Of these, already judged in the run's store.
        prompt_tokens: Of the others, whole prompts.
        computed_tokens: Of these, expected not to be in the prefix cache.
        seconds: To ask the others, engine starts included; `None` if not measured.
        starts: Engine starts.
    """

    name: str
    documents: int
    pairs: int
    known: int
    prompt_tokens: int | None
    computed_tokens: int | None
    seconds: float | None
    starts: int = 0

    @property
    def asked(self) -> int:
        """Pairs still to ask."""
        return self.pairs - self.known

    @property
    def cache_share(self) -> float | None:
        """Share of prompt tokens the cache is expected to supply, in [0, 1]."""
        if not self.prompt_tokens or self.computed_tokens is None:
            return None
        return 1 - self.computed_tokens / self.prompt_tokens


@dataclass(frozen=True, slots=True)
class TeacherCost:
    """What the whole run would take with a model of the table: an estimate.

    Attributes:
        model: Catalog name or hub id.
        licence: SPDX id.
        memory: Bytes it needs.
        runs_on: What of this machine it would run on, such as `2 GPUs`; empty if it does not fit.
        seconds: To judge all pairs, starts aside; `None` if nothing tells.
    """

    model: str
    licence: str
    memory: int
    runs_on: str
    seconds: float | None


_ASSUMED = 100e12
"""Operations per second a GPU is assumed to hold where nothing was measured."""


def teacher_costs(
    config: VllmTeacherConfig, machine: Machine, tokens: int | None, speed: Speed | None
) -> tuple[list[TeacherCost], list[str]]:
    """Each model of the table in place of the configured one: 2 operations per active parameter and token.

    Args:
        config: The configured teacher; its share of a GPU's memory counts.
        machine: What it would run on.
        tokens: Computed for all pairs of the run.
        speed: Of the configured teacher, as measured.

    Returns:
        The costs, and a note on what the times rest on.
    """
    table = teacher_models()
    own = next((model for model in table if model.model == config.model), None)
    rate = 0.0  # operations a second
    if speed and speed.computed and own:
        rate = speed.computed * 2 * own.active
        basis = f"times are scaled from the measured speed of {own.model} by active parameters"
        if machine.usable:
            basis += "; a larger one is faster than that on a GPU that this one leaves idle"
    elif machine.usable:
        rate = _ASSUMED
        basis = f"none of them was measured on this GPU: times assume {rate / 1e12:.0f} TFLOP/s"
    else:
        basis = "none of them was measured here, so there are no times"
    costs = [
        TeacherCost(
            model.model,
            model.licence,
            round(model.needs),
            machine.runs(model, config.gpu_memory),
            tokens * 2 * model.active / rate if tokens is not None and rate else None,
        )
        for model in table
    ]
    return costs, [f"other teachers: an estimate, all pairs asked again, starts and downloads aside; {basis}"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost. Sizes in bytes, times in seconds; `None` is not known.

    Attributes:
        documents: Usable documents.
        labels: Usable labels.
        parts: The parts of the run, in order, after what the probe asked.
        unasked_documents: Documents the budget leaves without a judgment in
            the first cycle.
        unasked_pairs: Candidates it leaves out in all.
        probe: What the probe measured, if there was one.
        speed: Of the teacher; without it there are no times.
        memory: Peaks by what needs them: `teacher`, `training`. They do not add up.
        disk: By what is kept: `judgments`, `students`, `bundle`, `shortlists`.
        teachers: What the run would take with other teachers; empty where vLLM does not run here.
        notes: What a reader must know about these figures.
        bad_rows: Rows of the inputs that were left out.
    """

    documents: int
    labels: int
    parts: list[PartPlan]
    unasked_documents: int
    unasked_pairs: int
    probe: ProbeFigures | None
    speed: Speed | None
    memory: dict[str, int | None]
    disk: dict[str, int]
    teachers: list[TeacherCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad_rows: int = 0

    @property
    def total(self) -> PartPlan:
        """The sum of the parts."""

        def add(values: Sequence[Any]) -> Any:
            return None if None in values else sum(values)

        columns = zip(*(list(asdict(part).values())[2:] for part in self.parts), strict=True)
        return PartPlan("total", self.documents, *map(add, columns))

    @property
    def pairs_per_second(self) -> float | None:
        """Expected over the whole job, start-ups excluded."""
        if not self.speed:
            return None
        total = self.total
        judging = (total.seconds or 0.0) - self.speed.startup * total.starts
        return total.asked / judging if judging > 0 else self.speed.pairs

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, derived ones included."""
        *parts, total = (
            asdict(part) | {"asked": part.asked, "cache_share": part.cache_share}
            for part in (*self.parts, self.total)
        )
        return asdict(self) | {"parts": parts, "total": total, "pairs_per_second": self.pairs_per_second}
