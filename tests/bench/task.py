"""What the methods compete on: the documents to report on, and all that a method may learn from.

A `Task` holds no gold of the documents it reports on: no method can see it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Refine
from ezxmc.config import TrainingConfig
from ezxmc.data import split_documents
from ezxmc.errors import DataError
from ezxmc.feedback.targets import context_size
from ezxmc.hashing import text_hash
from ezxmc.models import resolve_model
from ezxmc.progress import Progress
from ezxmc.records import Document, Judgment, Label
from ezxmc.retrieval import BiEncoder, LabelIndex

DEPTH = 50
"""Labels ranked for a document at most."""

Ranking = Sequence[Sequence[int] | None]
"""For each document to report on the rows of its labels, best first, at most
`DEPTH`; `None` where the method has nothing to say about the document."""


@dataclass(frozen=True)
class Task:
    """One catalog, divided.

    Attributes:
        labels: L labels.
        report: Documents to rank labels for; never trained on.
        rest: All other documents, without labels.
        gold: Gold label uids of documents of `rest`; for supervised methods only.
        judgments: The teacher's, of shortlisted labels of documents of `rest`.
        context: The teacher's, of all labels on a few documents of `rest`.
        report_judgments: The teacher's, of documents of `report`; for teacher re-ranking only.
        config: How the student is trained; its encoder is every method's.
        proposer: A former student, whose opinion is fused with the teacher's; or `None`.
        watch: Sees the parts of long methods.
    """

    labels: Sequence[Label]
    report: Sequence[Document]
    rest: Sequence[Document]
    gold: dict[str, set[str]]
    judgments: Sequence[Judgment]
    context: Sequence[Judgment]
    report_judgments: Sequence[Judgment]
    config: TrainingConfig
    proposer: str | None
    watch: Progress

    @cached_property
    def titles(self) -> list[str]:
        """What the models see of the labels."""
        return [label.title for label in self.labels]

    def encoder(self) -> BiEncoder:
        """A fresh copy of the initial encoder."""
        return BiEncoder(
            resolve_model(self.config.encoder, kind="encoder"), max_length=self.config.max_length
        )

    def ranked_by(self, encoder: BiEncoder, refine: Refine | None = None) -> list[list[int]]:
        """The labels nearest to each document to report on, by their titles' vectors or by refined ones."""
        vectors = encoder.encode_labels(self.titles)
        index = LabelIndex(refine(encoder, vectors) if refine else vectors)
        documents = encoder.encode_documents(
            [document.shown for document in self.report], progress=self.watch.stage("report documents")
        )
        rows: list[list[int]] = index.search(documents, DEPTH)[1].tolist()
        return rows

    @cached_property
    def untrained(self) -> list[list[int]]:
        """`ranked_by` the initial encoder, computed once."""
        return self.ranked_by(self.encoder())

    def with_gold(self, documents: int, seed: int) -> Task:
        """The same task with the gold of so many documents, drawn by hash of seed and uid.

        Raises:
            DataError: There are fewer.
        """
        if documents > len(self.gold):
            raise DataError(f"only {len(self.gold):,} documents outside the report part have gold labels")
        drawn = sorted(self.gold, key=lambda uid: text_hash("drawn", str(seed), uid))[:documents]
        return replace(self, gold={uid: self.gold[uid] for uid in drawn})

    def with_judgments(self, count: int, seed: int, *, priors: bool) -> Task:
        """The same task with the first `count` judgments, document by document in order of their hash.

        Args:
            count: Judgments in all.
            seed: Of the order of the documents.
            priors: Whether the labels' priors are asked about, as a run of
                that size would (`context_size`), and paid for out of `count`.

        Raises:
            DataError: There are fewer.
        """
        size, context = len(self.labels), list[Judgment]()
        available = dict.fromkeys(judgment.doc_uid for judgment in self.context) if priors else {}
        drawn = sorted(available, key=lambda uid: text_hash("prior", uid))
        for number in range(1, len(drawn) + 1):
            if context_size(self.config, size, max(0, count - number * size)) >= number:
                context = [judgment for judgment in self.context if judgment.doc_uid in drawn[:number]]
        wanted = count - len(context)
        if wanted > len(self.judgments):
            raise DataError(f"{count:,} judgments are more than the {len(self.judgments):,} of shortlists")
        # Sorting is stable: within a document they stay in the order they were given.
        order = sorted(self.judgments, key=lambda judgment: text_hash("drawn", str(seed), judgment.doc_uid))
        return replace(self, judgments=order[:wanted], context=context)

    def set_apart(self, uids: Sequence[str], share: float, seed: int) -> set[str]:
        """The part of a method's own training documents that it chooses by, not learns from."""
        # Seed 0 drew the report part: with it again, hardly anything would be left to set apart.
        return set(split_documents(uids, share, seed + 1)[1])

    def gold_counts(self) -> dict[str, int]:
        """How many gold documents of `rest` each label has; every label is there."""
        found = Counter(label for right in self.gold.values() for label in right)
        return {label.uid: found[label.uid] for label in self.labels}


Need = Literal["judgments", "report_judgments", "gold", "training"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to rank labels.

    Attributes:
        rank: Of a task and a seed.
        uses: The information it uses, for people to read.
        needs: The parts of the task it uses besides texts and encoder.
        seeded: Whether another seed gives another result.
        amount: What `NAME@COUNT` limits to COUNT.
    """

    rank: Callable[[Task, int], Ranking]
    uses: str
    needs: tuple[Need, ...] = ()
    seeded: bool = True
    amount: Literal["judgments", "gold"] | None = None


def best_rows(scores: NDArray[np.floating], above: float) -> list[list[int]]:
    """The best columns of each row of an (n, L) matrix, at most `DEPTH`, only those above `above`."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    kept = np.take_along_axis(scores, order, axis=1) > above
    return [row[keep].tolist() for row, keep in zip(order, kept, strict=True)]
