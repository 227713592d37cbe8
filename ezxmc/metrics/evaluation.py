"""Predictions against gold tags: ranking and calibration in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.data.forest import Forest
from ezxmc.data.in_memory import as_gold
from ezxmc.errors import DataError, instance_of, number_between, whole_number
from ezxmc.metrics import (
    FEW,
    Difference,
    Frequencies,
    RankingMetrics,
    ReliabilityBin,
    Terms,
    ace_at_k,
    differences,
    ece_at_k,
    encode,
    intervals,
    reliability_bins,
)
from ezxmc.metrics.streaming import TreeTerms
from ezxmc.records import Prediction

_CHUNK = 4_096
_NONE: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        values: Metric by name ("P@1", "R@10", "nDCG@5", "PSP@5", "macro-F1", "R@10 tail", "ECE@5", ...;
            defined at `RankingMetrics`), in order of display. Ranking metrics are in [0, 1], higher is
            better; calibration metrics are errors, NLL in nats.
        intervals: By metric the ends of its 95% bootstrap interval over documents. Coverage, macro F1, ECE
            and ACE have none: they are no sums over documents, and resamples, in which documents stand twice,
            are biased for them.
        n_documents: Documents scored: all that have gold labels.
        n_fitting_nothing: Documents beside these that have gold without a label: people saw them
            and nothing fits. They count in F1 and the calibration metrics, not in the ranking.
        missing: Of these, the ones without a prediction; each counts as zero in the ranking metrics.
        n_without_gold: Predicted documents left out because they have no gold.
        n_filtered: Pairs left out on request, of predictions and gold together.
        reliability: By k the bins of the reliability diagram of the pooled top-k pairs,
            which the calibration metrics are of; empty where a prediction carries no
            probabilities, and then those metrics are absent.
        terms: What the metrics with intervals are sums of, for `compare`.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    n_documents: int
    n_fitting_nothing: int
    missing: tuple[str, ...]
    n_without_gold: int
    n_filtered: int
    reliability: dict[int, tuple[ReliabilityBin, ...]]
    terms: Terms

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and 95% interval of every metric, to four digits, for a table."""
        counting = np.count_nonzero(self.terms.denominators, axis=0).tolist()
        rough = {name: roughly(rows) for name, rows in zip(self.terms.names, counting, strict=True)}
        return [
            (
                name,
                f"{value:.4f}",
                "{:.4f} to {:.4f}".format(*self.intervals[name]) + rough[name]
                if name in self.intervals
                else "",
            )
            for name, value in self.values.items()
        ]

    def counts(self) -> dict[str, int]:
        """What was counted, in words."""
        return {
            "documents scored": self.n_documents,
            "of these without a prediction (counted as zero)": len(self.missing),
            "documents nothing fits (in F1 and calibration)": self.n_fitting_nothing,
            "predictions without gold (left out)": self.n_without_gold,
            "pairs filtered out": self.n_filtered,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without `terms`."""
        found = asdict(replace(self, terms=Terms((), np.empty((0, 0)), np.empty((0, 0)))))
        del found["terms"]
        return found


def roughly(documents: int) -> str:
    """What to add to an interval of so few documents that its ends are rough; else nothing."""
    return f" (rough: {documents} documents)" if documents < FEW else ""


def evaluate(
    predictions: Iterable[Prediction],
    gold: Mapping[str, Collection[str]],
    *,
    precision_ks: Sequence[int] = (1, 3, 5),
    recall_ks: Sequence[int] = (5, 10, 50),
    ndcg_ks: Sequence[int] = (5,),
    coverage_ks: Sequence[int] = (5,),
    calibration_ks: Sequence[int] = (1, 3, 5, 10),
    train_gold: Mapping[str, Collection[str]] | None = None,
    propensity: tuple[float, float] = (0.55, 1.5),
    threshold: float | None = None,
    filtered: Mapping[str, Collection[str]] = _NONE,
    forest: Forest | None = None,
) -> Evaluation:
    """Score predictions on every document that has gold.

    Predictions are streamed: what is kept of one is a few numbers.

    Args:
        predictions: One per document, in any order.
        gold: Right label uids (a collection, no text) of each document uid. A document with none was
            reviewed and fits nothing: no ranking of it is right or wrong, but a probability or a tag is.
        precision_ks: Depths of P@k and PSP@k.
        recall_ks: Depths of R@k; those deeper than the longest prediction are
            left out, since they would only repeat its depth's value.
        ndcg_ks: Depths of nDCG@k and PSnDCG@k.
        coverage_ks: Depths of coverage@k.
        calibration_ks: Depths of ECE, ACE, Brier and NLL, of which those deeper than the longest prediction
            are left out. They are computed if every scored prediction has probabilities.
        train_gold: Gold of training documents, whose label counts give propensities and head, torso and tail;
            without it there is no PSP, no PSnDCG and no slice.
        propensity: A and B of `inverse_propensity`.
        threshold: Labels at least this probable are tags, for micro and macro F1.
        filtered: Label uids of each document uid that count neither as predicted nor as gold,
            as the `filter_labels` of the Extreme Classification Repository.
        forest: Of the labels, `Forest.of`: adds hP, hR and hF1 of the first labels, at the depths of P@k, and
            with `threshold` of the tags; and P@5 by level, 1 the roots.

    Raises:
        DataError: No document has gold, none of them was predicted, a document was predicted twice, fewer
            than 3 training documents have gold, or `threshold` is given and a prediction lacks probabilities.
        ArgumentError: A depth is no whole number or below 1, `threshold` is outside of [0, 1], or
            `propensity` is no pair of numbers above 0, 10 at most.
        InputTypeError: A prediction is no `Prediction`, or `gold` and the like no mapping of uids.

    Example:
        >>> found = [Prediction("d1", ("music", "food"), ("music", "food"), (0.9, 0.1))]
        >>> evaluate(found, {"d1": ["music"]}).values["P@1"]
        1.0
    """
    instance_of(predictions, Iterable, "predictions", "give what `Predictor.predict` returns")
    instance_of(propensity, Sequence, "propensity", "give A and B, such as (0.55, 1.5)")
    for ks in (precision_ks, recall_ks, ndcg_ks, coverage_ks, calibration_ks):
        instance_of(ks, Iterable, "the depths", "give several, such as (1, 3, 5)")
        for k in ks:
            whole_number(k, "a depth k")
    if threshold is not None:
        number_between(threshold, "threshold", 0, 1)
    for name, number in zip("AB", propensity, strict=True):
        number_between(number, f"propensity {name}", 0, 10)
    gold, filtered = as_gold(gold), as_gold(filtered, "filtered")
    train_gold = None if train_gold is None else as_gold(train_gold, "train_gold")
    scored = {uid: left for uid, labels in gold.items() if (left := set(labels) - set(filtered.get(uid, ())))}
    if not scored:
        raise DataError("no document has a gold label", "check the gold file and its report")
    judged = bool(calibration_ks) or threshold is not None  # not only ranked
    nothing: dict[str, set[str]] = {uid: set() for uid, labels in gold.items() if judged and not labels}
    known = None if train_gold is None else _frequencies(train_gold, scored, propensity)
    ids = dict(known.ids) if known else {}
    metrics = RankingMetrics(
        precision_ks=precision_ks,
        recall_ks=recall_ks,
        ndcg_ks=ndcg_ks,
        coverage_ks=coverage_ks,
        inverse=known.inverse if known else None,
        group=known.group if known else None,
        empty=False,
        tree=TreeTerms(forest, ids, precision_ks) if forest else None,
    )
    reviewed = scored | nothing
    place = {uid: number for number, uid in enumerate(reviewed)}
    n_filtered = sum(len(labels) - len(scored.get(uid, ())) for uid, labels in gold.items())
    pairs: _Pairs | None = _Pairs(max(calibration_ks, default=0))
    seen: set[str] = set()
    absent = (Prediction(uid, (), (), ()) for uid in reviewed if uid not in seen)
    stream = chain(_to_score(predictions, place, seen), absent)
    while chunk := list(islice(stream, _CHUNK)):
        short = [p.only({*p.labels}.difference(filtered[p.uid])) if p.uid in filtered else p for p in chunk]
        n_filtered += sum(len(p.labels) for p in chunk) - sum(len(p.labels) for p in short)
        predicted, right = encode([p.labels for p in short], [reviewed[p.uid] for p in short], ids)
        probabilities = _probabilities(short, predicted.shape, required=threshold is not None)
        numbers = np.array([place[p.uid] for p in short])
        hits = metrics.update(
            predicted,
            right,
            kept=None if threshold is None or probabilities is None else probabilities >= threshold,
            documents=numbers,
        )
        if probabilities is None:
            pairs = None
        elif pairs:
            pairs.add(probabilities, hits, numbers)
    missing = tuple(uid for uid in scored if uid not in seen)
    if len(missing) == len(scored):
        raise DataError(
            f"none of the {len(seen):,} predicted documents is among the {len(scored):,} with gold",
            "check that both use the same uids",
        )
    measured = metrics.result()
    terms = measured.terms
    deep = {f"R@{k}" for k in recall_ks if k > measured.longest}
    values = {name: value for name, value in measured.values.items() if name.partition(" ")[0] not in deep}
    depths = [k for k in calibration_ks if k <= measured.longest]
    top = {k: pairs.top(k) for k in depths} if pairs else {}
    for name, metric in (("ECE", ece_at_k), ("ACE", ace_at_k)):
        values |= {f"{name}@{k}": metric(*found) for k, found in top.items()}
    if pairs and depths:
        losses = pairs.losses(depths, len(terms.numerators))
        values |= losses.values()
        terms = terms.beside(losses)
    return Evaluation(
        values=values,
        intervals={name: ends for name, ends in intervals(terms).items() if name in values},
        n_documents=len(scored),
        missing=missing,
        n_fitting_nothing=len(nothing),
        n_without_gold=len(seen - reviewed.keys()),
        n_filtered=n_filtered,
        reliability={k: tuple(reliability_bins(*found)) for k, found in top.items()},
        terms=terms,
    )


def constant_answer(gold: Mapping[str, Collection[str]], depth: int) -> list[Prediction]:
    """What any tagger must beat: the `depth` most frequent gold labels, the same for every document.

    They are chosen by the very gold they are measured against, so no constant answer has a better P@k.

    Args:
        gold: Right label uids of each document uid.
        depth: Labels answered, fewer where gold names fewer.

    Returns:
        A prediction for each document that has gold, without scores.
    """
    counts = Counter(label for labels in gold.values() for label in set(labels))
    best = tuple(sorted(counts, key=lambda label: (-counts[label], label))[:depth])
    return [Prediction(uid, best, (), ()) for uid in gold]


def compare(first: Evaluation, second: Evaluation) -> dict[str, Difference]:
    """`first` minus `second`, metric by metric, with paired bootstrap intervals (`differences`).

    Args:
        first: One run.
        second: Another on the same gold.

    Returns:
        By metric, of those both have with an interval.

    Raises:
        DataError: They were scored on different documents.
    """
    sizes = [(one.n_documents, one.n_fitting_nothing) for one in (first, second)]
    if sizes[0] != sizes[1]:
        raise DataError(
            "{:,} and {:,} documents were scored".format(*map(sum, sizes)), "compare runs on the same gold"
        )
    both = first.intervals.keys() & second.intervals.keys()
    return {name: gap for name, gap in differences(first.terms, second.terms).items() if name in both}


class _Pairs:
    """Probability, hit, rank and document of the pooled pairs down to a depth."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def add(
        self, probabilities: NDArray[np.float64], hits: NDArray[np.bool_], documents: NDArray[np.int64]
    ) -> None:
        """Add documents by number; a probability of NaN is no pair."""
        first = probabilities[:, : self._depth]
        rows, ranks = there = np.nonzero(~np.isnan(first))
        self._parts.append((first[there], hits[there], ranks, documents[rows]))

    def top(self, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Probabilities and hits of the top-k pairs."""
        probabilities, hits, ranks, _ = self._pooled()
        return probabilities[ranks < k], hits[ranks < k]

    def losses(self, ks: Sequence[int], rows: int) -> Terms:
        """Brier score and NLL of the top-k pairs, as `brier` and `nll` define them, in `rows` rows."""
        probabilities, hits, ranks, documents = self._pooled()
        right = np.where(hits, probabilities, 1 - probabilities)
        parts = {"Brier": (1 - right) ** 2, "NLL": -np.log(np.maximum(right, 1e-12))}
        found = []
        for name, loss in parts.items():
            for k in ks:
                row, some = documents[ranks < k] % rows, loss[ranks < k]
                sums = np.bincount(row, some, minlength=rows), np.bincount(row, minlength=rows)
                found.append((f"{name}@{k}", *sums))
        names, losses, counts = zip(*found, strict=True)
        return Terms(names, np.column_stack(losses), np.column_stack(counts))

    def _pooled(self) -> list[NDArray[Any]]:
        return [np.concatenate(column) for column in zip(*self._parts, strict=True)]


def _to_score(
    predictions: Iterable[Prediction], scored: Collection[str], seen: set[str]
) -> Iterator[Prediction]:
    """The predictions of `scored` documents; all uids go into `seen`."""
    for prediction in predictions:
        instance_of(prediction, Prediction, "a prediction", "give what `Predictor.predict` returns")
        if prediction.uid in seen:
            raise DataError(
                f"document {prediction.uid!r} was predicted twice", "keep one prediction of each document"
            )
        seen.add(prediction.uid)
        if prediction.uid in scored:
            yield prediction


def _frequencies(
    train_gold: Mapping[str, Collection[str]],
    gold: Mapping[str, Collection[str]],
    propensity: tuple[float, float],
) -> Frequencies:
    counts = Counter(label for labels in train_gold.values() for label in set(labels))
    for labels in gold.values():
        counts.update(dict.fromkeys(labels, 0))
    documents = sum(map(bool, train_gold.values()))
    if documents < 3:
        raise DataError(
            f"propensities need 3 training documents with gold, not {documents}",
            "give the gold of all training documents, or leave it out",
        )
    return Frequencies.of(counts, documents, *propensity)


def _probabilities(
    predictions: Sequence[Prediction], shape: tuple[int, int], *, required: bool
) -> NDArray[np.float64] | None:
    """(n, k), NaN where there is no label; `None` if a prediction lacks probabilities."""
    found = np.full(shape, np.nan)
    for row, prediction in zip(found, predictions, strict=True):
        if len(prediction.probabilities) != len(prediction.labels):
            if required:
                raise DataError(
                    f"the prediction of document {prediction.uid!r} has no probabilities for a threshold",
                    "calibrate the bundle (`ezxmc calibrate`) and predict again",
                )
            return None
        row[: len(prediction.labels)] = prediction.probabilities
    return found
