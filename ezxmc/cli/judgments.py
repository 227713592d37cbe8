"""`ezxmc judgments`: what a feedback store holds, and its judgments as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ezxmc.cli.console import Json, bad_rows, emit, show_progress, shown, table

Store = Annotated[Path, typer.Argument(help="Feedback store, an SQLite file.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    judgments = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into a feedback store.")
    judgments.command()(stats)
    judgments.command()(failures)
    judgments.command("export")(export)
    judgments.command("import")(import_)
    app.add_typer(judgments, name="judgments")


def stats(store: Store, json: Json = False) -> None:
    """What each teacher's judgments are and what they cost.

    Example: ezxmc judgments stats feedback.sqlite
    """
    from ezxmc.feedback.exchange import store_statistics

    found = store_statistics(store)
    if json:
        emit(found)
        return
    rows, teachers = found["judgments"], found["teachers"]
    per = f", {found['bytes_per_judgment']:.0f} each" if rows else ""
    typer.echo(f"{store}: {rows:,} judgments of {len(teachers)} teachers in {found['bytes']:,} bytes{per}")
    for one in teachers:
        title = one.pop("teacher")
        for name, value in one.pop("description").items():
            one[f"  {name}"] = value
        table(title, ["", ""], [[name.replace("_", " "), shown(value)] for name, value in one.items()])


def failures(
    store: Store,
    limit: Annotated[int, typer.Option(min=1, help="Pairs shown of each teacher.")] = 1_000,
    json: Json = False,
) -> None:
    """Pairs whose attempts all failed; the next `annotate` asks about them again.

    Example: ezxmc judgments failures feedback.sqlite
    """
    from ezxmc.feedback.exchange import failed_pairs

    found = failed_pairs(store, limit)
    if json:
        emit(found)
        return
    for one in found:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in one["counts"].items())
        typer.echo(f"{one['teacher']}: {counts or 'no pair failed'}")
        if pairs := one["pairs"]:
            table("", list(pairs[0]), [[str(value) for value in pair.values()] for pair in pairs])


def export(
    store: Store,
    out: Annotated[Path, typer.Argument(help="A .parquet, .jsonl or .csv (also .gz) file.")],
    teacher: Annotated[
        str | None, typer.Option(help="Only this teacher's: the beginning of its fingerprint.")
    ] = None,
    json: Json = False,
) -> None:
    """Write judgments to a file that `ezxmc judgments import` and `annotate --replay` read.

    Example: ezxmc judgments export feedback.sqlite judgments.parquet
    """
    from ezxmc.feedback.exchange import export_judgments
    from ezxmc.feedback.recall import existing_store

    with show_progress() as watch, existing_store(store) as feedback:
        rows = export_judgments(feedback, out, teacher=teacher, progress=watch.stage("export"))
    if json:
        emit({"judgments": rows, "out": str(out), "bytes": out.stat().st_size})
    else:
        typer.echo(f"{rows:,} judgments in {out}")


def import_(
    store: Annotated[Path, typer.Argument(help="Feedback store; made if absent.")],
    source: Annotated[str, typer.Argument(help="What `ezxmc judgments export` wrote.")],
    json: Json = False,
) -> None:
    """Add exported judgments to a store; those it holds already are skipped.

    Example: ezxmc judgments import feedback.sqlite judgments.parquet
    """
    from ezxmc.data import RowReport
    from ezxmc.data.rows import source_kind
    from ezxmc.feedback.database import check_store
    from ezxmc.feedback.exchange import import_judgments
    from ezxmc.feedback.store import FeedbackStore

    check_store(store, [source])
    source_kind(source)  # a misspelt name must not leave an empty store behind
    report = RowReport()
    with show_progress() as watch, FeedbackStore(store) as feedback:
        done = import_judgments(feedback, source, report, progress=watch.stage("import"))
        report.tell(watch.say, source)
    if json:
        emit({**done.to_dict(), "rows": report.to_dict(), "store": str(store)})
    else:
        typer.echo(f"{done.new:,} new judgments in {store}, {done.duplicates:,} duplicates skipped")
    bad_rows(judgments=report)
