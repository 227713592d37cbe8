"""A look into an input before anything is spent: its columns, what they would serve as, its first rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ezxmc.data.catalog import same_text
from ezxmc.data.documents import iter_documents, read_labels
from ezxmc.data.gold import read_gold
from ezxmc.data.matching import Columns, Kind, columns_for
from ezxmc.data.rows import iter_rows
from ezxmc.data.sources import locate
from ezxmc.errors import DataError, RowReport

_LOOKED_AT = 100
_FIRST = 3


@dataclass(frozen=True, slots=True)
class ColumnView:
    """One column.

    Attributes:
        name: As the file has it.
        serves: The field it is read as; `None`: it is unread.
        filled: Cells that are not blank, among the rows looked at.
        example: The first of them.
    """

    name: str
    serves: str | None
    filled: int
    example: Any


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source holds.

    Attributes:
        source: As the user named it.
        kind: What it was read as.
        format: The suffix, "folder" (of `datasets`) or "hub".
        files: Of how many it consists.
        looked_at: Rows the columns were told by.
        columns: In the file's order.
        first: The first rows.
        rows: How reading all of it went.
        titles: Title by uid of each record.
        repeats: Documents whose text is another's, but for case, spacing and punctuation.
    """

    source: str
    kind: Kind
    format: str
    files: int
    looked_at: int
    columns: list[ColumnView]
    first: list[dict[str, Any]]
    rows: RowReport
    titles: dict[str, str]
    repeats: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the titles left out."""
        found = {name: getattr(self, name) for name in ("source", "format", "files", "looked_at")}
        found["columns"] = [{**asdict(one), "example": _ready(one.example)} for one in self.columns]
        found |= {"first": [_ready(row) for row in self.first], "rows": self.rows.to_dict()}
        return {**found, **({"repeats": self.repeats} if self.kind == "documents" else {})}


def _ready(value: Any) -> Any:
    """A value for JSON; what that cannot hold, dates and bytes say, as text."""
    return json.loads(json.dumps(value, default=str))


def inspect_source(source: str | Path, kind: Kind, columns: Mapping[str, str] | None = None) -> Inspection:
    """Look into documents or labels, and read them through.

    Args:
        source: Anything `iter_rows` reads, but standard input.
        kind: What it holds.
        columns: Columns by the field they serve as.

    Raises:
        DataError: It cannot be read.
    """
    form, files = locate(source)
    sample = [row for _, _, row in islice(iter_rows(source, RowReport()), _LOOKED_AT)]
    reading = Columns(kind, columns)
    reading.learn(sample)
    reading.check(source)
    fields = {name: field for field, names in reading.serving.items() for name in names}
    views = []
    for name in dict.fromkeys(name for row in sample for name in row):
        cells = [row[name] for row in sample if row.get(name) is not None and str(row[name]).strip()]
        views.append(ColumnView(str(name), fields.get(name), len(cells), cells[0] if cells else None))
    report = RowReport()
    texts: set[str] = set()
    if kind == "labels":
        labels, report = read_labels(source, columns=columns)
        titles = {label.uid: label.title for label in labels}
    else:
        titles = {}
        for document in iter_documents(source, report, columns=columns):
            titles[document.uid] = document.title
            texts.add(same_text(document))
    repeats = len(titles) - len(texts) if texts else 0
    return Inspection(
        str(source), kind, form, len(files), len(sample), views, sample[:_FIRST], report, titles, repeats
    )


@dataclass(frozen=True, slots=True)
class InspectedFiles:
    """What a catalog's files hold, and what of gold fits them.

    Attributes:
        documents: Of each file of documents.
        labels: Of the label list, if given.
        gold: Of gold: its `source` and counts of `documents`, `pairs` and `labels` that fit, or the `error`
            and its `cure`; empty if none was given.
        rows: How reading went, by source.
    """

    documents: list[Inspection]
    labels: Inspection | None
    gold: dict[str, Any]
    rows: dict[str, RowReport]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        labels, gold = self.labels.to_dict() if self.labels else None, dict(self.gold)
        if gold and "error" not in gold:
            gold["rows"] = self.rows[gold["source"]].to_dict()
        return {
            "documents": [one.to_dict() for one in self.documents],
            "labels": labels,
            "gold": gold or None,
        }


def inspect_files(
    files: Iterable[str],
    labels: str | None = None,
    gold: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> InspectedFiles:
    """Look into a catalog's files before anything is spent.

    Args:
        files: Of documents, each anything `iter_rows` reads but standard input.
        labels: The label list.
        gold: Gold tags, held against documents and labels.
        columns: Columns by the field they serve as, see `columns_for`.

    Raises:
        DataError: Documents or labels cannot be read; of gold, the result tells.
    """
    found = [inspect_source(file, "documents", columns_for("documents", columns)) for file in files]
    tags = inspect_source(labels, "labels", columns_for("labels", columns)) if labels else None
    rows = {one.source: one.rows for one in (*found, *([tags] if tags else []))}
    held: dict[str, Any] = {}
    if gold is not None:
        try:
            uids = {uid for one in found for uid in one.titles}
            pairs, rows[gold] = read_gold(gold, documents=uids, labels=tags.titles if tags else None)
            used = {label for those in pairs.values() for label in those}
            held = {"documents": len(pairs), "pairs": sum(map(len, pairs.values())), "labels": len(used)}
        except DataError as error:
            held = {"error": error.message, "cure": error.cure}
        held = {"source": gold, **held}
    return InspectedFiles(found, tags, held, rows)
