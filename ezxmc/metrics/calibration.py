"""How far probabilities can be believed: ECE, ACE, Brier, NLL, reliability bins.

Everywhere `probabilities` and `hits` have the same shape, of any number of
dimensions, and are pooled: for a metric at k pass the (document, label) pairs
of the top k, shape `(N, k)` or flat. Probabilities are in [0, 1]; hits are 0
or 1, or agreement probabilities in between.

ECE@k is that of "Labels in Extremes: How Well Calibrated are Extreme
Multi-label Classifiers?" (arXiv 2411.04276): top-k pairs pooled, L1 norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ezxmc.errors import ArgumentError, InputTypeError, number_between, whole_number

_MOST_BINS = 1_000_000
_Floats = NDArray[np.float64]


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


def _pairs(probabilities: ArrayLike, hits: ArrayLike) -> tuple[_Floats, _Floats]:
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
