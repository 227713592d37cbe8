"""Which column serves as what, and which id a name means; what is unread is told, nothing is guessed.

Names of columns match whatever their case, blanks, hyphens and underscores. Where a file has several of one
field, the first in the table that is filled counts, row by row: a blank cell, a null and a NaN are as good as
no column. A document or label is meant exactly, by its title, or by a twin in another spelling; never by a
guess between two.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from ezxmc.errors import ConfigError, DataError, instance_of
from ezxmc.text import cut

Kind = Literal["documents", "labels"]

ID_COLUMNS = ("uid", "id", "_id", "doc_id", "doc_uid", "document_id", "key")
"""Names of a document's id, in order of preference, among documents and in gold alike."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "uid": ID_COLUMNS,
    "title": ("title", "name", "heading", "subject"),
    "text": ("text", "content", "body", "description", "abstract", "summary"),
    "aliases": ("aliases",),
    "parent": ("parent",),
    "count": ("count",),
}
"""Accepted column names of each field, in order of preference."""

LABEL_COLUMNS = {
    **COLUMNS,
    "uid": ("uid", "id", "_id", "label_id", "label_uid", "tag_id", "key"),
    "title": ("title", "name", "label", "tag", "heading", "subject"),
}
"""The same for labels."""

_OF: dict[Kind, dict[str, tuple[str, ...]]] = {
    "documents": {field: COLUMNS[field] for field in ("uid", "title", "text")},
    "labels": LABEL_COLUMNS,
}
_BLANKS = re.compile(r"[\s_\-\ufeff]+")
_WHOLE = re.compile(r"-?\d+\.0")
_PLANS = 1_000  # different sets of names in one JSON file; then it begins anew
_SHOWN = 12  # unread columns named


def key(name: Any) -> str:
    """What spellings of one column name share: case, blanks, hyphens and underscores aside."""
    return _BLANKS.sub("", str(name).casefold())


NAMES = frozenset(key(name) for fields in _OF.values() for names in fields.values() for name in names)
"""All of them, as `key` gives them."""

HEADS = frozenset(
    form
    for fields in _OF.values()
    for names in fields.values()
    for name in names
    for form in (name, name.title(), name.capitalize(), name.upper())
)
"""How they are usually written, to know at a glance that a row is no header."""


def columns_for(kind: Kind, given: Mapping[str, str] | None) -> dict[str, str]:
    """Of columns named by the user, those of one kind of file.

    Args:
        kind: What the file holds.
        given: Column names by field: `text` or `documents.text` for documents, `labels.title` for labels.

    Raises:
        ConfigError: A field that does not exist.
    """
    found = {}
    given = {} if given is None else given
    instance_of(given, Mapping, "columns", 'give a dict, such as {"text": "message"}')
    for name, column in given.items():
        prefix, _, field = name.rpartition(".")
        prefix = prefix or "documents"
        if prefix not in _OF or field not in _OF[prefix]:
            fields = "; ".join(f"{one}: {', '.join(names)}" for one, names in _OF.items())
            raise ConfigError(
                f"a column cannot serve as {name}", f"fields of {fields}; labels' begin with `labels.`"
            )
        if prefix == kind:
            found[field] = column
    return found


def option(field: str, column: str) -> str:
    """The option of the command line that makes a column serve as a field."""
    return f"--column {shlex.quote(f'{field}={column}')}"


