"""Pairs out to people as CSV, JSON lines or Label Studio tasks, and decisions back.

Columns: `decision` (empty), `label_title`, `label_text`, `title`, `text`, `reason`, `teacher`, `student`
(see `Pick`), `doc` and `label` (uids), `id` (of the pair's content). JSON lines that come back may also
tell `at` (ISO 8601) and `reviewer`. Of all these, `doc`, `label` and `decision` are needed.

Label Studio's formats are those of https://labelstud.io/guide/task_format: a task holds `data`, and in an
export `annotations`, each with `result`, a list of regions with `from_name`, `type` and `value`, and
`was_cancelled` for a task that was skipped. Its JSON-MIN, CSV and TSV hold a flat row per annotation, in
which `id` is the task's number there: our `id` is lost, so texts tell whether they are the exported ones.

In CSV a cell that a spreadsheet would run as a formula gets a ' in front, which is taken off again, and a
long text is cut: it is there to be read.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow

from ezxmc.data import RowReport, iter_rows
from ezxmc.data.documents import row_uid
from ezxmc.data.rows import source_kind
from ezxmc.data.validate import RowError
from ezxmc.data.writers import row_format, rows_made, whole_rows
from ezxmc.errors import DataError
from ezxmc.feedback.reviews import Answer, Review, Reviews, pair_id
from ezxmc.files import check_file, write_file
from ezxmc.records import Document, Label, Result
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
}

_TEXTS_TELL = "label studio: texts tell"
"""A column of rows whose texts, not an `id`, tell whether they are those that were exported."""
_CONFIG = """<View>
  <Header value="Does this label fit the document?"/>
  <Text name="label_title" value="$label_title"/>
  <Text name="label_text" value="$label_text"/>
  <Choices name="decision" toName="text" choice="single" required="true" showInline="true">
    <Choice value="yes" hotkey="y"/>
    <Choice value="no" hotkey="n"/>
    <Choice value="skip" hotkey="s"/>
  </Choices>
  <Header value="$title"/>
  <Text name="text" value="$text"/>
</View>
"""


def check_picks(out: Path) -> None:
    """Whether `write_picks` can write this file: to be asked before pairs are picked.

    Raises:
        ConfigError: Its suffix is of no format, or something else is in its place.
        DataError: It is there and holds decisions.
    """
    form = row_format(out, [".json"])
    if form == ".json":
        check_file(out, _WHAT, made=_is_tasks)
        check_file(out.with_suffix(".xml"), "a labeling configuration", made=_is_config)
    else:
        check_file(out, _WHAT, made=rows_made(_COLUMNS, _is_pick))
    there = _rows(out, RowReport()) if out.is_file() and out.stat().st_size else ()
    if any(row.get("decision") for _, _, row in there):
        raise DataError(f"{out} holds decisions", "import them, then delete it or choose another --out")


def _is_pick(row: dict[str, Any]) -> bool:
    return row.keys() - {"at", "reviewer"} == set(_COLUMNS)


def _is_tasks(path: Path) -> bool:
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
        return isinstance(tasks, list) and all(one["data"].keys() >= _TASK for one in tasks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _is_config(path: Path) -> bool:
    return path.read_bytes() == _CONFIG.encode()


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
        json.dumps([_task(row) for row in rows], ensure_ascii=False, indent=1),
    )
    write_file(config, _CONFIG.encode(), "a labeling configuration", made=_is_config)
    write_file(out, tasks.encode("utf-8", "replace"), _WHAT, made=_is_tasks)
    return [out, config]


_COLUMNS = (
    *("decision", "label_title", "label_text", "title", "text", "reason", "teacher", "student"),
    *("doc", "label", "id"),
)
_TASK = frozenset(_COLUMNS) - {"decision", "teacher", "student"}
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
    """

    new: int
    known: int
    open: int


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
        report: Receives rows with neither yes, no nor skip (`bad_decision`), no or no readable uid or time
            (`bad_review`), a uid that is not in the catalog (`unknown_document`, `unknown_label`), texts
            that are not the exported ones (`changed_text`), and all rows of a pair that gets both yes and
            no (`contradiction`).
        documents: The catalog's.
        labels: The catalog's.
        reviewer: Who decided, where a row does not tell.

    Raises:
        DataError: The file cannot be read.
        StoreError: The store cannot be written; nothing was added.
    """
    docs, tags = {d.uid: d for d in documents}, {label.uid: label for label in labels}
    if not source.is_file():
        raise DataError(f"no file at {source}", "check the path")
    written = source.stat().st_mtime
    found: dict[str, list[_Decision]] = {}
    undecided = 0
    for file, line, row in _rows(source, report):
        try:
            document, label = _pair(row, docs, tags)
            answer = _answer(row)
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
        if {Answer.YES, Answer.NO} <= {one.answer for one in decisions}:
            lines = ", ".join(str(one.line) for one in decisions)
            for one in decisions:
                report.add(one.file, one.line, "contradiction", f"yes and no for one pair in rows {lines}")
            continue
        report.kept += len(decisions)
        # Who skips does not contradict who decides.
        last = max(decisions, key=lambda one: (one.answer is not Answer.SKIP, one.at))
        review = Review.of(last.document, last.label, last.answer, reviewer=last.reviewer, at=last.at)
        before = latest.get((review.doc_hash, review.label_hash))
        if before is None or (review.at > before.at and review.answer != before.answer):
            fresh.append(review)
        else:
            known += 1
    if fresh:
        reviews.add(fresh)
    return ImportedReviews(len(fresh), known, undecided)


def _rows(source: Path, report: RowReport) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if _is_export(source):
        yield from _labelled_tasks(source, report)
        return
    cells = source_kind(source) in (".csv", ".tsv", ".xlsx")
    for file, line, row in iter_rows(source, report):
        if cells or _is_flat(row):
            # A spreadsheet may have changed the names' case, and whoever filled it in added columns.
            row = {str(name).strip().casefold(): value for name, value in row.items()}
        if _is_flat(row):
            yield file, line, _flat_row(row)
        else:
            yield file, line, {name: _uncell(value) for name, value in row.items()} if cells else row


def _pair(
    row: Mapping[str, Any], documents: Mapping[str, Document], labels: Mapping[str, Label]
) -> tuple[Document, Label]:
    uid, label_uid = (row_uid(row.get(name), name) for name in ("doc", "label"))
    if not uid or not label_uid:
        raise RowError(
            "bad_review", f"no {'label' if uid else 'doc'} in the columns {reprlib.repr(list(row))}"
        )
    if uid not in documents:
        raise RowError("unknown_document", reprlib.repr(uid))
    if label_uid not in labels:
        raise RowError("unknown_label", reprlib.repr(label_uid))
    document, label = documents[uid], labels[label_uid]
    given = row.get("id")
    if _TEXTS_TELL in row:
        given = "" if _same_texts(row, document, label) else "another"
    if given and given != pair_id(document, label):
        raise RowError(
            "changed_text", f"{reprlib.repr(uid)} or {reprlib.repr(label_uid)} is not what was exported"
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
        raise RowError("bad_decision", f"{reprlib.repr(value)} is neither yes, no nor skip")
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


def _task(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as a task. What teacher and student say is left out: it would lead the annotator."""
    return {
        "data": {name: value for name, value in row.items() if name not in ("decision", "teacher", "student")}
    }


