"""Confidence intervals and paired comparison by the bootstrap over documents (Efron 1979).

They tell the spread from another draw of documents, not from another seed. Every metric here is a ratio of
two sums over documents (a mean has a denominator of 1 each), so one resample is one weighted sum of rows. A
row may as well be a group of documents taken at random: the variance of the sums is the same, and memory and
time no longer grow with the documents.

Rows are weighted at random (Rubin, "The Bayesian Bootstrap", Annals of Statistics 1981). That shows only the
rows there are, and where nearly all count alike, those that would not are missing. So each end of the
interval of a metric with bounds counts one document more, at the bound on that side (Gaffke, "Three test
statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable", Mathematical
Methods of Statistics 2005). Of what is right or wrong that is the exact interval of Clopper and Pearson; of
other values no distribution is known for which it fails more often than stated (tests/bench/promises.py). A
metric without bounds has ends at the "expanded" percentiles (Hesterberg, "What Teachers Should Know About the
Bootstrap", The American Statistician 2015, §4.2), and none where fewer than five documents count, or all
alike. Where fewer than `FEW` documents part two runs, p comes from an exact test instead (Fisher's
sign-flip), and from one document there is neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from ezxmc.metrics.ranking import Floats

RESAMPLES = 2_000
FEW = 20
"""Documents below which an interval is rough, and, of those that part two runs, p is of an exact test."""
_FEWEST = 5  # of 2 to 4 rows without bounds percentiles hold the truth in 50 to 88 of 100
_BLOCK = 50
_ALL_FLIPS = 12  # rows up to which every flip is tried; beyond, `_FLIPS` at random
_FLIPS = 4_000
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Terms:
    """Metrics as ratios of sums over rows.

    Attributes:
        names: M metrics.
        numerators: `(n, M)`, a row for each document or group of documents.
        denominators: `(n, M)`.
        documents: In all rows; 0 where each row is of one.
    """

    names: tuple[str, ...]
    numerators: Floats
    denominators: Floats
    documents: int = 0

    def values(self) -> dict[str, float]:
        """Each metric over all rows; one whose denominators are all 0 has none."""
        ratios = _ratios(self.numerators.sum(axis=0), self.denominators.sum(axis=0))
        return {name: float(v) for name, v in zip(self.names, ratios, strict=True) if not np.isnan(v)}

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """(M,) whether a metric is in [0, 1], as far as its rows tell."""
        within = (self.numerators >= 0) & (self.numerators <= self.denominators * (1 + _ROUNDING))
        return np.asarray(within.all(axis=0))

    def beside(self, other: Terms) -> Terms:
        """The metrics of both; the rows must be of the same documents."""
        return Terms(
            self.names + other.names,
            np.hstack([self.numerators, other.numerators]),
            np.hstack([self.denominators, other.denominators]),
            self.documents,
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One run minus another on the same documents.

    Attributes:
        value: The difference.
        low: Lower end of its 95% interval.
        high: Upper end.
        p: Two-sided, of the hypothesis that there is none; at least 2 / (resamples + 1), and where
            n < `FEW` documents part the runs at least 2 / 2ⁿ.
        rows: Documents, or groups of them, that count.
    """

    value: float
    low: float
    high: float
    p: float
    rows: int


