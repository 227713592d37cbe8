"""Rows out of files and into files, streamed: memory is bounded by the longest row, not by the file.

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
`sources` tells of packing and encodings. Rows go into JSON lines, CSV or Parquet, as the file's name says.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import pyarrow
import pyarrow.parquet

from ezxmc.data.matching import HEADS, NAMES, key
from ezxmc.data.sources import FIELDS, JSON, iter_lines, locate, source_kind
from ezxmc.data.tables import iter_fields
from ezxmc.errors import DataError, RowReport
from ezxmc.files import Inputs, Made, is_stream, json_line, place_of, refuse, whole_file

__all__ = [
    "Cells",
    "Row",
    "RowSink",
    "iter_fields",
    "iter_lines",
    "iter_rows",
    "row_format",
    "rows_made",
    "source_kind",
    "whole_rows",
]

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
            values = [c.isoformat() if isinstance(c, date | datetime | time) else c for c in cells]
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


Cells = dict[str, Any]
"""A row to be written, by column."""
_ROWS = (".jsonl", ".csv", ".parquet")
_GROUP = 10_000  # rows of a Parquet row group


def row_format(out: str | Path, also: Collection[str] = ()) -> str:
    """The form a file's name asks for: `.jsonl`, `.csv` (each also `.gz`) or `.parquet`.

    Args:
        out: The file. A pipe or a device gets JSON lines.
        also: Further suffixes that the caller can write.

    Raises:
        ConfigError: Another suffix, or none.
    """
    name = Path(out).name.lower()
    plain = name.removesuffix(".gz")
    suffix, packed = Path(plain).suffix.replace(".ndjson", ".jsonl"), name != plain
    if suffix in _ROWS and not (packed and suffix == ".parquet"):
        return suffix + ".gz" * packed
    if suffix in also and not packed:
        return suffix
    if is_stream(place_of(out)):
        return ".jsonl"
    known = ", ".join((".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet", *also))
    refuse(f"cannot write rows to {out}: its name says no form that is known", f"let it end in {known}")


class RowSink:
    """Rows into a new file.

    Args:
        path: The file; JSON lines are appended to what is there.
        form: Of `row_format`.
        schema: The columns of CSV and Parquet; JSON lines hold rows as they are. What is nested is JSON in
            a cell of CSV.
        bom: Begin CSV with a byte order mark, which spreadsheets want.
    """

    def __init__(self, path: Path, form: str, schema: pyarrow.Schema, *, bom: bool = False) -> None:
        self._schema = schema
        self._waiting: list[Cells] = []
        self._parquet: Any = None
        self._table: Any = None
        self._raw: Any = None
        with ExitStack() as stack:
            if form == ".parquet":
                self._parquet = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
                stack.callback(self._parquet.close)
            else:
                self._raw = stack.enter_context(path.open("ab" if form == ".jsonl" else "wb"))
            if form.endswith(".gz"):
                # Neither name nor time: the same rows give the same file.
                self._raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0))
            if form.startswith(".csv"):
                # Half characters, which no encoding has, must not cost the file.
                encoding = "utf-8-sig" if bom else "utf-8"
                text = io.TextIOWrapper(self._raw, encoding, errors="replace", newline="", write_through=True)
                stack.callback(text.detach)
                self._table = csv.writer(text)
                self._table.writerow(schema.names)
            self._close = stack.pop_all()

    def write(self, rows: Iterable[Cells]) -> None:
        """Append rows; plain JSON lines are on their way to the disk when it returns."""
        if self._parquet:
            self._waiting += rows
            while len(self._waiting) >= _GROUP:
                self._flush()
        elif self._table:
            self._table.writerows([_cell(row.get(name)) for name in self._schema.names] for row in rows)
        else:
            self._raw.write(b"".join(map(json_line, rows)))
            if not isinstance(self._raw, gzip.GzipFile):
                self._raw.flush()

    def _flush(self) -> None:
        group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
        self._parquet.write_table(pyarrow.Table.from_pylist(_encodable(group), schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *why: object) -> None:
        with self._close:
            if self._waiting and kind is None:
                self._flush()


@contextmanager
def whole_rows(
    out: str | Path,
    what: str,
    schema: pyarrow.Schema,
    *,
    is_row: Callable[[Cells], bool] | None = None,
    inputs: Inputs = (),
    bom: bool = False,
) -> Iterator[Callable[[Iterable[Cells]], None]]:
    """`whole_file` for rows: gives a function that appends some."""
    form = row_format(out)
    with (
        whole_file(out, what, made=rows_made(schema.names, is_row), inputs=inputs) as fresh,
        RowSink(fresh, form, schema, bom=bom) as sink,
    ):
        yield sink.write


def rows_made(columns: Collection[str], is_row: Callable[[Cells], bool] | None = None) -> Made:
    """Tells files of rows of one kind, in any of the forms; every line is looked at.

    Args:
        columns: Of CSV and Parquet.
        is_row: Of a JSON line; by default it has just these columns. The last line may be cut, as a killed
            writer leaves it.
    """
    starts = tuple(f'{{"{name}": '.encode() for name in columns)
    wanted = set(columns)

    def fits(line: bytes) -> bool:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return not line.endswith(b"\n") and any(line.startswith(s) or s.startswith(line) for s in starts)
        return isinstance(row, dict) and (is_row(row) if is_row else set(row) == wanted)

    def made(path: Path) -> bool:
        try:
            if path.suffix.lower() == ".parquet":
                return list(pyarrow.parquet.read_schema(path).names) == list(columns)
            with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as lines:
                if Path(path.name.lower().removesuffix(".gz")).suffix != ".csv":
                    return all(map(fits, lines))
                header = next(iter(lines), b"").decode("utf-8-sig")
                return next(csv.reader([header]), []) == list(columns)
        except (OSError, EOFError, ValueError, csv.Error, pyarrow.ArrowException):
            return False

    return made


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value


def _encodable(rows: list[Cells]) -> list[Cells]:
    """Rows that Parquet takes: it has no half characters."""
    try:
        json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace")
        return [dict(row) for row in json.loads(text)]
    return rows
