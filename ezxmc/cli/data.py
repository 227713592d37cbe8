"""`ezxmc data`: what data sets there are, how one looks, and benchmarks as files of our own."""

from __future__ import annotations

import json as jsonlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import Column, Json, accounts, bad_rows, columns_of, emit, say, shown, table
from ezxmc.errors import ConfigError, DataError
from ezxmc.text import cut

if TYPE_CHECKING:
    from ezxmc.data.cards import DataCard
    from ezxmc.data.datasets import Spread, Statistics
    from ezxmc.data.inspect import Inspection
    from ezxmc.errors import RowReport

Folder = Annotated[Path, typer.Argument(help="A folder with a data set.", exists=True, file_okay=False)]
_MISSING = "-"
_CELL, _LINE = 40, 200  # characters shown of a cell, of a row


def register(app: typer.Typer) -> None:
    """Add these commands."""
    data = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Data sets: cards, figures, benchmark files."
    )
    data.command("list")(list_)
    for command in (show, inspect, stats, check, convert):
        data.command()(command)
    app.add_typer(data, name="data")


def list_(json: Json = False) -> None:
    """The data sets that have a card.

    Example: ezxmc data list
    """
    from ezxmc.data.cards import DataCard, card_files

    cards = [DataCard.load(name) for name in card_files()]
    if json:
        emit([card.model_dump(exclude={"prose"}) for card in cards])
        return
    rows = [
        [card.name, *map(_cell, (_documents(card), card.sizes.labels, card.labels_per_document)), card.prompt]
        for card in cards
    ]
    table("", ["name", "documents", "labels", "labels per document", "prompt"], rows)


def show(
    name: Annotated[str, typer.Argument(help="A card's name, or a card's file.")], json: Json = False
) -> None:
    """A data card: source, licence, sizes, faults, published results.

    Example: ezxmc data show LF-Amazon-131K
    """
    from ezxmc.data.cards import DataCard, card_path

    card = DataCard.load(name)
    if json:
        emit(card.model_dump())
    else:
        typer.echo(card_path(name).read_text(encoding="utf-8").rstrip("\n"))


def inspect(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Documents: files, patterns, folders of files.")
    ],
    labels: Annotated[str | None, typer.Option(help="The label list.")] = None,
    gold: Annotated[str | None, typer.Option(help="Gold tags, held against documents and labels.")] = None,
    column: Column = None,
    json: Json = False,
) -> None:
    """Look before anything is spent: columns, what each serves as, first rows, bad rows, what of gold fits.

    Example: ezxmc data inspect tickets.csv --labels tags.csv --gold gold.csv --column text=message
    """
    from ezxmc.data.inspect import inspect_files

    if "-" in files:
        raise typer.BadParameter("standard input can be read once only: give files")
    found = inspect_files(files, labels, gold, columns_of(column))
    if json:
        emit(found.to_dict())
    else:
        for one in (*found.documents, *([found.labels] if found.labels else [])):
            _show_inspection(one)
        _show_held(found.gold)
    for source, report in found.rows.items():
        say(f"{source}: {report.summary()}")
        for note in report.notes:
            say(f"  {note}")
    bad_rows(*(report.bad for report in found.rows.values()), int("error" in found.gold))


def _show_held(gold: dict[str, Any]) -> None:
    if "error" in gold:
        say(f"gold does not fit: {gold['error']}\n  cure: {gold['cure']}")
    elif gold:
        counts = (f"{gold[name]:,} {name}" for name in ("documents", "pairs", "labels"))
        say(f"gold that fits: {', '.join(counts)}")


def _show_inspection(one: Inspection) -> None:
    from ezxmc.data.catalog import repeated

    many = f", {one.files} files" if one.files > 1 else ""
    table(
        f"{one.source} ({one.format}{many}), {one.rows.kept:,} {one.kind}",
        ["column", "serves as", f"filled of {one.looked_at}", "first"],
        [
            [view.name, view.serves or "unread", shown(view.filled), _short(view.example, _CELL)]
            for view in one.columns
        ],
    )
    for row in one.first:
        typer.echo("  " + _short(row, _LINE))
    if one.repeats:
        say(f"{one.source}: {repeated(one.repeats)}")


def _short(value: Any, most: int) -> str:
    text = value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False, default=str)
    return cut(" ".join(text.split()), most) if value is not None else ""


def stats(folder: Folder, json: Json = False) -> None:
    """The figures of a data set: sizes, labels per document, text lengths, duplicates.

    The folder holds labels, documents (or train, test) and gold (or qrels), or
    the published files of a benchmark.

    Example: ezxmc data stats data/EURLex-4K
    """
    found, rows = _statistics(folder)
    if json:
        emit({**found.to_dict(), "rows": accounts(rows)})
    else:
        _show_statistics(found, str(folder))
    bad_rows(**rows)


