"""Which weights of an encoder learn: nearly all, or of a large one additions of low rank alone (LoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ezxmc.retrieval.backends import package

LARGE = 300_000_000
"""Encoders of more weights, word vectors included, learn by additions."""
RATE = 1e-4
SHORT = 128  # tokens
_RANK, _ALPHA = 16, 32
_MANY_WORDS = 100_000


def is_large(model: Any) -> bool:
    """Whether a `SentenceTransformer`, or what runs for it, is a transformer of over `LARGE` weights."""
    transformer = getattr(model, "transformers_model", model) is not None
    return transformer and sum(weights.numel() for weights in model.parameters()) > LARGE


def needed(model: Any) -> Any:
    """The package `peft`, without which a large encoder is not trained; `None` of any other encoder.

    Raises:
        ModelError: It is not installed.
    """
    return package("peft") if is_large(model) else None


class LearningWeights:
    """The weights of an encoder that a training may change; the others are left without gradients.

    Of a large encoder each linear layer W of the transformer gets an addition 2BA of rank 16 (LoRA, arXiv
    2106.09685), and nothing else learns: one or two weights in a hundred have gradients and moments.
    Rank and rate are those by which e5-mistral was made (arXiv 2401.00368), all linear layers as in QLoRA
    (arXiv 2305.14314); without dropout, as in all training here. Of others all learn, but for the word
    vectors of a vocabulary of many languages: most of its words never occur, they are nine tenths of such a
    model, and the optimiser would move all of them at every step.

    Args:
        model: The `SentenceTransformer`; its layers change in place until `settle`.

    Raises:
        ModelError: The encoder is large, and `peft` is not installed.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._tuner = model, None
        if peft := needed(model):
            model.requires_grad_(False)
            options = peft.LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules="all-linear")
            self._tuner = peft.LoraModel(model.transformers_model, options, "default")
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings > _MANY_WORDS:
                module.requires_grad_(False)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """A copy of the encoder's present weights under their own names, with what was added to them."""
        state = {
            name.replace(".base_layer.", "."): value.clone()
            for name, value in self._model.state_dict().items()
            if ".lora_" not in name
        }
        for name, layer in self._model.named_modules() if self._tuner else ():
            if hasattr(layer, "get_delta_weight"):
                state[f"{name}.weight"] += layer.get_delta_weight("default")
        return state

    def settle(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """End learning: give the encoder some weights, by default `merged`, and its own layers back."""
        weights = self.merged() if weights is None else weights
        if self._tuner:
            self._tuner.unload()
            self._tuner = None
        self._model.load_state_dict(weights)


def is_recomputed(model: Any, longest: int) -> bool:
    """Whether activations over texts of so many tokens are too many to be kept."""
    fits = longest <= SHORT and model.device.type == "cpu"
    able = getattr(model.transformers_model, "supports_gradient_checkpointing", False)
    return is_large(model) and bool(able) and not fits


def recomputing(model: Any, longest: int) -> list[torch.nn.Module]:
    """Let a transformer's layers compute activations again for the backward pass, if `is_recomputed`.

    Returns:
        These layers. Each does so while its own `training` is true, which `eval` undoes; that of its parts is
        to stay false, for no dropout.
    """
    if not is_recomputed(model, longest):
        return []
    model.transformers_model.gradient_checkpointing_enable({"use_reentrant": False})
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
