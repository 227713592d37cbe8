"""The files that `ezxmc predict` and `ezxmc shortlist` write: how they are known again, and read."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow

from ezxmc.data.rows import iter_rows
from ezxmc.data.validate import RowError, RowReport
from ezxmc.data.writers import row_format, rows_made, whole_rows
from ezxmc.files import Inputs, check_file
from ezxmc.records import Document, Label, Prediction

SHORTLIST = pyarrow.schema(
    [
        ("doc", pyarrow.string()),
        ("labels", pyarrow.list_(pyarrow.string())),
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("sources", pyarrow.list_(pyarrow.string())),
    ]
)
"""Columns of a file of shortlists."""
_WHAT = "a file of shortlists"


def check_shortlist(out: Path, inputs: Inputs = ()) -> None:
    """Whether shortlists may be written to a file; raises ConfigError as `check_file` and `row_format`."""
    row_format(out)
    check_file(out, _WHAT, made=rows_made(SHORTLIST.names), inputs=inputs)


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
    with whole_rows(out, _WHAT, SHORTLIST, inputs=inputs) as write:
        write(rows)


def read_shortlist(
    source: str | Path, documents: Sequence[Document], labels: Sequence[Label], report: RowReport
) -> list[list[int]]:
    """Candidate labels of each document, as positions in `labels`.

    Args:
        source: Rows with `doc`, a uid, and `labels`, a list of uids.
        documents: N documents.
        labels: All labels.
        report: Receives lines that do not fit (`bad_shortlist`), and lines with
            a document or a label that is not there (`unknown_document`,
            `unknown_label`); the known labels of such a line are kept.

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

    `{"uid": ..., "tags": [{"label": ..., "title": ..., "score": ...,
    "probability": ...}, ...]}`, best tag first, the probability null or absent
    where there is no calibrator; or `{"error": ..., "file": ..., "line": ...}`.

    Args:
        source: A file that `ezxmc predict` wrote, in any form, or "-".
        report: Receives lines that carry an error (`prediction_error`), that
            are no prediction (`bad_prediction`), and second predictions of a
            document (`duplicate_uid`).

    Raises:
        DataError: The file cannot be read, or a line is bad and `report` is
            strict.
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
