"""An optimiser that keeps one number per label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RowAdagrad(torch.optim.Optimizer):
    """AdaGrad (Duchi et al., JMLR 2011) with one sum of squares per row, as large embedding tables have it.

    G_l ← G_l + mean_f g_lf², w_lf ← w_lf − lr g_lf / √G_l. A label that is
    rarely right keeps a high rate, and weights that come and go leave no state behind.

    Args:
        parameters: Tensors (L, ...).
        lr: Rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                flat = parameter.grad.reshape(len(parameter), -1)
                state = self.state[parameter]
                if not state:
                    state["squares"] = parameter.new_zeros((len(parameter), 1))
                # einsum, not square().mean(): no second copy of the gradient.
                state["squares"] += torch.einsum("lf,lf->l", flat, flat)[:, None] / flat.shape[1]
                root = state["squares"].sqrt().clamp_min_(1e-10)
                parameter.view_as(flat).addcdiv_(flat, root.expand_as(flat), value=-group["lr"])
