"""What a choice of tags is worth on reviewed documents, and decisions fitted to them: rates, guarantees.

What the guarantees mean and rest on is in `decisions`. The statistics behind them, conformal risk control
and tests of many thresholds, rest on one assumption: the reviewed documents and the documents to come are
exchangeable (drawn in the same way, in any order). It holds for no other catalog, and not for the same one
after a change of what comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from ezxmc.calibration.decisions import Decision, Guarantee, micro_threshold
from ezxmc.data.catalog import WithoutGold, settle_untagged
from ezxmc.errors import ConfigError, DataError
from ezxmc.records import Prediction, Result


@dataclass(frozen=True, slots=True)
class ReviewedDocuments:
    """Documents with calibrated candidates and the labels people gave them.

    Attributes:
        probabilities: (N, k) float64, every row best first.
        hits: (N, k) bool, whether people gave the document this label.
        gold: (N,) int64, all labels people gave, wherever they rank: those beyond the k candidates count,
            and no decision can keep them.

    Raises:
        DataError: There is no document or no candidate, the arrays do not align, or probabilities are not
            in [0, 1] and best first.
    """

    probabilities: NDArray[np.float64]
    hits: NDArray[np.bool_]
    gold: NDArray[np.int64]

    def __post_init__(self) -> None:
        p = self.probabilities
        if p.ndim != 2 or 0 in p.shape or p.shape != self.hits.shape or self.gold.shape != p.shape[:1]:
            raise DataError(
                f"reviewed documents do not align: probabilities {p.shape}, hits {self.hits.shape}, "
                f"gold {self.gold.shape}",
                "give at least one document, each with the same number of candidates",
            )
        if not ((p >= 0) & (p <= 1)).all() or (np.diff(p, axis=1) > 0).any():
            raise DataError("probabilities must be in [0, 1], every row best first", "calibrate the scores")
        if (self.hits.sum(axis=1) > self.gold).any():
            raise DataError("a document has more hits than gold labels", "count every label people gave")

    @classmethod
    def of(
        cls,
        predictions: Sequence[Prediction],
        gold: Mapping[str, Collection[str]],
        *,
        without_gold: WithoutGold | None = None,
    ) -> ReviewedDocuments:
        """Out of predictions of one depth with probabilities.

        Args:
            predictions: Best label first.
            gold: All right labels by document uid; empty for a document that people saw and nothing fits.
            without_gold: What documents without a row in `gold` are. "none": nothing fits them, so they
                count; "unreviewed": nobody saw them, so they are left out. Has to be told where there are
                any: documents left out because nothing fits them make the rates look better than they are.

        Raises:
            DataError: No prediction has a row in `gold`, some have none and nobody says what they are, or
                one has no probabilities.
            ArgumentError: `without_gold` is something else.
        """
        if not any(prediction.uid in gold for prediction in predictions):
            raise DataError("no document was reviewed", "check that documents and gold use the same uids")
        tags = {uid: set(labels) for uid, labels in gold.items()}
        settle_untagged(tags, (prediction.uid for prediction in predictions), "gold", without_gold)
        known = [prediction for prediction in predictions if prediction.uid in tags]
        if any(len(prediction.probabilities) != len(prediction.labels) for prediction in known):
            raise DataError("a decision needs probabilities", "run `ezxmc calibrate` on the bundle")
        return cls(
            np.array([prediction.probabilities for prediction in known], dtype=np.float64),
            np.array([[label in tags[p.uid] for label in p.labels] for p in known], dtype=np.bool_),
            np.array([len(tags[prediction.uid]) for prediction in known], dtype=np.int64),
        )

    @property
    def beyond(self) -> float:
        """Gold labels per document that are not among the candidates."""
        return float((self.gold - self.hits.sum(axis=1)).mean())


def missed(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of its gold labels each document misses: one value per document that has any, in order."""
    found = (reviewed.hits & kept).sum(axis=1)
    some = reviewed.gold > 0
    return np.asarray(1 - found[some] / reviewed.gold[some])


