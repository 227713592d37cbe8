"""Which tags to keep for the best expected F1, from calibrated probabilities alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CELLS = 1 << 21  # numbers held at once


def micro_threshold(probabilities: NDArray[np.float64], beyond: float = 0.0) -> float:
    """The threshold of the greatest expected micro-averaged F1 over many documents.

    Maximises 2 Σ_kept p / (number kept + Σ p + N · beyond). At the maximum F*
    exactly the pairs with p > F*/2 are worth keeping (Lipton et al., arXiv
    1402.1892); pairs at F*/2 change nothing.

    Args:
        probabilities: (N, k) calibrated.
        beyond: Right labels expected per document that are not among its k.

    Returns:
        One of the probabilities: pairs at or above it are kept.
    """
    p = np.sort(probabilities, axis=None)[::-1]
    hits = np.cumsum(p)
    total = hits[-1] + beyond * len(probabilities)
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + total)
    return float(p[int(f1.argmax())])


def best_sizes(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of its best labels each document should keep for the greatest expected F1 of its own.

    E[2 · hits / (size + right labels)] exactly, labels being independent given
    their probabilities: the best set is then a prefix of the ranking (Lewis,
    SIGIR 1995; computed as in Ye et al., arXiv 1206.4625, from the
    distributions of the number right in the prefix and in the rest). An empty
    answer counts 0, so every document gets at least one label; labels that are
    no candidates are taken to be wrong.

    Args:
        probabilities: (N, k) calibrated, rows best first.

    Returns:
        (N,) int64 in 1..k; the smaller of equally good sizes. Time is in the
        order of N·k³.
    """
    n, k = probabilities.shape
    at_once = max(1, _CELLS // (k + 1) ** 2)
    parts = [_sizes(probabilities[start : start + at_once]) for start in range(0, n, at_once)]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _sizes(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    n, k = probabilities.shape
    counts = np.arange(k + 1)
    # rest[h]: distribution of the number right among ranks h+1..k.
    rest = np.zeros((k + 1, n, k + 1))
    rest[k, :, 0] = 1
    for rank in range(k - 1, -1, -1):
        rest[rank] = _one_more(rest[rank + 1], probabilities[:, rank])
    prefix = rest[k].copy()
    expected = np.empty((n, k))
    for size in range(1, k + 1):
        prefix = _one_more(prefix, probabilities[:, size - 1])
        f1 = 2 * counts[:, None] / (size + counts[:, None] + counts)
        expected[:, size - 1] = ((prefix @ f1) * rest[size]).sum(axis=1)
    return np.asarray(expected.argmax(axis=1) + 1, dtype=np.int64)


def _one_more(distribution: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """The number right, (N, k+1), after one more independent label."""
    p = probability[:, None]
    more = distribution * (1 - p)
    more[:, 1:] += distribution[:, :-1] * p
    return more
