"""Gold tags, used for evaluation only.

Accepted: TSV or CSV with a document and a label per line, with or without a header line; JSON lines, Parquet
or `datasets` rows with a document column and either `label` or a list `labels`. A benchmark's `trn.json.gz`
or `tst.json.gz` serves as well: its `target_ind` number the lines of the `lbl.json.gz` beside it.

In a table (CSV, TSV, Parquet) an empty label cell means: reviewed, and no label is right. With the labels
and documents at hand, whatever can mean only one of them is taken for it and counted: a title, another case
or Unicode form, "1.0" for "1", several labels in one cell. The rest is named, or the file is refused.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ezxmc.data.documents import COLUMNS, row_uid
from ezxmc.data.matching import SEPARATORS, Names, best_column, listed, parts, separator_of, some, trim
from ezxmc.data.rows import iter_fields, iter_rows, source_kind
from ezxmc.data.xmc_files import targets, uids_by_number
from ezxmc.errors import DataError, RowError, RowReport

# A document goes by the same column here as among the documents.
DOCUMENT_COLUMNS = tuple(dict.fromkeys((*COLUMNS["uid"], "doc", "document", "doc_uid", "document_id")))
LABEL_COLUMNS = ("label", "label_id", "label_uid", "labels", "tag", "tags", "category", "categories")

# One column each for the first, second, ... label.
_NUMBERED = re.compile(r"(label|tag|category|class)s?[ _.-]?\d+")
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
_SAMPLE = 1_000  # rows that decide what a column is
_HARDLY = 0.1  # of the pairs; where no more are known, the file is refused
_SHOWN = 1_000  # names kept to be shown


def read_gold(
    source: str | Path,
    *,
    documents: Collection[str] | None = None,
    labels: Collection[str] | Mapping[str, str] | None = None,
    strict: bool = False,
    more_documents: bool = False,
    more_labels: bool = False,
    refuse: bool = True,
) -> tuple[dict[str, set[str]], RowReport]:
    """Gold label uids of each document uid.

    A document with an empty list of labels is kept with an empty set. In the report a row is one pair: a
    line with three labels counts three.

    Args:
        source: See the module's text.
        documents: Known document uids; pairs of others are dropped as `unknown_document`. `None`: any.
        labels: Known label uids, or the titles by uid; pairs of others are dropped as `unknown_label`.
            `None`: any.
        strict: Raise at the first bad pair.
        more_documents: There may be documents beside those known: pairs of others are kept as they are, and
            told in the report's notes.
        more_labels: The same of labels.
        refuse: Whether gold of which hardly anything is known is an error.

    Raises:
        DataError: The source cannot be read, a pair is bad under `strict`, or hardly any pair is of the
            documents and labels.
    """
    reader = _Reader(
        str(source),
        None if documents is None else Names(dict.fromkeys(documents, "")),
        None if labels is None else Names(labels),
        more_documents,
        more_labels,
    )
    report = reader.report
    for row in reader.rows(source):
        reader.take(row)
    reader.settle()
    report.problems.sort(key=lambda problem: problem.line)
    if strict and report.bad:
        raise DataError(str(report.problems[0]), "mend the row, or read without strict to skip bad rows")
    if refuse:
        reader.check()
    reader.note()
    report.strict = strict
    return reader.gold, report


@dataclass(slots=True)
class _Row:
    file: str
    line: int
    document: Any
    tags: Any
    table: bool  # so that an empty cell says something


@dataclass(slots=True)
class _Reader:
    """The state of reading one gold file; what finds no partner at once is `doubtful` until its end."""

    source: str
    documents: Names | None
    labels: Names | None
    more_documents: bool
    more_labels: bool
    report: RowReport = field(default_factory=RowReport)
    gold: dict[str, set[str]] = field(default_factory=dict)
    doubtful: list[tuple[str, int, str, str]] = field(default_factory=list)
    separators: Counter[str] = field(default_factory=Counter)
    taken: dict[str, tuple[int, str]] = field(default_factory=dict)
    pairs: Counter[str] = field(default_factory=Counter)
    strangers: dict[str, dict[str, None]] = field(default_factory=lambda: {"document": {}, "label": {}})
    many: list[str] = field(default_factory=list)
    empty: int = 0

    def take(self, row: _Row) -> None:
        """Take a row's pairs, or set them aside."""
        try:
            given = row_uid(row.document, "document")
            if not given:
                raise RowError("no_document", f"none of {', '.join(DOCUMENT_COLUMNS)}")
            tags = row.tags
            if row.table and _blank(tags):
                self.empty += 1
                tags = []
            if tags is None:
                raise RowError("no_label", f"none of {', '.join(LABEL_COLUMNS)}")
            uid = self.document(given)
        except RowError as error:
            self.report.add(row.file, row.line, error.kind, error.detail)
            return
        if isinstance(tags, str) and not self._is_label(tags) and (items := listed(tags)) is not None:
            open_ended = self.labels is None or self.more_labels or not items
            if open_ended or any(map(self._is_label, items)):
                self._count("lists of labels written as text", some([tags]))
                tags = items
        if tags == []:
            self.gold.setdefault(uid, set())
            self.report.kept += 1
        for tag in tags if isinstance(tags, list) else [tags]:
            try:
                label = row_uid(tag, "label")
                if not label:
                    raise RowError("no_label", f"an empty label of document {reprlib.repr(uid)}")
            except RowError as error:
                self.report.add(row.file, row.line, error.kind, error.detail)
                continue
            if self.labels is None or label in self.labels.uids:
                self._keep(uid, label)
            else:
                if separator := self._separator(label):
                    self.separators[separator] += 1
                self.doubtful.append((row.file, row.line, uid, label))

    def document(self, given: str) -> str:
        """The document a row is about.

        Raises:
            RowError: `unknown_document`.
        """
        if self.documents is None:
            return given
        uid, way = self.documents.find(given)
        if uid is None:
            self.pairs["documents unknown"] += 1
            self._stranger("document", given)
            if not self.more_documents:
                raise RowError("unknown_document", reprlib.repr(given))
            return given
        self.pairs["documents known"] += 1
        if way:
            self._count(f"documents found by another {way}", f"'{given}' for '{uid}'")
        return uid

    def settle(self) -> None:
        """Decide about the labels set aside, now that the whole file was seen."""
        assert self.labels or not self.doubtful
        for file, line, uid, name in self.doubtful:
            label, way = self._label(name)
            if label is not None:
                how = "given by their title" if way == "title" else f"found by another {way}"
                self._count(f"labels {how}", f"'{name}' for '{label}'")
                self._keep(uid, label)
                continue
            separator = self._separator(name) or next(
                (one for one, _ in self.separators.most_common() if self._splits(name, one)), None
            )
            names = parts(name, separator) if separator else [name]
            if separator:
                self._count(f"cells with several labels, divided at {separator!r}", some([name]))
            for part in names:
                label, _ = self._label(part)
                if label is not None:
                    self._keep(uid, label)
                    continue
                if self._counts(uid):
                    self.pairs["labels unknown"] += 1
                self._stranger("label", part)
                if self.more_labels:
                    self.gold.setdefault(uid, set()).add(part)
                    self.report.kept += 1
                else:
                    self.report.add(file, line, "unknown_label", reprlib.repr(part))
        self.doubtful.clear()

    def check(self) -> None:
        """Refuse gold of which hardly anything is known.

        Raises:
            DataError: So it is.
        """
        compared = self.documents is not None or self.labels is not None
        if compared and self.report.bad and not self.report.kept and not any(self.strangers.values()):
            raise DataError(
                f"{self.source} holds no usable gold: {self.report.summary()}",
                "a row is a document and one of its labels, or all of them in a cell; of a table with a "
                "column for every label, write the names of those that are 1 into one",
            )
        for kind, names, more in (
            ("document", self.documents, self.more_documents),
            ("label", self.labels, self.more_labels),
        ):
            known, unknown = (self.pairs[f"{kind}s {what}"] for what in ("known", "unknown"))
            least = 0.0 if more else _HARDLY * (known + unknown)
            if names is not None and unknown and known <= least:
                there = some(names.uids, 3) if len(names) else "none"
                cure = f"give gold and {kind}s the same ids ({self._cause(kind)})"
                if kind == "label" and more:
                    cure += "; labels that exist but were not predicted are known by the whole list: --labels"
                raise DataError(
                    f"{self.source}: of {known + unknown:,} {'rows' if kind == 'document' else 'pairs'} "
                    f"{known:,} have a {kind} that is there; unknown {kind}s: {some(self.strangers[kind])}; "
                    f"there are {there}",
                    cure,
                )

    def note(self) -> None:
        """Say in the report what was taken for what, and what found no partner."""
        for what, (count, example) in self.taken.items():
            self.report.note(f"{count:,} {what}, such as {example}")
        if self.empty:
            self.report.note(
                f"{self.empty:,} documents with an empty label cell: taken as reviewed, no label being right"
            )
        for kind in ("document", "label"):
            if not (strangers := self.strangers[kind]):
                continue
            many = f"{len(strangers):,}{' or more' if len(strangers) == _SHOWN else ''}"
            more = self.more_documents if kind == "document" else self.more_labels
            there = "that are not among those at hand" if more else "that nobody has"
            self.report.note(f"{many} {kind}s {there}: {some(strangers)} ({self._cause(kind)})")

    def _keep(self, uid: str, label: str) -> None:
        self.gold.setdefault(uid, set()).add(label)
        self.report.kept += 1
        if self._counts(uid):
            self.pairs["labels known"] += 1

    def _counts(self, uid: str) -> bool:
        return self.documents is None or uid in self.documents.uids

    def _label(self, name: str) -> tuple[str | None, str]:
        assert self.labels is not None
        return self.labels.find(name)

    def _is_label(self, name: Any) -> bool:
        if self.labels is None or not isinstance(name, str | int | float):
            return False
        return self.labels.known(str(name).strip())

    def _separator(self, name: str) -> str | None:
        if self.labels is None or self._label(name)[0] is not None:
            return None
        return separator_of(name, self.labels)

    def _splits(self, name: str, separator: str) -> bool:
        """Whether a separator other cells were divided at divides this one, which has unknown parts."""
        if separator == " " or separator not in name:
            return False
        return self.more_labels or any(self._label(part)[0] is not None for part in parts(name, separator))

    def _count(self, what: str, example: str) -> None:
        count, first = self.taken.get(what, (0, example))
        self.taken[what] = count + 1, first

    def _stranger(self, kind: str, name: str) -> None:
        if len(self.strangers[kind]) < _SHOWN:
            self.strangers[kind][name] = None

    def _cause(self, kind: str) -> str:
        """Why names may have no partner, from how they look."""
        strange = list(self.strangers[kind])
        known = self.documents if kind == "document" else self.labels
        there = list(islice(known.uids, _SHOWN)) if known else []
        if kind == "label" and any(one in name for name in strange for one in SEPARATORS[:3]):
            return "several labels in one cell? A list, or one of ; | , between labels that exist, is read"
        digits = [sum(name.replace(".", "").isdigit() for name in names) for names in (strange, there)]
        if 2 * digits[0] > len(strange) and 2 * digits[1] < len(there):
            return f"numbers in place of {kind} ids? A number in a list is no id: write the id or the title"
        if kind == "label" and known and not any(known.uids.values()):
            return "titles where labels have ids, or another label list?"
        return f"another list of {kind}s, or an older one?"

    def rows(self, source: str | Path) -> Iterator[_Row]:
        """Stream the rows, having found out from the first ones which column is what."""
        kind = source_kind(source)
        if kind in (".csv", ".tsv"):
            yield from self._fields(source)
            return
        named = (
            (file, line, {_name(name): value for name, value in row.items()})
            for file, line, row in iter_rows(source, self.report)
        )
        sample = list(islice(named, _SAMPLE))
        columns = list(dict.fromkeys(name for _, _, row in sample for name in row))
        chosen = self._columns(columns, [[row.get(c) for c in columns] for _, _, row in sample])
        documents, labels = (
            # Rows of JSON may name one thing in several ways; a table has one column for it.
            [one] if one and kind in _TABLES else [*([one] if one else []), *accepted]
            for one, accepted in zip(chosen, (DOCUMENT_COLUMNS, LABEL_COLUMNS), strict=True)
        )
        if sample and kind in _TABLES and all(chosen):
            self._unread(sample[0][0], columns, documents[0], labels[0])
        uids: list[str | None] | None = None
        for file, line, row in chain(sample, named):
            tags = self._tags(row, labels)
            if "target_ind" in row and tags is None:
                uids = uids_by_number(Path(file)) if uids is None else uids
                bad_before = self.report.bad
                tags = targets(row, uids, file, line, self.report)
                if not tags and self.report.bad > bad_before:
                    continue  # its labels cannot be read, which is not the same as none
            there = kind in _TABLES and any(name in row for name in labels)
            yield _Row(file, line, _first(row, documents), tags, there)

    def _fields(self, source: str | Path) -> Iterator[_Row]:
        read = iter_fields(source, self.report)
        sample = list(islice(read, _SAMPLE))
        if not sample:
            return
        file, line, first = sample[0]
        header = [_name(name) for name in first]
        named = [any(name in accepted for name in header) for accepted in (DOCUMENT_COLUMNS, LABEL_COLUMNS)]
        known = [self.documents is not None and any(map(self.documents.known, first))]
        known.append(self.labels is not None and any(map(self._holds_label, first)))
        names: list[str] | None = None
        if all(named) or not any(known):
            alike = [fields for _, _, fields in sample[1:] if len(fields) == len(header)]
            document, label = self._columns(header, alike)
            # Neither names we know nor values we know: a header, if the columns below it are known.
            # Ids mostly have digits, and names of columns mostly have none.
            if document and label and (any(named) or not any(map(str.isdigit, document))):
                names = [document, label]
        if names:
            sample.pop(0)
            if not all(named):
                shown = [first[header.index(name)] for name in names]
                self.report.note(
                    f"{file}:{line} is taken for the header: {shown[0]!r} names the document, "
                    f"{shown[1]!r} the label"
                )
            self._unread(file, header, *names)
        else:
            header = names = ["doc", "label"]
            self.many = []
        for file, line, fields in chain(sample, read):
            if len(fields) != len(header):
                self.report.add(file, line, "field_count", f"{len(fields)} fields, not {len(header)}")
                continue
            row = {name: value for name, value in zip(header, fields, strict=True) if value.strip()}
            yield _Row(file, line, row.get(names[0], ""), self._tags(row, names[1:]), True)

    def _columns(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[str | None, str | None]:
        """The columns of the document and of the label: by name, and by content where that decides."""
        fits = self._is_document if self.documents is not None else None
        document = best_column(names, rows, DOCUMENT_COLUMNS, fits)
        many = [name for name in names if _NUMBERED.fullmatch(name)]
        if len(many) > 1 and not any(name in LABEL_COLUMNS for name in names):
            label: str | None = many[0]
            self.many = many
        else:
            others = [place for place, name in enumerate(names) if name != document]
            label = best_column(
                [names[place] for place in others],
                [[row[place] for place in others] for row in rows],
                LABEL_COLUMNS,
                self._holds_label if self.labels is not None else None,
            )
        if len(names) == 2 and (document is None) != (label is None):
            other = next(name for name in names if name not in (document, label))
            document, label = document or other, label or other
        return document, label

    def _unread(self, file: str, names: Iterable[str], document: str, label: str) -> None:
        read = {document, label, *self.many}
        if unread := [name for name in names if name not in read]:
            columns = f"'{document}' is the document, {some(self.many or [label])} the label"
            self.report.note(f"{file}: {columns}; not read: {some(unread)}")

    def _tags(self, row: Mapping[str, Any], labels: Iterable[str]) -> Any:
        """What a row's label column holds, or all its numbered ones."""
        if not self.many:
            return _first(row, labels)
        found = [row.get(name) for name in self.many]
        return [tag for tag in found if not _blank(tag)]

    def _is_document(self, value: Any) -> bool:
        try:
            return self.documents is not None and self.documents.known(row_uid(value, ""))
        except RowError:
            return False

    def _holds_label(self, value: Any) -> bool:
        items = listed(value) or [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            items = [items]
        return any(
            self._is_label(item) or (isinstance(item, str) and self._separator(item) is not None)
            for item in items
        )


def _name(column: Any) -> str:
    """A column's name in the form of those above: `Doc ID` is `doc_id`."""
    return re.sub(r"[\s_-]+", "_", trim(str(column))).lower()


def _blank(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