class Columns:
    """Turns rows into the fields of one kind of file, and keeps account of its columns.

    Args:
        kind: What the file holds.
        given: Columns named by the user, by field; these serve as nothing else.

    Attributes:
        serving: The columns each field is read from, in order of preference.
        unread: The others, with the characters seen in them.
        whole_ids: Whether ids such as "1.0" are whole numbers that pandas wrote.

    Raises:
        ConfigError: A field that does not exist.
    """

    def __init__(self, kind: Kind, given: Mapping[str, str] | None = None) -> None:
        if wrong := [field for field in given or {} if field not in _OF[kind]]:
            raise ConfigError(
                f"a column cannot serve as {wrong[0]} of {kind}", f"fields: {', '.join(_OF[kind])}"
            )
        self.kind: Kind = kind
        self.known = False  # whether `learn` has seen a row
        self._filled: set[str] = set()
        self.serving: dict[str, list[str]] = {}
        self.unread: dict[str, int] = {}
        self.whole_ids = False
        self._given = {field: key(column) for field, column in (given or {}).items()}
        self._shown = dict(given or {})
        self._plans: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's filled fields."""
        names = tuple(row)
        plan = self._plans.get(names) or self._plan(names)
        found = {}
        for field, columns in plan:
            for column in columns:
                value = row[column]
                # A blank cell, a null or a NaN leaves it to the next column.
                if value.strip() if type(value) is str else value is not None and value == value:
                    found[field] = value
                    break
        if self.whole_ids and isinstance(uid := found.get("uid"), str) and _WHOLE.fullmatch(uid.strip()):
            found["uid"] = uid.strip()[:-2]
        return found

    def _plan(self, names: tuple[str, ...]) -> list[tuple[str, list[str]]]:
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        keys = {name: key(name) for name in names}
        given = set(self._given.values())
        plan = []
        for field, accepted in _OF[self.kind].items():
            columns: list[str] = []
            if field in self._given:
                columns = [name for name in names if keys[name] == self._given[field]]
            for alias in accepted:
                # The very name first, then its other spellings.
                columns += sorted(
                    (n for n in names if keys[n] == key(alias) and keys[n] not in given),
                    key=lambda name, alias=alias: name != alias,  # type: ignore[misc]
                )
            columns = list(dict.fromkeys(columns))
            if columns:
                plan.append((field, columns))
                serving = self.serving.setdefault(field, [])
                serving += [name for name in columns if name not in serving]
        taken = {name for _, columns in plan for name in columns}
        for name in names:
            if name not in taken and str(name).strip():
                self.unread.setdefault(name, 0)
        self._plans[names] = plan
        return plan

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Look at the rows a file begins with."""
        ids = []
        for row in rows:
            self.known = True
            fields = self.fields(row)
            self._filled.update(fields)
            ids.append(fields.get("uid"))
            for name in self.unread:
                if isinstance(value := row.get(name), str):
                    self.unread[name] += len(value)
        given = [uid for uid in ids if uid is not None]
        self.whole_ids = bool(given) and all(
            isinstance(uid, str) and _WHOLE.fullmatch(uid.strip()) for uid in given
        )

    def check(self, source: Any) -> None:
        """Refuse columns named by the user that are not there.

        Raises:
            DataError: One is not among the columns seen so far.
        """
        there = [*dict.fromkeys(name for names in self._plans for name in names)]
        for field, name in self._given.items():
            if there and name not in map(key, there):
                raise DataError(
                    f"{source} has no column {self._shown[field]!r} to serve as {field}",
                    f"its columns: {', '.join(map(str, there[:50]))}",
                )

    def notes(self) -> list[str]:
        """What a person should know: which column serves as what, and what nobody reads."""
        if not self.serving and not self.unread:
            return []
        served = ", ".join(
            f"{field} = {' or '.join(name.strip() for name in self.serving[field])}" for field in self.serving
        )
        unread = sorted(self.unread, key=lambda name: -self.unread[name])
        line = f"columns: {served or 'none serves'}"
        if unread:
            more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
            line += f"; unread: {', '.join(unread[:_SHOWN])}{more}"
        notes = [line]
        prefix = "labels." if self.kind == "labels" else ""
        texts = [name for name in unread if self.unread[name]]
        needed = "text" if self.kind == "documents" else "title"
        if self.known and needed not in self._filled and texts:
            rest = ": documents are known by their title alone" if "title" in self._filled else ""
            cells = "its cells are empty" if needed in self.serving else "there is none"
            shown = ", ".join(texts[:_SHOWN])
            notes.append(
                f"WARNING: no column serves as {needed} ({cells}){rest}. Unread: {shown}; "
                f"`{option(prefix + needed, texts[0])}` reads that one (in a configuration: "
                f"data: {{columns: {{{prefix}{needed}: {texts[0]}}}}})"
            )
        if not self.serving:
            notes.append("WARNING: no column has a known name: is the first line a header?")
        if self.whole_ids:
            notes.append("ids such as 1.0 are taken as the whole numbers they were, 1")
        return notes

    def id_like(self) -> str:
        """An unread column that may be the id, by its name."""
        return next((name for name in self.unread if re.search(r"(id|number|nr|no|#)$", key(name))), "NAME")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: the columns of each field, and those unread."""
        return {**self.serving, "unread": list(self.unread)} if self.serving or self.unread else {}


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
