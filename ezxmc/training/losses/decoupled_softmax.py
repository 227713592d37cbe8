"""Decoupled softmax: every positive competes with the negatives, never with another positive."""

from __future__ import annotations

import torch
from torch import Tensor


def decoupled_softmax(scores: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Weighted decoupled softmax cross-entropy, averaged over documents.

    With s_ij the cosine of document i and label j, w_ij ≥ 0 the weight of a
    positive and N_i the negatives of i::

        loss_i = Σ_p w_ip · −log[ e^{s_ip/τ} / (e^{s_ip/τ} + Σ_{n∈N_i} e^{s_in/τ}) ] / Σ_p w_ip

    With w ∈ {0, 1} and N_i everything but the positives this is DEXML's loss
    (Gupta et al., "Dual-Encoders for Extreme Multi-Label Classification",
    arXiv 2310.10636, ICLR 2024). Labels that are neither positive nor negative
    do not enter: nobody knows about them.

    Args:
        scores: (B, C) float, cosines.
        positives: (B, C) float, w; 0 where the label is no positive.
        negatives: (B, C) bool; must be False wherever w > 0.
        temperature: τ > 0.

    Returns:
        Scalar. A document without positives adds 0 and does not count in the
        average; a positive without negatives costs 0.
    """
    logits = scores / temperature
    # The lowest finite number, not −inf: a row without negatives must have gradient 0, not NaN.
    lowest = torch.finfo(logits.dtype).min
    against = torch.logsumexp(logits.masked_fill(~negatives, lowest), dim=1, keepdim=True)
    costs = torch.nn.functional.softplus(against - logits)
    total = positives.sum(dim=1)
    per_document = (positives * costs).sum(dim=1) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return per_document.sum() / (total > 0).sum().clamp_min(1)
