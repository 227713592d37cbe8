"""Documents and labels out of what Python programs hold: texts, dicts, columns and tables.

The rules are those of files (`ezxmc.data.documents`): the same column names, the same rows refused in the
same words.
"""

from __future__ import annotations

import reprlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from os import PathLike
from typing import Any, TypeVar

from ezxmc.data.documents import COLUMNS, document_of, label_of, row_uid, unfit_character
from ezxmc.errors import DataError, InputTypeError, RowError, instance_of
from ezxmc.records import Document, Label

_Record = TypeVar("_Record", Document, Label)
_Value = TypeVar("_Value")
_NAMED = 5  # places named of what cannot be used


def as_documents(values: Iterable[Any]) -> list[Document]:
    """Documents out of a list, column or table.

    Args:
        values: Texts, `Document`s or dicts with the columns of a file (`COLUMNS`), mixed or not: a list, a
            tuple, a NumPy array, a pandas or polars Series or DataFrame, an Arrow array or table, a column
            of a `datasets` data set or a whole one. What has no uid gets its position, "0" the first.
            Columns of other names are not read; where none is a text's, a warning says so.

    Returns:
        As many documents, in their order.

    Raises:
        InputTypeError: `values` is none of these, or a value in it is no document (None, say).
        DataError: A document has neither title nor text, or holds what no model can be given.
    """
    return _all(values, "documents", Document)


def iter_as_documents(values: Iterable[Any]) -> Iterator[Document]:
    """`as_documents` one by one; raises at the first that cannot be used."""
    for made in _made(items_of(values, "documents"), "documents", Document):
        if isinstance(made, DataError):
            raise made
        yield made


def as_labels(values: Iterable[Any]) -> list[Label]:
    """Labels out of a list, column or table, as `as_documents`; a text is title and uid in one.

    Raises:
        InputTypeError: As for `as_documents`.
        DataError: A label has no title, or two have one uid.
    """
    labels = _all(values, "labels", Label)
    if len({label.uid for label in labels}) < len(labels):
        uid, count = Counter(label.uid for label in labels).most_common(1)[0]
        times = "twice" if count == 2 else f"{count} times"
        raise DataError(f"label uid {reprlib.repr(uid)} occurs {times}", "give each a uid of its own")
    return labels


def as_gold(values: Mapping[Any, Iterable[Any]], name: str = "gold") -> dict[str, set[str]]:
    """Label uids of each document uid; numbers become texts, as in files.

    Raises:
        InputTypeError: It is no mapping of uids to collections of uids: a text in place of a collection
            would fall into characters.
    """
    cure = "give a dict of document uid to a list of label uids; ezxmc.data.read_gold reads a file"
    instance_of(values, Mapping, name, cure)
    found: dict[str, set[str]] = {}
    for document, labels in values.items():
        if isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
            raise InputTypeError(f"{name}[{document!r}] is {reprlib.repr(labels)}", cure)
        try:
            found.setdefault(as_uid(document), set()).update(map(as_uid, labels))
        except RowError as error:
            raise InputTypeError(f"{name}[{document!r}]: {error.detail}", cure) from None
    return found


def as_uid(value: Any) -> str:
    """A uid of a document or a label, NumPy's numbers too, as text."""
    return value if isinstance(value, str) else row_uid(value.item() if _scalar(value) else value, "uid")


def _all(values: Any, what: str, kind: type[_Record]) -> list[_Record]:
    return all_of(_made(items_of(values, what), what, kind))


def all_of(made: Iterable[_Value | DataError]) -> list[_Value]:
    """All that was made of a list; raises the first error in it, and says how many more there are."""
    found: list[_Value] = []
    wrong: list[tuple[int, DataError]] = []
    for place, one in enumerate(made):
        if isinstance(one, DataError):
            wrong.append((place, one))
        else:
            found.append(one)
    if not wrong:
        return found
    first = wrong[0][1]
    if len(wrong) > 1:
        others = ", ".join(str(place) for place, _ in wrong[1:_NAMED])
        others += ", ..." if len(wrong) > _NAMED else ""
        total = len(found) + len(wrong)
        first = type(first)(
            f"{first.message} (and {len(wrong) - 1:,} more of {total:,} cannot be used, at {others})",
            first.cure,
        )
    raise first


