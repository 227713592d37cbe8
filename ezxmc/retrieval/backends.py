"""The encoder's forward pass outside PyTorch: one ONNX file, run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ezxmc.config import Backend, Precision
from ezxmc.errors import ConfigError, ModelError
from ezxmc.retrieval.tokens import has_fast_bfloat16

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

    auto: with onnx int8; else bfloat16 where the device has instructions for
    it, float32 elsewhere.

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
        extra = "openvino" if name == "openvino" else "onnx"
        raise ModelError(
            f"package {name.partition('.')[0]} is missing: {error}", f"pip install 'ezxmc[{extra}]'"
        ) from error
