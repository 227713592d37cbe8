"""Which column serves as what, the same for all files; what is unread is told.

Names match whatever their case, blanks, hyphens and underscores. Where a file has several names of one
field, the first in the table that is filled counts, row by row: a blank cell, a null and a NaN are as good
as no column.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ezxmc.errors import ConfigError, DataError, instance_of

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
