"""Answers of a bundle whose labels form a hierarchy: consistent along every path, as deep as asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Bundle
from ezxmc.data.forest import Forest, ancestors
from ezxmc.errors import DataError


@dataclass(frozen=True, slots=True)
class Ancestry:
    """Which label of a bundle is above which.

    Attributes:
        above: (R,) int64, by index row the row of the label above; −1 at roots.
    """

    above: NDArray[np.int64]

    @classmethod
    def of(cls, bundle: Bundle) -> Ancestry | None:
        """That of a bundle's labels; `None` where they are flat."""
        live = bundle.index.rows
        try:
            forest = Forest.of([bundle.labels[row] for row in live.tolist()])
        except DataError:
            return None  # of a bundle made before anybody looked for circles
        if forest is None:
            return None
        above = np.full(len(bundle.labels), -1, dtype=np.int64)
        above[live] = np.where(forest.parent >= 0, live[forest.parent], -1)
        return cls(above)

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
