"""Answers of a bundle whose labels form a hierarchy: consistent along every path, as deep as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ezxmc.data.forest import Forest, ancestors
from ezxmc.errors import DataError
from ezxmc.records import Label

if TYPE_CHECKING:
    from ezxmc.bundle.bundle import Bundle
    from ezxmc.retrieval.label_offsets import Floats, Rows, Scores, Search

_CANDIDATES, _TEMPERATURE, _SHARE = 100, 0.08, 0.5
"""Of `Ancestry.search`: chosen on development glosses of wordnet and on python_packages
(tests/bench/README.md#hierarchies)."""


@dataclass(frozen=True, slots=True)
class Ancestry:
    """Which label of a bundle is above which.

    Attributes:
        above: (R,) int64, by index row the row of the label above; −1 at roots.
    """

    above: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Sequence[Label], live: Rows) -> Ancestry | None:
        """That of the labels of a bundle's rows, of which some are live; `None` where they are flat."""
        try:
            forest = Forest.of([labels[row] for row in live.tolist()])
        except DataError:
            return None  # of a bundle made before anybody looked for circles
        if forest is None:
            return None
        above = np.full(len(labels), -1, dtype=np.int64)
        above[live] = np.where(forest.parent >= 0, live[forest.parent], -1)
        return cls(above)

    def search(self, search: Search, scores: Scores, vectors: Floats, k: int) -> tuple[Floats, Rows]:
        """The k best labels, scores raised along paths: what speaks for a label speaks for those above it.

        A label a with labels d below it, at distance |d|, among the 100 best has the score::

            τ log(e^{s_a/τ} + Σ_d λ^|d| e^{s_d/τ}),   τ = 0.08, λ = ½

        So one sure child brings its parent to 0.055 below itself, and several doubtful ones of one parent put
        that before each of them. A label with none below it keeps its score.

        Args:
            search: Without this.
            scores: Likewise.
            vectors: (N, D) float32.
            k: How many, at least 1; clipped to what there is.

        Returns:
            Scores (N, k) float32, best first, and the labels' rows (N, k) int64.
        """
        s, found = search(vectors, max(k, _CANDIDATES))
        k = min(k, found.shape[1])
        keys, below = self._below(s, found)
        unseen = np.setdiff1d(keys, self._keys(found)[found >= 0], assume_unique=True)
        document, label = np.divmod(unseen, len(self.above))
        # In as many columns as the document with most of them needs.
        place = np.arange(len(unseen)) - np.searchsorted(document, document)
        more = np.full((len(found), int(place.max(initial=-1)) + 1), -1, dtype=np.int64)
        own = np.full(more.shape, -np.inf, dtype=np.float32)
        more[document, place] = label
        if len(unseen):
            some, column = np.unique(label, return_inverse=True)
            own[document, place] = scores(vectors, some)[document, column]
        s, found = np.hstack([s, own]), np.hstack([found, more])
        s = self._raised(s, found, keys, below)
        order = np.argsort(-s, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(s, order, 1), np.take_along_axis(found, order, 1)

    def scores(self, search: Search, scores: Scores, vectors: Floats, rows: Rows) -> Floats:
        """What `search` gives these (K,) rows: (N, K)."""
        own, told = scores(vectors, rows), self._below(*search(vectors, _CANDIDATES))
        return self._raised(own, np.broadcast_to(rows, own.shape), *told)

    def _keys(self, labels: Rows) -> Rows:
        """(N, K) one number for each document and label."""
        return len(self.above) * np.arange(len(labels))[:, None] + labels

    def _below(self, s: Floats, found: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """The keys of all labels above candidates, ascending, and the sum over d for each."""
        labels, masses = found[:, :_CANDIDATES], np.exp(s[:, :_CANDIDATES].astype(np.float64) / _TEMPERATURE)
        keys, shares = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        while len(keys) == 1 or len(keys[-1]):
            labels, masses = np.where(labels >= 0, self.above[labels], -1), _SHARE * masses
            keys.append(self._keys(labels)[labels >= 0])
            shares.append(masses[labels >= 0])
        every, place = np.unique(np.concatenate(keys), return_inverse=True)
        sums = np.bincount(place, np.concatenate(shares), minlength=len(every))
        return every, sums.astype(np.float64)

    def _raised(self, s: Floats, labels: Rows, keys: Rows, below: NDArray[np.float64]) -> Floats:
        if not len(keys):
            return s
        wanted = self._keys(labels)
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        higher = (keys[place] == wanted) & (labels >= 0)
        exponents = np.logaddexp(s[higher].astype(np.float64) / _TEMPERATURE, np.log(below[place[higher]]))
        found = s.copy()
        found[higher] = _TEMPERATURE * exponents
        return found

    def raised(self, rows: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, K) probabilities, a label's at least that of every label below it among the K.

        A sure child makes its parent sure; a doubtful parent takes nothing from its child, whose score was
        earned by a text more like it.

        Args:
            rows: (N, K) index rows; −1 is none.
            probabilities: (N, K).
        """
        found = probabilities.copy()
        for row, values, given in zip(rows.tolist(), found, probabilities.tolist(), strict=True):
            place = {label: i for i, label in enumerate(row) if label >= 0}
            for label, i in place.items():
                for up in ancestors(self.above, label):
                    if up in place:
                        values[place[up]] = max(values[place[up]], given[i])
        return found

    def leaves(self, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N, K): of the tags those below which there is no other tag."""
        found = kept.copy()
        for row, tags in zip(rows, found, strict=True):
            tags &= ~np.isin(row, [up for label in row[tags].tolist() for up in ancestors(self.above, label)])
        return found

    def brought(self, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> list[list[int]]:
        """Of each of N documents the rows of the labels above its tags that are no tags, each once."""
        found = []
        for row, tags in zip(rows, kept, strict=True):
            there = row[tags].tolist()
            ups = dict.fromkeys(up for label in there for up in ancestors(self.above, label))
            found.append([up for up in ups if up not in there])
        return found


def bring_ancestors(
    bundle: Bundle,
    ancestry: Ancestry,
    vectors: NDArray[np.float32],
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    kept: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64] | None, NDArray[np.bool_]]:
    """Scores, rows, probabilities and tags of N documents, each tag with all labels above it.

    Args:
        bundle: Whose labels these are.
        ancestry: Of the bundle.
        vectors: (N, D) of the documents.
        scores: (N, K), best first.
        rows: (N, K) index rows.
        kept: (N, K) which of them are tags.

    Returns:
        The same with as many columns more as a document lacks labels at most.
    """
    brought = ancestry.brought(rows, kept)
    kept = kept | np.array([np.isin(row, some) for row, some in zip(rows, brought, strict=True)])
    unseen = [[up for up in some if up not in row] for row, some in zip(rows, brought, strict=True)]
    shape = len(rows), max(map(len, unseen), default=0)
    # A calibrator wants rows that never rise; so much less may an index that is not exact have missed.
    more, ranked = (np.repeat(scores[:, -1:], shape[1], axis=1) for _ in range(2))
    places, tags = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for i, some in enumerate(unseen):
        if some:
            found = bundle.scores(vectors[i : i + 1], np.array(some, dtype=np.int64))[0]
            order = np.argsort(-found, kind="stable")
            span = slice(len(some))
            places[i, span], tags[i, span] = np.array(some)[order], True
            more[i, span] = found[order]
            ranked[i, span] = np.minimum(found[order], scores[i, -1])
            ranked[i, len(some) :] = ranked[i, len(some) - 1]
    rows, kept = np.hstack([rows, places]), np.hstack([kept, tags])
    probabilities = None
    if bundle.calibrator is not None:
        probabilities = bundle.calibrator.transform(np.hstack([scores, ranked]))
        probabilities = ancestry.raised(rows, probabilities)
    return np.hstack([scores, more]), rows, probabilities, kept
