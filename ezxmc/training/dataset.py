"""From targets to batches: who is a positive, who a negative, who is left out; and how losses average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezxmc.feedback.targets import Targets
from ezxmc.records import Document, Label

# Batches in a window of like lengths.
_WINDOW = 4
_SAMPLED = 2  # positives of a document


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
    """Documents, the labels they are scored against, and what is known about each pair.

    Attributes:
        documents: (B,) rows of the document list.
        labels: (C,) int64 rows of the label list, each once, ascending.
        positives: (B, C) float32 weights; 0 is no positive.
        negatives: (B, C) bool.
        probabilities: (B, C) float32, the teacher's; 0 where it did not judge.
        judged: (B, C) bool.
    """

    documents: list[int]
    labels: NDArray[np.int64]
    positives: NDArray[np.float32]
    negatives: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    judged: NDArray[np.bool_]


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


def length_grouped(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """One epoch of shuffled batches of nearly equal size, each of texts of like length.

    As in transformers' `LengthGroupedSampler`, the shuffled texts are cut into windows of a few batches and
    sorted within each; here the batches of all windows are then shuffled, so that long and short ones
    alternate. A window is small beside an epoch: what else documents of one length have in common must not
    fill a batch.

    Args:
        lengths: N lengths.
        batch_size: Most texts in a batch.
        rng: Source of the order.

    Returns:
        Rows of `lengths`, each once; ⌈N / batch_size⌉ batches.
    """
    order = rng.permutation(len(lengths))
    sizes = [len(part) for part in np.array_split(order, max(1, -(-len(order) // batch_size)))]
    window_of = np.repeat(np.arange(len(sizes)) // _WINDOW, sizes)
    by_length = order[np.lexsort((np.asarray(lengths)[order], window_of))]
    parts = np.split(by_length, np.cumsum(sizes)[:-1])
    return [parts[i] for i in rng.permutation(len(parts)) if len(parts[i])]


def collate_in_batch(members: Sequence[Example], sampled: int, rng: np.random.Generator) -> Batch:
    """Score documents against each other's sampled positives and against their judged labels.

    The sampled positives of all members are in-batch negatives, so that labels occur as negatives as often as
    they occur as positives. Never a document's negative: its own positives, sampled or not, and every label
    its teacher did not call improbable. A label that is here only because another document was judged on it
    is no negative: nothing is known about it.

    Args:
        members: The batch's documents.
        sampled: Positives drawn per document.
        rng: Source of the draws.
    """
    drawn = [member.labels[rng.permutation(member.positives)[:sampled]] for member in members]
    batch = _judgments(members, np.unique(np.concatenate([member.labels for member in members])))
    in_batch = np.isin(batch.labels, np.concatenate(drawn))
    batch.negatives[:, in_batch] |= ~batch.judged[:, in_batch]
    for row, picks in zip(batch.positives, drawn, strict=True):
        row[~np.isin(batch.labels, picks)] = 0
    return batch


def collate_all(members: Sequence[Example], labels: int) -> Batch:
    """Score documents against every label.

    Negatives of a document are the labels its teacher refused and all it did not judge. Many of the latter
    are positives nobody found: see `without_likely_positives`.

    Args:
        members: The batch's documents.
        labels: How many labels there are.
    """
    batch = _judgments(members, np.arange(labels))
    np.logical_or(batch.negatives, ~batch.judged, out=batch.negatives)
    return batch


def collate(members: Sequence[Example], labels: int, every_label: bool, rng: np.random.Generator) -> Batch:
    """`collate_all`, or `collate_in_batch` with the positives that are drawn in all training here."""
    return collate_all(members, labels) if every_label else collate_in_batch(members, _SAMPLED, rng)


def _judgments(members: Sequence[Example], labels: NDArray[np.int64]) -> Batch:
    """A batch of what the teacher said: all its positives, and no negative but those it refused."""
    shape = (len(members), len(labels))
    positives, probabilities = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    negatives, judged = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    for i, member in enumerate(members):
        columns = np.searchsorted(labels, member.labels)
        judged[i, columns] = True
        probabilities[i, columns] = member.probabilities
        positives[i, columns[: member.positives]] = member.probabilities[: member.positives]
        negatives[i, columns[len(columns) - member.negatives :]] = True
    documents = [member.document for member in members]
    return Batch(documents, labels, positives, negatives, probabilities, judged)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of a batch of documents against labels, and what is known about each pair.

    A pair that is neither positive nor negative nor judged is unknown and enters no loss. Who is a negative
    is decided by whoever builds the batch; a label that two documents share is a negative of neither.

    Attributes:
        scores: (B, C) float, cosines s, with gradient.
        positives: (B, C) float, weight w of a positive; 0 is no positive.
        negatives: (B, C) bool; False for every known or likely positive.
        probabilities: (B, C) float, the teacher's p in [0, 1]; 0 where nothing was judged.
        judged: (B, C) bool; may overlap with positives and negatives.
    """

    scores: Tensor
    positives: Tensor
    negatives: Tensor
    probabilities: Tensor
    judged: Tensor


class Loss(Protocol):
    """Scalar cost of a batch; finite, with finite gradients, whatever is missing in it."""

    def __call__(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        ...


def over_documents(costs: Tensor, counts: Tensor) -> Tensor:
    """Mean of documents' costs; 0 if none counts.

    Args:
        costs: (B,) float.
        counts: (B,) bool, whether a document does.

    Returns:
        Scalar.
    """
    return (costs * counts).sum() / counts.sum().clamp_min(1)


def over_positives(batch: Scored, rows: Tensor, columns: Tensor, costs: Tensor) -> Tensor:
    """Weighted mean over each document's positives, then over the documents that have any.

    Args:
        batch: Gives w.
        rows: (P,) int64, document of each positive, as of `batch.positives.nonzero()`.
        columns: (P,) int64, its label.
        costs: (P,) float.

    Returns:
        Scalar: the mean of Σ_p w_ip cost_ip / Σ_p w_ip over documents i with positives.
    """
    total = batch.positives.sum(dim=1)
    terms = batch.positives[rows, columns] / total[rows] * costs
    per_document = terms.new_zeros(len(total)).index_add(0, rows, terms)
    return over_documents(per_document, total > 0)


def against_negatives(batch: Scored, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """How far each positive lies under its document's negatives, all of them pooled by logsumexp.

    Args:
        batch: B documents with P positives in all.
        temperature: τ > 0.

    Returns:
        (P,) documents, (P,) labels, as of `batch.positives.nonzero()`, and the (P,) gaps
        log Σ_{n∈N_i} e^{s_in/τ} − s_ip/τ; hugely negative without negatives.
    """
    logits = batch.scores / temperature
    against = torch.logsumexp(only(logits, batch.negatives), dim=1)
    rows, columns = batch.positives.nonzero(as_tuple=True)
    return rows, columns, against[rows] - logits[rows, columns]


def positive(value: Tensor) -> Tensor:
    """`value` (≥ 0), with 0 made the least positive number: a safe denominator of 0."""
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def only(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with the lowest finite number outside `mask`: e to it is 0, and no gradient is NaN."""
    return values.masked_fill(~mask, torch.finfo(values.dtype).min)