def _is_export(source: Path) -> bool:
    """Whether a file holds one JSON array, as Label Studio's exports do."""
    try:
        with source.open("rb") as handle:
            return (
                source.suffix == ".json"
                and handle.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
            )
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}", "check the path") from None


def _labelled_tasks(source: Path, report: RowReport) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The annotations of an export as rows: `(file, number of the task, columns)`.

    Args:
        source: The export.
        report: Receives tasks that cannot be read (`bad_task`).

    Raises:
        DataError: The file is no JSON.
    """
    file = str(source)
    try:
        tasks = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no readable JSON: {error}", "export it from Label Studio again") from None
    for number, one in enumerate(tasks, start=1):
        try:
            yield from ((file, number, row) for row in _task_rows(one))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            report.add(file, number, "bad_task", f"no task of Label Studio: {reprlib.repr(error)}")


def _task_rows(one: dict[str, Any]) -> list[dict[str, Any]]:
    if "data" not in one and _is_flat(one):
        return [_flat_row(one)]
    data = dict(one["data"])
    annotations = one.get("annotations") or []
    return [{**data, **_said(annotation)} for annotation in annotations] or [{**data, "decision": None}]


def _is_flat(row: Mapping[str, Any]) -> bool:
    """Whether a row is of Label Studio's JSON-MIN, CSV or TSV."""
    return "annotation_id" in row or "lead_time" in row


def _flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of these as columns."""
    said = row.get("decision")
    if isinstance(said, dict):
        said = said.get("choices")
    if isinstance(said, list):
        said = " ".join(map(str, said))
    who = row.get("annotator")
    return {
        **{name: value for name, value in row.items() if name != "id"},
        "decision": said or None,
        "at": row.get("updated_at") or row.get("created_at"),
        "reviewer": who.get("email") if isinstance(who, dict) else who,
        _TEXTS_TELL: True,
    }


def _said(annotation: dict[str, Any]) -> dict[str, Any]:
    choices = [
        choice
        for region in annotation.get("result") or []
        if region.get("from_name") == "decision"
        for choice in region["value"]["choices"]
    ]
    who = annotation.get("completed_by")
    return {
        # A task that was skipped there has no choice.
        "decision": "skip" if annotation.get("was_cancelled") else " ".join(map(str, choices)) or None,
        "at": annotation.get("updated_at") or annotation.get("created_at"),
        "reviewer": who.get("email") if isinstance(who, dict) else who,
    }
