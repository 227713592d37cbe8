"""LMTX's loss: a triplet margin on the hardest negatives of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ezxmc.training.losses.base import Scored, only, over_positives

_MARGIN = 0.3
_HARDEST = 10
_TEMPERATURE = 0.1


class TripletOHNM(nn.Module):
    """Triplet margin loss with online hard negative mining, as published.

    With H_i the ten negatives of document i that score highest::

        h_ipn = max(0, s_in − s_ip + 0.3)
        r_ipn = softmax_{n∈H_i}(s_in / 0.1 · [h_ipn > 0])
        loss_i = Σ_p w_ip mean_{n∈H_i}(r_ipn h_ipn) / Σ_p w_ip

    Zhang et al., "Zero-Shot Learning Over Large Output Spaces: Utilizing
    Indirect Knowledge Extraction from Large Language Models" (LMTX), arXiv
    2406.09288, read from its code. As there, the softmax carries gradient, a
    triplet that keeps the margin enters it with 0 instead of leaving it, and
    the weighted hinges are averaged, not summed. LMTX gives one random
    positive of weight 1 per document; here every positive given counts.
    Fewer than ten negatives are all taken; a positive without negatives costs
    0; a document without positives does not count.
    """

    def forward(self, batch: Scored) -> Tensor:
        """Scalar loss of (B, C) scores."""
        count = min(_HARDEST, batch.scores.shape[1])
        hardest = only(batch.scores, batch.negatives).topk(count, dim=1)
        rows, columns = batch.positives.nonzero(as_tuple=True)
        rivals = hardest.values[rows]
        real = batch.negatives.gather(1, hardest.indices)[rows]
        hinges = torch.relu(rivals - batch.scores[rows, columns].unsqueeze(1) + _MARGIN)
        shares = torch.softmax(only(rivals / _TEMPERATURE * (hinges > 0), real), dim=1)
        costs = (shares * hinges).sum(dim=1) / real.sum(dim=1).clamp_min(1)
        return over_positives(batch, rows, columns, costs)
