"""All metrics of ranked labels at once, chunk by chunk: memory grows with the labels, not the documents.

Coverage and F1 are computed from counts by label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ezxmc.data.forest import Forest
from ezxmc.errors import ArgumentError, instance_of, whole_number
from ezxmc.metrics.bootstrap import Terms
from ezxmc.metrics.propensity import GROUPS, group_sizes, psndcg_terms, psp_terms, weigh
from ezxmc.metrics.ranking import (
    Floats,
    Hits,
    Ids,
    Sizes,
    gold_matrix,
    heaviest,
    hits_of,
    ndcg_terms,
    precision_terms,
    recall_terms,
)

_LEVELS_K = 5


class TreeTerms:
    """What hierarchical metrics are sums of, by chunk: near relatives of right labels are not all wrong.

    Kosmopoulos et al., "Evaluation Measures for Hierarchical Classification", arXiv 1306.6802, section
    3.2.2: a document's labels, predicted and right ones alike, are joined by their ancestors, P̂ and Ĝ, and::

        hP = Σ |P̂ ∩ Ĝ| / Σ |P̂|,   hR = Σ |P̂ ∩ Ĝ| / Σ |Ĝ|,   hF1 = 2 Σ |P̂ ∩ Ĝ| / Σ (|P̂| + |Ĝ|)

    with sums over documents (micro). P@k by level asks how many of the first k labels that lie so deep are
    right.

    Args:
        forest: Of labels; any other label is a root without children, of no level.
        ids: Label ids by uid; labels of the forest that it lacks are added with the next numbers.
        ks: Depths of hP@k, hR@k and hF1@k.
    """

    def __init__(self, forest: Forest, ids: dict[str, int], ks: Sequence[int]) -> None:
        place = np.array([ids.setdefault(uid, len(ids)) for uid in forest.uids], dtype=np.int64)
        rows, above = forest.closure().nonzero()
        strict = rows != above
        self._below, self._above = place[rows[strict]], place[above[strict]]
        self._level = np.zeros(len(ids), dtype=np.int64)
        self._level[place] = forest.depth + 1
        self._levels, self._ks = int(forest.depth.max()) + 1, ks
        self._closure = csr_array((0, 0))

    def __call__(
        self, predicted: Ids, gold: csr_array, hits: Hits, kept: Hits | None, ones: Floats
    ) -> Iterator[tuple[str, Floats, Floats]]:
        """Name, numerators and denominators of every metric.

        Args:
            predicted: (n, k) label ids, best first, −1 where there are fewer.
            gold: Sparse (n, L).
            hits: (n, k) which predicted labels are right.
            kept: (n, k) which of them are tags: of these are hP, hR and hF1 without a depth.
            ones: (n,) 1 for documents that count in rankings, else 0.
        """
        right = self._with_ancestors(gold != 0)
        there = predicted >= 0
        for k in self._ks:
            first = there & (np.arange(there.shape[1]) < k) & (ones > 0)[:, None]
            yield from self._overlap(predicted, first, right, f"@{k}", ones)
        if kept is not None:
            yield from self._overlap(predicted, kept & there, right, "", np.ones(len(ones)))
        level = np.zeros(predicted.shape, dtype=np.int64)
        known = there & (predicted < len(self._level))
        known[:, _LEVELS_K:] = False
        level[known] = self._level[predicted[known]]
        for number in range(1, self._levels + 1):
            of = level == number
            yield (f"P@{_LEVELS_K} level {number}", (of & hits).sum(axis=1) * ones, of.sum(axis=1) * ones)

    def _overlap(
        self, predicted: Ids, chosen: Hits, right: csr_array, at: str, ones: Floats
    ) -> Iterator[tuple[str, Floats, Floats]]:
        rows, columns = np.nonzero(chosen)
        cells = (np.ones(len(rows), dtype=np.int64), (rows, predicted[rows, columns]))
        found = self._with_ancestors(csr_array(cells, shape=right.shape))
        both, ours, theirs = (
            np.asarray(one.sum(axis=1), dtype=np.float64) * ones for one in (found * right, found, right)
        )
        yield f"hP{at}", both, ours
        yield f"hR{at}", both, theirs
        yield f"hF1{at}", 2 * both, ours + theirs

    def _with_ancestors(self, labels: csr_array) -> csr_array:
        """(n, L) of 0 and 1: the labels of each document, and all above them."""
        width = labels.shape[1]
        if self._closure.shape[0] != width:
            each: NDArray[np.int64] = np.arange(width)
            cells = (np.concatenate([each, self._below]), np.concatenate([each, self._above]))
            self._closure = csr_array((np.ones(len(cells[0]), dtype=np.int64), cells), (width, width))
        return (labels.astype(np.int64) @ self._closure > 0).astype(np.int64)


_NEVER = np.iinfo(np.int32).max
_Counts = NDArray[np.int64]


class LabelTally:
    """Counts of each label over any number of documents; memory grows with the labels alone.

    Attributes:
        gold: `(L,)` documents that have the label.
        kept: `(L,)` documents that were given the label as a tag.
        right: `(L,)` documents for which both hold.
    """

    def __init__(self) -> None:
        self.gold: _Counts = np.zeros(0, dtype=np.int64)
        self.kept: _Counts = np.zeros(0, dtype=np.int64)
        self.right: _Counts = np.zeros(0, dtype=np.int64)
        self._found_at = np.zeros(0, dtype=np.int32)

    def add(self, predicted: Ids, hits: Hits, gold: csr_array, kept: Hits | None) -> None:
        """Count documents.

        Args:
            predicted: `(n, k)`, see `ezxmc.metrics.ranking`.
            hits: The same shape, of `hits_of`.
            gold: `(n, L)`.
            kept: The same shape as `predicted`: which labels are tags. `None`: nothing is counted of them.
        """
        self._grow(max(gold.shape[1], int(predicted.max(initial=-1)) + 1))
        self.gold += np.bincount(gold.indices, minlength=len(self.gold))
        ranks = np.broadcast_to(np.arange(1, hits.shape[1] + 1, dtype=np.int32), hits.shape)
        np.minimum.at(self._found_at, predicted[hits], ranks[hits])
        if kept is not None:
            self.kept += np.bincount(predicted[kept], minlength=len(self.kept))
            self.right += np.bincount(predicted[kept & hits], minlength=len(self.right))

    def coverage(self, k: int) -> float:
        """Coverage@k: of the labels in gold, the share found in the top k of a document they are right for.

        Raises:
            ArgumentError: No document has gold.
        """
        used = self.gold > 0
        if not used.any():
            raise ArgumentError("no label is gold", "give gold of these labels")
        return float((self._found_at[used] <= k).mean())

    def macro_f1(self) -> float:
        """Mean F1 of the labels that are in gold or a tag of some document; 0 if there are none.

        A label that is neither has no F1 and does not count; scikit-learn's
        `f1_score(average="macro", zero_division=nan)`.
        """
        given = self.gold + self.kept
        used = given > 0
        return float((2 * self.right[used] / given[used]).mean()) if used.any() else 0.0

    def _grow(self, labels: int) -> None:
        more = labels - len(self.gold)
        if more > 0:
            self.gold, self.kept, self.right = (
                np.pad(counts, (0, more)) for counts in (self.gold, self.kept, self.right)
            )
            self._found_at = np.pad(self._found_at, (0, more), constant_values=_NEVER)


ROWS = 10_000
"""Rows of `Terms`: up to so many documents have one each, more of them share."""

_SLICE_P, _SLICE_R = 5, 10
_Term = tuple[str, Floats, Floats]


@dataclass(frozen=True, slots=True)
class Measured:
    """What `RankingMetrics` found.

    Attributes:
        values: Metric by name, in [0, 1], higher is better.
        terms: Those of them that are ratios of sums over documents, for `intervals` and `differences`.
        documents: Documents counted.
        longest: The most labels predicted for one document.
    """

    values: dict[str, float]
    terms: Terms
    documents: int
    longest: int


class RankingMetrics:
    """P@k, R@k, nDCG@k, PSP@k, PSnDCG@k, coverage, F1 and slices of documents that come in chunks.

    Every document given counts, one without gold as zero, as in napkinXC and
    pyxclib. With `empty` False it counts in F1 alone, where its tags are false.

    Names and definitions: "P@k", "R@k", "nDCG@k" (`ezxmc.metrics.ranking`); with `inverse`, "PSP@k" at the
    depths of P and "PSnDCG@k" at those of nDCG (`ezxmc.metrics.propensity`); "coverage@k"
    (`LabelTally.coverage`); with `kept`, "micro-F1" and "macro-F1"; with `group`, "P@5 head", "R@10 tail" and
    so on, which count the gold labels of that group only, in the ranking over all labels, over the documents
    that have one.

    Args:
        precision_ks: Depths of P@k and PSP@k.
        recall_ks: Depths of R@k.
        ndcg_ks: Depths of nDCG@k and PSnDCG@k.
        coverage_ks: Depths of coverage@k.
        inverse: `(L,)` 1 / p_l of every label that can be gold (`inverse_propensity`).
        group: `(L,)` the place in `GROUPS` of every label that can be gold.
        empty: Whether a document without gold has P, R and nDCG: 0.
        tree: Adds hierarchical metrics (`ezxmc.metrics.streaming`).

    Raises:
        ArgumentError: A depth is no whole number or below 1.
    """

    def __init__(
        self,
        *,
        precision_ks: Sequence[int] = (1, 3, 5),
        recall_ks: Sequence[int] = (5, 10, 50),
        ndcg_ks: Sequence[int] = (5,),
        coverage_ks: Sequence[int] = (5,),
        inverse: Floats | None = None,
        group: NDArray[np.int8] | None = None,
        empty: bool = True,
        tree: TreeTerms | None = None,
    ) -> None:
        for depths in (precision_ks, recall_ks, ndcg_ks, coverage_ks):
            instance_of(depths, Sequence, "depths", "give a list of whole numbers, such as [1, 3, 5]")
            for k in depths:
                whole_number(k, "k")
        self._precision_ks, self._recall_ks, self._ndcg_ks = precision_ks, recall_ks, ndcg_ks
        self._coverage_ks = coverage_ks
        self._inverse, self._group, self._empty, self._tree = inverse, group, empty, tree
        self._tally = LabelTally()
        self._names: tuple[str, ...] = ()
        self._sums = np.zeros((ROWS, 0))
        self._documents = self._longest = 0
        self._seen = np.zeros(ROWS, dtype=np.bool_)
        self._tagged: bool | None = None

    def update(
        self,
        predicted: Ids,
        gold: csr_array,
        *,
        kept: Hits | None = None,
        documents: NDArray[np.int64] | None = None,
    ) -> Hits:
        """Count documents.

        Args:
            predicted: `(n, k)` label ids, best first, −1 where there are fewer.
            gold: Sparse `(n, L)`; L may differ from chunk to chunk.
            kept: `(n, k)` which of the predicted labels are tags, for F1; in every chunk or in none.
            documents: `(n,)` their numbers, where they do not come in order: runs
                are paired by them. Default: counted on.

        Returns:
            `(n, k)` which predicted labels are right.

        Raises:
            ArgumentError: As for `hits_of`; shapes differ; a gold label has no propensity or group; some
                chunks with `kept` and some without.
            InputTypeError: `gold` is no matrix of numbers, or another argument no array.
        """
        gold = gold_matrix(gold)
        if gold.nnz:
            for known in (self._inverse, self._group):
                if known is not None and len(known) <= gold.indices.max():
                    raise ArgumentError(
                        f"no propensity or group of gold label {gold.indices.max()}", "count all labels"
                    )
        hits = hits_of(predicted, gold)
        if self._tagged not in (None, kept is not None):
            raise ArgumentError(
                "some chunks have tags and some have not", "give `kept` for every chunk or none"
            )
        for name, array, shape, kind in (
            ("kept", kept, hits.shape, np.bool_),
            ("documents", documents, hits.shape[:1], np.integer),
        ):
            if array is not None:
                instance_of(array, np.ndarray, name, "give a NumPy array, or leave it out")
                if array.shape != shape or not np.issubdtype(array.dtype, kind):
                    raise ArgumentError(
                        f"{name} {array.dtype} {array.shape} must be {kind.__name__} {shape}",
                        "give one for each that was predicted",
                    )
        self._tagged = kept is not None
        if kept is not None:
            kept = kept & (predicted >= 0)
        self._tally.add(predicted, hits, gold, kept)
        if documents is None:
            documents = np.arange(self._documents, self._documents + len(predicted))
        found = list(self._terms(predicted, gold, hits, kept))
        if not self._names:
            self._names = tuple(name for name, _, _ in found)
            self._sums = np.zeros((ROWS, 2 * len(found)))
        columns = np.column_stack([*(part for _, part, _ in found), *(whole for _, _, whole in found)])
        rows = documents % ROWS
        gather = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), (ROWS, len(rows)))
        self._sums += gather @ columns
        self._seen[rows] = True
        self._documents += len(predicted)
        self._longest = max(self._longest, int((predicted >= 0).sum(axis=1).max(initial=0)))
        return hits

    def result(self) -> Measured:
        """The metrics of all documents so far.

        Raises:
            ArgumentError: There were none, or none with gold.
        """
        if not self._documents:
            raise ArgumentError("no documents were given", "call `update` first")
        numerators, denominators = np.hsplit(self._sums[self._seen], 2)
        terms = Terms(self._names, numerators, denominators, self._documents)
        # Rounding may carry a perfect ranking beyond 1.
        values = {name: min(1.0, value) for name, value in terms.values().items()}
        sliced = {name: values.pop(name) for name in list(values) if name.endswith(GROUPS)}
        if self._tagged:
            values["macro-F1"] = self._tally.macro_f1()
        values |= {f"coverage@{k}": self._tally.coverage(k) for k in self._coverage_ks}
        return Measured(values | sliced, terms, self._documents, self._longest)

    def _terms(self, predicted: Ids, gold: csr_array, hits: Hits, kept: Hits | None) -> Iterator[_Term]:
        sizes: Sizes = np.diff(gold.indptr)
        ones = np.ones(len(hits)) if self._empty else (sizes > 0).astype(np.float64)
        for k in self._precision_ks:
            yield f"P@{k}", precision_terms(hits, k), ones
        for k in self._recall_ks:
            yield f"R@{k}", recall_terms(hits, sizes, k), ones
        for k in self._ndcg_ks:
            yield f"nDCG@{k}", ndcg_terms(hits, sizes, k), ones
        if self._inverse is not None:
            weighted = weigh(predicted, hits, self._inverse)
            best = heaviest(gold, self._inverse, max([0, *self._precision_ks, *self._ndcg_ks]))
            for k in self._precision_ks:
                yield f"PSP@{k}", *psp_terms(weighted, best, k)
            for k in self._ndcg_ks:
                yield f"PSnDCG@{k}", *psndcg_terms(weighted, best, sizes, k)
        if kept is not None:
            yield "micro-F1", 2.0 * (hits & kept).sum(axis=1), (sizes + kept.sum(axis=1)).astype(np.float64)
        if self._tree is not None:
            yield from self._tree(predicted, gold, hits, kept, ones)
        if self._group is not None:
            of = np.full(hits.shape, -1, dtype=np.int8)
            of[hits] = self._group[predicted[hits]]
            held = group_sizes(gold, self._group)
            some = [(count > 0).astype(np.float64) for count in held]
            for place, name in enumerate(GROUPS):
                yield f"P@{_SLICE_P} {name}", precision_terms(of == place, _SLICE_P), some[place]
            for place, name in enumerate(GROUPS):
                yield f"R@{_SLICE_R} {name}", recall_terms(of == place, held[place], _SLICE_R), some[place]
