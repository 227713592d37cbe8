"""Ranking metrics of extreme multi-label classification, binary relevance.

Definitions as in the Extreme Classification Repository (Bhatia et al., 2016),
and as napkinXC and pyxclib compute them. Each exists in two forms:

- `*_terms` on `hits`, boolean `(N, k)`, and `sizes`, `(N,)` gold labels a
  document (see `ezxmc.metrics.sparse`): `(N,)` values whose mean is the metric.
  A document without gold has 0.
- On lists of label uids, for small data: `ranked` holds N lists of distinct
  uids, best first, each of any length; `gold` the N collections of right
  labels, none of them empty (a document without gold has no recall; the caller
  leaves it out and says so). Values are means over the N documents, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ezxmc.errors import ArgumentError, whole_number
from ezxmc.metrics.sparse import Floats, Hits, encode, hits_of, lists_of_labels

Ranked = Sequence[Sequence[str]]
Gold = Sequence[Collection[str]]
Sizes = NDArray[np.int64]


def precision_terms(hits: Hits, k: int) -> Floats:
    """P@k: gold labels among the first k, divided by k even where fewer are ranked."""
    values: Floats = hits[:, :k].sum(axis=1) / k
    return values


def recall_terms(hits: Hits, sizes: Sizes, k: int) -> Floats:
    """R@k: share of a document's gold labels among its first k."""
    values: Floats = hits[:, :k].sum(axis=1) / np.maximum(sizes, 1)
    return values


def ndcg_terms(hits: Hits, sizes: Sizes, k: int) -> Floats:
    """nDCG@k: DCG with gain 1 / log2(rank + 1), over the best DCG k labels allow."""
    first = hits[:, :k]
    values: Floats = (first @ gains(first.shape[1])) / ideal_dcg(sizes, k)
    return values


def gains(k: int) -> Floats:
    """(k,) what a hit adds to DCG by its rank: 1 / log2(rank + 1)."""
    values: Floats = 1.0 / np.log2(np.arange(2, k + 2))
    return values


def ideal_dcg(sizes: Sizes, k: int) -> Floats:
    """(N,) the best DCG@k: min(k, |gold|) gold labels first; 1 for a document without gold."""
    held = np.clip(sizes, 1, k)
    values: Floats = np.cumsum(gains(int(held.max(initial=1))))[held - 1]
    return values


def hit_matrix(ranked: Ranked, gold: Gold, k: int) -> Hits:
    """Which of the first `k` labels of each document are gold.

    Returns:
        Boolean `(N, k)`; ranks a short list lacks are misses.

    Raises:
        ArgumentError: `k` < 1, N = 0, `ranked` and `gold` differ in length, a
            document has no gold, or a label is ranked twice.
        InputTypeError: They hold something else than lists of labels: a text, say.
    """
    found = _hits(ranked, gold, k)[0]
    hits = np.zeros((len(ranked), k), dtype=np.bool_)
    hits[:, : found.shape[1]] = found
    return hits


def precision_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """P@k of lists, see `precision_terms`.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

    Raises:
        ArgumentError, InputTypeError: As for `hit_matrix`.
    """
    return float(precision_by_document(ranked, gold, k).mean())


def precision_by_document(ranked: Ranked, gold: Gold, k: int) -> Floats:
    """The (N,) terms whose mean is `precision_at_k`; arguments and errors as there."""
    return precision_terms(_hits(ranked, gold, k)[0], k)


def recall_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """R@k of lists, see `recall_terms`.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

    Raises:
        ArgumentError, InputTypeError: As for `hit_matrix`.
    """
    return float(recall_by_document(ranked, gold, k).mean())


def recall_by_document(ranked: Ranked, gold: Gold, k: int) -> Floats:
    """The (N,) terms whose mean is `recall_at_k`; arguments and errors as there."""
    return recall_terms(*_hits(ranked, gold, k), k)


def ndcg_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """nDCG@k of lists, see `ndcg_terms`.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

    Raises:
        ArgumentError, InputTypeError: As for `hit_matrix`.
    """
    return float(ndcg_terms(*_hits(ranked, gold, k), k).mean())


def check_lists(ranked: Ranked, gold: Gold, k: int) -> None:
    """Refuse lists that have no value.

    Raises:
        ArgumentError: `k` < 1, N = 0, `ranked` and `gold` differ in length, or a
            document has no gold.
        InputTypeError: As for `hit_matrix`.
    """
    whole_number(k, "k")
    lists_of_labels(ranked, "ranked", ordered=True)
    lists_of_labels(gold, "gold", ordered=False)
    if not len(ranked) or len(ranked) != len(gold):
        raise ArgumentError(
            f"{len(ranked)} ranked lists and {len(gold)} gold sets: need as many, and one at least",
            "give one of each for every document",
        )
    for row, right in enumerate(gold):
        if not len(right):
            raise ArgumentError(f"document {row} has no gold labels", "leave such documents out")


def _hits(ranked: Ranked, gold: Gold, k: int) -> tuple[Hits, Sizes]:
    check_lists(ranked, gold, k)
    predicted, right = encode([labels[:k] for labels in ranked], gold, {})
    return hits_of(predicted, right), np.diff(right.indptr)
