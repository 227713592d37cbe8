"""Which id a name means: exact, a title, or a twin in another spelling; never a guess between two."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ezxmc.text import cut

# Marks without width: a byte order mark in mid-file, say, after `cat a.txt b.txt`.
_UNSEEN = re.compile("[\ufeff\u200b\u2060]")
_OUTER = re.compile(r"^[\s\ufeff\u200b\u2060]+|[\s\ufeff\u200b\u2060]+$")
_NUMBER = re.compile(r"0*(\d+)(\.0+)?")
SEPARATORS = (";", "|", ",", "\n", "\t", "/", " ")
_ENOUGH = 0.5  # of a column's values must be known for it to serve by its content
_LONGEST = 100_000  # characters of a list; a longer cell is no list of labels
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
# As numpy shows an array of strings: no comma between them.
_ARRAY = re.compile(r"\[\s*(?:'[^']*'|\"[^\"]*\")(?:\s+(?:'[^']*'|\"[^\"]*\"))*\s*\]")
_ANGLED = re.compile(r"(?:<[^<>]+>){1,}")


def trim(text: str) -> str:
    """A name without outer blanks and byte order marks."""
    return _OUTER.sub("", text)


def twin(text: str) -> str:
    """What two spellings of one name share: Unicode form (NFC), blanks and unseen marks aside."""
    return " ".join(unicodedata.normalize("NFC", _UNSEEN.sub("", text)).split())


def plain(text: str) -> str:
    """A text but for case, blanks and Unicode form (NFKC): names equal in it look the same to people."""
    folded = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _number(text: str) -> str | None:
    found = _NUMBER.fullmatch(text.strip())
    return found[1] if found else None


class Names:
    """Finds the uid a name means.

    Args:
        uids: All there are; a mapping gives their titles, under which they are found too.
    """

    def __init__(self, uids: Collection[str] | Mapping[str, str]) -> None:
        self.uids: Mapping[str, str] = uids if isinstance(uids, Mapping) else dict.fromkeys(uids, "")
        self._tables: dict[str, dict[str, str | None]] = {}
        self._found: dict[str, tuple[str | None, str]] = {}

    def __len__(self) -> int:
        return len(self.uids)

    def find(self, name: str) -> tuple[str | None, str]:
        """The uid and, where it is not the name itself, in which way it was found.

        Returns:
            `None` where nothing, or more than one uid, could be meant.
        """
        if name in self.uids:
            return name, ""
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> tuple[str | None, str]:
        ways: tuple[tuple[str, Callable[[str], str | None], bool], ...] = (
            ("title", str, True),
            ("number in another form", _number, False),
            ("Unicode form or blanks", twin, False),
            ("title", twin, True),
            ("case", plain, False),
            ("title", plain, True),
        )
        for way, form, by_title in ways:
            key = form(name)
            if key and (uid := self._table(form, by_title).get(key)):
                return uid, way
        return None, ""

    def known(self, name: str) -> bool:
        """Whether it means one."""
        return self.find(name)[0] is not None

    def _table(self, form: Callable[[str], str | None], by_title: bool) -> dict[str, str | None]:
        name = f"{form.__name__} {by_title}"
        if name not in self._tables:
            # Built when a name is first in doubt: of a million labels that costs a second.
            table = self._tables[name] = {}
            for uid, title in self.uids.items():
                key = form(title if by_title else uid)
                if key:
                    table[key] = None if table.get(key, uid) != uid else uid
        return self._tables[name]


def listed(cell: str) -> list[Any] | None:
    """The items of a list that was written as text: JSON, Python's or numpy's form, or `<a><b>`."""
    text = cell.strip()
    if _ANGLED.fullmatch(text):
        return re.findall(r"<([^<>]+)>", text)
    if text[:1] + text[-1:] not in ("[]", "()", "{}") or len(text) > _LONGEST:
        return None
    if _ARRAY.fullmatch(text):
        return [one or other for one, other in _QUOTED.findall(text)]
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list | tuple | set):
            return sorted(found, key=str) if isinstance(found, set) else list(found)
    return None


def parts(cell: str, separator: str) -> list[str]:
    """The names between separators, without brackets and quotes around them."""
    found = (trim(part.strip().strip("[](){}").strip("'\"")) for part in cell.split(separator))
    return [part for part in found if part]


def separator_of(cell: str, names: Names) -> str | None:
    """The separator at which a cell falls into names that are all known; `None` if at none."""
    for separator in SEPARATORS:
        if separator in cell and (found := parts(cell, separator)) and all(map(names.known, found)):
            return separator
    return None


def some(names: Iterable[str], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(f"'{cut(name, 61)}'" for name in every[:most]) + more


def best_column(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    accepted: Sequence[str],
    fits: Callable[[Any], bool] | None,
) -> str | None:
    """The column that serves as something: by an accepted name; by content among several such, or without.

    Args:
        names: Of the columns.
        rows: Some rows, a value for each column.
        accepted: Names in order of preference.
        fits: Whether a value is what is sought; `None`: nobody can tell.
    """
    named = [name for name in accepted if name in names]
    if len(named) == 1 or fits is None:
        return named[0] if named else None
    hits: Counter[str] = Counter()
    for row in rows:
        hits.update(name for name, value in zip(names, row, strict=True) if fits(value))
    if named:
        return max(named, key=lambda name: (hits[name], -named.index(name)))
    best, count = next(iter(hits.most_common(1)), ("", 0))
    return best if count and count >= _ENOUGH * len(rows) else None
