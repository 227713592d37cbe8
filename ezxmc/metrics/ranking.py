"""Ranking metrics of extreme multi-label classification, binary relevance.

Definitions as in the Extreme Classification Repository (Bhatia et al., 2016),
and as napkinXC and pyxclib compute them. Each exists in two forms:

- `*_terms` on `hits`, boolean `(N, k)`, and `sizes`, `(N,)` gold labels a
  document: `(N,)` values whose mean is the metric.
  A document without gold has 0.
- On lists of label uids, for small data: `ranked` holds N lists of distinct
  uids, best first, each of any length; `gold` the N collections of right
  labels, none of them empty (a document without gold has no recall; the caller
  leaves it out and says so). Values are means over the N documents, in [0, 1].

Arrays come from ranked label ids and a sparse gold matrix: `predicted` is `(N, k)` integers, column
ids of the gold matrix, best first, no id twice in a row; −1 fills up rows with fewer than k labels,
as in FAISS. `gold` is a scipy sparse matrix or array `(N, L)`; what is not zero is right. Work and
memory grow with the stored entries, never with N · L.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ezxmc.errors import ArgumentError, InputTypeError, instance_of, whole_number

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]

_CELLS = 1 << 22
"""Scores sorted at once by `top_labels`: 100 MB."""


def top_labels(scores: csr_array, k: int) -> tuple[Ids, Floats]:
    """The k best-scored labels of each row; of equal scores the smaller label id first.

    Stored entries alone are ranked, whatever their sign: what is not stored was not predicted.

    Args:
        scores: Sparse `(N, L)`, finite.
        k: At least 1; of more than L, L are given.

    Returns:
        Label ids `(N, k)`, −1 where a row stores fewer, and their scores, 0 there.

    Raises:
        ArgumentError: `k` is no whole number or below 1, a score is NaN or infinite, or
            a row stores a label twice.
        InputTypeError: `scores` is no matrix of numbers.
    """
    k = whole_number(k, "k")
    scores = matrix(scores, "scores").astype(np.float64)
    k = min(k, scores.shape[1])
    if not np.isfinite(scores.data).all():
        raise ArgumentError("scores must be finite", "leave out what has no score")
    if not scores.has_canonical_format:
        scores = scores.sorted_indices()
        if not scores.has_canonical_format:
            raise ArgumentError("a row stores a label twice", "add them up: scores.sum_duplicates()")
    lengths = np.diff(scores.indptr)
    labels = np.full((len(lengths), k), -1, dtype=np.int64)
    values = np.zeros((len(lengths), k))
    # Rows of like length go together, so that filling them up costs little.
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        rows = order[start : start + max(1, _CELLS // width)]
        start += len(rows)
        inside = np.arange(width) < lengths[rows, None]
        cells = np.where(inside, scores.indptr[rows, None] + np.arange(width), 0)
        # Stable: equal scores stay in the order of their ids, fill-ups (infinite) last.
        best = np.argsort(np.where(inside, -scores.data[cells], np.inf), axis=1, kind="stable")[:, :k]
        chosen, there = np.take_along_axis(cells, best, axis=1), np.take_along_axis(inside, best, axis=1)
        labels[rows, : best.shape[1]] = np.where(there, scores.indices[chosen], -1)
        values[rows, : best.shape[1]] = np.where(there, scores.data[chosen], 0.0)
    return labels, values


def matrix(values: Any, name: str) -> csr_array:
    """An argument that is a matrix of numbers, dense or sparse, as a sparse one.

    Raises:
        InputTypeError: It is none.
    """
    try:
        found = csr_array(values)
        if found.ndim == 2 and found.dtype.kind in "biuf":
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputTypeError(f"{name} are no matrix of numbers: {reprlib.repr(values)}", "give (N, L), sparse")


def lists_of_labels(values: Any, name: str, *, ordered: bool) -> None:
    """Check N lists of labels; a text in place of one would fall into characters.

    Args:
        values: What should be lists, or, unless `ordered`, collections.
        name: Of the argument.
        ordered: Whether their order counts.

    Raises:
        InputTypeError: They are something else.
    """

    def check(one: Any, where: str, wanted: str) -> None:
        if isinstance(one, str | bytes | Mapping) or not all(
            hasattr(one, part) for part in (wanted, "__len__")
        ):
            raise InputTypeError(f"{where} is {reprlib.repr(one)}", "give a list of label uids per document")

    check(values, name, "__getitem__")
    for row, one in enumerate(values):
        check(one, f"{name}[{row}]", "__getitem__" if ordered else "__iter__")


def gold_matrix(gold: csr_array) -> csr_array:
    """The matrix as rows of ascending label ids, each once, without stored zeros; a copy only if needed.

    Raises:
        InputTypeError: It is no matrix of numbers.
    """
    gold = matrix(gold, "gold")
    if not gold.has_canonical_format:
        gold = gold.copy()
        gold.sum_duplicates()
    if not gold.data.all():
        gold = gold.copy()
        gold.eliminate_zeros()
    return gold


def hits_of(predicted: Ids, gold: csr_array) -> Hits:
    """Which predicted labels are right.

    Args:
        predicted: `(N, k)`; ids beyond the gold matrix are labels that are never right.
        gold: `(N, L)`, as `gold_matrix` gives it.

    Returns:
        `(N, k)`.

    Raises:
        ArgumentError: Not as many rows, no whole numbers, ids below −1, or a label twice in a row.
        InputTypeError: `predicted` is no NumPy array.
    """
    instance_of(predicted, np.ndarray, "predicted", "give label ids (N, k), as `top_labels` does")
    rows, width = gold.shape
    if predicted.ndim != 2 or len(predicted) != rows or not np.issubdtype(predicted.dtype, np.integer):
        raise ArgumentError(
            f"predicted {predicted.dtype} {predicted.shape} must be integers ({rows}, k)",
            "give label ids, as `top_labels` does",
        )
    if predicted.size and predicted.min() < -1:
        raise ArgumentError(f"label id {predicted.min()}", "ids start at 0, and −1 fills up short rows")
    sorted_ids = np.sort(predicted, axis=1)
    if ((sorted_ids[:, 1:] == sorted_ids[:, :-1]) & (sorted_ids[:, 1:] >= 0)).any():
        raise ArgumentError("a document has a predicted label twice", "leave the later one out")
    hits = np.zeros(predicted.shape, dtype=np.bool_)
    if not gold.nnz:
        return hits
    # One number per pair, ascending in a canonical matrix, so that one search answers all.
    first = np.arange(rows, dtype=np.int64) * width
    pairs = np.repeat(first, np.diff(gold.indptr)) + gold.indices
    known = (predicted >= 0) & (predicted < width)
    wanted = (first[:, None] + predicted)[known]
    hits[known] = pairs.take(np.searchsorted(pairs, wanted), mode="clip") == wanted
    return hits


def heaviest(gold: csr_array, weights: Floats, k: int) -> Floats:
    """(N, k) the k largest weights among each document's gold labels, descending, filled up with 0.

    Of fewer columns where no document has k.

    Args:
        gold: `(N, L)`, as `gold_matrix` gives it.
        weights: `(L,)` or longer.
        k: Depth.
    """
    rows = np.repeat(np.arange(gold.shape[0]), np.diff(gold.indptr))
    found = weights[gold.indices]
    order = np.lexsort((-found, rows))
    place = np.arange(len(rows)) - gold.indptr[rows]
    top = place < k
    best = np.zeros((gold.shape[0], min(k, int(place.max(initial=0)) + 1)))
    best[rows[top], place[top]] = found[order][top]
    return best


def encode(
    ranked: Sequence[Sequence[str]], gold: Sequence[Collection[str]], ids: dict[str, int]
) -> tuple[Ids, csr_array]:
    """Lists of label uids as arrays.

    Args:
        ranked: N ranked lists of distinct labels.
        gold: N collections.
        ids: Label ids by uid; labels it lacks are added with the next number.

    Returns:
        `predicted`, as wide as the longest list (1 at least), and `gold`, as wide as `ids` is now.

    Raises:
        ArgumentError: Not as many lists as collections.
        InputTypeError: As for `ezxmc.metrics.hit_matrix`.
    """
    lists_of_labels(ranked, "ranked", ordered=True)
    lists_of_labels(gold, "gold", ordered=False)
    instance_of(ids, dict, "ids", "give a dict, an empty one to begin with")
    if len(ranked) != len(gold):
        raise ArgumentError(
            f"{len(ranked)} ranked lists and {len(gold)} gold sets: need as many",
            "give one of each a document",
        )
    predicted = np.full((len(ranked), max([1, *map(len, ranked)])), -1, dtype=np.int64)
    try:
        for row, labels in zip(predicted, ranked, strict=True):
            row[: len(labels)] = [ids.setdefault(label, len(ids)) for label in labels]
        right = [sorted({ids.setdefault(label, len(ids)) for label in labels}) for labels in gold]
    except TypeError as error:
        raise InputTypeError(f"a label is no uid: {error}", "give lists of label uids") from None
    indptr = np.cumsum([0, *map(len, right)])
    indices = np.array([label for labels in right for label in labels], dtype=np.int64)
    return predicted, csr_array((np.ones(len(indices), np.int8), indices, indptr), (len(gold), len(ids)))


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

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        k: Depth.

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
    """P@k of lists (`precision_terms`), in [0, 1]; arguments and errors as for `hit_matrix`."""
    return float(precision_by_document(ranked, gold, k).mean())


def precision_by_document(ranked: Ranked, gold: Gold, k: int) -> Floats:
    """The (N,) terms whose mean is `precision_at_k`; arguments and errors as there."""
    return precision_terms(_hits(ranked, gold, k)[0], k)


def recall_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """R@k of lists (`recall_terms`), in [0, 1]; arguments and errors as for `hit_matrix`."""
    return float(recall_by_document(ranked, gold, k).mean())


def recall_by_document(ranked: Ranked, gold: Gold, k: int) -> Floats:
    """The (N,) terms whose mean is `recall_at_k`; arguments and errors as there."""
    return recall_terms(*_hits(ranked, gold, k), k)


def ndcg_at_k(ranked: Ranked, gold: Gold, k: int) -> float:
    """nDCG@k of lists (`ndcg_terms`), in [0, 1]; arguments and errors as for `hit_matrix`."""
    return float(ndcg_terms(*_hits(ranked, gold, k), k).mean())


def check_lists(ranked: Ranked, gold: Gold, k: int) -> None:
    """Refuse lists that have no value.

    Raises:
        ArgumentError: `k` < 1, N = 0, `ranked` and `gold` differ in length, or a document has no gold.
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
