"""Distillation losses: functions of scores and of what is known about each pair.

- `BCE`: binary cross-entropy with a learned scale and bias; absolute relevance, not order.
- `DCL`: decoupled contrastive learning; the positive leaves its own denominator.
- `DecoupledSoftmax`: every positive competes with the negatives, never with another positive.
- `ListwiseKL`: the student's ranking of the judged labels becomes the teacher's.
- `MW`: Mann-Whitney; every positive of the batch above every negative of the batch.
- `SoftTopK`: a positive pays for not being among the k best, and for nothing else.
- `TripletOHNM`: LMTX's; a triplet margin on the hardest negatives of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ezxmc.errors import ConfigError
from ezxmc.training.dataset import (
    Loss,
    Scored,
    against_negatives,
    only,
    over_documents,
    over_positives,
    positive,
)

_INITIAL_BIAS = -10.0


class BCE(nn.Module):
    """Sigmoid cross-entropy against soft targets, summed over the known labels of a document.

    With e^a the learned scale, b the learned bias and K_i the known labels of i::

        loss_i = −Σ_{j∈K_i} y_ij log σ(e^a s_ij + b) + (1 − y_ij) log σ(−e^a s_ij − b)
        y_ij = p_ij if judged, else w_ij if positive, else 0 (negative)

    SigLIP's loss (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343, section 3.2)
    with soft targets; as there, the sum over labels is not divided by their number and b starts at −10, since
    nearly all labels are negatives. A document without known labels does not count.

    Args:
        temperature: 1 / initial scale; SigLIP starts at 1 / 10.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(_INITIAL_BIAS))

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        known = batch.judged | batch.negatives | (batch.positives > 0)
        targets = torch.where(batch.judged, batch.probabilities, batch.positives).to(batch.scores.dtype)
        logits = self.log_scale.exp() * batch.scores + self.bias
        costs = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        per_document = costs.masked_fill(~known, 0).sum(dim=1)
        return over_documents(per_document, known.any(dim=1))


