"""The files `ezxmc predict` writes: their columns, how they are known again, and read back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow

from ezxmc.data.readers import iter_rows
from ezxmc.data.validate import RowError, RowReport
from ezxmc.data.writers import rows_made
from ezxmc.records import Prediction

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
