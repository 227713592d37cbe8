"""A student converted to one ONNX file, and how well that agrees with it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ezxmc.config import Backend, Precision
from ezxmc.errors import ConfigError, ModelError
from ezxmc.records import Result
from ezxmc.retrieval.backends import OUTPUT, choose_precision, onnx_name, package
from ezxmc.retrieval.encoder import BiEncoder

_OPSET = 18
_COMPARED = 64  # texts
# Rounding to 8 bits leaves 0.95 and more; a wrong conversion leaves nothing.
_AGREES = 0.9


@dataclass(frozen=True, slots=True)
class Conversion(Result):
    """A converted model.

    Attributes:
        name: Its file, relative to the folder.
        precision: What it computes in.
        bytes: Size of the file.
        cosine_mean: Of its vectors with the student's own, over texts.
        cosine_least: The same, the worst text.
    """

    name: str
    precision: Precision
    bytes: int
    cosine_mean: float
    cosine_least: float


def convert(
    encoder: BiEncoder, folder: Path, texts: Sequence[str], *, backend: Backend, precision: Precision = "auto"
) -> Conversion:
    """Convert a student for `BiEncoder(folder, backend=..., precision=...)`.

    The file goes from token ids to unit rows, batch and length left open. int8: weights per output channel,
    of 7 bits, so that no sum overflows on processors without VNNI; activations per batch, while it runs
    (dynamic quantisation), so that no documents are needed to convert.

    Args:
        encoder: The student, in float32.
        folder: Where to write: the student's folder, or one whose file is moved there.
        texts: Some are encoded in both ways and compared; at least one.
        backend: onnx or openvino.
        precision: One of the backend's.

    Raises:
        ModelError: A package is missing, the model cannot be converted, or the converted model says something
            else.
        ConfigError: Backend and precision do not go together, or there is nothing to convert.
    """
    if backend == "torch":
        raise ConfigError("the torch backend runs the student as it is", "export for onnx or openvino")
    if encoder.precision != "float32":
        raise ModelError(f"a student opened in {encoder.precision} is not converted", "open it in float32")
    precision = choose_precision(backend, precision, torch.device("cpu"))
    file = folder / onnx_name(precision)
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(encoder, file, precision)
    compared = texts[:: -(-len(texts) // _COMPARED)]
    rows = encoder.converted(folder, backend, precision).encode_documents(compared)
    cosines = np.einsum("nd,nd->n", encoder.encode_documents(compared), rows)
    if not cosines.mean() > _AGREES:
        raise ModelError(
            f"the converted model's vectors have a mean cosine of {cosines.mean():.2f} with the student's",
            "use the torch backend",
        )
    return Conversion(
        onnx_name(precision), precision, file.stat().st_size, float(cosines.mean()), float(cosines.min())
    )


class _UnitRows(torch.nn.Module):
    """A sentence-transformers model from input tensors to rows of unit length."""

    def __init__(self, model: Any, names: Sequence[str], others: Mapping[str, Any], dimension: int) -> None:
        super().__init__()
        self.model, self.names, self.others, self.dimension = model, names, others, dimension

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, T) inputs in the order of `names` to (N, D) float32 rows."""
        features = {**self.others, **dict(zip(self.names, inputs, strict=True))}
        rows = self.model(features)["sentence_embedding"][:, : self.dimension]
        return torch.nn.functional.normalize(rows.float(), dim=1)


def _write(encoder: BiEncoder, file: Path, precision: Precision) -> None:
    package("onnx")
    package("onnxscript")
    quantization = package("onnxruntime.quantization") if precision == "int8" else None
    features = encoder.features(["one text", "another, longer text"])
    inputs = {name: value for name, value in features.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in features.items() if name not in inputs}
    shapes = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in inputs)
    with TemporaryDirectory(dir=file.parent) as folder, _quiet():
        exact = Path(folder) / "float32.onnx"
        try:
            torch.onnx.export(
                _UnitRows(encoder.model, list(inputs), others, encoder.dimension).eval(),
                tuple(inputs.values()),
                exact,
                input_names=list(inputs),
                output_names=[OUTPUT],
                dynamic_shapes=(shapes,),
                opset_version=_OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # PyTorch's exporter raises anything
            raise ModelError(
                f"the model cannot be converted to ONNX: {error}", "use the torch backend"
            ) from error
        if quantization is None:
            exact.replace(file)
            return
        rounded = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(
            exact, rounded, weight_type=quantization.QuantType.QInt8, per_channel=True, reduce_range=True
        )
        rounded.replace(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' advice to their own developers off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
