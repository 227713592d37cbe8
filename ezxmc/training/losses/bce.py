"""Binary cross-entropy with a learned scale and bias: absolute relevance, not order."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ezxmc.training.losses.base import Scored, over_documents

_INITIAL_BIAS = -10.0


class BCE(nn.Module):
    """Sigmoid cross-entropy against soft targets, summed over the known labels of a document.

    With e^a the learned scale, b the learned bias and K_i the known labels of i::

        loss_i = −Σ_{j∈K_i} y_ij log σ(e^a s_ij + b) + (1 − y_ij) log σ(−e^a s_ij − b)
        y_ij = p_ij if judged, else w_ij if positive, else 0 (negative)

    SigLIP's loss (Zhai et al., "Sigmoid Loss for Language Image Pre-Training",
    arXiv 2303.15343, section 3.2) with soft targets; as there, the sum over
    labels is not divided by their number and b starts at −10, since nearly all
    labels are negatives. A document without known labels does not count.

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
        return over_documents(per_document, batch.weights * known.any(dim=1))
