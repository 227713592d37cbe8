"""A training round as texts and rows: what all its processes must know, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ezxmc.config import TrainingConfig
from ezxmc.training.dataset import Example

_FILE = "job.jsonl"


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training round did.

    Attributes:
        documents: Documents trained on.
        labels_seen: Distinct labels that occur in their judgments.
        held_out: Documents the epochs were compared on.
        steps: Optimiser steps.
        seconds: Wall time of the training steps, selection excluded.
        samples_per_second: Documents through a training step per second.
        losses: Mean loss of each epoch.
        selection: Agreement with the teacher (nDCG@5) on held-out documents,
            first of the untrained student, then after each epoch; empty
            without held-out documents.
        best_epoch: The epoch kept; 0 is the untrained student.
        peak_memory_bytes: Of the first process: of its device on CUDA, else its own so far.
        processes: That shared each step.
    """

    documents: int
    labels_seen: int
    held_out: int
    steps: int
    seconds: float
    samples_per_second: float
    losses: tuple[float, ...]
    selection: tuple[float, ...]
    best_epoch: int
    peak_memory_bytes: int
    processes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSummary:
        """What `to_dict` gave, perhaps by way of a file."""
        return cls(**{**values, "losses": tuple(values["losses"]), "selection": tuple(values["selection"])})


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a training round depends on.

    Attributes:
        documents: Texts of the documents of `pool`, in its order.
        titles: Of all labels.
        pool: Documents with at least one positive each.
        held_out: Texts of the documents of `judged`, in its order.
        judged: Documents for selection.
        config: Losses, sizes, rates.
        base: Weights to start from.
        former: A student to average the weights with.
        seed: Of the order and of the positives drawn.
        out: Folder to write.
        card: For the model card: the number of `judgments`, and the `teacher` in words.
    """

    documents: list[str]
    titles: list[str]
    pool: list[Example]
    held_out: list[str]
    judged: list[Example]
    config: TrainingConfig
    base: str
    former: str | None
    seed: int
    out: Path
    card: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write everything to a folder that is there: one file of JSON lines."""
        with (folder / _FILE).open("w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in self._lines())

    @classmethod
    def load(cls, folder: Path) -> Job:
        """What `save` wrote, to the last bit."""
        with (folder / _FILE).open(encoding="ascii") as lines:
            head = json.loads(next(lines))
            titles = [json.loads(next(lines)) for _ in range(head.pop("labels"))]
            documents, pool = _read(lines, head.pop("documents"))
            held_out, judged = _read(lines, head.pop("held_out"))
        config, out = TrainingConfig(**head.pop("config")), Path(head.pop("out"))
        return cls(documents, titles, pool, held_out, judged, config, out=out, **head)

    def digest(self) -> bytes:
        """SHA-256 of everything but where files are: machines may keep them in different places."""
        elsewhere = replace(
            self,
            out=Path(),
            base="",
            former=self.former and "",
            config=self.config.model_copy(update={"encoder": ""}),
        )
        found = hashlib.sha256()
        for line in elsewhere._lines():
            found.update(line.encode("ascii") + b"\n")
        return found.digest()

    def _lines(self) -> Iterator[str]:
        # JSON keeps float64 to the last bit and, in ASCII, the lone surrogates that texts may hold.
        head = {
            "config": self.config.model_dump(),
            "base": self.base,
            "former": self.former,
            "seed": self.seed,
            "out": str(self.out),
            "card": self.card,
            "labels": len(self.titles),
            "documents": len(self.pool),
            "held_out": len(self.judged),
        }
        yield json.dumps(head)
        yield from map(json.dumps, self.titles)
        for texts, examples in ((self.documents, self.pool), (self.held_out, self.judged)):
            for example in examples:
                labels, probabilities = example.labels.tolist(), example.probabilities.tolist()
                known = [labels, probabilities, example.positives, example.negatives, example.weight]
                yield json.dumps([texts[example.document], *known])


def compact(texts: Sequence[str], examples: Sequence[Example]) -> tuple[list[str], list[Example]]:
    """The texts that examples refer to, and the examples with rows of these."""
    kept = [texts[example.document] for example in examples]
    return kept, [replace(example, document=row) for row, example in enumerate(examples)]


def _read(lines: Iterator[str], count: int) -> tuple[list[str], list[Example]]:
    texts, examples = [], []
    for row in range(count):
        text, labels, probabilities, *known = json.loads(next(lines))
        texts.append(text)
        examples.append(
            Example(row, np.array(labels, dtype=np.int64), np.array(probabilities, dtype=np.float64), *known)
        )
    return texts, examples
