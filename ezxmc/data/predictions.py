"""Predictions read back from the file `ezxmc predict` writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ezxmc.data.readers import iter_rows
from ezxmc.data.validate import RowError, RowReport
from ezxmc.records import Prediction

_HUGE = sys.float_info.max


def read_predictions(source: str | Path, report: RowReport) -> Iterator[Prediction]:
    """Stream the predictions that `ezxmc predict` writes, one JSON object per line.

    `{"uid": ..., "tags": [{"label": ..., "title": ..., "score": ...,
    "probability": ...}, ...]}`, best tag first, the probability null or absent
    where there is no calibrator; or `{"error": ..., "file": ..., "line": ...}`.

    Args:
        source: A JSONL file or "-".
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
    if row.get("error") is not None:
        raise RowError("prediction_error", str(row["error"]))
    uid = row.get("uid")
    if not isinstance(uid, str) or not uid:
        raise RowError("bad_prediction", "no uid")
    tags = row.get("tags")
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
