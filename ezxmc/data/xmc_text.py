"""Texts of the public XMC benchmarks: documents and labels, as JSON lines or a line each.

JSON lines (`trn.json.gz`, `tst.json.gz`, `lbl.json.gz`; also without `.gz`) have
`uid`, `title`, `content`, and for documents `target_ind`, numbers of lines of the
label file from 0, and `target_rel`, their relevances; 0 or less is no label. In
the other files a line is a document or a label. A document's uid is then
`train-N` or `test-N`, a label's is `N`, the number of its line from 0; `/SEP/`
parts title and text, as AttentionXML has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ezxmc.data.documents import document_of, iter_records, label_of
from ezxmc.data.readers import iter_lines
from ezxmc.data.validate import RowError, RowReport
from ezxmc.data.xmc_matrix import open_text
from ezxmc.errors import DataError
from ezxmc.files import json_line
from ezxmc.records import Document, Label

LABEL_FILES = ("lbl.json", "lbl.raw.txt", "raw/Y.txt", "output-items.txt", "label_map.txt")
"""Names of the label file, in order of preference; each may end in `.gz`."""

_TITLE_END = "/SEP/"


def label_columns(source: Path, report: RowReport) -> list[Label | None]:
    """Labels of a label file by number, from 0; `None` where the row is bad or blank.

    Args:
        source: JSON lines, or a title a line.
        report: As for `read_labels`.

    Raises:
        DataError: The file cannot be read, or a row is bad and `report` is strict.
    """
    columns: list[Label | None] = []
    for line, label in _json_labels(source, report) if is_json(source) else _titles(source, report):
        columns.extend([None] * (line - 1 - len(columns)))
        columns.append(label)
    return columns


def uids_by_number(source: Path) -> list[str | None]:
    """Uids of a folder's labels by number, for a documents file in it.

    Rows that cannot be used are `None`; who reads the labels reports them.

    Raises:
        DataError: There is no label file beside it, or it cannot be read.
    """
    file = first_file(source.parent, LABEL_FILES)
    if file is None:
        raise DataError(
            f"{source} numbers its labels, but there is no {LABEL_FILES[0]}.gz beside it",
            "put the label file of the benchmark into the same folder",
        )
    return uids_of(label_columns(file, RowReport()))


def uids_of(labels: Iterable[Label | None]) -> list[str | None]:
    """Their uids, `None` for `None`."""
    return [None if label is None else label.uid for label in labels]


def text_documents(source: Path, split: str, report: RowReport) -> Iterator[tuple[int, Document | None]]:
    """Stream a file of one document a line: `(row, document)`, rows from 0, `None` for a bad row.

    Raises:
        DataError: The file cannot be read, or a row is bad and `report` is strict.
    """
    for file, line, whole in iter_lines(source, report, blank=True):
        title, end, text = whole.partition(_TITLE_END)
        if not end:
            title, text = "", whole
        document: Document | None = None
        try:
            document = document_of({"uid": f"{split}-{line - 1}", "title": title, "text": text})
            report.kept += 1
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
        yield line - 1, document


def targets(
    row: dict[str, Any], uids: list[str | None], file: str, line: int, report: RowReport
) -> list[str] | None:
    """Label uids of a JSON row's `target_ind`; `None` if it has none, or none that can be read.

    Args:
        row: The row's columns.
        uids: Of the labels by number.
        file: For the report.
        line: For the report.
        report: Receives `bad_type` and, as for `labels_at`, `unknown_label`.
    """
    columns, values = row.get("target_ind"), row.get("target_rel")
    if columns is None:
        return None
    if not isinstance(columns, list) or not all(_is(int, column) for column in columns):
        report.add(file, line, "bad_type", "target_ind is no list of whole numbers")
        return None
    if values is None:
        values = [1] * len(columns)
    if not isinstance(values, list) or not all(_is((int, float), value) for value in values):
        report.add(file, line, "bad_type", "target_rel is no list of numbers")
        return None
    if len(values) != len(columns):
        report.add(file, line, "bad_type", f"target_rel has {len(values)} numbers, target_ind {len(columns)}")
        return None
    relevant = [column for column, value in zip(columns, values, strict=True) if value > 0]
    return labels_at(relevant, uids, file, line, report)


def labels_at(
    columns: Iterable[int], uids: list[str | None], file: str, line: int, report: RowReport
) -> list[str]:
    """Uids of these label numbers, each once; a number without a usable label is an `unknown_label`."""
    found: dict[str, None] = {}
    for column in columns:
        uid = uids[column] if 0 <= column < len(uids) else None
        if uid is None:
            report.add(file, line, "unknown_label", f"no usable label has the number {column}")
        else:
            found[uid] = None
    return list(found)


def write_raw_text(path: str | Path, rows: Iterable[tuple[Document, list[int]]]) -> None:
    """Write `trn.json.gz` or its like.

    Args:
        path: Where to; gzip if it ends in `.gz`.
        rows: Documents with the numbers of their labels.
    """
    with open_text(path) as out:
        out.writelines(_row(one.uid, one.title, one.text, columns) for one, columns in rows)


def write_label_text(path: str | Path, labels: Iterable[Label]) -> None:
    """Write `lbl.json.gz`: rows like documents with empty targets, as readers expect them."""
    with open_text(path) as out:
        out.writelines(_row(label.uid, label.title, label.text, []) for label in labels)


def is_json(path: Path) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return path.name.removesuffix(".gz").endswith(".json")


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these names that is a file in a folder, as it is or with `.gz`."""
    places = (folder / f"{name}{end}" for name in names for end in ("", ".gz"))
    return next((place for place in places if place.is_file()), None)


def _json_labels(source: Path, report: RowReport) -> Iterator[tuple[int, Label]]:
    for _, line, _, label in iter_records(source, report, label_of):
        yield line, label


def _titles(source: Path, report: RowReport) -> Iterator[tuple[int, Label]]:
    for file, line, title in iter_lines(source, report, blank=True):
        try:
            label = label_of({"uid": line - 1, "title": title})
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            continue
        report.kept += 1
        yield line, label


def _row(uid: str, title: str, text: str, columns: list[int]) -> str:
    row = {"uid": uid, "title": title, "content": text, "target_ind": columns}
    return json_line({**row, "target_rel": [1.0] * len(columns)}).decode()


def _is(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
