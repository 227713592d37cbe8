"""What every loss is given, and how every loss averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of a batch of documents against labels, and what is known about each pair.

    A pair that is neither positive nor negative nor judged is unknown and
    enters no loss. Who is a negative is decided by whoever builds the batch; a
    label that two documents share is a negative of neither.

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
