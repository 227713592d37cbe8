"""Documents and labels out of rows; `matching` says which column serves as what.

Documents of a file without an id column get one made of their content. Labels without a uid take their title.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ezxmc.data.forest import with_parents
from ezxmc.data.matching import COLUMNS as COLUMNS
from ezxmc.data.matching import Columns, listed, option, plain, trim, twin
from ezxmc.data.rows import iter_rows, source_kind
from ezxmc.errors import DataError, RowError, RowReport
from ezxmc.records import Document, Label

# Neither can be encoded for a model: half a character, and the end of a C string.
_UNFIT = re.compile("[\ud800-\udfff\0]")

_SAMPLE = 100  # rows that tell what a file's columns are

_Record = TypeVar("_Record", Document, Label)


def iter_documents(
    source: str | Path, report: RowReport, *, columns: Mapping[str, str] | None = None
) -> Iterator[Document]:
    """Stream documents; memory grows by a 16-byte digest per uid only.

    Args:
        source: Anything `iter_rows` reads; columns as in `COLUMNS`.
        columns: Columns by the field they serve as, such as `{"text": "message"}`, in preference to those
            of the table.
        report: Receives rows without uid (`no_uid`), without a word in title and text (`empty_text`), with
            a uid seen before (`duplicate_uid`: the first one is kept), with lists or numbers for text
            (`bad_type`), and with half characters or NUL (`bad_unicode`).

    Raises:
        DataError: The source cannot be read, or a row is bad and `report` is strict.
    """
    for *_, document in iter_records(source, report, document_of, columns):
        yield document


def read_documents(
    source: str | Path, *, strict: bool = False, columns: Mapping[str, str] | None = None
) -> tuple[list[Document], RowReport]:
    """All documents of a source in order, and what was wrong with the rest; `columns` as above.

    Raises:
        DataError: As for `iter_documents`.
    """
    report = RowReport(strict=strict)
    return list(iter_documents(source, report, columns=columns)), report


def read_labels(
    source: str | Path,
    *,
    strict: bool = False,
    known: Iterable[Label] = (),
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Label], RowReport]:
    """All labels of a source in order, and what was wrong with the rest.

    `aliases` is a list of strings, one written as text, or one string with `|` between them. Labels of one
    title and several uids are kept, since they may be meant, and reported as the warning `equal_title`:
    titles that differ only in case, blanks or Unicode form are equal. A label that is there already is
    dropped (`same_label`): one whose uid, or whose title where one of the two has no other uid, differs
    from a former one's in blanks or Unicode form at most. A label without a title is dropped (`no_title`),
    since the title is what the models see. What a `parent` or a path in a title means, `with_parents` says;
    where most parents are labels, one that is none is reported as the warning `unknown_parent`.

    Args:
        source: Anything `iter_rows` reads.
        strict: Raise at the first bad row.
        known: Labels that are there already. A label with the very uid of one of them is meant to replace it.
        columns: As above.

    Raises:
        DataError: As for `iter_documents`, or labels are above one another in a circle.
    """
    report, known = RowReport(strict=strict), list(known)
    labels: list[Label] = []
    places: dict[str, tuple[str, int]] = {}
    by_title: dict[str, str] = {}
    same = SameLabels(known)
    for label in known:
        by_title.setdefault(plain(label.title), label.uid)
    for file, line, _, label in iter_records(source, report, label_of, columns):
        if (other := same.add(label)) is not None:
            report.kept -= 1
            report.add(file, line, "same_label", _same(label, other))
            continue
        labels.append(label)
        first = by_title.setdefault(plain(label.title), label.uid)
        if first != label.uid:
            detail = f"label {reprlib.repr(label.uid)} has the title of label {reprlib.repr(first)}"
            report.add(file, line, "equal_title", detail)
        if label.parent:
            places[label.uid] = file, line
    found = with_parents(labels, known)
    for uid, why in found.unknown.items():
        report.add(*places[uid], "unknown_parent", f"label {reprlib.repr(uid)}: {why}")
    for note in found.notes:
        report.note(note)
    return found.labels, report


class SameLabels:
    """Finds labels that are one tag under two uids: both would be answered, in two ranks.

    Args:
        known: Labels that are there.
    """

    def __init__(self, known: Iterable[Label] = ()) -> None:
        self._uids: dict[str, str] = {}
        self._titles: dict[str, tuple[str, bool]] = {}
        for label in known:
            self._uids.setdefault(twin(label.uid), label.uid)
            self._titles.setdefault(twin(label.title), (label.uid, _unnamed(label)))

    def add(self, label: Label) -> str | None:
        """The uid of the label that is there already; `None`, and it is added, where there is none.

        A label is not the same as the one whose very uid it has: it replaces that one.
        """
        uid = self._uids.setdefault(twin(label.uid), label.uid)
        if uid != label.uid:
            return uid
        title = twin(label.title)
        other, unnamed = self._titles.setdefault(title, (label.uid, _unnamed(label)))
        if other == label.uid:
            return None
        if unnamed or _unnamed(label):
            return other
        return None


def refuse_same_labels(labels: Iterable[Label], known: Iterable[Label] = ()) -> None:
    """Refuse labels that are one tag under two uids.

    Raises:
        DataError: Two of `labels` are the same, or one of them is in `known` under another uid.
    """
    same, seen = SameLabels(known), set[str]()
    for label in labels:
        if label.uid in seen:
            raise DataError(f"label uid {label.uid!r} occurs twice", "give each label once")
        seen.add(label.uid)
        if (other := same.add(label)) is not None:
            raise DataError(_same(label, other), f"leave it out, or give it the uid {other!r} to change that")


def _same(label: Label, other: str) -> str:
    return f"label {reprlib.repr(label.uid)}, {reprlib.repr(label.title)}, is label {reprlib.repr(other)}"


def _unnamed(label: Label) -> bool:
    """Whether a label has only its title for uid."""
    return twin(label.uid) == twin(label.title)


def row_uid(value: Any, column: str) -> str:
    """A uid out of a column's value: a string without outer spaces, or a number as text.

    Returns:
        The uid; empty for null.

    Raises:
        RowError: `bad_type` or `bad_unicode`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        # As pandas holds whole numbers in a column with a gap.
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    return trim(_string(value, column))


