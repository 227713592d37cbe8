"""Texts to model inputs, and what runs the model.

Texts are tokenised once, grouped by length, padded little. Outside PyTorch the forward pass is one ONNX
file, run by ONNX Runtime or OpenVINO.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezxmc.config import Backend, Precision
from ezxmc.errors import ConfigError, ModelError

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


Forward = Callable[[Mapping[str, Any]], NDArray[np.float32]]
"""From model inputs, (N, T) int64 tensors on the processor, to (N, D) float32 rows of unit length."""

_PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "torch": ("float32", "bfloat16"),
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "bfloat16"),
}
OUTPUT = "unit_rows"
"""Of a converted model. Not "embedding": the exporter names inner results after operations."""


def choose_precision(backend: Backend, precision: Precision, device: torch.device) -> Precision:
    """Check a backend with a precision, and resolve "auto".

    auto: with onnx int8; else bfloat16 where the device has instructions for it, float32 elsewhere.

    Raises:
        ConfigError: The backend is unknown, or does not compute in that precision.
    """
    if backend not in _PRECISIONS:
        raise ConfigError(f"no backend is called {backend!r}", f"choose of {', '.join(_PRECISIONS)}")
    known = _PRECISIONS[backend]
    if precision == "auto":
        if "int8" in known:
            return "int8"
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision not in known:
        raise ConfigError(
            f"backend {backend} does not compute in {precision}", f"choose of auto, {', '.join(known)}"
        )
    return precision


def to_bfloat16(model: torch.nn.Module) -> None:
    """Keep the weights of linear layers in bfloat16, for use under autocast.

    Autocast alone would convert them anew for every batch, which costs more
    than the batch where it is a single document.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)


def onnx_name(precision: Precision) -> str:
    """The converted model's file, relative to the student's folder; bfloat16 is rounded to as it runs."""
    return f"onnx/embedding_{'int8' if precision == 'int8' else 'float32'}.onnx"


def open_converted(student: Path, backend: Backend, precision: Precision) -> Forward:
    """A converted model, run on the processor on as many threads as torch uses.

    Args:
        student: The sentence-transformers folder it was converted from, and lies in.
        backend: onnx or openvino.
        precision: One of the backend's.

    Raises:
        ModelError: The backend is not installed, or there is no converted
            model of that precision, or it cannot be read.
    """
    runtime = package("onnxruntime" if backend == "onnx" else "openvino")
    file = student / onnx_name(precision)
    command = f"ezxmc export BUNDLE --backend {backend} --precision {precision}"
    if not file.is_file():
        raise ModelError(f"{student} holds no {onnx_name(precision)}", f"convert the model: {command}")
    try:
        if backend == "onnx":
            return _onnxruntime(runtime, file)
        return _openvino(runtime, file, "bf16" if precision == "bfloat16" else "f32")
    except Exception as error:  # the runtimes' own classes share no other base
        raise ModelError(f"{file} cannot be run: {error}", f"convert the model again: {command}") from error


def _onnxruntime(runtime: Any, file: Path) -> Forward:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    names = [told.name for told in session.get_inputs()]

    def forward(features: Mapping[str, Any]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = session.run([OUTPUT], {name: features[name].numpy() for name in names})[0]
        return rows

    return forward


def _openvino(runtime: Any, file: Path, precision: str) -> Forward:
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = runtime.Core()
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    names = [told.any_name for told in compiled.inputs]
    request, lock = compiled.create_infer_request(), Lock()

    def forward(features: Mapping[str, Any]) -> NDArray[np.float32]:
        with lock:  # a request serves one caller at a time
            rows: NDArray[np.float32] = request.infer({name: features[name].numpy() for name in names})[0]
        return rows

    return forward


def package(name: str) -> Any:
    """Import a package of an optional extra.

    Raises:
        ModelError: It is not installed; names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        extra = {"openvino": "openvino", "peft": "lora"}.get(name, "onnx")
        raise ModelError(
            f"package {name.partition('.')[0]} is missing: {error}", f"pip install 'ezxmc[{extra}]'"
        ) from error