def _show_statistics(found: Statistics, title: str) -> None:
    splits = found.splits.values()
    rows = [
        [head, *(_cell(getattr(one, name)) for one in splits)]
        for head, name in (
            ("documents", "documents"),
            ("with gold labels", "with_gold"),
            ("gold pairs", "pairs"),
            ("filtered pairs", "filtered"),
            ("labels used", "labels_used"),
            ("labels not in the list", "labels_unknown"),
            ("labels per document", "labels_per_document"),
            ("documents per label", "documents_per_label"),
            ("characters", "characters"),
            ("equal texts", "duplicates"),
        )
    ]
    table(title, ["", *found.splits], rows)
    whole = {"labels": found.labels, "labels unused": found.labels_unused}
    whole |= {"labels with another's title": found.equal_titles}
    if found.test_in_train is not None:
        whole["test texts also in train"] = found.test_in_train
    table("", ["", ""], [[name, _cell(value)] for name, value in whole.items()])


def check(
    folder: Folder,
    card: Annotated[
        str | None, typer.Option(help="The card's name or file; without it, the folder's name.")
    ] = None,
    json: Json = False,
) -> None:
    """Hold a data set against its card; exit code 1 and a table of what differs.

    Example: ezxmc data check data/EURLex-4K --card EURLex-4K
    """
    known = _card(folder, card)
    found, rows = _statistics(folder)
    compared = known.compare(found)
    differing = [one for one in compared if not one.fits]
    if json:
        facts = {"card": known.name, "compared": len(compared)}
        emit({**facts, "differences": [one.to_dict() for one in differing], "rows": accounts(rows)})
    elif differing:
        title = f"{folder}: {len(differing)} of {len(compared)} figures differ from the card {known.name}"
        table(
            title, ["", "card", "here"], [[one.figure, _cell(one.card), _cell(one.here)] for one in differing]
        )
    else:
        typer.echo(f"{folder}: all {len(compared)} figures are as the card {known.name} says")
    if differing:
        with suppress(typer.Exit):
            bad_rows(**rows)
        raise typer.Exit(1)
    bad_rows(**rows)


def convert(
    folder: Annotated[Path, typer.Argument(help="A benchmark's folder.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write, made if absent.")],
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
    json: Json = False,
) -> None:
    """A public benchmark's files as labels.jsonl, train.jsonl, train_gold.tsv, train_filter.tsv, test....

    Texts: trn.json.gz (with lbl.json.gz), trn.raw.txt, raw/trn_X.txt, X.trn.txt,
    train_raw_texts.txt or train_texts.txt. Labels: lbl.raw.txt, raw/Y.txt,
    output-items.txt or label_map.txt. Gold: trn_X_Y.txt, Y.trn.txt, Y.trn.npz, or
    train_labels.txt with the labels' names. Any of them may end in .gz.

    Example: ezxmc data convert downloads/eurlex-4k data/EURLex-4K
    """
    from ezxmc.data.xmc import XmcRepo
    from ezxmc.data.xmc import convert as write

    repo = XmcRepo.find(folder, strict=strict)
    if repo is None:
        what = f"{folder} holds no texts of a benchmark"
        raise DataError(what, "`ezxmc data convert --help` names the files")
    written = {split: one.to_dict() for split, one in write(repo, out).items()}
    if json:
        facts = {"out": str(out), "labels": len(repo.labels()), "splits": written}
        emit({**facts, "rows": accounts(repo.rows)})
    else:
        heads = ["", "documents", "without labels", "gold pairs", "filtered pairs"]
        rows = [[split, *map(_cell, one.values())] for split, one in written.items()]
        table(f"{len(repo.labels()):,} labels, in {out}", heads, rows)
    bad_rows(**repo.rows)


def _statistics(folder: Path) -> tuple[Statistics, dict[str, RowReport]]:
    from ezxmc.data.datasets import compute_statistics, open_folder

    data = open_folder(folder)
    return compute_statistics(data), data.rows


def _card(folder: Path, name: str | None) -> DataCard:
    from ezxmc.data.cards import DataCard, card_files

    if name is None:
        name = folder.resolve().name
        if name.casefold() not in map(str.casefold, card_files()):
            raise ConfigError(
                f"no data card has the name of the folder {name}",
                f"--card with one of {', '.join(card_files())}",
            )
    return DataCard.load(name)


def _documents(card: DataCard) -> int | None:
    parts = [size for size in (card.sizes.train, card.sizes.test) if size is not None]
    return card.sizes.documents if card.sizes.documents is not None or not parts else sum(parts)


def _cell(value: float | Spread | None) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, int | float):
        return shown(value)
    return f"mean {shown(value.mean)}, median {value.median:,g}, most {shown(value.max)}"
