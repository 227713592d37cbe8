"""`ezxmc data`: what data sets there are, how one looks, and benchmarks as files of our own."""

from __future__ import annotations

import json as jsonlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import Column, Json, accounts, bad_rows, columns_of, emit, shown, stderr, table
from ezxmc.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ezxmc.data.cards import DataCard
    from ezxmc.data.datasets import Spread, Statistics
    from ezxmc.data.inspect import Inspection
    from ezxmc.data.validate import RowReport

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
        [
            card.name,
            *map(_count, (_documents(card), card.sizes.labels, card.labels_per_document)),
            card.prompt,
        ]
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
    from ezxmc.data import columns_for, read_gold
    from ezxmc.data.inspect import inspect_source

    if "-" in files:
        raise typer.BadParameter("standard input can be read once only: give files")
    given = columns_of(column)
    found = [inspect_source(file, "documents", columns_for("documents", given)) for file in files]
    tags = inspect_source(labels, "labels", columns_for("labels", given)) if labels else None
    rows = {one.source: one.rows for one in (*found, *([tags] if tags else []))}
    held: dict[str, Any] = {}
    if gold is not None:
        try:
            pairs, rows[gold] = read_gold(
                gold,
                documents={uid for one in found for uid in one.titles},
                labels=tags.titles if tags else None,
            )
            used = {label for those in pairs.values() for label in those}
            held = {"source": gold, "documents": len(pairs), "pairs": sum(map(len, pairs.values()))}
            held |= {"labels": len(used), "rows": rows[gold].to_dict()}
        except DataError as error:
            held = {"source": gold, "error": error.message, "cure": error.cure}
    if json:
        shown_labels = tags.to_dict() if tags else None
        emit({"documents": [one.to_dict() for one in found], "labels": shown_labels, "gold": held or None})
    else:
        for one in (*found, *([tags] if tags else [])):
            _show_inspection(one)
        if "error" in held:
            _say(f"gold does not fit: {held['error']}\n  cure: {held['cure']}")
        elif held:
            _say(
                f"gold that fits: {held['documents']:,} documents, {held['pairs']:,} pairs, "
                f"{held['labels']:,} labels"
            )
    for source, report in rows.items():
        _say(f"{source}: {report.summary()}")
        for note in report.notes:
            _say(f"  {note}")
    bad_rows(*(report.bad for report in rows.values()), int("error" in held))


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
        _say(f"{one.source}: {repeated(one.repeats)}")


def _short(value: Any, most: int) -> str:
    text = value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split()) if value is not None else ""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _say(text: str) -> None:
    stderr.print(text, soft_wrap=True, markup=False, highlight=False)


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
        splits = list(found.splits.values())
        table(
            str(folder),
            ["", *found.splits],
            [
                ["documents", *(_count(one.documents) for one in splits)],
                ["with gold labels", *(_count(one.with_gold) for one in splits)],
                ["gold pairs", *(_count(one.pairs) for one in splits)],
                ["filtered pairs", *(_count(one.filtered) for one in splits)],
                ["labels used", *(_count(one.labels_used) for one in splits)],
                ["labels not in the list", *(_count(one.labels_unknown) for one in splits)],
                ["labels per document", *(_spread(one.labels_per_document) for one in splits)],
                ["documents per label", *(_spread(one.documents_per_label) for one in splits)],
                ["characters", *(_spread(one.characters) for one in splits)],
                ["equal texts", *(_count(one.duplicates) for one in splits)],
            ],
        )
        whole = {"labels": found.labels, "labels unused": found.labels_unused}
        whole |= {"labels with another's title": found.equal_titles}
        if found.test_in_train is not None:
            whole["test texts also in train"] = found.test_in_train
        table("", ["", ""], [[name, _count(value)] for name, value in whole.items()])
    bad_rows(**rows)


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
        emit(
            {
                "card": known.name,
                "compared": len(compared),
                "differences": [asdict(one) for one in differing],
                "rows": accounts(rows),
            }
        )
    elif differing:
        table(
            f"{folder}: {len(differing)} of {len(compared)} figures differ from the card {known.name}",
            ["", "card", "here"],
            [[one.figure, _count(one.card), _count(one.here)] for one in differing],
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
        raise DataError(
            f"{folder} holds no texts of a benchmark", "`ezxmc data convert --help` names the files"
        )
    written = write(repo, out)
    if json:
        emit(
            {
                "out": str(out),
                "labels": len(repo.labels()),
                "splits": {split: asdict(one) for split, one in written.items()},
                "rows": accounts(repo.rows),
            }
        )
    else:
        table(
            f"{len(repo.labels()):,} labels, in {out}",
            ["", "documents", "without labels", "gold pairs", "filtered pairs"],
            [
                [split, *map(_count, (one.documents, one.without_labels, one.pairs, one.filtered))]
                for split, one in written.items()
            ],
        )
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


def _count(value: float | None) -> str:
    return _MISSING if value is None else shown(value)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return _MISSING
    return f"mean {shown(spread.mean)}, median {spread.median:,g}, most {shown(spread.max)}"