def intervals(terms: Terms, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% interval of every metric that has a value.

    Args:
        terms: Of at least one row.
        resamples: Draws.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper end by metric, of those at least two rows count for; without those
            that have no bounds and are alike in all rows, or have fewer than five.
    """
    drawn = _Resampled.of(terms, resamples, seed)
    rows = np.count_nonzero(terms.denominators, axis=0)
    return {
        name: ends
        for column, name in enumerate(terms.names)
        if rows[column] > 1
        and (ends := _ends(*drawn.least_and_most(column, bounded=bool(terms.bounded[column])), rows[column]))
    }


def differences(
    first: Terms, second: Terms, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """`first − second` of every metric both have, from paired resamples of at least two rows.

    Both are recomputed on the same drawn documents, so that what makes a document hard for both cancels out.
    p is twice the share of resamples on the other side of zero (Koehn, "Statistical Significance Tests for
    Machine Translation Evaluation", EMNLP 2004), so that p < 0.05 goes with an interval without zero. Of
    fewer than `FEW` documents it is the share of ways to swap the two runs, document by document, that part
    them as far.

    Args:
        first: Rows of the same documents as those of `second`, in the same order.
        second: See there.
        resamples: Draws.
        seed: The same seed gives the same result.

    Raises:
        ValueError: Not as many rows.
    """
    if len(first.numerators) != len(second.numerators):
        raise ValueError(f"{len(first.numerators)} and {len(second.numerators)} rows cannot be paired")
    ours, theirs = (_Resampled.of(terms, resamples, seed) for terms in (first, second))
    other = second.values()
    found = {}
    for name, value in first.values().items():
        if name not in other:
            continue
        left, right = first.names.index(name), second.names.index(name)
        counting = (first.denominators[:, left] > 0) | (second.denominators[:, right] > 0)
        rows = int(np.count_nonzero(counting))
        if rows < 2:
            continue
        bounded = bool(first.bounded[left] and second.bounded[right])
        (our_least, our_most), (their_least, their_most) = (
            run.least_and_most(column, bounded=bounded) for run, column in ((ours, left), (theirs, right))
        )
        least, most = our_least - their_most, our_most - their_least
        ends = _ends(least, most, rows)
        if ends is None:
            continue
        one, two = (
            np.column_stack([terms.numerators[:, column], terms.denominators[:, column]])
            for terms, column in ((first, left), (second, right))
        )
        # Swapping what is the same parts nothing.
        parted = np.abs(one - two).max(axis=1) > _ROUNDING
        if np.count_nonzero(parted) < FEW:
            p = _swapped(one, two, parted, seed=seed)
        else:
            beyond = min(np.count_nonzero(least <= 0), np.count_nonzero(most >= 0))
            p = min(1.0, 2 * (1 + beyond) / (1 + resamples))
        found[name] = Difference(value - other[name], *ends, p, rows)
    return found


def _swapped(first: Floats, second: Floats, parted: NDArray[np.bool_], *, seed: int) -> float:
    """Sign-flip test of (n, 2) numerators and denominators; exact also where flips are drawn."""
    rows = int(np.count_nonzero(parted))
    if rows <= _ALL_FLIPS:
        flips = (np.arange(2**rows)[:, None] >> np.arange(rows) & 1).astype(np.float64)
    else:
        flips = np.random.default_rng(seed).integers(2, size=(_FLIPS, rows)).astype(np.float64)
        flips[0] = 0  # what is observed belongs to the draw
    moved = flips @ (second - first)[parted]
    ours, theirs = first.sum(axis=0) + moved, second.sum(axis=0) - moved
    gaps = _ratios(ours[:, 0], ours[:, 1]) - _ratios(theirs[:, 0], theirs[:, 1])
    # A swap that leaves one run without a denominator parts them no less than what is observed.
    return float(np.mean(~(np.abs(gaps) < np.abs(gaps[0]) - _ROUNDING)))


@dataclass(frozen=True, slots=True)
class _Resampled:
    """Sums of weighted rows.

    Attributes:
        numerators: `(resamples, M)`.
        denominators: `(resamples, M)`.
        more: `(resamples, M)` the denominators of one document more.
    """

    numerators: Floats
    denominators: Floats
    more: Floats

    @classmethod
    def of(cls, terms: Terms, resamples: int, seed: int) -> _Resampled:
        rng = np.random.default_rng(seed)
        rows = len(terms.numerators)
        columns = np.hstack([terms.numerators, terms.denominators])
        sums, weights = np.empty((resamples, columns.shape[1])), rng.standard_exponential(resamples)
        for start in range(0, resamples, _BLOCK):
            size = min(_BLOCK, resamples - start)
            sums[start : start + size] = rng.standard_exponential((size, rows)) @ columns
        counting = np.maximum(1, np.count_nonzero(terms.denominators, axis=0))
        usual = terms.denominators.sum(axis=0) / counting
        if terms.documents > rows:
            # Of a group maybe one document alone counts, with a weight of about 1.
            usual = np.maximum(usual * rows / terms.documents, np.minimum(1, usual))
        top, whole = np.hsplit(sums, 2)
        return cls(top, whole, weights[:, None] * usual)

    def least_and_most(self, column: int, *, bounded: bool) -> tuple[Floats, Floats]:
        """(resamples,) a metric, were one document more all wrong, or right; without bounds, neither."""
        top, whole, more = self.numerators[:, column], self.denominators[:, column], self.more[:, column]
        if not bounded:
            plain = _ratios(top, whole)
            return plain, plain
        return _ratios(top, whole + more), _ratios(top + more, whole + more)


def _ratios(numerators: Floats, denominators: Floats) -> Floats:
    found = np.full(numerators.shape, np.nan)
    np.divide(numerators, denominators, out=found, where=denominators > 0)
    return found


def _ends(least: Floats, most: Floats, rows: int) -> tuple[float, float] | None:
    """The interval; none of very few rows, or of rows all alike, where nothing bounds the metric."""
    tail = 2.5
    if least is most or np.array_equal(least, most):
        # Weights spread by (rows - 1) / (rows + 1) less than rows do.
        tail = 100 * float(ndtr(np.sqrt((rows + 1) / (rows - 1)) * stdtrit(rows - 1, 0.025)))
        if rows < _FEWEST or np.ptp(least) <= _ROUNDING:
            return None
    return float(np.percentile(least, tail)), float(np.percentile(most, 100 - tail))
