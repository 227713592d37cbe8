"""Which curve to believe: each is judged on documents its fit never saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from ezxmc.calibration.rows import Floats, JudgedRows
from ezxmc.errors import TrainingError

_FOLDS = 5


class Curve(Protocol):
    """A map from rows of scores to probabilities."""

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities in [0, 1] of rows (..., k) of scores, best first; they never rise along a row."""
        ...


def cross_fitted(fit: Callable[[JudgedRows], Curve], rows: JudgedRows) -> Floats:
    """Each known pair's probability by a fit without its document.

    Args:
        fit: Makes a curve.
        rows: N documents, dealt to five parts in a fixed random order.

    Returns:
        (n,) float64, in the order of `rows.verdicts`.

    Raises:
        TrainingError: Fewer than two documents have a known pair.
    """
    judged = np.flatnonzero(rows.known.any(axis=1))
    if len(judged) < 2:
        raise TrainingError(
            "the judged pairs are all of one document: nothing says how the next one would do",
            "hold out more documents, or review more of them",
        )
    probabilities = np.zeros_like(rows.scores)
    for part in np.array_split(np.random.default_rng(0).permutation(judged), min(_FOLDS, len(judged))):
        curve = fit(rows.take(np.setdiff1d(judged, part)))
        probabilities[part] = curve.transform(rows.scores[part])
    return probabilities[rows.known]