def iter_records(
    source: str | Path,
    report: RowReport,
    make: Callable[[dict[str, Any]], _Record],
    columns: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, int, dict[str, Any], _Record]]:
    """Stream records beside the rows they were made of.

    Args:
        source: Anything `iter_rows` reads.
        report: Receives rows that make no record, those with a uid seen before, and which column serves as
            what.
        make: `document_of` or `label_of`.
        columns: Columns by the field they serve as.

    Yields:
        `(file, line, columns, record)`.

    Raises:
        DataError: As for `iter_documents`, or a column that was named is not there.
    """
    seen: set[bytes] = set()
    reading = Columns("labels" if make is label_of else "documents", columns)
    kind = source_kind(source)
    # Standard input, pipes and hub data sets can be read once only: they are known by their first row.
    if kind not in ("hub", ".txt") and str(source) != "-" and not Path(source).is_fifo():
        reading.learn(row for _, _, row in islice(iter_rows(source, RowReport()), _SAMPLE))
        _tell(reading, report)
    made: Counter[bytes] = Counter()
    without_id: bool | None = None
    for file, line, row in iter_rows(source, report):
        if without_id is None:
            if not reading.known:
                reading.learn([row])
                if kind != ".txt":
                    _tell(reading, report)
            reading.check(source)
            without_id = reading.kind == "documents" and "uid" not in reading.serving
            if without_id:
                report.note(
                    "no column serves as id: ids are made of the content; "
                    f"`{option('uid', reading.id_like())}` names one"
                )
        fields = reading.fields(row)
        try:
            if without_id and "uid" not in fields:
                fields["uid"] = _content_uid(fields, made)
            record = make(fields)
            digest = blake2b(record.uid.encode(), digest_size=16).digest()
            if digest in seen:
                raise RowError("duplicate_uid", f"uid {reprlib.repr(record.uid)} was used before")
        except RowError as error:
            detail = _no_uid(row).detail if error.kind == "no_uid" else error.detail
            report.add(file, line, error.kind, detail)
            continue
        seen.add(digest)
        report.kept += 1
        yield file, line, row, record
    if kind != ".txt":
        _tell(reading, report)  # of what came up in later rows


