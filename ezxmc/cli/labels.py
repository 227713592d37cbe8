"""`ezxmc labels ...`: the labels of a bundle, which come and go without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ezxmc.cli.console import Column, Json, answer, bad_rows, columns_of, emit, standard_output, watching

Folder = Annotated[Path, typer.Argument(help="Bundle folder.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    labels = typer.Typer(no_args_is_help=True, help="List, add or remove the labels of a bundle.")
    labels.command("list")(show)
    for command in (add, remove, rebuild):
        labels.command()(command)
    app.add_typer(labels, name="labels")


def show(bundle: Folder, json: Json = False) -> None:
    """Print a bundle's labels, uid and title, and how they are searched.

    Example: ezxmc labels list run/bundle
    """
    from ezxmc.bundle import open_labels

    with watching() as watch:
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
    from ezxmc.bundle import add_labels
    from ezxmc.data import columns_for, read_labels
    from ezxmc.manifest import check_changeable, labels_of

    check_changeable(bundle)
    tags, rows = read_labels(
        labels,
        known=labels_of(bundle),
        columns=columns_for("labels", columns_of(column, labels_only=True)),
    )
    rows.refuse_empty(labels, "label", tags)
    with watching() as watch:
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
    from ezxmc.bundle import remove_labels

    change = remove_labels(bundle, uids)
    answer(json, {"removed": change.removed, "bundle": str(bundle)} | _decision(bundle))


def _decision(bundle: Path) -> dict[str, str]:
    """What a bundle's decision, if it has one, promises of the labels there are now."""
    from ezxmc.manifest import guarantee_of

    guarantee = guarantee_of(bundle)
    return {} if guarantee is None else {"decision": guarantee}


def rebuild(bundle: Folder, json: Json = False) -> None:
    """Build the index again, after many labels came or went. Nothing is encoded or trained.

    Example: ezxmc labels rebuild run/bundle
    """
    from ezxmc.bundle import rebuild_index

    index = rebuild_index(bundle)
    answer(json, {"labels": index.size, "index": index.summary, "bundle": str(bundle)})
