"""Label matrices and texts in the formats of the public XMC benchmarks, streamed row by row.

| file                                     | a line                            | written and read by      |
|------------------------------------------|-----------------------------------|--------------------------|
| `trn_X_Y.txt`                            | `label:value ...`, after a header | pyxclib                  |
|                                          | line `rows labels`                |                          |
| `Y.trn.txt`                              | `label,label,...`                 | CascadeXML, from PECOS   |
| `Y.trn.npz`                              | (scipy's CSR file)                | PECOS, X-Transformer     |
| `train_labels.txt`                       | `name name ...`                   | AttentionXML, LightXML   |
| `filter_labels_test.txt`                 | `document label`                  | pyxclib, DEXML           |

Labels and documents are numbered from 0. A value of 0 or less is no label. The document of a line is the
line's number, so blank lines count: they are documents without labels.

Texts come as JSON lines or a line each. JSON lines (`trn.json.gz`, `tst.json.gz`, `lbl.json.gz`; also
without `.gz`) have `uid`, `title`, `content`, and for documents `target_ind`, numbers of lines of the label
file from 0, and `target_rel`, their relevances; 0 or less is no label. In the other files a line is a
document or a label. A document's uid is then `train-N` or `test-N`, a label's is `N`, the number of its
line from 0; `/SEP/` parts title and text, as AttentionXML has it.
"""

from __future__ import annotations

import math
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ezxmc.data.documents import document_of, iter_records, label_of
from ezxmc.data.rows import iter_lines
from ezxmc.errors import DataError, RowError, RowReport
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
    found = ((line, label) for _, line, _, label in iter_records(source, report, label_of))
    for line, label in found if is_json(source) else _titles(source, report):
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


