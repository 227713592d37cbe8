"""Decoupled softmax: every positive competes with the negatives, never with another positive."""

from __future__ import annotations

from torch import Tensor, nn

from ezxmc.training.losses.base import Scored, against_negatives, over_positives


class DecoupledSoftmax(nn.Module):
    """Weighted decoupled softmax cross-entropy.

    With s_ij the cosine of document i and label j, w_ij ≥ 0 the weight of a
    positive and N_i the negatives of i::

        loss_i = Σ_p w_ip · −log[ e^{s_ip/τ} / (e^{s_ip/τ} + Σ_{n∈N_i} e^{s_in/τ}) ] / Σ_p w_ip

    With w ∈ {0, 1} and N_i everything but the positives this is DEXML's loss
    (Gupta et al., "Dual-Encoders for Extreme Multi-Label Classification",
    arXiv 2310.10636, ICLR 2024). A positive without negatives costs 0; a
    document without positives does not count.

    Args:
        temperature: τ > 0.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        rows, columns, gaps = against_negatives(batch, self.temperature)
        return over_positives(batch, rows, columns, nn.functional.softplus(gaps))
