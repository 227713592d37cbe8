"""`ezxmc labels ...` and `ezxmc export`: labels that come and go; a student for a faster runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ezxmc.cli.console import Column, Json, answer, bad_rows, columns_of, emit, show_progress, standard_output
from ezxmc.config import Backend, Precision

Folder = Annotated[Path, typer.Argument(help="Bundle folder.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    labels = typer.Typer(no_args_is_help=True, help="List, add or remove the labels of a bundle.")
    labels.command("list")(show)
    for command in (add, remove, rebuild):
        labels.command()(command)
    app.add_typer(labels, name="labels")
    app.command()(export)


def show(bundle: Folder, json: Json = False) -> None:
    """Print a bundle's labels, uid and title, and how they are searched.

    Example: ezxmc labels list run/bundle
    """
    from ezxmc.bundle.bundle import open_labels

    with show_progress() as watch:
        labels, index, decision = open_labels(bundle)
        if json:
            emit(
                {
                    "labels": [{"uid": label.uid, "title": label.title} for label in labels],
                    "decision": decision.guarantee if decision else None,
                    "index": {
                        "kind": index.kind,
                        "reason": index.reason,
                        "recall": index.recall,
                        "recall_at": index.recall_at,
                        "advice": index.advice,
                    },
                }
            )
            return
        standard_output().writelines(f"{label.uid}\t{label.title}\n" for label in labels)
        watch.say(f"{index.size:,} labels; index {index.summary}")
        if decision:
            watch.say(f"decision: {decision.guarantee}")
        if index.advice:
            watch.say(f"{index.advice}; `ezxmc labels rebuild {bundle}` makes the search fast again")


def add(
    bundle: Folder,
    labels: Annotated[str, typer.Argument(help="Labels, as for `ezxmc index`.")],
    column: Column = None,
    json: Json = False,
) -> None:
    """Add labels, or replace those whose uid is there already; documents get them from now on.

    A label that is there under another uid (its title is that label's) is left
    out and told. Titles are encoded by the bundle's own student. Nothing is trained, and the
    index is not built again.

    Example: ezxmc labels add run/bundle new_labels.jsonl
    """
    from ezxmc.bundle.labels import add_labels
    from ezxmc.bundle.manifest import check_changeable, labels_of
    from ezxmc.data import columns_for, read_labels

    check_changeable(bundle)
    tags, rows = read_labels(
        labels,
        known=labels_of(bundle),
        columns=columns_for("labels", columns_of(column, labels_only=True)),
    )
    rows.refuse_empty(labels, "label", tags)
    with show_progress() as watch:
        change = add_labels(bundle, tags, progress=watch.stage("encoding titles"))
    facts = {"added": change.added, "changed": change.changed, "bundle": str(bundle)}
    answer(json, facts | _decision(bundle), {"labels": rows})
    bad_rows(labels=rows)


def remove(
    bundle: Folder,
    uids: Annotated[list[str], typer.Argument(help="Uids of the labels.")],
    json: Json = False,
) -> None:
    """Remove labels; no document gets them any more.

    Example: ezxmc labels remove run/bundle outdated other-label
    """
    from ezxmc.bundle.labels import remove_labels

    change = remove_labels(bundle, uids)
    answer(json, {"removed": change.removed, "bundle": str(bundle)} | _decision(bundle))


def _decision(bundle: Path) -> dict[str, str]:
    """What a bundle's decision, if it has one, promises of the labels there are now."""
    from ezxmc.bundle.manifest import guarantee_of

    guarantee = guarantee_of(bundle)
    return {} if guarantee is None else {"decision": guarantee}


def rebuild(bundle: Folder, json: Json = False) -> None:
    """Build the index again, after many labels came or went. Nothing is encoded or trained.

    Example: ezxmc labels rebuild run/bundle
    """
    from ezxmc.bundle.labels import rebuild_index

    index = rebuild_index(bundle)
    answer(json, {"labels": index.size, "index": index.summary, "bundle": str(bundle)})


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

    from ezxmc.bundle.bundle import add_student_files, load_bundle
    from ezxmc.bundle.manifest import check_changeable
    from ezxmc.retrieval.export import convert

    check_changeable(bundle)
    with show_progress() as watch:
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
