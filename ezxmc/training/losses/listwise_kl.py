"""Listwise distillation: the student's ranking of the judged labels becomes the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ezxmc.training.losses.base import Scored, only, over_documents

# Keeps the log-odds of a teacher that is quite sure finite: ±13.8.
_MARGIN = 1e-6


class ListwiseKL(nn.Module):
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
        super().__init__()
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        log_odds = torch.logit(batch.probabilities.to(batch.scores.dtype), eps=_MARGIN)
        student = only(batch.scores / self.temperature, batch.judged).log_softmax(dim=1)
        teacher = only(log_odds / self.teacher_temperature, batch.judged).log_softmax(dim=1)
        # KL(P‖Q) + KL(Q‖P) = Σ (P − Q)(log P − log Q).
        gap = (student - teacher).masked_fill(~batch.judged, 0)
        costs = ((student.exp() - teacher.exp()) * gap).sum(dim=1) / 2
        return over_documents(costs, batch.weights * (batch.judged.sum(dim=1) > 1))
