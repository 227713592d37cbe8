"""Rows into files in the form that the file's name says: JSON lines, CSV, Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pyarrow
import pyarrow.parquet

from ezxmc.files import Inputs, Made, is_stream, json_line, place_of, refuse, whole_file

Row = dict[str, Any]
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
        self._waiting: list[Row] = []
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

    def write(self, rows: Iterable[Row]) -> None:
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
    is_row: Callable[[Row], bool] | None = None,
    inputs: Inputs = (),
    bom: bool = False,
) -> Iterator[Callable[[Iterable[Row]], None]]:
    """`whole_file` for rows: gives a function that appends some."""
    form = row_format(out)
    with (
        whole_file(out, what, made=rows_made(schema.names, is_row), inputs=inputs) as fresh,
        RowSink(fresh, form, schema, bom=bom) as sink,
    ):
        yield sink.write


def rows_made(columns: Collection[str], is_row: Callable[[Row], bool] | None = None) -> Made:
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


def _encodable(rows: list[Row]) -> list[Row]:
    """Rows that Parquet takes: it has no half characters."""
    try:
        json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace")
        return [dict(row) for row in json.loads(text)]
    return rows
