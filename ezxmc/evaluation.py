"""Predictions against gold tags: ranking and calibration in one table."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ezxmc.data import RowError, RowReport, iter_rows
from ezxmc.errors import DataError
from ezxmc.metrics import (
    ReliabilityBin,
    ace_at_k,
    brier,
    ece_at_k,
    ndcg_at_k,
    nll,
    precision_at_k,
    recall_at_k,
    reliability_bins,
)
from ezxmc.records import Prediction

_HUGE = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        values: Metric by name ("P@1", "R@10", "nDCG@5", "ECE@5", ...), in order
            of display. Ranking metrics are in [0, 1], higher is better;
            calibration metrics are errors, NLL in nats.
        n_documents: Documents scored: all that have gold.
        missing: Of these, the ones without a prediction; each counts as zero
            in the ranking metrics.
        n_without_gold: Predicted documents left out because they have no gold.
        reliability: By k the bins of the reliability diagram of the pooled top-k pairs,
            which the calibration metrics are of; empty where a prediction carries no
            probabilities, and then those metrics are absent.
    """

    values: dict[str, float]
    n_documents: int
    missing: tuple[str, ...]
    n_without_gold: int
    reliability: dict[int, tuple[ReliabilityBin, ...]] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value for a table: metrics to four digits, then the counts."""
        return [
            *((name, f"{value:.4f}") for name, value in self.values.items()),
            ("documents scored", f"{self.n_documents:,}"),
            ("of these without a prediction (counted as zero)", f"{len(self.missing):,}"),
            ("predictions without gold (left out)", f"{self.n_without_gold:,}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def evaluate(
    predictions: Iterable[Prediction],
    gold: Mapping[str, Collection[str]],
    *,
    precision_ks: Sequence[int] = (1, 3, 5),
    recall_ks: Sequence[int] = (5, 10, 50),
    ndcg_ks: Sequence[int] = (5,),
    calibration_ks: Sequence[int] = (1, 3, 5, 10),
) -> Evaluation:
    """Score predictions on every document that has gold labels.

    Args:
        predictions: One per document, in any order.
        gold: Right label uids of each document uid; documents with none are
            left out.
        precision_ks: Depths of P@k.
        recall_ks: Depths of R@k; those deeper than the longest prediction are
            left out, since they would only repeat its depth's value.
        ndcg_ks: Depths of nDCG@k.
        calibration_ks: Depths of ECE, ACE, Brier and NLL, of which those deeper than
            the longest prediction are left out. They are computed if every scored
            prediction has probabilities.

    Raises:
        DataError: No document has gold, none of them was predicted, or a
            document was predicted twice.
    """
    scored = {uid: labels for uid, labels in gold.items() if labels}
    if not scored:
        raise DataError("no document has a gold label", "check the gold file and its report")
    predicted: dict[str, Prediction] = {}
    without_gold: set[str] = set()
    for prediction in predictions:
        uid = prediction.uid
        if uid in predicted or uid in without_gold:
            raise DataError(f"document {uid!r} was predicted twice", "keep one prediction of each document")
        if uid in scored:
            predicted[uid] = prediction
        else:
            without_gold.add(uid)
    if not predicted:
        raise DataError(
            f"none of the {len(without_gold):,} predicted documents is among the {len(scored):,} with gold",
            "check that both use the same uids",
        )
    ranked = [predicted[uid].labels if uid in predicted else () for uid in scored]
    right = list(scored.values())
    longest = max(len(labels) for labels in ranked)
    values = {f"P@{k}": precision_at_k(ranked, right, k) for k in precision_ks}
    values |= {f"R@{k}": recall_at_k(ranked, right, k) for k in recall_ks if k <= longest}
    values |= {f"nDCG@{k}": ndcg_at_k(ranked, right, k) for k in ndcg_ks}

    pairs = {k: _calibration_pairs(predicted, scored, k) for k in calibration_ks if k <= longest}
    pairs = {k: (probabilities, hits) for k, (probabilities, hits) in pairs.items() if probabilities}
    for name, metric in (("ECE", ece_at_k), ("ACE", ace_at_k), ("Brier", brier), ("NLL", nll)):
        values |= {f"{name}@{k}": metric(*found) for k, found in pairs.items()}
    return Evaluation(
        values=values,
        n_documents=len(scored),
        missing=tuple(uid for uid in scored if uid not in predicted),
        n_without_gold=len(without_gold),
        reliability={k: tuple(reliability_bins(*found)) for k, found in pairs.items()},
    )


def _calibration_pairs(
    predicted: Mapping[str, Prediction], gold: Mapping[str, Collection[str]], k: int
) -> tuple[list[float], list[bool]]:
    """Probabilities and hits of the pooled top-k pairs; empty if any prediction has no probabilities."""
    probabilities: list[float] = []
    hits: list[bool] = []
    for uid, prediction in predicted.items():
        if len(prediction.probabilities) != len(prediction.labels):
            return [], []
        top = prediction.labels[:k]
        probabilities.extend(prediction.probabilities[:k])
        right = frozenset(gold[uid])
        hits.extend(label in right for label in top)
    return probabilities, hits


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
