"""Sparse evolutionary training: the smallest weights of each label go, random ones come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ezxmc.retrieval.sparse_head import blocks

_LAST = 0.75
"""Share of the steps after which connections stay: new weights need time to grow."""


@dataclass(frozen=True, slots=True)
class Rewiring:
    """When connections change and how many: SET (Mocanu et al., arXiv 1707.04780) with a decaying share.

    The share ζ of a label's weights replaced falls along a half cosine, as in
    RigL (arXiv 1911.11134, section 3), from `fraction` to 0 at three quarters of the steps.

    Attributes:
        steps: Optimiser steps in all.
        interval: Steps between two changes.
        fraction: ζ at the start, in [0, 1].
    """

    steps: int
    interval: int
    fraction: float

    def share(self, step: int) -> float:
        """ζ after so many steps, from 1; 0 where nothing changes."""
        last = _LAST * self.steps
        if step % self.interval or step >= last:
            return 0.0
        return self.fraction * (1 + math.cos(math.pi * step / last)) / 2


def rewire(columns: Tensor, weights: Tensor, width: int, share: float, generator: torch.Generator) -> int:
    """Replace each label's smallest weights by new ones at zero, in place: the layer's answers hardly move.

    Fan-in stays as it is and no label has a column twice. What goes does not come back at once.

    Args:
        columns: (L, F) int16, distinct in a row.
        weights: (L, F) float, aligned.
        width: D, columns there are.
        share: Of the weights of each label, rounded to whole ones.
        generator: Source of the new columns, on the device of `columns`.

    Returns:
        Weights replaced per label.
    """
    fan_in = columns.shape[1]
    count = min(round(share * fan_in), width - fan_in)
    if not count:
        return 0
    for part, chance in random_rows(len(columns), width, generator):
        gone = weights[part].abs().topk(count, dim=1, largest=False).indices
        chance.scatter_(1, columns[part].long(), -1.0)
        fresh = chance.topk(count, dim=1).indices
        columns[part] = columns[part].scatter(1, gone, fresh.to(columns.dtype))
        weights[part] = weights[part].scatter(1, gone, 0.0)
    return count


def random_rows(labels: int, width: int, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
    """Uniform numbers (block, width) for one block of labels after the other; their order draws columns."""
    for part in blocks(labels, width, width):
        shape = (part.stop - part.start, width)
        yield part, torch.rand(shape, generator=generator, device=generator.device)
