"""The files that `ezxmc predict` and `ezxmc shortlist` write: how they grow, are known again, and are read.

The rows of an input, bad ones included, fall into windows of `WINDOW` by their number alone. A killed job
goes on at a window's first row, so every document meets the same neighbours in a batch as in a job that was
never killed: the scores, and with them the file, come out the same to the last digit.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copyfile, copymode
from typing import Any, Self

import pyarrow

from ezxmc.data.rows import Cells, RowSink, iter_rows, row_format, rows_made, whole_rows
from ezxmc.disk import sync, temporary
from ezxmc.errors import ConfigError, DataError, RowError, RowReport
from ezxmc.files import Inputs, check_file, is_stream, json_line, place_of, state_of
from ezxmc.records import Document, Label, Prediction

WINDOW = 512
"""Documents encoded together: the encoder puts those of like length into one batch."""

SHORTLIST = pyarrow.schema(
    [
        ("doc", pyarrow.string()),
        ("labels", pyarrow.list_(pyarrow.string())),
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("sources", pyarrow.list_(pyarrow.string())),
    ]
)
"""Columns of a file of shortlists."""
_LISTS, _TAGGED = "a file of shortlists", "a file of tags"


def check_shortlist(out: Path, inputs: Inputs = ()) -> None:
    """Whether shortlists may be written to a file; raises ConfigError as `check_file` and `row_format`."""
    row_format(out)
    check_file(out, _LISTS, made=rows_made(SHORTLIST.names), inputs=inputs)


def write_shortlist(out: Path, rows: Iterable[dict[str, Any]], inputs: Inputs = ()) -> None:
    """Write shortlists in the form that the file's name says; a former file of them is replaced.

    Args:
        out: `.jsonl`, `.csv` (each also `.gz`) or `.parquet`.
        rows: Of `candidate_row`.
        inputs: What they were made from: none of it is replaced.

    Raises:
        ConfigError: As for `check_shortlist`.
        DataError: The file cannot be written.
    """
    with whole_rows(out, _LISTS, SHORTLIST, inputs=inputs) as write:
        write(rows)


def read_shortlist(
    source: str | Path, documents: Sequence[Document], labels: Sequence[Label], report: RowReport
) -> list[list[int]]:
    """Candidate labels of each document, as positions in `labels`.

    Args:
        source: Rows with `doc`, a uid, and `labels`, a list of uids.
        documents: N documents.
        labels: All labels.
        report: Receives lines that do not fit (`bad_shortlist`), and lines with a document or a label that
            is not there (`unknown_document`, `unknown_label`); the known labels of such a line are kept.

    Returns:
        N lists; empty for documents without a line.

    Raises:
        DataError: The source cannot be read, or a line is bad and `report` is strict.
    """
    row_of_document = {document.uid: row for row, document in enumerate(documents)}
    row_of_label = {label.uid: row for row, label in enumerate(labels)}
    found: list[list[int]] = [[] for _ in documents]
    for file, line, columns in iter_rows(source, report):
        uid, names = columns.get("doc"), columns.get("labels")
        if isinstance(names, str):  # a cell of CSV
            with suppress(ValueError, RecursionError):
                names = json.loads(names)
        if not isinstance(uid, str) or not isinstance(names, list):
            report.add(file, line, "bad_shortlist", "needs doc, a uid, and labels, a list of uids")
        elif uid not in row_of_document:
            report.add(file, line, "unknown_document", reprlib.repr(uid))
        else:
            known = [row_of_label[name] for name in names if isinstance(name, str) and name in row_of_label]
            found[row_of_document[uid]] = known
            if len(known) < len(names):
                report.add(file, line, "unknown_label", f"{len(names) - len(known)} of {len(names)} labels")
            else:
                report.kept += 1
    return found


_HUGE = sys.float_info.max
_SAME = 1e-3  # scores of one document, whatever machine computed them
TAGS = pyarrow.schema(
    [
        ("uid", pyarrow.string()),
        (
            "tags",
            pyarrow.list_(
                pyarrow.struct(
                    [
                        ("label", pyarrow.string()),
                        ("title", pyarrow.string()),
                        ("score", pyarrow.float64()),
                        ("probability", pyarrow.float64()),
                    ]
                )
            ),
        ),
        ("error", pyarrow.string()),
        ("file", pyarrow.string()),
        ("line", pyarrow.int64()),
    ]
)
"""Columns of a file of tags, where it has columns: a prediction, or a bad row."""
_TAG = {"label", "title", "score", "probability"}


def _is_row(row: dict[str, Any]) -> bool:
    tags = row.get("tags")
    return set(row) == {"error", "file", "line"} or (
        set(row) == {"uid", "tags"}
        and isinstance(tags, list)
        and all(isinstance(tag, dict) and set(tag) == _TAG for tag in tags)
    )


is_tags = rows_made(TAGS.names, _is_row)
"""Whether a file holds what `ezxmc predict` wrote, and nothing else; its last line may be cut."""


def read_predictions(source: str | Path, report: RowReport) -> Iterator[Prediction]:
    """Stream the predictions that `ezxmc predict` writes, one JSON object per line.

    `{"uid": ..., "tags": [{"label": ..., "title": ..., "score": ..., "probability": ...}, ...]}`, best tag
    first, the probability null or absent where there is no calibrator; or `{"error": ..., "file": ...,
    "line": ...}`.

    Args:
        source: A file that `ezxmc predict` wrote, in any form, or "-".
        report: Receives lines that carry an error (`prediction_error`), that are no prediction
            (`bad_prediction`), and second predictions of a document (`duplicate_uid`).

    Raises:
        DataError: The file cannot be read, or a line is bad and `report` is strict.
    """
    seen: set[str] = set()
    for file, line, row in iter_rows(source, report):
        try:
            prediction = _prediction(row)
            if prediction.uid in seen:
                raise RowError("duplicate_uid", f"document {prediction.uid!r} was predicted before")
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            continue
        seen.add(prediction.uid)
        report.kept += 1
        yield prediction


def predictions_dataset(predictions: Iterable[Prediction]) -> Any:
    """Predictions as a `datasets.Dataset`, a row for each document.

    Args:
        predictions: What `Predictor.predict`, `Predictor.stream` or `read_predictions` gives.

    Returns:
        Columns `uid`, `labels`, `titles`, `scores` and `probabilities`: lists that align, best label first;
        of a column that a prediction does not have, such as the probabilities of a bundle without a
        calibrator, null.

    Example:
        >>> found = [Prediction("d1", ("l1",), ("music",), (0.8,), (0.95,)), Prediction("d2", (), (), ())]
        >>> predictions_dataset(found)["labels"][:]
        [['l1'], []]
    """
    from datasets import Dataset

    text, number = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
    kinds = {"labels": text, "titles": text, "scores": number, "probabilities": number}
    schema = pyarrow.schema({"uid": pyarrow.string(), **kinds})
    rows = [
        {"uid": one.uid, **{name: getattr(one, name) or (None if one.labels else ()) for name in kinds}}
        for one in predictions
    ]
    return Dataset(pyarrow.Table.from_pylist(rows, schema=schema))


def _prediction(row: dict[str, Any]) -> Prediction:
    if row.get("error") not in (None, ""):
        raise RowError("prediction_error", str(row["error"]))
    uid = row.get("uid")
    if not isinstance(uid, str) or not uid:
        raise RowError("bad_prediction", "no uid")
    tags = row.get("tags")
    if isinstance(tags, str):  # a cell of CSV
        with suppress(ValueError, RecursionError):
            tags = json.loads(tags)
    if not isinstance(tags, list):
        raise RowError("bad_prediction", f"document {uid!r} has no list of tags")
    labels: list[str] = []
    titles: list[str] = []
    scores: list[float] = []
    probabilities: list[float] = []
    for rank, tag in enumerate(tags, start=1):
        where = f"tag {rank} of document {uid!r}"
        if not isinstance(tag, dict) or not isinstance(tag.get("label"), str):
            raise RowError("bad_prediction", f"{where} has no label")
        labels.append(tag["label"])
        titles.append(str(tag.get("title", tag["label"])))
        scores.append(_number(tag.get("score"), f"score of {where}", -_HUGE, _HUGE))
        if tag.get("probability") is not None:
            probabilities.append(_number(tag["probability"], f"probability of {where}", 0.0, 1.0))
    if len(set(labels)) != len(labels):
        raise RowError("bad_prediction", f"document {uid!r} has a label twice")
    if len(probabilities) not in (0, len(labels)):
        raise RowError("bad_prediction", f"document {uid!r} has probabilities for some of its tags only")
    return Prediction(uid, tuple(labels), tuple(titles), tuple(scores), tuple(probabilities))


def _number(value: Any, what: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RowError("bad_prediction", f"the {what} is {value!r}")
    return float(value)


def check_tags(path: Path, *, resume: bool = False, inputs: Inputs = ()) -> None:
    """Whether tags may be written to a file, before anything is opened.

    Args:
        path: The file, `.jsonl`, `.csv` (each also `.gz`) or `.parquet`.
        resume: Whether it shall be continued.
        inputs: What is read, the bundle among it.

    Raises:
        ConfigError: Its suffix is of no format (or not `.jsonl`, with `resume`), it is one of the inputs,
            or what is there are no tags.
    """
    if row_format(path) != ".jsonl" and resume:
        raise ConfigError(f"{path} cannot be continued: only .jsonl can", "name a .jsonl file")
    check_file(path, _TAGGED, made=is_tags, inputs=inputs)
    check_file(part_of(path), _TAGGED, made=is_tags, inputs=inputs)


class RowFile:
    """A file that windows of rows are written to.

    JSON lines grow in a `.part` beside it, which takes its place when all are there; if something fails,
    the `.part` stays, and can be continued. Other forms are there when they are whole.

    Args:
        path: The file.
        resume: Keep the whole windows that the `.part`, or else the file, holds; what follows them is written
            again. The last of them and what follows it is computed again and compared, so that a file made
            from other documents, with another bundle or with other options is refused, and left as it is.
        inputs: As for `check_tags`.

    Attributes:
        skip: Rows that need not be tagged again.
        part: Where the rows are until all are there.

    Raises:
        ConfigError: As for `check_tags`.
    """

    def __init__(self, path: Path, *, resume: bool = False, inputs: Inputs = ()) -> None:
        check_tags(path, resume=resume, inputs=inputs)
        self._path, self._place, self._form = path, place_of(path), row_format(path)
        self._inputs, self._state = inputs, state_of(self._place)
        self._stream = is_stream(self._place)
        self.part = part_of(path)
        if self._form != ".jsonl":
            self.part = self.part.with_name(temporary())
        self._source = self.part if self.part.is_file() else self._place
        self._due: list[tuple[list[Cells], bool]] = []
        """What is computed again: the last whole window, which is kept then, and what follows it."""
        self._cut = b""
        self._end = self.skip = 0
        self._sink: RowSink | None = None
        if resume and self._source.is_file():
            self._scan()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *why: object) -> None:
        if kind is None and self._due:
            raise self._mismatch("it has more lines than there are documents")
        try:
            if kind is None:
                self._begun()
        finally:
            if self._sink:
                self._sink.__exit__(kind, *why)
        if self._stream or not self._sink:
            return
        if kind is None:
            if state_of(self._place) != self._state:
                check_file(self._path, _TAGGED, made=is_tags, inputs=self._inputs)
            with suppress(OSError):
                copymode(self._place, self.part)
            sync(self.part)
            self.part.replace(self._place)
            sync(self._place.parent)
        elif self._form != ".jsonl" or not self.part.stat().st_size:
            self.part.unlink()

    def write(self, rows: list[Cells]) -> None:
        """Append rows, or compare them with the last that are there.

        Raises:
            DataError: The file does not go with these rows.
            OSError: The disk is full, say.
        """
        if self._due:
            before, kept = self._due.pop(0)
            for old, new in zip(before, rows, strict=False):
                if not _agree(old, new):
                    raise self._mismatch(f"it has {_shown(old)} where {_shown(new)} should be")
            # Where whole lines agree, a disk that died may have left anything after them.
            cut = b"" if before else self._cut
            if len(rows) < len(before) + bool(cut):
                raise self._mismatch("it has more lines than there are documents")
            if kept:
                return
            if cut and not self._end and not _begins(cut, rows[0]):
                raise self._mismatch(f"it has {cut[:80]!r} where {_shown(rows[0])} should be")
        self._begun().write(rows)

    def _begun(self) -> RowSink:
        if self._sink is None:
            if not self._stream:
                self.part.parent.mkdir(parents=True, exist_ok=True)
                if self._end and self._source != self.part:
                    copyfile(self._source, self.part)
                # What is left of a former job that shall not be continued goes, too.
                with self.part.open("ab") as handle:
                    handle.truncate(self._end)
            self._sink = RowSink(self.part if not self._stream else self._place, self._form, TAGS)
        return self._sink

    def _scan(self) -> None:
        lines: list[bytes] = []
        whole: list[bytes] = []
        with self._source.open("rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    self._cut = line
                    break
                lines.append(line)
                if len(lines) == WINDOW:
                    whole, lines = lines, []
                    self.skip += WINDOW
                    self._end += sum(map(len, whole))
        # The last whole window is tagged once more, to be compared.
        self.skip = max(self.skip - WINDOW, 0)
        for window, kept in ((whole, True), (lines, False)):
            if window or (self._cut and not kept):
                try:
                    self._due.append(([dict(json.loads(line)) for line in window], kept))
                except (ValueError, TypeError):
                    raise self._mismatch("it holds lines that are not JSON objects") from None

    def _mismatch(self, why: str) -> DataError:
        return DataError(
            f"{self._source} cannot be continued: {why}",
            "give the documents, bundle and options it was begun with, or start again without --resume",
        )


def part_of(path: Path) -> Path:
    """Where the rows of a file are until all are there."""
    place = place_of(path)
    return place.with_name(f"{place.name}.part")


def _begins(cut: bytes, row: Cells) -> bool:
    """Whether a line that was cut may have become this row: as far as its uid goes."""
    start = json_line({"uid": row["uid"]} if "uid" in row else {"error": ""})[: -2 if "uid" in row else 10]
    return start.startswith(cut[: len(start)])


def _agree(old: Cells, new: Cells) -> bool:
    """Whether two rows tell of one input row and one way to tag it, rounding aside."""
    if [old.get(name) for name in ("uid", "error", "line")] != [
        new.get(name) for name in ("uid", "error", "line")
    ]:
        return False
    try:
        pairs = zip(old.get("tags", ()), new.get("tags", ()), strict=True)
        return all(abs(mine["score"] - other["score"]) <= _SAME for mine, other in pairs)
    except (ValueError, TypeError, KeyError):
        return False


def _shown(row: Cells) -> str:
    if "error" in row:
        return f"a bad row at line {row.get('line')}"
    tags = row.get("tags")
    return f"document {row.get('uid')!r} with {len(tags) if isinstance(tags, list) else 'no'} tags"