def items_of(values: Any, what: str) -> Any:
    """The rows of anything; tables give dicts.

    Args:
        values: A list, a column, a table or a data set.
        what: The plural that errors name it by.
    """
    one = what[:-1]
    if isinstance(values, str | Document | Label):
        raise InputTypeError(f"one {one} was given in place of a list", "put the one text into brackets")
    if isinstance(values, bytes | bytearray | set | frozenset):
        raise InputTypeError(f"{what} are a {type(values).__name__}", f"give a list: {what} have an order")
    if isinstance(values, PathLike) or hasattr(values, "readline"):
        raise InputTypeError(
            f"{what} are a file: {reprlib.repr(values)}", f"read it first: ezxmc.data.read_{what}(path)[0]"
        )
    if isinstance(values, Mapping):
        named = ", ".join(map(repr, list(values)[:_NAMED]))
        raise InputTypeError(
            f"{what} are one dict with the keys {named or '(none)'}",
            f"put the one {one} into brackets; of splits give one, of columns pandas.DataFrame(...)",
        )
    if (names := _table_columns(values)) is not None:
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"the table of {what} has several columns {twice[0]!r}", "rename all but one")
        if hasattr(values, "itertuples"):
            return (dict(zip(names, row, strict=True)) for row in values.itertuples(index=False, name=None))
        if hasattr(values, "iter_rows"):
            return iter(values.iter_rows(named=True))
        if hasattr(values, "to_pylist"):
            return iter(values.to_pylist())
    elif hasattr(values, "to_pylist"):
        return iter(values.to_pylist())
    if getattr(values, "ndim", 1) != 1:
        raise InputTypeError(
            f"{what} are a {type(values).__name__} of {values.ndim} dimensions", "give one of texts"
        )
    try:
        return iter(values)
    except TypeError:
        raise InputTypeError(
            f"{what} are {reprlib.repr(values)}, a {type(values).__name__}",
            "give a list of texts, of dicts with title and text, a column, a table or a data set",
        ) from None


def _table_columns(values: Any) -> list[Any] | None:
    """Column names of a pandas or polars DataFrame or an Arrow table; None for anything else."""
    if hasattr(values, "itertuples") or hasattr(values, "iter_rows"):
        return list(values.columns)
    if hasattr(values, "to_pylist") and hasattr(values, "schema"):
        return list(values.schema.names)
    return None


def _made(items: Iterable[Any], what: str, kind: type[_Record]) -> Iterator[_Record | DataError]:
    make: Callable[[Any, int, str], Any] = _document if kind is Document else _label
    for place, item in enumerate(items):
        where = f"{what}[{place}]"
        try:
            yield make(item, place, where)
        except RowError as error:
            # "a document without words" reads the same wherever it comes from.
            yield DataError(f"{where}: {error.kind}: {error.detail}", f"leave it out, or mend it: {_CURE}")
        except DataError as error:
            yield error


_CURE = "ezxmc predict and ezxmc.data.read_documents tell bad rows and go on"


def _document(item: Any, place: int, where: str) -> Document:
    if isinstance(item, Document):
        _usable(item.uid, item.title, item.text)
        if not item.shown:
            raise RowError("empty_text", f"document {reprlib.repr(item.uid)} has neither title nor text")
        return item
    if isinstance(item, str):
        return _document(Document(str(place), "", item), place, where)
    row = cells_of(item, where, "a text, a dict with title and text, or an ezxmc.Document")
    names = {str(name).strip().casefold() for name in item}
    if not any(str(name).strip().casefold() in COLUMNS["uid"] for name in row):
        row["uid"] = str(place)
    try:
        document = document_of(row)
    except RowError as error:
        if error.kind == "empty_text":
            error.detail += f" in the columns {reprlib.repr(list(map(str, item)))}"
        raise
    if not names & {*COLUMNS["text"]} and (unread := names - {*COLUMNS["uid"], *COLUMNS["title"]}):
        warnings.warn(
            f"documents are read by their titles alone: none of the columns {', '.join(sorted(unread))} "
            f"has a name of a text ({', '.join(COLUMNS['text'])}); rename the one that holds it",
            stacklevel=2,
        )
    return document


def _label(item: Any, place: int, where: str) -> Label:
    if isinstance(item, Label):
        _usable(item.uid, item.title, item.text, *item.aliases)
        if not item.title.strip():
            raise RowError("no_title", f"label {reprlib.repr(item.uid)} has no title")
        return item
    if isinstance(item, str):
        return label_of({"title": item})
    return label_of(cells_of(item, where, "a title, a dict with title and uid, or an ezxmc.Label"))


def _usable(*texts: str) -> None:
    for text in texts:
        if unfit := unfit_character(text):
            raise RowError("bad_unicode", f"it holds {unfit}")


def cells_of(item: Any, where: str, wanted: str) -> dict[Any, Any]:
    """A dict's cells that are filled, NumPy's scalars as plain ones."""
    if _null(item):
        raise InputTypeError(f"{where} is {item!r}: there is no text", "leave it out, as `dropna()` does")
    if isinstance(item, bytes | bytearray):
        raise InputTypeError(f"{where} is bytes", "decode it: value.decode('utf-8')")
    if not isinstance(item, Mapping):
        raise InputTypeError(f"{where} is {reprlib.repr(item)}, a {type(item).__name__}", f"give {wanted}")
    plain = {name: cell.item() if _scalar(cell) else cell for name, cell in item.items()}
    return {name: cell for name, cell in plain.items() if not _null(cell)}


def _scalar(cell: Any) -> bool:
    return type(cell).__module__ == "numpy" and getattr(cell, "ndim", 1) == 0


def _null(value: Any) -> bool:
    """None, NaN, and what pandas has for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and bool(value != value)
