"""Pairs out to people as CSV, JSON lines or Label Studio tasks, and decisions back.

Columns: `decision` (empty), `label_title`, `label_text`, `title`, `text`, `reason`, `teacher`, `student`
(see `Pick`), `doc` and `label` (uids), `id` (of the pair's content). JSON lines that come back may also
tell `at` (ISO 8601) and `reviewer`. Of all these, `doc`, `label` and `decision` are needed.

Rows may be added for labels that are missing on a document, with the decision `added`. There `title` and
`label_title` may stand for `doc` and `label`, where they are the title of one document, and of one label.

In CSV a cell that a spreadsheet would run as a formula gets a ' in front, which is taken off again, and a
long text is cut: it is there to be read.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow

from ezxmc.data import RowReport, iter_rows
from ezxmc.data.documents import row_uid
from ezxmc.data.rows import row_format, rows_made, source_kind, whole_rows
from ezxmc.errors import DataError, RowError
from ezxmc.feedback.reviews import Answer, Review, Reviews, pair_id
from ezxmc.files import check_file, write_file
from ezxmc.records import Document, Label, Result
from ezxmc.review.label_studio import (
    CONFIG,
    TEXTS_TELL,
    as_task,
    flat_row,
    is_config,
    is_export,
    is_flat,
    is_tasks,
    labelled_tasks,
)
from ezxmc.review.picks import Pick, Reason

_WHAT = "a file of pairs to review"
_SHOWN = 5_000  # characters of a text in a cell; spreadsheets take 32,767
# Full-width forms too: some spreadsheets read them as the plain ones.
_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")
_ESCAPED = re.compile(r"'+(\s*[=+\-@＝＋－＠]|[\t\r\n])")
_ANSWERS = {
    **dict.fromkeys(("yes", "y", "true", "1"), Answer.YES),
    **dict.fromkeys(("no", "n", "false", "0"), Answer.NO),
    **dict.fromkeys(("skip", "s"), Answer.SKIP),
    "added": Answer.ADDED,
}
_WEIGHT = (Answer.SKIP, Answer.ADDED, Answer.YES, Answer.NO)
_One = TypeVar("_One", Document, Label)


def check_picks(out: Path) -> None:
    """Whether `write_picks` can write this file: to be asked before pairs are picked.

    Raises:
        ConfigError: Its suffix is of no format, or something else is in its place.
        DataError: It is there and holds decisions.
    """
    form = row_format(out, [".json"])
    if form == ".json":
        check_file(out, _WHAT, made=is_tasks)
        check_file(out.with_suffix(".xml"), "a labeling configuration", made=is_config)
    else:
        check_file(out, _WHAT, made=rows_made(_COLUMNS, _is_pick))
    there = _rows(out, RowReport()) if out.is_file() and out.stat().st_size else ()
    if any(row.get("decision") for _, _, row in there):
        raise DataError(f"{out} holds decisions", "import them, then delete it or choose another --out")


def _is_pick(row: dict[str, Any]) -> bool:
    return row.keys() - {"at", "reviewer"} == set(_COLUMNS)


def write_picks(out: Path, picks: Sequence[Pick]) -> list[Path]:
    """Write pairs for people, in one step.

    Args:
        out: `.csv` for a spreadsheet, `.jsonl` for `ezxmc review ui` (each also `.gz`), `.parquet`, `.json`
            for Label Studio, whose labeling configuration goes beside it as `.xml`.
        picks: In the order they should be seen.

    Returns:
        The files written.

    Raises:
        ConfigError: As for `check_picks`.
        DataError: As for `check_picks`, or the file cannot be written.
    """
    check_picks(out)
    rows = [_row(pick) for pick in picks]
    form = row_format(out, [".json"])
    if form != ".json":
        if form.startswith(".csv"):
            rows = [{name: _cell(value) for name, value in row.items()} for row in rows]
        with whole_rows(out, _WHAT, _SCHEMA, is_row=_is_pick, bom=True) as write:
            write(rows)
        return [out]
    config, tasks = (
        out.with_suffix(".xml"),
        json.dumps([as_task(row) for row in rows], ensure_ascii=False, indent=1),
    )
    write_file(config, CONFIG.encode(), "a labeling configuration", made=is_config)
    write_file(out, tasks.encode("utf-8", "replace"), _WHAT, made=is_tasks)
    return [out, config]


_COLUMNS = (
    *("decision", "label_title", "label_text", "title", "text", "reason", "teacher", "student"),
    *("doc", "label", "id"),
)
_SCHEMA = pyarrow.schema(
    [(name, pyarrow.float64() if name in ("teacher", "student") else pyarrow.string()) for name in _COLUMNS]
)


def _row(pick: Pick) -> dict[str, Any]:
    said = (None if p is None else round(p, 4) for p in (pick.teacher, pick.student))
    values = (None, pick.label.title, pick.label.text, pick.document.title, pick.document.text)
    uids = (pick.document.uid, pick.label.uid, pick.id)
    return dict(zip(_COLUMNS, (*values, pick.reason.value, *said, *uids), strict=True))


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]} …"
    return f"'{shown}" if _FORMULA.match(shown) else shown


def _uncell(value: Any) -> Any:
    return value[1:] if isinstance(value, str) and _ESCAPED.match(value) else value


def read_picks(source: Path) -> list[Pick]:
    """The pairs of a `.jsonl` file that `write_picks` wrote.

    Raises:
        DataError: It cannot be read, or a row is no pair.
    """
    if source.suffix != ".jsonl":
        raise DataError(
            f"{source} is no .jsonl file", "the page shows what `ezxmc review export` wrote as .jsonl"
        )
    report = RowReport(strict=True)
    picks: dict[str, Pick] = {}
    for file, line, row in iter_rows(source, report):
        try:
            pick = Pick(
                Document(_text(row, "doc"), _text(row, "title"), _text(row, "text")),
                Label(_text(row, "label"), _text(row, "label_title"), _text(row, "label_text")),
                Reason(_text(row, "reason")),
            )
            if pick.id != row.get("id"):
                raise ValueError("the texts are not those the pair was exported with")
        except ValueError as error:
            report.add(file, line, "bad_pair", str(error))
            continue
        picks.setdefault(pick.id, pick)
    return list(picks.values())


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise ValueError(f"{name} is no text")
    return value


@dataclass(frozen=True, slots=True)
class ImportedReviews(Result):
    """What `import_reviews` did.

    Attributes:
        new: Decisions added to the store.
        known: Decisions it held already, or that are older than the last word on their pair.
        open: Rows without a decision.
        added: Of the new, labels that nobody had proposed.
    """

    new: int
    known: int
    open: int
    added: int = 0


@dataclass(frozen=True, slots=True)
class _Decision:
    file: str
    line: int
    document: Document
    label: Label
    answer: Answer
    reviewer: str | None
    at: float


def import_reviews(
    reviews: Reviews,
    source: Path,
    report: RowReport,
    documents: Sequence[Document],
    labels: Sequence[Label],
    *,
    reviewer: str | None = None,
) -> ImportedReviews:
    """Take people's decisions into a store; the same file again changes nothing.

    A row without a time of its own was decided when the file was last written. What is older than the last
    word on its pair is left out.

    Args:
        reviews: Of the store.
        source: What `write_picks` wrote, with decisions; or Label Studio's export of it (JSON, JSON-MIN,
            CSV or TSV).
        report: Receives rows with neither yes, no, skip nor added (`bad_decision`), no or no readable uid or
            time (`bad_review`), what is not in the catalog (`unknown_document`, `unknown_label`) or has its
            title in common with others (`ambiguous_title`), texts that are not the exported ones
            (`changed_text`), and all rows of a pair that gets both yes and no (`contradiction`).
        documents: The catalog's.
        labels: The catalog's.
        reviewer: Who decided, where a row does not tell.

    Raises:
        DataError: The file cannot be read.
        StoreError: The store cannot be written; nothing was added.
    """
    catalog = _Named("document", "doc", "title", documents), _Named("label", "label", "label_title", labels)
    if not source.is_file():
        raise DataError(f"no file at {source}", "check the path")
    written = source.stat().st_mtime
    found: dict[str, list[_Decision]] = {}
    undecided = 0
    for file, line, row in _rows(source, report):
        try:
            answer = _answer(row)
            document, label = _pair(row, *catalog, by_title=answer is Answer.ADDED)
            if answer is Answer.ADDED and row.get("id"):
                # The pair was exported: somebody did propose it.
                answer = Answer.YES
            if answer is not None:
                who = row_uid(row.get("reviewer"), "reviewer") or reviewer
                decision = _Decision(file, line, document, label, answer, who, _time(row.get("at"), written))
                found.setdefault(pair_id(document, label), []).append(decision)
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            continue
        undecided += answer is None
        report.kept += answer is None
    latest = reviews.latest()
    fresh: list[Review] = []
    known = 0
    for decisions in found.values():
        if {True, False} <= {one.answer.verdict for one in decisions}:
            lines = ", ".join(str(one.line) for one in decisions)
            for one in decisions:
                report.add(one.file, one.line, "contradiction", f"yes and no for one pair in rows {lines}")
            continue
        report.kept += len(decisions)
        # Who skips does not contradict who decides, and who names a label not who was asked about it.
        last = max(decisions, key=lambda one: (_WEIGHT.index(one.answer), one.at))
        review = Review.of(last.document, last.label, last.answer, reviewer=last.reviewer, at=last.at)
        before = latest.get((review.doc_hash, review.label_hash))
        if before and review.answer is Answer.ADDED:
            review = replace(review, answer=Answer.named(before.answer))
        if before is None or (review.at > before.at and review.answer != before.answer):
            fresh.append(review)
        else:
            known += 1
    if fresh:
        reviews.add(fresh)
    added = sum(review.answer is Answer.ADDED for review in fresh)
    return ImportedReviews(len(fresh), known, undecided, added)


def _rows(source: Path, report: RowReport) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if is_export(source):
        yield from labelled_tasks(source, report)
        return
    cells = source_kind(source) in (".csv", ".tsv", ".xlsx")
    for file, line, row in iter_rows(source, report):
        if cells or is_flat(row):
            # A spreadsheet may have changed the names' case, and whoever filled it in added columns.
            row = {str(name).strip().casefold(): value for name, value in row.items()}
        if is_flat(row):
            yield file, line, flat_row(row)
        else:
            yield file, line, {name: _uncell(value) for name, value in row.items()} if cells else row


class _Named(Generic[_One]):
    """Documents or labels as rows name them.

    Args:
        what: One of them, for a person.
        uids: The column of their uids.
        titles: The column of their titles.
        known: Those there are.
    """

    def __init__(self, what: str, uids: str, titles: str, known: Sequence[_One]) -> None:
        self._what, self._uids, self._titles = what, uids, titles
        self._known: Sequence[_One] = known
        self._by_uid: dict[str, _One] = {one.uid: one for one in known}

    @cached_property
    def _by_title(self) -> dict[str, list[_One]]:
        found: dict[str, list[_One]] = {}
        for one in self._known:
            found.setdefault(_plain(one.title), []).append(one)
        return found

    def of(self, row: Mapping[str, Any], by_title: bool) -> _One:
        """The one that a row names.

        Raises:
            RowError: It names none or several.
        """
        if uid := row_uid(row.get(self._uids), self._uids):
            found: list[_One] = [self._by_uid[uid]] if uid in self._by_uid else []
        elif by_title and (uid := _plain(row.get(self._titles) or "")):
            found = self._by_title.get(uid, [])
        else:
            raise RowError("bad_review", f"no {self._uids} in the columns {reprlib.repr(list(row))}")
        if not found:
            raise RowError(f"unknown_{self._what}", reprlib.repr(uid))
        title = _plain(row.get(self._titles) or "")
        if by_title and title not in ("", _plain(found[0].title)) and not title.endswith(" …"):
            # A row was copied, and its uid is still that of another.
            detail = f"{self._titles} is not the title of {self._uids} {reprlib.repr(found[0].uid)}"
            raise RowError("changed_text", detail)
        if len(found) > 1:
            raise RowError("ambiguous_title", f"{len(found):,} {self._what}s are called {reprlib.repr(uid)}")
        return found[0]


def _plain(title: Any) -> str:
    return " ".join(str(title).casefold().split())


def _pair(
    row: Mapping[str, Any], documents: _Named[Document], labels: _Named[Label], *, by_title: bool
) -> tuple[Document, Label]:
    document, label = documents.of(row, by_title), labels.of(row, by_title)
    given = row.get("id")
    if TEXTS_TELL in row:
        given = "" if _same_texts(row, document, label) else "another"
    if given and given != pair_id(document, label):
        raise RowError(
            "changed_text",
            f"{reprlib.repr(document.uid)} or {reprlib.repr(label.uid)} is not what was exported",
        )
    return document, label


def _same_texts(row: Mapping[str, Any], document: Document, label: Label) -> bool:
    """Whether a row's texts are these; line ends and blanks may have changed on the way."""
    texts = {"title": document.title, "text": document.text}
    texts |= {"label_title": label.title, "label_text": label.text}
    there = {name: text for name, text in texts.items() if name in row}
    same = (str(row[name] or "").split() == text.split() for name, text in there.items())
    return len(there) > 1 and all(same)


def _answer(row: Mapping[str, Any]) -> Answer | None:
    if "decision" not in row:
        raise RowError("bad_review", f"no decision in the columns {reprlib.repr(list(row))}")
    value = row["decision"]
    said = "" if value is None else str(value).strip().casefold()
    if said and said not in _ANSWERS:
        raise RowError("bad_decision", f"{reprlib.repr(value)} is neither yes, no, skip nor added")
    return _ANSWERS.get(said)


def _time(value: Any, otherwise: float) -> float:
    if value in (None, ""):
        return otherwise
    try:
        at = datetime.fromisoformat(str(value))
        seconds = at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError) as error:
        raise RowError("bad_review", f"at is no time: {error}") from None
    # A clock that is ahead must not outvote every later decision.
    return min(seconds, datetime.now(UTC).timestamp())
