"""From vectors to the loss: scores, Matryoshka prefixes, and labels that may be positives after all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ezxmc.training.dataset import Batch
from ezxmc.training.losses import Scored

_LIKELY = 0.95


def prefix(vectors: Tensor, dimension: int) -> Tensor:
    """(N, dimension) unit rows: the first components of (N, D) rows, of unit length again."""
    return torch.nn.functional.normalize(vectors[:, :dimension], dim=1)


def scored(scores: Tensor, batch: Batch) -> Scored:
    """(B, C) cosines beside what `batch` knows of each pair, on the device of `scores`."""
    device = scores.device
    return Scored(
        scores,
        torch.from_numpy(batch.positives).to(device),
        torch.from_numpy(batch.negatives).to(device),
        torch.from_numpy(batch.probabilities).to(device),
        torch.from_numpy(batch.judged).to(device),
        torch.from_numpy(batch.weights).to(device),
    )


def without_likely_positives(batch: Scored) -> Scored:
    """Take unjudged labels off the negatives that score nearly as high as a positive.

    Positive-aware mining (NV-Retriever, arXiv 2407.15831, TopK-PercPos): a label
    nobody judged is no negative of a document if the present student scores it
    at 0.95 of the document's lowest positive score or more. Judged negatives
    stay, however high they score.
    """
    scores = batch.scores.detach()
    lowest = scores.masked_fill(batch.positives == 0, torch.inf).amin(dim=1, keepdim=True)
    likely = ~batch.judged & (scores >= _LIKELY * lowest)
    return replace(batch, negatives=batch.negatives & ~likely)


def matryoshka_loss(
    loss: Callable[[Scored], Tensor],
    documents: Tensor,
    labels: Tensor,
    batch: Batch,
    dimensions: list[int],
) -> Tensor:
    """Sum of the losses of several prefixes of the same vectors.

    Matryoshka representation learning (Kusupati et al., arXiv 2205.13147,
    equation 1, all weights 1); each prefix is brought to unit length first.

    Args:
        loss: Of one set of scores.
        documents: (B, D).
        labels: (C, D).
        batch: What is known of the (B, C) pairs.
        dimensions: Lengths of the prefixes, D itself among them.

    Returns:
        Scalar.
    """
    return torch.stack(
        [
            loss(scored(prefix(documents, dimension) @ prefix(labels, dimension).T, batch))
            for dimension in dimensions
        ]
    ).sum()
