"""Hierarchical metrics: a near relative of the right label is not all wrong.

Kosmopoulos et al., "Evaluation Measures for Hierarchical Classification", arXiv 1306.6802, section 3.2.2:
the labels of a document, predicted and right ones alike, are joined by all their ancestors, P̂ and Ĝ, and::

    hP = Σ |P̂ ∩ Ĝ| / Σ |P̂|,   hR = Σ |P̂ ∩ Ĝ| / Σ |Ĝ|,   hF1 = 2 Σ |P̂ ∩ Ĝ| / Σ (|P̂| + |Ĝ|)

with sums over documents (micro). P@k by level asks how many of the first k labels that lie so deep are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ezxmc.data.forest import Forest
from ezxmc.metrics.ranking import Floats, Hits, Ids

_LEVELS_K = 5


class TreeTerms:
    """What hierarchical metrics are sums of, chunk by chunk.

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
            yield (
                f"P@{_LEVELS_K} level {number}",
                (of & hits).sum(axis=1) * ones,
                of.sum(axis=1) * ones,
            )

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
