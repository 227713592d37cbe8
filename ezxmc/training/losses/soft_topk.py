"""Soft top-k: a positive pays for not being among the k best, and for nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ezxmc.training.losses.base import Scored, only, over_positives

# Of an interval of at most 2α: enough for float64.
_HALVINGS = 64


class SoftTopK(nn.Module):
    """Cross-entropy of a differentiable top-k membership.

    Over the positives and negatives j of document i, with α = 1/τ::

        t_i such that Σ_j σ(α s_ij + t_i) = k
        loss_i = −Σ_p w_ip log σ(α s_ip + t_i) / Σ_p w_ip

    DEXML's SoftTop-k (Gupta et al., arXiv 2310.10636). t is found by
    bisection and differentiated implicitly: ∂t/∂x_j = −v_j / Σv with
    x = α s and v = σ(x + t)(1 − σ(x + t)). Positives share the k places: one
    that is safely in may be lowered in favour of one that is out. A document
    with at most k candidates costs 0, for all of them are in the top k; one
    without positives does not count.

    Args:
        temperature: τ > 0.
        k: Size of the top, at least 1.
    """

    def __init__(self, temperature: float, k: int = 5) -> None:
        super().__init__()
        self.temperature = temperature
        self.k = k

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        candidates = batch.negatives | (batch.positives > 0)
        logits = batch.scores / self.temperature
        threshold = soft_threshold(logits, candidates, self.k)
        rows, columns = batch.positives.nonzero(as_tuple=True)
        costs = nn.functional.softplus(-(logits[rows, columns] + threshold[rows]))
        crowded = candidates.sum(dim=1)[rows] > self.k
        return over_positives(batch, rows, columns, costs.masked_fill(~crowded, 0))


def soft_threshold(logits: Tensor, candidates: Tensor, k: int) -> Tensor:
    """The shift that makes the candidates' sigmoids sum to k.

    Args:
        logits: (B, C) float, x.
        candidates: (B, C) bool.
        k: At least 1.

    Returns:
        (B,) t with Σ_{j∈candidates} σ(x_j + t) = k, differentiable in x; 0,
        with gradient 0, in rows of at most k candidates.
    """
    shift: Tensor = _Threshold.apply(logits, candidates, k)  # type: ignore[no-untyped-call]
    return shift


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, candidates: Tensor, k: int) -> Tensor:
        crowded = candidates.sum(dim=1) > k
        shift = torch.where(crowded, _bisect(logits, candidates, k), 0)
        ctx.save_for_backward(logits, candidates, shift, crowded)
        return shift

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, candidates, shift, crowded = ctx.saved_tensors
        shifted = logits + shift.unsqueeze(1)
        # v / Σv as a softmax of log v: v itself may be 0 in float32 where scores lie far apart.
        log_v = nn.functional.logsigmoid(shifted) + nn.functional.logsigmoid(-shifted)
        shares = torch.softmax(only(log_v, candidates), dim=1)
        return -shares * (gradients[0] * crowded).unsqueeze(1), None, None


def _bisect(logits: Tensor, candidates: Tensor, k: int) -> Tensor:
    """(B,) t of the rows with more than k candidates; any number, or NaN, in the others."""
    rest = logits.masked_fill(~candidates, -torch.inf)
    top = rest.topk(min(k, rest.shape[1]), dim=1)
    rest.scatter_(1, top.indices, -torch.inf)
    lowest = logits.masked_fill(~candidates, torch.inf).amin(dim=1)
    level = torch.logit(k / candidates.sum(dim=1, dtype=logits.dtype))  # the solution if all scores were 0
    low, high = level - top.values[:, 0], level - lowest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shift = middle.unsqueeze(1)
        # Σσ − k as what the rest has minus what the top lacks: no digits cancel.
        surplus = torch.sigmoid(rest + shift).sum(dim=1) - torch.sigmoid(-top.values - shift).sum(dim=1)
        low, high = torch.where(surplus < 0, middle, low), torch.where(surplus < 0, high, middle)
    return (low + high) / 2
