"""Decoupled contrastive learning: the positive leaves its own denominator."""

from __future__ import annotations

from torch import Tensor, nn

from ezxmc.training.losses.base import Scored, against_negatives, over_positives


class DCL(nn.Module):
    """Decoupled contrastive loss with several weighted positives.

    With s, w, N_i as in `DecoupledSoftmax`::

        loss_i = Σ_p w_ip · (−s_ip/τ + log Σ_{n∈N_i} e^{s_in/τ}) / Σ_p w_ip

    Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848 (there
    one positive of weight 1). Its gradient does not fade when the positive already
    wins; the loss has no lower bound of 0. A positive without negatives costs
    0; a document without positives does not count.

    Args:
        temperature: τ > 0.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        rows, columns, gaps = against_negatives(batch, self.temperature)
        opposed = batch.negatives.any(dim=1)[rows]
        return over_positives(batch, rows, columns, gaps.masked_fill(~opposed, 0))
