"""Distillation losses, one file each: functions of scores and of what is known about each pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ezxmc.errors import ConfigError
from ezxmc.training.losses.base import Loss, Scored
from ezxmc.training.losses.bce import BCE
from ezxmc.training.losses.dcl import DCL
from ezxmc.training.losses.decoupled_softmax import DecoupledSoftmax
from ezxmc.training.losses.listwise_kl import ListwiseKL
from ezxmc.training.losses.mw import MW
from ezxmc.training.losses.soft_topk import SoftTopK
from ezxmc.training.losses.triplet_ohnm import TripletOHNM

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