def is_json(path: Path) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return path.name.removesuffix(".gz").endswith(".json")


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these names that is a file in a folder, as it is or with `.gz`."""
    places = (folder / f"{name}{end}" for name in names for end in ("", ".gz"))
    return next((place for place in places if place.is_file()), None)


def _titles(source: Path, report: RowReport) -> Iterator[tuple[int, Label]]:
    for file, line, title in iter_lines(source, report, blank=True):
        try:
            label = label_of({"uid": line - 1, "title": title})
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            continue
        report.kept += 1
        yield line, label


def _is(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


Entries = list[tuple[int, float]]
"""Columns of a row with their values."""

_Label = TypeVar("_Label", int, str)


def iter_sparse(source: str | Path, report: RowReport) -> Iterator[tuple[str, int, Entries | None]]:
    """Stream the rows of a sparse text file with a header.

    Args:
        source: `trn_X_Y.txt` or its like; also `.gz`.
        report: Receives rows with an entry that is not `column:value` (`bad_entry`), entries beyond the
            header's columns (`unknown_label`; the rest of the row is kept), and rows the header does not
            count or counts in vain (`row_count`).

    Yields:
        `(file, line, entries)`, `None` for a bad row; the row's number is line − 2.

    Raises:
        DataError: The file cannot be read, or has no header line `rows columns`.
    """
    lines = iter_lines(source, report, blank=True)
    rows, columns = _header(source, next(lines, (str(source), 1, "")))
    line = 1
    for file, line, text in lines:
        if line - 1 > rows:
            if text:
                report.add(file, line, "row_count", f"the header counts {rows:,} rows; this one is beyond")
            continue
        try:
            entries = [_entry(token) for token in text.split()]
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            yield file, line, None
            continue
        for column, _ in entries:
            if column >= columns:
                detail = f"column {column} where the header counts {columns:,}"
                report.add(file, line, "unknown_label", detail)
        yield file, line, [entry for entry in entries if entry[0] < columns]
    if line - 1 < rows:
        detail = f"the file ends after {line - 1:,} of {rows:,} rows"
        report.add(str(source), line, "row_count", detail)


def iter_gold(source: Path, report: RowReport) -> Iterator[tuple[int, int, list[int] | None]]:
    """Stream the labels of each document out of any of the formats with numbered labels.

    Args:
        source: A file whose name ends in `_X_Y.txt`, `.npz` or `.txt`; the text ones also `.gz`.
        report: As for `iter_sparse`.

    Yields:
        `(row, line, columns)` with rows from 0, ascending; `None` for a bad row.

    Raises:
        DataError: The file cannot be read.
    """
    name = source.name.removesuffix(".gz")
    if name.endswith("_X_Y.txt"):
        for _, line, entries in iter_sparse(source, report):
            columns = None if entries is None else [column for column, value in entries if value > 0]
            yield line - 2, line, columns
    elif name.endswith(".npz"):
        yield from _npz_rows(source, report)
    else:
        yield from _split_rows(source, report, lambda text: [_number(token) for token in text.split(",")])


def iter_names(source: Path, report: RowReport) -> Iterator[tuple[int, int, list[str] | None]]:
    """Stream label names, separated by spaces: `(row, line, names)`.

    Raises:
        DataError: The file cannot be read.
    """
    return _split_rows(source, report, str.split)


class PairFile:
    """Pairs of document and label, such as those left out of evaluation; 25 bytes a pair.

    In the label-feature benchmarks a document may be its own label; the repository lists such pairs in
    `filter_labels_test.txt`.

    Args:
        source: Lines `document label`, both numbered from 0; also `.gz`.
        report: Receives lines that are no such pair (`bad_pair`).

    Raises:
        DataError: The file cannot be read.
    """

    def __init__(self, source: str | Path, report: RowReport) -> None:
        self.file = str(source)
        found = array("q")
        for file, line, text in iter_lines(source, report):
            try:
                document, label = (_number(token) for token in text.split())
            except (ValueError, RowError):
                report.add(file, line, "bad_pair", f"not `document label`: {text[:60]!r}")
                continue
            found.extend((document, label, line))
        pairs = np.frombuffer(found, dtype=np.int64).reshape(-1, 3)
        self._pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self._taken = np.zeros(len(pairs), dtype=bool)

    def take(self, document: int) -> list[tuple[int, int]]:
        """`(label, line)` of each pair of a document."""
        first, last = np.searchsorted(self._pairs[:, 0], [document, document + 1])
        self._taken[first:last] = True
        return [(int(label), int(line)) for _, label, line in self._pairs[first:last]]

    def left(self) -> Iterator[tuple[int, int]]:
        """`(document, line)` of each pair not taken."""
        for document, _, line in self._pairs[~self._taken]:
            yield int(document), int(line)


def _split_rows(
    source: Path, report: RowReport, split: Callable[[str], Sequence[_Label]]
) -> Iterator[tuple[int, int, list[_Label] | None]]:
    for file, line, text in iter_lines(source, report, blank=True):
        labels: list[_Label] | None
        try:
            labels = list(split(text)) if text else []
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            labels = None
        yield line - 1, line, labels


def _npz_rows(source: Path, report: RowReport) -> Iterator[tuple[int, int, list[int]]]:
    # Imported here: it takes a while, and the other formats do without.
    from scipy.sparse import load_npz

    try:
        matrix = load_npz(source).tocsr()
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{source} is no sparse matrix of scipy: {error}", "fetch or write the file again"
        ) from None
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        yield row, row + 1, matrix.indices[part][matrix.data[part] > 0].tolist()


def _header(source: str | Path, first: tuple[str, int, str]) -> tuple[int, int]:
    tokens = first[2].split()
    if first[1] != 1 or len(tokens) != 2 or not all(token.isascii() and token.isdigit() for token in tokens):
        raise DataError(
            f"{source} does not begin with a header line `rows labels`",
            "write both numbers, with a space between, before the first row",
        )
    return int(tokens[0]), int(tokens[1])


def _entry(token: str) -> tuple[int, float]:
    column, _, value = token.partition(":")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RowError("bad_entry", f"not `column:value`: {token[:60]!r}")
    return _number(column), number


def _number(token: str) -> int:
    text = token.strip()
    # At most 18 digits fit 64 bits; int() alone also takes signs, underscores and other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RowError("bad_entry", f"not a number from 0 on: {token[:60]!r}")
    return int(text)
