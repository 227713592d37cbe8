"""Texts to model inputs: tokenised once, grouped by length, padded little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Tokens of one pass, padding included: a processor is busy with few, and few pad little;
# an accelerator wants many (not measured).
_TOKENS_PER_PASS_CPU = 2048
_TOKENS_PER_PASS = 16_384
_TEXTS_TOKENISED_AT_ONCE = 256
_CHARACTERS_PER_TOKEN = 4


class Tokenising(Protocol):
    """The part of a `BiEncoder` that turns texts into model inputs."""

    runner: Any
    max_length: int

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """Model inputs of a batch of texts, padded."""


class TokenCache:
    """Model inputs of texts, tokenised once and padded anew for each pass.

    A model whose inputs are not rows of token ids (static embeddings, flattened
    inputs) gets its texts tokenised at each pass instead.

    Args:
        encoder: The model.
        texts: All texts that will be asked for.
    """

    def __init__(self, encoder: Tokenising, texts: Iterable[str]) -> None:
        self._encoder = encoder
        self._rows: dict[str, dict[str, NDArray[np.int32]]] = {}
        self._others: dict[str, Any] = {}
        distinct = sorted(set(texts), key=len)
        for start in range(0, len(distinct), _TEXTS_TOKENISED_AT_ONCE):
            part = distinct[start : start + _TEXTS_TOKENISED_AT_ONCE]
            tensors, self._others = _divided(encoder.features(part))
            if not _is_paddable(tensors):
                return
            kept = tensors["attention_mask"] > 0
            for i, text in enumerate(part):
                self._rows[text] = {name: rows[i, kept[i]] for name, rows in tensors.items()}
        if self._rows:
            tokenizer = encoder.runner.tokenizer
            self._padding = {
                "input_ids": tokenizer.pad_token_id,
                "token_type_ids": tokenizer.pad_token_type_id,
                "attention_mask": 0,
            }
            self._left = tokenizer.padding_side == "left"

    def length(self, text: str) -> int:
        """Tokens of a text; an estimate for models that are tokenised at each pass."""
        if self._rows:
            return len(self._rows[text]["input_ids"])
        return min(len(text) // _CHARACTERS_PER_TOKEN + 1, self._encoder.max_length)

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """Model inputs of a pass, on the model's device, as `BiEncoder.features` would make them."""
        if not self._rows:
            return self._encoder.features(texts)
        rows = [self._rows[text] for text in texts]
        width = max(len(row["input_ids"]) for row in rows)
        device = self._encoder.runner.device
        features = dict(self._others)
        for name in rows[0]:
            padded = np.full((len(rows), width), self._padding[name], dtype=np.int64)
            for target, row in zip(padded, rows, strict=True):
                values = row[name]
                target[width - len(values) if self._left else 0 :][: len(values)] = values
            features[name] = torch.from_numpy(padded).to(device)
        return features


def passes(lengths: Sequence[int], budget: int) -> list[NDArray[np.int64]]:
    """Rows in order of length, cut so that no pass holds more than `budget` padded tokens.

    Args:
        lengths: Tokens of each text.
        budget: Texts in a pass times its longest; a text longer than that is alone.
    """
    order = np.argsort(lengths, kind="stable")
    found, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > budget:
            found.append(order[start:end])
            start = end
    return found


def tokens_per_pass(device: torch.device) -> int:
    """The `budget` of `passes` that suits a device."""
    return _TOKENS_PER_PASS_CPU if device.type == "cpu" else _TOKENS_PER_PASS


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 matrix products."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    vector, matrix = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
    return device.type == "cpu" and bool(vector() or matrix())


def _divided(features: dict[str, Any]) -> tuple[dict[str, NDArray[np.int32]], dict[str, Any]]:
    """Tensors, as arrays, and what else a model is given, the same for any text."""
    tensors = {
        name: value.cpu().numpy().astype(np.int32)
        for name, value in features.items()
        if isinstance(value, Tensor)
    }
    return tensors, {name: value for name, value in features.items() if name not in tensors}


def _is_paddable(tensors: dict[str, NDArray[np.int32]]) -> bool:
    names, shapes = set(tensors), {rows.shape for rows in tensors.values()}
    return (
        {"input_ids", "attention_mask"} <= names <= {"input_ids", "attention_mask", "token_type_ids"}
        and len(shapes) == 1
        and len(shapes.pop()) == 2
    )
