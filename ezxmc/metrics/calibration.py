"""How far probabilities can be believed (ECE, ACE, Brier, NLL, reliability bins), and has that drifted?

Everywhere `probabilities` and `hits` have the same shape, of any number of dimensions, and are pooled: for a
metric at k pass the (document, label) pairs of the top k, shape `(N, k)` or flat. Probabilities are in
[0, 1]; hits are 0 or 1, or agreement probabilities in between.

ECE@k is that of "Labels in Extremes: How Well Calibrated are Extreme
Multi-label Classifiers?" (arXiv 2411.04276): top-k pairs pooled, L1 norm.

Drift is tested on two samples of documents, judged alike. A residual is what the judge said minus the
probability stated, r = y − p, so a calibrated tagger has mean residual 0 wherever one looks. Whether the mean
has moved from one sample to the other is tested by permuting *documents*: the pairs of one document depend on
each other.

The statistic is studentised, T = (r̄' − r̄) / √(v' + v) with v the variance of a ratio over documents. That
makes the test exact where documents are exchangeable, and of the right level for large samples where only the
mean residuals are equal: new documents that are merely *other* documents (other labels, more of them hard)
are no drift while their probabilities come true (Chung and Romano, "Exact and asymptotically robust
permutation tests", Annals of Statistics 41, 2013; arXiv 1304.5939).

Half of the level goes to the whole sample: the largest |T| of all pairs and of three bands of probability, so
that errors that cancel are seen (Westfall and Young's maxT). The other half goes to labels and groups of
labels, by Benjamini and Hochberg (JRSS B 57, 1995). Without any drift the rate of reporting some is thus at
most the level; among reported labels, the expected share of false ones is at most half of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from ezxmc.errors import ArgumentError, InputTypeError, number_between, whole_number

_MOST_BINS = 1_000_000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One point of a reliability diagram.

    Attributes:
        low: Lower edge, inclusive.
        high: Upper edge, exclusive (inclusive in the last bin).
        n: Pairs in the bin.
        mean_probability: Their mean probability.
        hit_rate: Share of them that are hits.
    """

    low: float
    high: float
    n: int
    mean_probability: float
    hit_rate: float