def false_tags(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of false tags among those kept: one value per answered document, in order.

    A document with nothing kept has no value: counted as 0, abstaining on many documents would hide any
    number of false tags on the others.
    """
    count = kept.sum(axis=1)
    right = (reviewed.hits & kept).sum(axis=1)
    return np.asarray(1 - right[count > 0] / count[count > 0])


@dataclass(frozen=True, slots=True)
class Rates(Result):
    """What a choice did on reviewed documents; `None` where there is nothing to average.

    Attributes:
        documents: Reviewed documents.
        answered: Share of them with at least one tag.
        tags: Kept per document, answered or not.
        missed: Mean share of a document's gold labels that are not kept, over documents with gold; labels
            beyond the candidates count as missed.
        false_tags: Mean share of false tags among a document's tags, over answered documents.
        false_tags_pooled: False tags of all tags kept.
        top_error: Share of answered documents whose first tag is false.
        f1: Micro-averaged, all gold labels counted.
        document_f1: Averaged over documents with gold; an empty answer gets 0.
    """

    documents: int
    answered: float
    tags: float
    missed: float | None
    false_tags: float | None
    false_tags_pooled: float | None
    top_error: float | None
    f1: float | None
    document_f1: float | None


def rates(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> Rates:
    """Measure a choice.

    Args:
        reviewed: N documents with k candidates.
        kept: (N, k), what is kept.
    """
    count, right = kept.sum(axis=1), (reviewed.hits & kept).sum(axis=1)
    answered, some = count > 0, reviewed.gold > 0
    total = int(count.sum() + reviewed.gold.sum())
    return Rates(
        documents=len(kept),
        answered=float(answered.mean()),
        tags=float(count.mean()),
        missed=_mean(missed(reviewed, kept)),
        false_tags=_mean(false_tags(reviewed, kept)),
        false_tags_pooled=float(1 - right.sum() / count.sum()) if count.any() else None,
        top_error=_mean(~reviewed.hits[answered, 0]),
        f1=2 * int(right.sum()) / total if total else None,
        document_f1=_mean(2 * right[some] / (count[some] + reviewed.gold[some])),
    )


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def conformal_bound(losses: ArrayLike, worst: float = 1.0) -> float:
    """Expected loss of one more document, bounded from the losses of n others.

    (Σ losses + B) / (n + 1), which is n/(n+1) · R̂ + B/(n+1) of conformal risk control (Angelopoulos et
    al., arXiv 2208.02814). The most lenient setting with a bound of at most α has an expected loss of at
    most α, over the draw of the n documents and the new one, if every document's loss never falls as the
    setting becomes more lenient.

    Args:
        losses: (n,) losses in [0, B] at one setting.
        worst: B, the greatest loss possible.
    """
    values = np.asarray(losses, dtype=np.float64)
    return float((values.sum() + worst) / (len(values) + 1))


def binomial_p_value(total: ArrayLike, n: ArrayLike, rate: float) -> NDArray[np.float64]:
    """Exact p-values of "the error rate is above `rate`": P(Bin(n, rate) ≤ total).

    Args:
        total: (m,) errors in n independent cases.
        n: (m,) cases; where 0, the p-value is 1.
        rate: In (0, 1).
    """
    from scipy.stats import binom

    # The distribution of no cases is all at 0.
    return np.asarray(binom.cdf(total, n, rate), dtype=np.float64)


def hoeffding_bentkus_p_value(total: ArrayLike, n: ArrayLike, rate: float) -> NDArray[np.float64]:
    """P-values of "the expected loss is above `rate`", from n independent losses in [0, 1].

    min(exp(−n h(min(m, rate), rate)), e · P(Bin(n, rate) ≤ ⌈total⌉)) with the mean m = total / n and h(a,
    b) = a ln(a/b) + (1−a) ln((1−a)/(1−b)): Learn-Then-Test (Angelopoulos et al., arXiv 2110.01052), after
    Bates et al., arXiv 2101.02703.

    Args:
        total: (m,) sums of the losses.
        n: (m,) how many; where 0, the p-value is 1.
        rate: In (0, 1).
    """
    from scipy.stats import binom

    sums, counts = np.asarray(total, dtype=np.float64), np.asarray(n, dtype=np.float64)
    mean = np.minimum(sums / np.maximum(counts, 1), rate)
    divergence = rel_entr(mean, rate) + rel_entr(1 - mean, 1 - rate)
    tail = np.e * binom.cdf(np.ceil(sums), counts, rate)
    return np.asarray(np.minimum(np.exp(-counts * divergence), tail), dtype=np.float64)


def fixed_sequence(p_values: ArrayLike, shares: ArrayLike, delta: float) -> NDArray[np.bool_]:
    """Which hypotheses of a sequence may be rejected, with a chance of at most `delta` of any error.

    Each hypothesis has its share of δ, and one that is rejected hands all it had to the next: the fallback
    procedure (Wiens, Pharmaceutical Statistics 2, 2003), which is the fixed-sequence testing of arXiv
    2110.01052 if the first has all of δ. Order and shares must not depend on the data that the p-values are
    from; the p-values may depend on each other in any way.

    Args:
        p_values: (m,) in the order of testing.
        shares: (m,) non-negative, of sum 1 at most.
        delta: In (0, 1).

    Returns:
        (m,) bool.
    """
    own = delta * np.asarray(shares, dtype=np.float64)
    rejected = np.zeros(len(own), dtype=np.bool_)
    level = 0.0
    for position, value in enumerate(np.asarray(p_values, dtype=np.float64)):
        level += own[position]
        rejected[position] = level > 0 and value <= level
        if not rejected[position]:
            level = 0.0
    return rejected


GRID: NDArray[np.float64] = np.arange(98, 0, -2) / 100
"""Thresholds tested by Learn-Then-Test, safest first: fixed beforehand, as its promise demands."""
_STARTS = ((1.0, 0.75), (0.5, 0.25))
"""Where testing starts: at the threshold 1 − (first · target), with this share of δ.

At 1 − target, probabilities that are right keep the rate by themselves; the other start is for some that
are too sure. From the top of the grid, where too few documents are answered to prove anything, testing
would end at once.
"""
Test = Callable[[NDArray[np.float64], NDArray[np.int64], float], NDArray[np.float64]]
"""(Σ losses, n, rate) to p-values of "the expected loss is above the rate"."""


def maximise_f1(
    reviewed: ReviewedDocuments, *, per_document: bool = False, abstain_below: float | None = None
) -> Decision:
    """Keep what maximises expected F1, as far as the probabilities are calibrated.

    Micro-averaged: one threshold (arXiv 1402.1892). Per document: a number of tags for each (arXiv
    1206.4625).

    Args:
        reviewed: Of these only the probabilities are used, and the number of labels beyond the candidates.
        per_document: The mean of every document's F1 instead of micro-averaged F1.
        abstain_below: As in `Decision`.
    """
    depth = reviewed.probabilities.shape[1]
    if per_document:
        return Decision("expected_document_f1", depth, abstain_below=abstain_below)
    threshold = micro_threshold(reviewed.probabilities, reviewed.beyond)
    return Decision("expected_f1", depth, threshold=threshold, abstain_below=abstain_below)


def control_missed_rate(
    reviewed: ReviewedDocuments, target: float, *, abstain_below: float | None = None
) -> Decision:
    """The highest threshold whose expected missed-label rate is at most `target`.

    Conformal risk control (arXiv 2208.02814), exact over all thresholds: the loss only rises with the
    threshold, in steps at the probabilities of right labels. Documents without a gold label have no
    missed-label rate and are left out, so the promise is for documents that have one. It is an expectation
    over draws of reviewed documents: where even all candidates miss more than `target`, a lucky draw of few
    documents does not show it.

    Args:
        reviewed: The documents.
        target: In (0, 1).
        abstain_below: Set beforehand, not on these documents: what is abstained from is missed.

    Raises:
        ConfigError: `target` is out of range, or lower than what keeping every candidate reaches.
    """
    _check_share("a missed-label rate", target)
    n, p = int((reviewed.gold > 0).sum()), reviewed.probabilities
    # A label of an abstained document is found at no threshold.
    reachable = reviewed.hits & (p[:, :1] >= (abstain_below or 0.0))
    floor = conformal_bound(missed(reviewed, reachable))
    if floor > target:
        lowest = math.ceil(1e4 * floor) / 1e4
        raise ConfigError(
            f"a missed-label rate of {target:g} cannot be guaranteed: with all {p.shape[1]} candidates "
            f"kept, the lowest that can on {n:,} reviewed documents with gold labels is "
            f"{f'{lowest:g}' if lowest < 1 else 'not below 1'}",
            "search deeper (--depth), review more documents, abstain less, or ask for less",
        )
    levels = np.unique(p[reachable])
    below, above = 0, len(levels)
    # levels[below] keeps the promise, levels[above] does not.
    while above - below > 1:
        middle = (below + above) // 2
        if conformal_bound(missed(reviewed, reachable & (p >= levels[middle]))) <= target:
            below = middle
        else:
            above = middle
    return Decision(
        "missed_rate",
        p.shape[1],
        threshold=float(levels[below]),
        abstain_below=abstain_below,
        promise=Guarantee(target, n),
    )


def control_false_tag_rate(
    reviewed: ReviewedDocuments, target: float, *, confidence: float = 0.9, abstain_below: float | None = None
) -> Decision:
    """The lowest threshold of `GRID` that proves a false-tag rate of at most `target`.

    The rate is the mean share of false tags among a document's tags, over documents that get any. It may
    rise or fall with the threshold, so each threshold is a hypothesis of its own (Learn-Then-Test, arXiv
    2110.01052), tested on the documents answered there by Hoeffding-Bentkus p-values.

    Args:
        reviewed: The documents.
        target: In (0, 1).
        confidence: 1 − δ, in (0, 1).
        abstain_below: Set beforehand, not on these documents.

    Raises:
        ConfigError: An argument is out of range, or no threshold proves it.
    """
    p = reviewed.probabilities
    answered = p[:, :1] >= (abstain_below or 0.0)
    losses = [false_tags(reviewed, answered & (p >= threshold)) for threshold in GRID]
    return Decision(
        "false_tag_rate",
        p.shape[1],
        threshold=_lowest_proven("a false-tag rate", losses, hoeffding_bentkus_p_value, target, confidence),
        abstain_below=abstain_below,
        promise=Guarantee(target, len(p), confidence),
    )


def control_top_error(
    reviewed: ReviewedDocuments, target: float, *, confidence: float = 0.9, k: int = 1
) -> Decision:
    """Abstain where needed for the first tag to be false in at most `target` of the documents answered.

    Selective classification with a guarantee (as in Geifman and El-Yaniv, arXiv 1705.08500) by
    Learn-Then-Test over `GRID`, with exact binomial p-values of the documents answered.

    Args:
        reviewed: The documents.
        target: In (0, 1).
        confidence: 1 − δ, in (0, 1).
        k: Tags an answered document gets; the promise is of the first.

    Raises:
        ConfigError: An argument is out of range, or no threshold proves it.
    """
    best = reviewed.probabilities[:, 0]
    losses = [1.0 - reviewed.hits[best >= threshold, 0] for threshold in GRID]
    return Decision(
        "top_error",
        reviewed.probabilities.shape[1],
        k=k,
        abstain_below=_lowest_proven("a first-tag error", losses, binomial_p_value, target, confidence),
        promise=Guarantee(target, len(best), confidence),
    )


def _lowest_proven(
    what: str, losses: Sequence[NDArray[np.float64]], test: Test, target: float, confidence: float
) -> float:
    """The lowest threshold of `GRID` at which the mean loss is proven to be at most `target`."""
    _check_share(what, target)
    _check_share("a confidence", confidence)

    totals, sizes = np.array([loss.sum() for loss in losses]), np.array([len(loss) for loss in losses])

    def proven(rate: float) -> NDArray[np.float64]:
        shares = np.zeros(len(GRID))
        for part, share in _STARTS:
            shares[np.abs(GRID - (1 - part * rate)).argmin()] += share
        return GRID[fixed_sequence(test(totals, sizes, rate), shares, 1 - confidence)]

    if len(thresholds := proven(target)):
        return float(thresholds[-1])
    # Exactly the numbers that will be typed: 0.3 and not 30 × 0.01.
    hundredths = (hundredth / 100 for hundredth in range(1, 100))
    reachable = next((rate for rate in hundredths if rate > target and len(proven(rate))), None)
    raise ConfigError(
        f"{what} of {target:g} cannot be guaranteed with confidence {confidence:g} on "
        f"{sizes.max():,} reviewed documents; the lowest that can is "
        f"{'not below 1' if reachable is None else f'{reachable:.2f}'}",
        "review more documents, or ask for less",
    )


def _check_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{what} of {value:g} is not between 0 and 1", "0.1 stands for 10 %")
