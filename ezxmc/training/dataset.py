"""From targets to batches: who is a positive, who a negative, who is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ezxmc.feedback.targets import Targets
from ezxmc.records import Document, Label


@dataclass(frozen=True, slots=True)
class Example:
    """One document with its judged labels as rows of the label list.

    Attributes:
        document: Row of the document list.
        labels: (J,) int64, all judged labels, the most probable first.
        probabilities: (J,) float64, the teacher's.
        positives: How many of the first `labels` are positives.
        negatives: How many of the last `labels` are negatives.
    """

    document: int
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    positives: int
    negatives: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents and the labels they are scored against.

    Attributes:
        documents: (B,) rows of the document list.
        labels: (C,) int64 rows of the label list, each once, ascending.
        positives: (B, C) float32 weights; 0 is no positive.
        negatives: (B, C) bool.
    """

    documents: list[int]
    labels: NDArray[np.int64]
    positives: NDArray[np.float32]
    negatives: NDArray[np.bool_]


def examples(documents: Sequence[Document], labels: Sequence[Label], targets: Targets) -> list[Example]:
    """The targets of `documents`, in their order; labels no longer in the list are left out."""
    row_of = {label.uid: row for row, label in enumerate(labels)}
    targets_of = {target.doc_uid: target for target in targets.documents}
    found = []
    for row, document in enumerate(documents):
        target = targets_of.get(document.uid)
        if target is None:
            continue
        kept = [i for i, uid in enumerate(target.labels) if uid in row_of]
        if kept:
            found.append(
                Example(
                    row,
                    np.array([row_of[target.labels[i]] for i in kept], dtype=np.int64),
                    target.probabilities[kept],
                    positives=sum(uid in row_of for uid in target.positives),
                    negatives=sum(uid in row_of for uid in target.negatives),
                )
            )
    return found


def batches(
    pool: Sequence[Example], batch_size: int, sampled: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """One epoch of shuffled batches of nearly equal size, at most `batch_size`.

    Args:
        pool: Examples; those without positives are skipped.
        batch_size: Most documents in a batch.
        sampled: Positives drawn per document and batch.
        rng: Source of the order and of the draws.
    """
    usable = [example for example in pool if example.positives]
    if not usable:
        return
    order = rng.permutation(len(usable))
    for part in np.array_split(order, -(-len(order) // batch_size)):
        yield collate([usable[i] for i in part], sampled, rng)


def collate(members: Sequence[Example], sampled: int, rng: np.random.Generator) -> Batch:
    """Put documents together with their sampled positives and own negatives.

    The sampled positives of all members are in-batch negatives, so that labels
    occur as negatives as often as they occur as positives. Never a document's
    negative: its own positives, sampled or not, and every label its teacher
    did not call improbable. A label that is here only as another document's
    judged negative is no negative: nothing is known about it.
    """
    drawn = [rng.permutation(member.positives)[:sampled] for member in members]
    shared = {int(member.labels[i]) for member, picks in zip(members, drawn, strict=True) for i in picks}
    refused = [member.labels[len(member.labels) - member.negatives :] for member in members]
    labels = np.array(sorted(shared.union(*(rows.tolist() for rows in refused))), dtype=np.int64)
    positives = np.zeros((len(members), len(labels)), dtype=np.float32)
    negatives = np.zeros(positives.shape, dtype=np.bool_)
    in_batch = np.isin(labels, list(shared))
    for i, (member, picks, rows) in enumerate(zip(members, drawn, refused, strict=True)):
        not_refused = member.labels[: len(member.labels) - member.negatives]
        negatives[i] = in_batch & ~np.isin(labels, not_refused)
        negatives[i, np.searchsorted(labels, rows)] = True
        positives[i, np.searchsorted(labels, member.labels[picks])] = member.probabilities[picks]
    return Batch([member.document for member in members], labels, positives, negatives)
