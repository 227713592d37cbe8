"""`ezxmc judgments`: what a feedback store holds, and its judgments as a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, show_progress, shown, table
from ezxmc.errors import StoreError

if TYPE_CHECKING:
    from ezxmc.feedback.store import FeedbackStore

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
    with opened(store) as feedback:
        teachers = []
        for fingerprint, description in feedback.teachers().items():
            totals = feedback.totals(fingerprint)
            teachers.append(
                {
                    "teacher": fingerprint,
                    "description": description,
                    **asdict(totals),
                    "cache_share": totals.cache_share,
                    "computed_per_pair": totals.computed_per_pair,
                    "pairs_per_second": totals.pairs_per_second,
                }
            )
        rows = sum(one["judgments"] for one in teachers)
        found = {
            "store": str(store),
            "judgments": rows,
            "bytes": feedback.size,
            "bytes_per_judgment": feedback.size / rows if rows else None,
            "teachers": teachers,
        }
    if json:
        emit(found)
        return
    per = f", {found['bytes_per_judgment']:.0f} each" if rows else ""
    typer.echo(f"{store}: {rows:,} judgments of {len(teachers)} teachers in {found['bytes']:,} bytes{per}")
    for one in teachers:
        title = one.pop("teacher")
        for name, value in one.pop("description").items():
            one[f"  {name}"] = value
        table(title, ["", ""], [[name.replace("_", " "), _shown(value)] for name, value in one.items()])


def failures(
    store: Store,
    limit: Annotated[int, typer.Option(min=1, help="Pairs shown of each teacher.")] = 1_000,
    json: Json = False,
) -> None:
    """Pairs whose attempts all failed; the next `annotate` asks about them again.

    Example: ezxmc judgments failures feedback.sqlite
    """
    from itertools import islice

    with opened(store) as feedback:
        found: list[dict[str, Any]] = [
            {
                "teacher": fingerprint,
                "counts": feedback.totals(fingerprint).failures_by_kind,
                "pairs": [
                    {
                        "status": one.status.value,
                        "doc": one.doc_uid,
                        "label": one.label_uid,
                        "attempts": one.attempts,
                    }
                    for one in islice(feedback.failures(fingerprint), limit)
                ],
            }
            for fingerprint in feedback.teachers()
        ]
    if json:
        emit(found)
        return
    for one in found:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in one["counts"].items())
        typer.echo(f"{one['teacher']}: {counts or 'no pair failed'}")
        if one["pairs"]:
            table(
                "", list(one["pairs"][0]), [[str(value) for value in pair.values()] for pair in one["pairs"]]
            )


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

    with show_progress() as watch, opened(store) as feedback:
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
        emit({**asdict(done), "rows": report.to_dict(), "store": str(store)})
    else:
        typer.echo(f"{done.new:,} new judgments in {store}, {done.duplicates:,} duplicates skipped")
    bad_rows(judgments=report)


def opened(store: Path) -> FeedbackStore:
    """A store that is there.

    Raises:
        StoreError: It is not.
    """
    from ezxmc.feedback.store import FeedbackStore

    if not store.exists():
        raise StoreError(f"no feedback store at {store}", "make one with `ezxmc annotate`")
    if store.is_file() and not store.stat().st_size:
        # SQLite would take it for a store to be filled, and fill it.
        raise StoreError(f"{store} is empty: no feedback store", "make one with `ezxmc annotate`")
    return FeedbackStore(store)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items()) or "none"
    return shown(value)
