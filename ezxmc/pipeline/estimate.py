"""What a plan says: pairs, tokens, time, memory and disk of a run, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ezxmc.feedback.probe import ProbeFigures, Speed

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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost. Sizes in bytes, times in seconds; `None` is not known.

    Attributes:
        documents: Usable documents.
        labels: Usable labels.
        parts: The parts of the run, in order, after what the probe asked.
        unasked_documents: Documents the budget leaves without a judgment in the first cycle.
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
