"""Texts to vectors with gradient: tokenised once, little padding, in the faster precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezxmc.retrieval.encoder import BiEncoder

Precision = Literal["auto", "float32", "bfloat16"]

# Tokens of one pass, padding included: a processor is busy with few, and few pad little;
# an accelerator wants many (not measured).
_TOKENS_PER_PASS_CPU = 2048
_TOKENS_PER_PASS = 16_384
_TEXTS_TOKENISED_AT_ONCE = 256
_CHARACTERS_PER_TOKEN = 4


class Embedder:
    """A student's forward pass over texts that are known beforehand.

    Args:
        encoder: The student.
        texts: All texts that will be embedded; they are tokenised here, once.
        precision: As in the configuration; the weights stay float32.
    """

    def __init__(self, encoder: BiEncoder, texts: Iterable[str], precision: Precision = "auto") -> None:
        self.encoder = encoder
        self.dtype = computing_dtype(precision, encoder.model.device)
        self._tokens = TokenCache(encoder, texts)

    def length(self, text: str) -> int:
        """Tokens of one of the texts."""
        return self._tokens.length(text)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 rows with gradient, not yet of unit length."""
        # No dropout: measured, one or two epochs gain nothing from it, and without it a
        # step takes two thirds of the time and half the memory.
        model = self.encoder.model.eval()
        device = model.device
        budget = _TOKENS_PER_PASS_CPU if device.type == "cpu" else _TOKENS_PER_PASS
        rows = passes([self.length(text) for text in texts], budget)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            parts = [
                model(self._tokens.features([texts[i] for i in part]))["sentence_embedding"] for part in rows
            ]
        back = torch.from_numpy(np.argsort(np.concatenate(rows))).to(device)
        # A checkpoint may ask for its vectors to be cut.
        return torch.cat(parts).float()[back, : self.encoder.dimension]


class TokenCache:
    """Model inputs of texts, tokenised once and padded anew for each pass.

    A model whose inputs are not rows of token ids (static embeddings, flattened
    inputs) gets its texts tokenised at each pass instead.

    Args:
        encoder: The model.
        texts: All texts that will be asked for.
    """

    def __init__(self, encoder: BiEncoder, texts: Iterable[str]) -> None:
        self._encoder = encoder
        model = encoder.model
        # What `SentenceTransformer.encode` puts before a text where it is told nothing else.
        self._prompt: str = model.prompts.get(model.default_prompt_name) or ""
        self._rows: dict[str, dict[str, NDArray[np.int32]]] = {}
        self._others: dict[str, Any] = {}
        distinct = sorted(set(texts), key=len)
        for start in range(0, len(distinct), _TEXTS_TOKENISED_AT_ONCE):
            part = distinct[start : start + _TEXTS_TOKENISED_AT_ONCE]
            tensors, self._others = _divided(self._tokenised(part))
            if not _is_paddable(tensors):
                return
            kept = tensors["attention_mask"] > 0
            for i, text in enumerate(part):
                self._rows[text] = {name: rows[i, kept[i]] for name, rows in tensors.items()}
        if self._rows:
            tokenizer = model.tokenizer
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
        """Model inputs of a pass, on the model's device, as `BiEncoder` would make them."""
        if not self._rows:
            return self._tokenised(texts)
        rows = [self._rows[text] for text in texts]
        width = max(len(row["input_ids"]) for row in rows)
        device = self._encoder.model.device
        features = dict(self._others)
        for name in rows[0]:
            padded = np.full((len(rows), width), self._padding[name], dtype=np.int64)
            for target, row in zip(padded, rows, strict=True):
                values = row[name]
                target[width - len(values) if self._left else 0 :][: len(values)] = values
            features[name] = torch.from_numpy(padded).to(device)
        return features

    def _tokenised(self, texts: Sequence[str]) -> dict[str, Any]:
        return self._encoder.features([self._prompt + text for text in texts])


def computing_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type a student's matrix products are computed in.

    auto: bfloat16 on CUDA devices and processors that have instructions for it.
    Measured (all-MiniLM-L6-v2, 48 texts of 100 to 256 tokens, forward and
    backward, one core of an AMD EPYC with AVX-512 bf16): 3.3 s a step, 7.4 s in
    float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.bfloat16 if fast else torch.float32


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
