"""Counts by label: what coverage and F1 are computed from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ezxmc.errors import ArgumentError
from ezxmc.metrics.sparse import Hits, Ids

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
            predicted: `(n, k)`, see `ezxmc.metrics.sparse`.
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