class _Tempered(nn.Module):
    """A loss of cosines divided by a temperature τ > 0."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature


class DCL(_Tempered):
    """Decoupled contrastive loss with several weighted positives.

    With s, w, N_i as in `DecoupledSoftmax`::

        loss_i = Σ_p w_ip · (−s_ip/τ + log Σ_{n∈N_i} e^{s_in/τ}) / Σ_p w_ip

    Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848 (there one positive of weight 1). Its
    gradient does not fade when the positive already wins; the loss has no lower bound of 0. A positive
    without negatives costs 0; a document without positives does not count.
    """

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        rows, columns, gaps = against_negatives(batch, self.temperature)
        opposed = batch.negatives.any(dim=1)[rows]
        return over_positives(batch, rows, columns, gaps.masked_fill(~opposed, 0))


class DecoupledSoftmax(_Tempered):
    """Weighted decoupled softmax cross-entropy.

    With s_ij the cosine of document i and label j, w_ij ≥ 0 the weight of a positive and N_i the negatives of
    i::

        loss_i = Σ_p w_ip · −log[ e^{s_ip/τ} / (e^{s_ip/τ} + Σ_{n∈N_i} e^{s_in/τ}) ] / Σ_p w_ip

    With w ∈ {0, 1} and N_i everything but the positives this is DEXML's loss (Gupta et al., "Dual-Encoders
    for Extreme Multi-Label Classification", arXiv 2310.10636, ICLR 2024). A positive without negatives costs
    0; a document without positives does not count.
    """

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        rows, columns, gaps = against_negatives(batch, self.temperature)
        return over_positives(batch, rows, columns, nn.functional.softplus(gaps))


# Keeps the log-odds of a teacher that is quite sure finite: ±13.8.
_LOGIT_MARGIN = 1e-6


class ListwiseKL(_Tempered):
    """Symmetric Kullback-Leibler divergence of two softmaxes over a document's judged labels.

    With J_i the judged labels of document i and p_ij the teacher's probability::

        P_ij = softmax_{j∈J_i}(s_ij / τ),  Q_ij = softmax_{j∈J_i}(logit(p_ij) / τ_t)
        loss_i = ½ [KL(P_i ‖ Q_i) + KL(Q_i ‖ P_i)]

    The form of UniME-V2 (Gu et al., arXiv 2510.13515), which has one
    temperature. Log-odds and cosines have different scales, so each side has
    its own here. A document with fewer than two judged labels does not count.

    Args:
        temperature: τ > 0, of the student's cosines.
        teacher_temperature: τ_t > 0, of the teacher's log-odds.
    """

    def __init__(self, temperature: float, teacher_temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.teacher_temperature = teacher_temperature

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        log_odds = torch.logit(batch.probabilities.to(batch.scores.dtype), eps=_LOGIT_MARGIN)
        student = only(batch.scores / self.temperature, batch.judged).log_softmax(dim=1)
        teacher = only(log_odds / self.teacher_temperature, batch.judged).log_softmax(dim=1)
        # KL(P‖Q) + KL(Q‖P) = Σ (P − Q)(log P − log Q).
        gap = (student - teacher).masked_fill(~batch.judged, 0)
        costs = ((student.exp() - teacher.exp()) * gap).sum(dim=1) / 2
        return over_documents(costs, batch.judged.sum(dim=1) > 1)


_PAIRS_AT_ONCE = 1 << 24


class MW(_Tempered):
    """Pairwise logistic surrogate of 1 − AUC, pooled over the documents.

    Over all positives (i, p) and all negatives (j, n) of the batch::

        loss = Σ w_ip log(1 + e^{−(s_ip − s_jn)/τ}) / Σ w_ip

    Sheikholeslami et al., "Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval", arXiv
    2510.00137 (binary cross-entropy of score differences). Since documents are compared with each other, it
    pulls their scores onto one scale, where one threshold makes sense. 0 without positives or without
    negatives. Time grows with positives × negatives, memory with negatives alone: blocks of pairs are
    computed again for the gradient.
    """

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        rows, columns = batch.positives.nonzero(as_tuple=True)
        winners = batch.scores[rows, columns] / self.temperature
        weights = batch.positives[rows, columns]
        losers = batch.scores.masked_select(batch.negatives) / self.temperature
        size = max(1, _PAIRS_AT_ONCE // max(1, len(losers)))
        blocks = [
            checkpoint(
                _costs,
                winners[start : start + size],
                weights[start : start + size],
                losers,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, max(1, len(winners)), size)
        ]
        return torch.stack(blocks).sum() / positive(weights.sum() * len(losers))


def _costs(winners: Tensor, weights: Tensor, losers: Tensor) -> Tensor:
    """Weighted sum over all pairs of P winners and N losers, scores in units of τ."""
    return weights @ nn.functional.softplus(losers - winners.unsqueeze(1)).sum(dim=1)


# Of an interval of at most 2α: enough for float64.
_HALVINGS = 64


class SoftTopK(_Tempered):
    """Cross-entropy of a differentiable top-k membership.

    Over the positives and negatives j of document i, with α = 1/τ::

        t_i such that Σ_j σ(α s_ij + t_i) = k
        loss_i = −Σ_p w_ip log σ(α s_ip + t_i) / Σ_p w_ip

    DEXML's SoftTop-k (Gupta et al., arXiv 2310.10636). t is found by bisection and differentiated implicitly:
    ∂t/∂x_j = −v_j / Σv with x = α s and v = σ(x + t)(1 − σ(x + t)). Positives share the k places: one that is
    safely in may be lowered in favour of one that is out. A document with at most k candidates costs 0, for
    all of them are in the top k; one without positives does not count.

    Args:
        temperature: τ > 0.
        k: Size of the top, at least 1.
    """

    def __init__(self, temperature: float, k: int = 5) -> None:
        super().__init__(temperature)
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


_TRIPLET_MARGIN = 0.3
_HARDEST = 10
_TRIPLET_TEMPERATURE = 0.1


class TripletOHNM(nn.Module):
    """Triplet margin loss with online hard negative mining, as published.

    With H_i the ten negatives of document i that score highest::

        h_ipn = max(0, s_in − s_ip + 0.3)
        r_ipn = softmax_{n∈H_i}(s_in / 0.1 · [h_ipn > 0])
        loss_i = Σ_p w_ip mean_{n∈H_i}(r_ipn h_ipn) / Σ_p w_ip

    Zhang et al., "Zero-Shot Learning Over Large Output Spaces: Utilizing Indirect Knowledge Extraction from
    Large Language Models" (LMTX), arXiv 2406.09288, read from its code. As there, the softmax carries
    gradient, a triplet that keeps the margin enters it with 0 instead of leaving it, and the weighted hinges
    are averaged, not summed. LMTX gives one random positive of weight 1 per document; here every positive
    given counts. Fewer than ten negatives are all taken; a positive without negatives costs 0; a document
    without positives does not count.
    """

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        count = min(_HARDEST, batch.scores.shape[1])
        hardest = only(batch.scores, batch.negatives).topk(count, dim=1)
        rows, columns = batch.positives.nonzero(as_tuple=True)
        rivals = hardest.values[rows]
        real = batch.negatives.gather(1, hardest.indices)[rows]
        hinges = torch.relu(rivals - batch.scores[rows, columns].unsqueeze(1) + _TRIPLET_MARGIN)
        shares = torch.softmax(only(rivals / _TRIPLET_TEMPERATURE * (hinges > 0), real), dim=1)
        costs = (shares * hinges).sum(dim=1) / real.sum(dim=1).clamp_min(1)
        return over_positives(batch, rows, columns, costs)


__all__ = ["DEFAULT_LOSSES", "LOSSES", "Loss", "Scored", "combined"]

LOSSES: Mapping[str, Callable[[float], nn.Module]] = MappingProxyType(
    {
        "bce": BCE,
        "dcl": DCL,
        "decoupled_softmax": DecoupledSoftmax,
        "listwise_kl": ListwiseKL,
        "mw": MW,
        "soft_topk": SoftTopK,
        # Its margin and softmax are LMTX's, whatever the temperature.
        "triplet_ohnm": lambda temperature: TripletOHNM(),
    }
)

DEFAULT_LOSSES: Mapping[str, float] = MappingProxyType({"decoupled_softmax": 1.0})
"""Where a configuration names none."""


def combined(weights: Mapping[str, float], temperature: float) -> nn.Module:
    """Weighted sum of losses.

    Args:
        weights: Weight (> 0) of each loss by its name in `LOSSES`.
        temperature: τ > 0 of those losses that have one.

    Returns:
        A module from `Scored` to a scalar. Its parameters (the scale and bias
        of `bce`) are to be trained along with the encoder.

    Raises:
        ConfigError: No loss is named, a name is unknown, or a weight is not positive.
    """
    return _Combined(weights, temperature)


class _Combined(nn.Module):
    def __init__(self, weights: Mapping[str, float], temperature: float) -> None:
        super().__init__()
        if unknown := sorted(set(weights) - set(LOSSES)):
            raise ConfigError(f"no loss is called {unknown[0]!r}", f"choose from {', '.join(LOSSES)}")
        if not weights or not all(weight > 0 for weight in weights.values()):
            raise ConfigError(
                f"losses need a positive weight each, not {dict(weights)}",
                "give at least one, such as {decoupled_softmax: 1.0}",
            )
        self.weights = dict(weights)
        self.losses = nn.ModuleDict({name: LOSSES[name](temperature) for name in weights})

    def forward(self, batch: Scored) -> Tensor:
        return torch.stack([self.weights[name] * loss(batch) for name, loss in self.losses.items()]).sum()