def reliability_bins(probabilities: ArrayLike, hits: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Pairs sorted into equal-width bins; empty bins are left out.

    Args:
        probabilities: Any shape.
        hits: The same shape.
        bins: Number of bins over [0, 1].

    Raises:
        ArgumentError: No pairs, shapes differ, values outside [0, 1], `bins` < 1 or absurdly many.
        InputTypeError: They are no numbers.
    """
    p, y = _pairs(probabilities, hits)
    number_between(whole_number(bins, "bins"), "bins", 1, _MOST_BINS)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.digitize(p, edges[1:-1])  # p = 1 falls into the last bin
    n = np.bincount(place, minlength=bins)
    sum_p = np.bincount(place, weights=p, minlength=bins)
    sum_y = np.bincount(place, weights=y, minlength=bins)
    return [
        ReliabilityBin(
            float(edges[b]), float(edges[b + 1]), int(n[b]), float(sum_p[b] / n[b]), float(sum_y[b] / n[b])
        )
        for b in np.flatnonzero(n)
    ]


def ece_at_k(probabilities: ArrayLike, hits: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: sum over bins of n_b/n · |hit rate − mean probability|.

    Equal-width bins, L1; arXiv 2411.04276. Arguments and errors as for `reliability_bins`.
    """
    points = reliability_bins(probabilities, hits, bins)
    total = sum(point.n for point in points)
    return sum(point.n / total * abs(point.hit_rate - point.mean_probability) for point in points)


def ace_at_k(probabilities: ArrayLike, hits: ArrayLike, bins: int = 10) -> float:
    """Adaptive calibration error: as ECE, in bins that hold equally many pairs.

    After Nixon et al., arXiv 1904.01685. Pairs of one probability share their
    hit rate before they are cut into bins, so their order does not matter. Of
    `bins` at most one per pair is used; else arguments and errors as for `reliability_bins`.
    """
    p, y = _pairs(probabilities, hits)
    number_between(whole_number(bins, "bins"), "bins", 1, _MOST_BINS)
    values, inverse, n = np.unique(p, return_inverse=True, return_counts=True)
    rate = np.bincount(inverse, weights=y) / n
    gap = np.repeat(rate - values, n)
    return float(sum(abs(part.sum()) for part in np.array_split(gap, bins)) / len(p))


def brier(probabilities: ArrayLike, hits: ArrayLike) -> float:
    """Brier score, mean of (probability − hit)²; arguments and errors as for `reliability_bins`."""
    p, y = _pairs(probabilities, hits)
    return float(np.mean((p - y) ** 2))


def nll(probabilities: ArrayLike, hits: ArrayLike) -> float:
    """Mean negative log-likelihood in nats; probabilities are clipped to [1e-12, 1 − 1e-12].

    Arguments and errors as for `reliability_bins`.
    """
    p, y = _pairs(probabilities, hits)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def _pairs(probabilities: ArrayLike, hits: ArrayLike) -> tuple[Floats, Floats]:
    try:
        p = np.asarray(probabilities, dtype=np.float64)
        y = np.asarray(hits, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"probabilities and hits are no numbers: {error}", "give two arrays") from None
    if p.shape != y.shape or p.size == 0:
        raise ArgumentError(
            f"probabilities {p.shape} and hits {y.shape} must have one shape and not be empty",
            "give one hit, 0 or 1, for each probability",
        )
    # Written so that NaN fails too.
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ArgumentError("probabilities and hits must lie in [0, 1]", "scores are no probabilities")
    return p.ravel(), y.ravel()


FEWEST_DOCUMENTS = 20
"""Of either sample; fewer are not tested."""
_FEWEST_PAIRS = 5  # of a label, in either sample
_BANDS = 3
_PERMUTATIONS = 9_999
_BLOCK = 500
_ROUNDING = 1e-18


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Pairs a tagger answered with and a judge judged; the four columns align.

    Attributes:
        documents: (P,) uids.
        labels: (P,) uids.
        probabilities: (P,) float64 stated, in [0, 1].
        verdicts: (P,) float64 in [0, 1]: how far the judge agrees.
    """

    documents: Sequence[str]
    labels: Sequence[str]
    probabilities: Floats
    verdicts: Floats

    @property
    def size(self) -> int:
        """Documents there are."""
        return len(set(self.documents))


@dataclass(frozen=True, slots=True)
class Shift:
    """Mean residual before and now, of all pairs or of one label or group.

    Attributes:
        name: Uid of the label, name of the group; empty for all pairs.
        kind: What it is of.
        pairs_before: Pairs of the former sample.
        pairs: Pairs now.
        error_before: Mean residual, verdict minus probability, of the former sample.
        error: The same now.
        half_width: Of the 95% interval of `error`, over documents.
        p: Of the hypothesis that both are equal.
        drifted: Whether it is rejected, all tests taken together.
    """

    name: str
    kind: Literal["all", "label", "group"]
    pairs_before: int
    pairs: int
    error_before: float
    error: float
    half_width: float
    p: float
    drifted: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """What two samples say.

    Attributes:
        documents_before: Documents of the former sample.
        documents: Documents now.
        overall: All pairs; its p is that of the largest |T| of all pairs and the bands.
        ece_before: Expected calibration error of the former sample.
        ece: The same now.
        parts: Labels and groups with enough pairs in both samples, those that drifted and the least p first.
        reliability_before: Bins of the former sample's diagram.
        reliability: The same now.
        level: Rate of reporting drift where there is none.
    """

    documents_before: int
    documents: int
    overall: Shift
    ece_before: float
    ece: float
    parts: tuple[Shift, ...]
    reliability_before: tuple[ReliabilityBin, ...]
    reliability: tuple[ReliabilityBin, ...]
    level: float

    @property
    def found(self) -> bool:
        """Whether anything drifted."""
        return self.overall.drifted or any(part.drifted for part in self.parts)

    def drifting(self, group_of: Mapping[str, str]) -> set[str]:
        """Labels that drifted, by themselves or with their group; `group_of` is `detect_drift`'s."""
        found = {(part.kind, part.name) for part in self.parts if part.drifted}
        whole = {label for label, group in group_of.items() if ("group", group) in found}
        return whole | {name for kind, name in found if kind == "label"}


def detect_drift(
    before: JudgedPairs,
    now: JudgedPairs,
    group_of: Mapping[str, str],
    *,
    level: float = 0.05,
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> Drift | None:
    """Compare the errors of two samples.

    Args:
        before: A sample on which the probabilities were right, best one they
            were not fitted on (cross-fitted).
        now: Another, of other documents.
        group_of: The group of each label that is in one.
        level: Rate of reporting drift where there is none.
        permutations: Draws; the least p is 1 / (permutations + 1).
        seed: The same seed gives the same result.

    Returns:
        `None` if either sample has fewer than 20 documents.

    Raises:
        ValueError: A document is in both samples.
    """
    if min(before.size, now.size) < FEWEST_DOCUMENTS:
        return None
    if set(before.documents) & set(now.documents):
        raise ValueError("the two samples must be of different documents")
    documents = {uid: row for row, uid in enumerate(dict.fromkeys([*before.documents, *now.documents]))}
    rows = np.array([documents[uid] for part in (before, now) for uid in part.documents])
    stated = np.concatenate([before.probabilities, now.probabilities])
    residuals = np.concatenate([before.verdicts, now.verdicts]) - stated
    labels = [*before.labels, *now.labels]
    # Cut where the pooled pairs say: the same for every permutation.
    bands = np.searchsorted(np.quantile(stated, np.arange(1, _BANDS) / _BANDS), stated)
    names = [("all", ""), *(("band", str(band)) for band in range(_BANDS))]
    members = [np.ones(len(rows), dtype=np.bool_), *(bands == band for band in range(_BANDS))]
    first_now = len(before.documents)
    is_new = np.arange(len(rows)) >= first_now
    groups = [group_of.get(label, "") for label in labels]
    for kind, of in (("label", labels), ("group", groups)):
        column, before_of, now_of = (
            np.array(of),
            *(Counter(part) for part in (of[:first_now], of[first_now:])),
        )
        for name in sorted(now_of.keys() - {""}):
            if min(before_of[name], now_of[name]) >= _FEWEST_PAIRS:
                names.append((kind, name))
                members.append(column == name)
    sums = _Sums.of(rows, residuals, members, len(documents))
    new = np.arange(len(documents)) >= before.size
    observed = np.abs(sums.statistic(new[None].astype(np.float64)))[0]
    own, largest, first = np.zeros(len(names)), 0, 1 + _BANDS
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, _BLOCK):
        drawn = rng.permuted(np.tile(new, (min(_BLOCK, permutations - start), 1)), axis=1)
        found = np.abs(sums.statistic(drawn.astype(np.float64)))
        # Rounding must not make two equal arrangements differ.
        own += (found >= observed - 1e-12).sum(axis=0)
        largest += int((found[:, :first].max(axis=1) >= observed[:first].max() - 1e-12).sum())
    # The observed arrangement counts as one (Phipson and Smyth, SAGMB 9, 2010).
    p = (own + 1) / (permutations + 1)
    p[0] = (largest + 1) / (permutations + 1)
    rejected = np.concatenate([[p[0] <= level / 2], np.zeros(_BANDS), _rejected(p[first:], level / 2)])
    overall, *shifts = sums.shifts(new, p, rejected.astype(np.bool_), members, is_new, names)
    return Drift(
        before.size,
        now.size,
        overall,
        ece_at_k(before.probabilities, before.verdicts),
        ece_at_k(now.probabilities, now.verdicts),
        tuple(sorted(shifts[_BANDS:], key=lambda shift: (not shift.drifted, shift.p))),
        tuple(reliability_bins(before.probabilities, before.verdicts)),
        tuple(reliability_bins(now.probabilities, now.verdicts)),
        level,
    )


def _rejected(p: Floats, level: float) -> NDArray[np.bool_]:
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p) <= level) if len(p) else np.zeros(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of D documents and C sets of pairs: (D, C) sums of residuals s, counts m, and their products."""

    s: Floats
    m: Floats

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], residuals: Floats, members: Sequence[NDArray[np.bool_]], documents: int
    ) -> _Sums:
        def by_document(weights: Floats) -> Floats:
            columns = [np.bincount(rows[one], weights[one], minlength=documents) for one in members]
            return np.stack(columns, axis=1).astype(np.float64)

        return cls(by_document(residuals), by_document(np.ones(len(rows))))

    def statistic(self, new: Floats) -> Floats:
        """(B, C) T of B ways to call documents new, (B, D) of 0 and 1; 0 where one side is empty."""
        (one, v), (other, w) = self._mean(new), self._mean(1 - new)
        scale = np.sqrt(v + w)
        gap, found = one - other, np.zeros_like(one)
        np.divide(gap, scale, out=found, where=np.isfinite(scale) & (scale > 0))
        return found

    def _mean(self, chosen: Floats) -> tuple[Floats, Floats]:
        """Mean residuals (B, C) of the chosen documents, and their variances; NaN without a pair.

        v = Σ (s − r̄ m)² / (Σ m)², of the ratio r̄ = Σ s / Σ m.
        """
        s, m, ss, sm, mm = (chosen @ part for part in (self.s, self.m, self.s**2, self.s * self.m, self.m**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = s / m
            return mean, np.maximum(ss - 2 * mean * sm + mean**2 * mm, 0) / m**2

    def shifts(
        self,
        new: NDArray[np.bool_],
        p: Floats,
        rejected: NDArray[np.bool_],
        members: Sequence[NDArray[np.bool_]],
        is_new: NDArray[np.bool_],
        names: Sequence[tuple[Any, str]],
    ) -> list[Shift]:
        (error, variance), (error_before, _) = (
            self._mean(side[None].astype(np.float64)) for side in (new, ~new)
        )
        reach = _reach(error[0], variance[0], np.count_nonzero(self.m[new], axis=0))
        return [
            Shift(
                name,
                kind,
                int((member & ~is_new).sum()),
                int((member & is_new).sum()),
                float(error_before[0, c]),
                float(error[0, c]),
                float(reach[c]),
                float(p[c]),
                bool(rejected[c]),
            )
            for c, ((kind, name), member) in enumerate(zip(names, members, strict=True))
        ]


def _reach(error: Floats, variance: Floats, documents: NDArray[np.int64]) -> Floats:
    """(C,) half widths of the 95% intervals of mean residuals: Student's, for few documents.

    Residuals that are all alike have no variance; others may yet be anything,
    as far as the share of documents not seen among so many may reach.
    """
    few = np.maximum(documents, 2)
    half = stdtrit(few - 1, 0.975) * np.sqrt(variance * few / (few - 1))
    unseen = np.where(documents > 1, 1 - 0.025 ** (1 / few), 1.0)
    alike = (documents < 2) | (variance < _ROUNDING)
    return np.where(alike, unseen * (1 + np.abs(error)), half)
