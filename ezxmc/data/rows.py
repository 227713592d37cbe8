"""Rows out of files, streamed: memory is bounded by the longest row, not by the file.

| source                                     | read as                                             |
|--------------------------------------------|-----------------------------------------------------|
| `.jsonl` `.ndjson` `.json` (`.gz` ...)     | one JSON object per line, or one array of them      |
| `.csv` `.tsv` (`.gz` ...)                  | header line, quoted cells may span lines (`tables`) |
| `.parquet`                                 | batches of rows                                     |
| `.xlsx`                                    | the first sheet, header row                         |
| `.txt` (`.gz` ...)                         | one title per line, which is its uid as well        |
| a pattern, or a folder of such files       | all of them, in order of their names                |
| a folder written by `save_to_disk`         | its only split, or "train"                          |
| `org/name`, `org/name:split`               | a hub dataset, streamed                             |
| `-`                                        | JSON lines from standard input                      |

A row that cannot be read is reported with its line and skipped; a file that cannot be read is an error;
`sources` tells of packing and encodings.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ezxmc.data.columns import HEADS, NAMES, key
from ezxmc.data.sources import FIELDS, JSON, iter_lines, locate, source_kind
from ezxmc.data.tables import iter_fields
from ezxmc.data.validate import RowReport
from ezxmc.errors import DataError

__all__ = ["Row", "iter_fields", "iter_lines", "iter_rows", "source_kind"]

Row = tuple[str, int, dict[str, Any]]
"""File, 1-based line (row number in binary formats), columns."""

_BATCH_ROWS = 1_024
_ARRAY = re.compile(r"\[\s*(\{|\]?$)")


def iter_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    """Stream the rows of any supported source.

    Args:
        source: A path, a pattern, a folder, a hub id or "-"; see the table above.
        report: Receives the rows that cannot be read (`bad_utf8`, `bad_json`, `not_an_object`, `bad_csv`,
            `field_count`), header lines in mid-file (`repeated_header`) and notes. Rows yielded are not
            counted here: whoever uses one adds to `kept` or reports it.

    Yields:
        `(file, line, columns)` of each readable row.

    Raises:
        DataError: The source is missing, unsupported, or broken as a whole.
    """
    kind, files = locate(source)
    if kind in ("folder", "hub"):
        return _dataset_rows(source, on_disk=kind == "folder")
    if len(files) > 1:
        report.note(f"{source}: {len(files)} files, {Path(files[0]).name} to {Path(files[-1]).name}")
    readers = {".txt": _title_rows, ".parquet": _parquet_rows, ".xlsx": _sheet_rows}
    readers |= dict.fromkeys(JSON, _json_rows) | dict.fromkeys(FIELDS, _field_rows)
    return chain.from_iterable(readers[kind](file, report) for file in files)


def _json_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    lines = iter_lines(source, report)
    # One line only: whoever reads must learn of bad rows in their order.
    head = list(islice(lines, 1))
    lines, whole = chain(head, lines), bool(head and _ARRAY.match(head[0][2]))
    for file, line, value in _array(lines, report) if whole else _json_values(lines, report):
        if isinstance(value, dict):
            yield file, line, value
        else:
            report.add(file, line, "not_an_object", reprlib.repr(value))


def _json_values(lines: Iterable[tuple[str, int, str]], report: RowReport) -> Iterator[tuple[str, int, Any]]:
    first = None
    for file, line, text in lines:
        if first == "{" and text[0] == '"':
            raise DataError(
                f"{file}: one JSON object is on several lines",
                f"write one object per line (`jq -c . {file} > rows.jsonl`), or one array of them",
            )
        first = text if first is None else ""
        try:
            yield file, line, json.loads(text)
        except (ValueError, RecursionError) as error:
            report.add(file, line, "bad_json", str(error))


def _array(lines: Iterable[tuple[str, int, str]], report: RowReport) -> Iterator[tuple[str, int, Any]]:
    """A file that is one JSON array, all of it in memory; its rows are numbered by their place."""
    bad_before, read = report.bad, list(lines)
    file, text = read[0][0], "\n".join(part for _, _, part in read)
    wrong: object = report.problems[-1] if report.bad > bad_before else None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        wrong = wrong or error
    if wrong:
        raise DataError(
            f"{file} holds one JSON array that cannot be read: {wrong}",
            "mend it, or write one object per line",
        )
    report.note(f"{file} holds one JSON array: rows are numbered by their place in it")
    for number, value in enumerate(values, start=1):
        yield file, number, value


def _field_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    bad_before = report.bad
    rows = iter_fields(source, report)
    file, _, header = next(rows, ("", 0, []))
    if report.bad > bad_before:
        raise DataError(f"{report.problems[-1]}: there is no readable header line", "mend the first line")
    _check_names(f"{file}:1", header)
    heads = {header[0], *HEADS} if header else set()
    for file, line, fields in rows:
        if fields[0] in heads and (again := _header(fields, header)):
            report.add(file, line, "repeated_header", "a header line in mid-file is no row")
            header = again
        elif len(fields) == len(header):
            yield file, line, dict(zip(header, fields, strict=True))
        else:
            report.add(file, line, "field_count", f"{len(fields)} fields where the header has {len(header)}")


def _header(fields: list[str], header: list[str]) -> list[str] | None:
    """The header from here on, if this row is one (of another file put behind); else `None`."""
    if fields == header:
        return header
    names, former = list(map(key, fields)), set(map(key, header))
    known = former | NAMES
    whole = len(names) > 1 and len(set(names)) == len(names) and all(name in known for name in names)
    # A row of column names only, most of them of this file: "name,summary" alone may be a row.
    return fields if whole and 2 * len(former.intersection(names)) >= len(names) else None


def _check_names(where: str, header: list[Any]) -> None:
    named = [name for name in header if name]
    if twice := sorted({str(name) for name in named if named.count(name) > 1}):
        raise DataError(f"{where}: two columns have the same name: {', '.join(twice)}", "rename one of them")


def _title_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    for file, line, title in iter_lines(source, report):
        yield file, line, {"uid": title, "title": title}


def _parquet_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    file = str(source)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            _check_names(file, opened.schema_arrow.names)
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


def _sheet_rows(source: str | Path, report: RowReport) -> Iterator[Row]:
    file = str(source)
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise DataError(
            f"{file}: reading .xlsx needs openpyxl", "pip install 'ezxmc[xlsx]', or save the sheet as .csv"
        ) from None
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises whatever its XML and zip readers do
        raise DataError(f"{file} is no readable .xlsx: {error}", "save it again, or as .csv") from None
    try:
        if len(book.sheetnames) > 1:
            others = ", ".join(book.sheetnames[1:])
            report.note(f"{file}: the sheet {book.sheetnames[0]} is read; unread: {others}")
        header: list[str] = []
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
            values = [_value(cell) for cell in cells]
            if all(value is None for value in values):
                continue
            if not header:
                while values[-1] is None:
                    values.pop()
                header = ["" if value is None else str(value) for value in values]
                _check_names(f"{file}:{number}", header)
                continue
            if any(value is not None for value in values[len(header) :]):
                report.add(file, number, "field_count", f"more cells than the header's {len(header)}")
                continue
            yield file, number, {name: value for name, value in zip(header, values, strict=False) if name}
    finally:
        book.close()


def _value(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, date | datetime | time) else cell


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
