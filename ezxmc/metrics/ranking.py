"""Ranking metrics of extreme multi-label classification, binary relevance.

Shapes: `ranked` holds N lists of distinct label uids, best first, each of any
length; `gold` holds the N collections of right labels, none of them empty
(a document without gold has no recall; the caller leaves it out and says so).
Values are means over the N documents, in [0, 1].

Definitions as in the Extreme Classification Repository (Bhatia et al., 2016).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

Ranked = Sequence[Sequence[str]]
Gold = Sequence[Collection[str]]


def hit_matrix(ranked: Ranked, gold: Gold, k: int) -> NDArray[np.bool_]:
    """Which of the first `k` labels of each document are gold.

    Returns:
        Boolean `(N, k)`; ranks a short list lacks are misses.

    Raises:
        ValueError: `k` < 1, N = 0, `ranked` and `gold` differ in length, or a
            document has no gold.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not ranked or len(ranked) != len(gold):
        raise ValueError(
            f"{len(ranked)} ranked lists and {len(gold)} gold sets: need as many, and one at least"
        )
    hits = np.zeros((len(ranked), k), dtype=np.bool_)
    for row, (labels, right) in enumerate(zip(ranked, gold, strict=True)):
        if not right:
            raise ValueError(f"document {row} has no gold labels; leave such documents out")
        members = frozenset(right)
        hits[row, : len(labels)] = [label in members for label in labels[:k]]
    return hits


def precision_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """P@k: gold labels among the first k, divided by k even where fewer are ranked.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

    Raises:
        ValueError: As for `hit_matrix`.
    """
    return float(precision_by_document(ranked, gold, k).mean())


def precision_by_document(ranked: Ranked, gold: Gold, k: int) -> NDArray[np.float64]:
    """The (N,) terms whose mean is `precision_at_k`; arguments and errors as there."""
    values: NDArray[np.float64] = hit_matrix(ranked, gold, k).mean(axis=1)
    return values


def recall_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """R@k: share of a document's gold labels among its first k.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

    Raises:
        ValueError: As for `hit_matrix`.
    """
    return float(recall_by_document(ranked, gold, k).mean())


def recall_by_document(ranked: Ranked, gold: Gold, k: int) -> NDArray[np.float64]:
    """The (N,) terms whose mean is `recall_at_k`; arguments and errors as there."""
    values: NDArray[np.float64] = hit_matrix(ranked, gold, k).sum(axis=1) / gold_sizes(gold)
    return values


def ndcg_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """nDCG@k: DCG with gain 1 / log2(rank + 1), over the best DCG k labels allow.

    The best DCG puts min(k, |gold|) gold labels first.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

    Raises:
        ValueError: As for `hit_matrix`.
    """
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    dcg = hit_matrix(ranked, gold, k) @ gains
    ideal = np.cumsum(gains)[np.minimum(gold_sizes(gold), k) - 1]
    return float((dcg / ideal).mean())


def gold_sizes(gold: Gold) -> NDArray[np.int64]:
    """(N,) how many distinct gold labels each document has."""
    return np.array([len(frozenset(right)) for right in gold], dtype=np.int64)