def _tell(reading: Columns, report: RowReport) -> None:
    for note in reading.notes():
        report.note(note)
    report.columns = reading.to_dict()


def _content_uid(fields: Mapping[str, Any], made: Counter[bytes]) -> str:
    """An id made of title and text: the same in another file; equal documents are numbered."""
    shown = "\0".join(str(fields.get(field, "")).strip() for field in ("title", "text"))
    digest = blake2b(shown.encode("utf-8", "replace"), digest_size=8).digest()
    made[digest] += 1
    return f"c{digest.hex()}" + (f"-{made[digest]}" if made[digest] > 1 else "")


def document_of(row: dict[str, Any]) -> Document:
    """The document in a row's columns.

    Raises:
        RowError: `no_uid`, `empty_text`, `bad_type` or `bad_unicode`.
    """
    uid = row_uid(_column(row, "uid"), "uid")
    title = trim(_string(_column(row, "title"), "title"))
    text = _string(_column(row, "text"), "text")
    if not uid:
        raise _no_uid(row)
    if not title and not text.strip():
        raise RowError("empty_text", f"document {reprlib.repr(uid)} has neither title nor text")
    return Document(uid, title, text)


def label_of(row: dict[str, Any]) -> Label:
    """The label in a row's columns.

    Raises:
        RowError: `no_title`, `no_uid`, `bad_count`, `bad_type` or `bad_unicode`.
    """
    title = trim(_string(_column(row, "title"), "title"))
    given = _column(row, "uid")
    uid = title if given is None else row_uid(given, "uid")
    text = _string(_column(row, "text"), "text").strip()
    parent = row_uid(_column(row, "parent"), "parent") or None
    aliases = _column(row, "aliases")
    if isinstance(aliases, str) and aliases.lstrip()[:1] == "[":
        aliases = aliases if (found := listed(aliases)) is None else found
    if not isinstance(aliases, list):
        aliases = _string(aliases, "aliases").split("|")
    names = (_string(alias, "aliases").strip() for alias in aliases)
    kept = tuple(name for name in names if name)
    if not title:
        raise RowError("no_title", f"label {reprlib.repr(uid)} has no {_accepted('title')}")
    if not uid:
        raise _no_uid(row)
    return Label(uid, title, text, kept, parent, _count(_column(row, "count")))


def _count(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        count = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        count = math.nan
    if not 0 <= count < math.inf:
        raise RowError("bad_count", f"{reprlib.repr(value)} is no number from 0 on")
    return count


def _column(row: dict[str, Any], field: str) -> Any:
    if (value := row.get(field)) is not None:
        return value
    return next((row[name] for name in COLUMNS[field] if row.get(name) is not None), None)


def _string(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise RowError("bad_type", f"{column} is not a string: {reprlib.repr(value)}")
    if unfit := unfit_character(value):
        raise RowError("bad_unicode", f"{column} holds {unfit}")
    return value


def unfit_character(text: str) -> str | None:
    """The first character no model can be given, and its place, in words; `None` if all are fit."""
    if text.isascii() and "\0" not in text:
        return None
    unfit = _UNFIT.search(text)
    return f"U+{ord(unfit[0]):04X} at character {unfit.start() + 1}" if unfit else None


def _no_uid(row: dict[str, Any]) -> RowError:
    return RowError("no_uid", f"no {_accepted('uid')} in the columns {reprlib.repr(list(row))}")


def _accepted(field: str) -> str:
    return f"{field} (accepted: {', '.join(COLUMNS[field])})"
