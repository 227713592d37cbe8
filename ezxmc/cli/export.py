"""`ezxmc export`: a bundle's student converted for a faster runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ezxmc.cli.console import Json, answer, watching
from ezxmc.config import Backend, Precision


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(export)


def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    backend: Annotated[Backend, typer.Option(help="The runtime: onnx or openvino.")] = "onnx",
    precision: Annotated[
        Precision, typer.Option(help="onnx: float32, int8; openvino: float32, bfloat16.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Convert a bundle's student, check the conversion against it, and put it into the bundle.

    The student stays as it is; OpenVINO and ONNX Runtime share a float32 file.
    Then `ezxmc predict` and `ezxmc serve` take --backend and --precision.

    Example: ezxmc export run/bundle --backend onnx --precision int8
    """
    from tempfile import TemporaryDirectory

    from ezxmc.bundle import add_student_files, load_bundle
    from ezxmc.manifest import check_changeable
    from ezxmc.retrieval.conversion import convert

    check_changeable(bundle)
    with watching() as watch:
        opened = load_bundle(bundle)
        watch.stage("converting")
        # Beside the bundle's files, where it can be moved from in one step.
        with TemporaryDirectory(dir=bundle, prefix=".export-") as folder:
            texts = [f"{label.title} {label.text}" for label in opened.labels]
            found = convert(opened.encoder, Path(folder), texts, backend=backend, precision=precision)
            add_student_files(bundle, {found.name: Path(folder) / found.name})
    answer(
        json,
        {
            "file": f"student/{found.name}",
            "megabytes": round(found.bytes / 1e6, 1),
            "precision": found.precision,
            "cosine_mean": found.cosine_mean,
            "cosine_least": found.cosine_least,
        },
    )
