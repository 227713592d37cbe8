"""Mann-Whitney loss: every positive of the batch above every negative of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ezxmc.training.losses.base import Scored, positive

_PAIRS_AT_ONCE = 1 << 24


class MW(nn.Module):
    """Pairwise logistic surrogate of 1 − AUC, pooled over the documents.

    Over all positives (i, p) and all negatives (j, n) of the batch::

        loss = Σ W_i w_ip W_j log(1 + e^{−(s_ip − s_jn)/τ}) / Σ W_i w_ip W_j

    Sheikholeslami et al., "Optimizing What Matters: AUC-Driven Learning for
    Robust Neural Retrieval", arXiv 2510.00137 (binary cross-entropy of score
    differences). Since documents are compared with each other, it pulls their
    scores onto one scale, where one threshold makes sense. 0 without positives
    or without negatives. Time grows with positives × negatives, memory with
    negatives alone: blocks of pairs are computed again for the gradient.

    Args:
        temperature: τ > 0.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        rows, columns = batch.positives.nonzero(as_tuple=True)
        winners = batch.scores[rows, columns] / self.temperature
        winner_weights = batch.weights[rows] * batch.positives[rows, columns]
        losers = batch.scores.masked_select(batch.negatives) / self.temperature
        loser_weights = batch.weights.unsqueeze(1).expand_as(batch.negatives).masked_select(batch.negatives)
        size = max(1, _PAIRS_AT_ONCE // max(1, len(losers)))
        blocks = [
            checkpoint(
                _costs,
                winners[start : start + size],
                winner_weights[start : start + size],
                losers,
                loser_weights,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, max(1, len(winners)), size)
        ]
        return torch.stack(blocks).sum() / positive(winner_weights.sum() * loser_weights.sum())


def _costs(winners: Tensor, winner_weights: Tensor, losers: Tensor, loser_weights: Tensor) -> Tensor:
    """Weighted sum over all pairs of P winners and N losers, scores in units of τ."""
    pairs = nn.functional.softplus(losers - winners.unsqueeze(1))
    return winner_weights @ (pairs @ loser_weights)
