"""Rows of fields out of CSV and TSV files, as they come from databases, pandas and spreadsheets.

The delimiter is the suffix's, unless the first lines show another or a line `sep=;` names it. A quote that
is opened and not closed costs its own line, not those after it: they are read again, as rows of their own.
In a file with tabs a quoted cell is unquoted where its writer had to quote it (a tab, a line break, a quote
or a comma inside); any other quote belongs to the text.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from ezxmc.data.matching import NAMES, key
from ezxmc.data.sources import Lines, locate
from ezxmc.errors import RowReport

# More in one cell (documents of some millions of words) is a quote gone astray.
_FIELD_LIMIT = 1 << 25
_SAMPLE = 100  # lines that show what a file is like
_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "|"}
_SEPARATOR = re.compile(r'"?sep=(.|\t)"?', re.IGNORECASE)
_LOOKS = (8, 64, 512, 4_096, 32_768)  # lines of one row after which it is asked whether they are rows


def iter_fields(source: str | Path, report: RowReport) -> Iterator[tuple[str, int, list[str]]]:
    """Stream the rows of CSV or TSV files as lists of fields, headers included.

    Args:
        source: Anything `locate` finds of these formats.
        report: Receives rows that cannot be read (`bad_csv`, `bad_utf8`), and notes.

    Yields:
        `(file, line, fields)`, the line being the one the row starts on.

    Raises:
        DataError: A file cannot be read.
    """
    kind, files = locate(source)
    for name in files:
        yield from _Table(name, report, "\t" if kind == ".tsv" else ",").rows()


class _SwallowedError(Exception):
    """A quoted field holds what are rows."""


class _Table:
    """One file; an iterator over the lines of the row in hand, for the csv module."""

    def __init__(self, name: str, report: RowReport, delimiter: str) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
        self.name, self.report = name, report
        lines = Lines(name, report, old_mac=True)
        self.broken = lines.broken
        self.lines = iter(lines)
        self.back: deque[tuple[int, str]] = deque()
        self.pending: list[tuple[int, str]] = []
        self.fed = 0
        self.width = 0
        self.former: list[str] = []
        sample = list(islice(self.lines, _SAMPLE))
        self.lines = chain(sample, self.lines)
        texts = [text for _, text in sample]
        named = _SEPARATOR.fullmatch(texts[0].strip()) if texts else None
        if named:
            next(self.lines)
            del texts[0]
        self.delimiter = named[1] if named else _delimiter(texts, delimiter)
        if self.delimiter != delimiter:
            told = _NAMES.get(self.delimiter, self.delimiter)
            report.note(f"{name} has its cells divided by {told}: read so")
        self.tabs = self.delimiter == "\t"
        # `"id", "text"`: in a header nobody means the blank, and with it the quote would be text.
        self.spaced = bool(texts and re.search(rf'{re.escape(self.delimiter)} +"', texts[0]))
        cells = [text.rstrip("\r\n").split(self.delimiter) for text in texts]
        self.all_quoted = bool(cells) and all(len(c) > 1 and c[0] == c[-1] == '"' for c in cells[0])
        self.loose = not any(_literal(cell) for row in cells for cell in row)

    def rows(self) -> Iterator[tuple[str, int, list[str]]]:
        """The rows, in order."""
        name, delimiter, back, broken = self.name, self.delimiter, self.back, self.broken
        self.reader = csv.reader(self, delimiter=delimiter, strict=True, skipinitialspace=self.spaced)
        while True:
            item = back.popleft() if back else next(self.lines, None)
            if item is None:
                return
            number, text = item
            if text[:1] == "\ufeff":  # of the second of two files put together
                text = text[1:]
            if '"' in text:
                fields = self._quoted(number, text)
            else:
                text = text.rstrip("\r\n")
                fields = text.split(delimiter) if text else None
            if broken and self._undecodable(number):
                continue
            if fields:
                self.width = self.width or len(fields)
                self.former = fields
                yield name, number, fields

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.fed == len(self.pending):
            item = self.back.popleft() if self.back else next(self.lines, None)
            if item is None:
                raise StopIteration
            self.pending.append(item)
            if self.fed in _LOOKS and self._holds_rows():
                raise _SwallowedError
        self.fed += 1
        return self.pending[self.fed - 1][1]

    def _undecodable(self, number: int) -> bool:
        """Report a row with a line that cannot be decoded."""
        last = self.pending[-1][0] if self.pending else number
        found = [line for line in self.broken if number <= line <= max(last, number)]
        if not found:
            return False
        self.report.add(self.name, number, "bad_utf8", self.broken[found[0]])
        for line in found:
            del self.broken[line]
        return True

    def _quoted(self, number: int, text: str) -> list[str] | None:
        """The fields of a row with quotes; `None` if it was reported."""
        careful = self.tabs and not self.all_quoted
        plain = text.rstrip("\r\n").split(self.delimiter) if careful else []
        self.pending, self.fed = [(number, text)], 0
        if careful and not any(cell[:1] == '"' for cell in plain):
            return plain
        why = ""
        try:
            fields = next(self.reader)
            if len(self.pending) > 1 and self._holds_rows(len(fields)):
                raise _SwallowedError
        except StopIteration:
            return None
        except csv.Error as error:
            why = str(error)
        except _SwallowedError:
            why = "the lines after it look like rows"
        else:
            if not careful:
                return fields
            if (found := self._unquoted(plain, fields)) is not None:
                return found
        self.back.extendleft(reversed(self.pending[1:]))
        lines = len(self.pending) - 1
        del self.pending[1:]
        if careful:
            return plain
        if number in self.broken:
            return None  # told as that
        if lines:
            why = f"a quote is opened here and not closed ({why}); the lines after it are read as rows"
        self.report.add(self.name, number, "bad_csv", why)
        return None

    def _unquoted(self, plain: list[str], fields: list[str]) -> list[str] | None:
        """The cells of a row with tabs, without the quotes its writer added; `None`: there are none such."""
        if len(self.pending) > 1 or len(fields) != len(plain):
            if len(fields) != self.width:
                return None
            found = fields
        else:
            found = [
                cell if raw[:1] == '"' and (not cell or '"' in cell or (self.loose and "," in cell)) else raw
                for raw, cell in zip(plain, fields, strict=True)
            ]
            if found == plain:
                return None
        self.report.note(f"{self.name} has quoted cells: unquoted")
        return found

    def _holds_rows(self, fields: int | None = None) -> bool:
        """Whether the lines after the first of the row in hand are rows of their own.

        Args:
            fields: Of the row in hand, if it is whole.
        """
        cells = [text.rstrip("\r\n").split(self.delimiter) for _, text in self.pending[1:]]
        rows = [row for row in cells if len(row) == self.width and row[0].strip()]
        if self.width < 2 or not rows:
            return False
        if fields not in (None, self.width) and len(rows) >= len(cells) / 2:
            return True
        # Behind a comma of prose there is a blank.
        tight = self.tabs or not any(cell[:1] == " " for row in rows for cell in row[1:])
        if len(rows) == len(cells) and tight and (self.tabs or len(rows) >= (4 if self.width == 2 else 2)):
            return True
        return len(rows) >= 0.8 * len(cells) and any(self._counts_on(rows, c) for c in range(self.width))

    def _counts_on(self, rows: list[list[str]], column: int) -> bool:
        """Whether a column of lines goes on as the ids of the rows before."""
        first = self.pending[0][1].split(self.delimiter)
        before = first[column] if column < len(first) and '"' not in first[column] else ""
        if not before:
            before = self.former[column] if column < len(self.former) else ""
        ids = [row[column] for row in rows]
        shape = _shape(before)
        if shape is None or len(set(ids)) < len(ids) or any(_shape(one) != shape for one in ids):
            return False
        if len(ids) < 3 and before.isdigit():
            # "12,5 kg" in a text is no row 12.
            return all(0 < int(one) - int(before) <= 100 for one in ids)
        return True


def _shape(name: str) -> str | None:
    """What an id looks like: "ab-0" for "AB-117"; `None` if it is none."""
    if not 0 < len(name) <= 40 or not any(map(str.isdigit, name)) or any(map(str.isspace, name)):
        return None
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", name))


def _literal(cell: str) -> bool:
    """Whether a cell has a quote that none of those who quote would have written so."""
    left = cell.replace('""', "")
    count = left.count('"')
    if not count:
        return False
    if cell[0] == '"':
        return count > 2 or (count == 2 and left[-1] != '"')
    return count > 1 or left[-1] != '"'


def _delimiter(lines: list[str], usual: str) -> str:
    """What divides the cells, by the lines a file begins with."""
    best, found = (0, False, 0.0, 0), usual
    for delimiter in (usual, *(one for one in _DELIMITERS if one != usual)):
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if not rows:
            return usual
        width = len(rows[0])
        share = sum(len(row) == width for row in rows) / len(rows)
        if width > 1 and share >= 0.5:
            # Known names in the header come first, then what the suffix says.
            rank = (sum(key(name) in NAMES for name in rows[0]), delimiter == usual, share, width)
            if rank > best:
                best, found = rank, delimiter
    return found
