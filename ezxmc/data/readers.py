"""Rows out of files, streamed: memory is bounded by the longest row, not by the file.

| source                                | read as                                              |
|---------------------------------------|------------------------------------------------------|
| `.jsonl` `.ndjson` `.json` (`.gz`)    | one JSON object per line                             |
| `.csv` (`.gz`)                        | RFC 4180, header line, quoted fields may span lines  |
| `.tsv` (`.gz`)                        | header line, no quoting: one line is one row         |
| `.parquet`                            | batches of rows                                      |
| `.txt` (`.gz`)                        | one title per line, which is its uid as well         |
| a folder written by `save_to_disk`    | its only split, or "train"                           |
| `org/name`, `org/name:split`          | a hub dataset, streamed                              |
| `-`                                   | JSON lines from standard input                       |

Text is UTF-8, with or without a byte order mark. A row that cannot be read is
reported with its line and skipped; a file that cannot be read is an error.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import reprlib
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ezxmc.data.validate import RowReport
from ezxmc.errors import DataError

Row = tuple[str, int, dict[str, Any]]
"""File, 1-based line (row number in binary formats), columns."""

_JSON = (".jsonl", ".ndjson", ".json")
_FIELDS = (".csv", ".tsv")
_BATCH_ROWS = 1_024
# An unclosed quote makes the csv module swallow the rest of the file; this many
# characters (documents of some millions of words) end that.
_FIELD_LIMIT = 1 << 25
_SURROGATE = re.compile("[\ud800-\udfff]")
_ARRAY = re.compile(r"\[\s*(\{|$)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SUPPORTED = (
    "use .jsonl, .csv, .tsv, .txt (each also .gz), .parquet, a `datasets` folder, a hub id `org/name`, "
    'or "-" for JSON lines from standard input'
)


def iter_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    """Stream the rows of any supported source.

    Args:
        source: A path, a hub id or "-"; see the table above.
        report: Receives the rows that cannot be read (`bad_utf8`, `bad_json`,
            `not_an_object`, `bad_csv`, `field_count`). Rows yielded are not
            counted here: whoever uses one adds to `kept` or reports it.

    Yields:
        `(file, line, columns)` of each readable row.

    Raises:
        DataError: The source is missing, unsupported, or broken as a whole.
    """
    kind = source_kind(source)
    if kind in _JSON:
        return _json_rows(source, report)
    if kind in _FIELDS:
        return _field_rows(source, report)
    if kind == ".txt":
        return _title_rows(source, report)
    if kind == ".parquet":
        return _parquet_rows(source, report)
    return _dataset_rows(source, on_disk=kind == "folder")


def source_kind(source: str | Path) -> str:
    """The format of a source: a suffix without `.gz`, "folder" or "hub".

    Raises:
        DataError: There is no such source, or its format is not supported.
    """
    name = str(source)
    if name == "-":
        return ".jsonl"
    path = Path(name)
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    known = suffix in (*_JSON, *_FIELDS, ".txt") or (suffix == ".parquet" and not name.endswith(".gz"))
    if path.is_dir():
        if not any((path / mark).is_file() for mark in ("dataset_dict.json", "dataset_info.json")):
            raise DataError(f"{name} is a folder, but not one written by `save_to_disk`", _SUPPORTED)
        return "folder"
    if path.exists():
        if not known:
            raise DataError(f"{name} is of no supported format", _SUPPORTED)
        return suffix
    if not known and _HUB_ID.fullmatch(name):
        return "hub"
    raise DataError(f"no file at {name}", "check the path; relative paths start at the working directory")


def iter_fields(source: str | Path, report: RowReport) -> Iterator[tuple[str, int, list[str]]]:
    """Stream the rows of a CSV or TSV file as lists of fields, header included.

    Yields:
        `(file, line, fields)`, the line being the one the row starts on.

    Raises:
        DataError: The file cannot be read.
    """
    file = str(source)
    tabs = source_kind(source) == ".tsv"
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    # Undecodable bytes become lone surrogates, so that one row is lost and not the file.
    text = (raw.decode("utf-8", "surrogateescape") for _, raw in _lines(source))
    reader = csv.reader(
        text,
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report.add(file, line, "bad_csv", f"{error} (lines {line} to {reader.line_num})")
            continue
        if any(_SURROGATE.search(value) for value in fields):
            report.add(file, line, "bad_utf8", "the row is not valid UTF-8")
        elif fields:
            yield file, line, fields


def _open(name: str) -> AbstractContextManager[Iterable[bytes]]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    return gzip.open(name, "rb") if name.endswith(".gz") else Path(name).open("rb")


def _lines(source: str | Path) -> Iterator[tuple[int, bytes]]:
    name = str(source)
    try:
        with _open(name) as handle:
            for number, raw in enumerate(handle, start=1):
                yield number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{name} cannot be read to its end: {error}", "fetch or write the file again"
        ) from None


def iter_lines(
    source: str | Path, report: RowReport, *, blank: bool = False
) -> Iterator[tuple[str, int, str]]:
    """Stream the lines of a text file, without outer spaces.

    Args:
        source: A path, gzip if it ends in `.gz`, or "-".
        report: Receives lines that are not UTF-8 (`bad_utf8`).
        blank: Whether blank lines are yielded, too.

    Yields:
        `(file, line, text)`, the line counted from 1, blank and bad ones included.

    Raises:
        DataError: The file cannot be read to its end.
    """
    file = "<stdin>" if str(source) == "-" else str(source)
    for line, raw in _lines(source):
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            report.add(file, line, "bad_utf8", f"byte {error.start + 1} of the line: {error.reason}")
            continue
        if text or blank:
            yield file, line, text


def _json_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    for file, line, text in iter_lines(source, report):
        if line == 1 and _ARRAY.match(text):
            raise DataError(
                f"{file} holds one JSON array, not one object per line", f"jq -c '.[]' {file} > rows.jsonl"
            )
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            report.add(file, line, "bad_json", str(error))
            continue
        if isinstance(value, dict):
            yield file, line, value
        else:
            report.add(file, line, "not_an_object", reprlib.repr(value))


def _field_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    bad_before = report.bad
    rows = iter_fields(source, report)
    file, _, header = next(rows, ("", 0, []))
    if report.bad > bad_before:
        raise DataError(f"{report.problems[-1]}: there is no readable header line", "mend the first line")
    named = [name for name in header if name]
    if len(named) != len(set(named)):
        raise DataError(f"{file}:1: two columns have the same name: {', '.join(named)}", "rename one of them")
    for file, line, fields in rows:
        if len(fields) == len(header):
            yield file, line, dict(zip(header, fields, strict=True))
        else:
            report.add(file, line, "field_count", f"{len(fields)} fields where the header has {len(header)}")


def _title_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    for file, line, title in iter_lines(source, report):
        yield file, line, {"uid": title, "title": title}


def _parquet_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    file = str(source)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        row = batch.slice(index, 1).to_pylist()[0]
                    except UnicodeDecodeError as error:
                        report.add(file, number, "bad_utf8", error.reason)
                        continue
                    yield file, number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}", "write the file again") from None


def _dataset_rows(source: str | Path, *, on_disk: bool) -> Iterator[Row]:
    # Imported here: it takes a second, and most inputs are plain files.
    import datasets

    name, _, split = str(source).partition(":") if not on_disk else (str(source), "", "")
    try:
        data = datasets.load_from_disk(name) if on_disk else datasets.load_dataset(name, streaming=True)
        if isinstance(data, dict):
            split = split or ("train" if len(data) > 1 else next(iter(data)))
            if split not in data:
                raise DataError(f"{name} has the splits {', '.join(data)}, not {split}", "name one of them")
            data = data[split]
        for number, row in enumerate(data, start=1):
            yield str(source), number, row
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds, its own and its transports'
        where = "the `datasets` folder" if on_disk else "the hub dataset (and no file has this name)"
        raise DataError(
            f"cannot read {where} {name}: {error}", "check the name and the connection"
        ) from error
