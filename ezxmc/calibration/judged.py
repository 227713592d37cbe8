"""Scores of ranked labels with someone's verdicts on a part of them.

Cross-fitting tells which curve to believe: each is judged on documents its fit never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ezxmc.errors import InputTypeError, TrainingError

Floats = NDArray[np.float64]

FEWEST_PAIRS = 20


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """The top k of N documents, and what is known of these pairs.

    Attributes:
        scores: (N, k) float64, each row best first.
        hits: (N, k) float64 in [0, 1] where `known`: 0 or 1, or for a teacher the share of its answer on
            "yes".
        known: (N, k) bool, which pairs somebody judged.
    """

    scores: Floats
    hits: Floats
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: ArrayLike, hits: ArrayLike, known: ArrayLike | None = None) -> JudgedRows:
        """Check and convert.

        Args:
            scores: (N, k), best first along each row.
            hits: (N, k); ignored where not `known`.
            known: (N, k) bool; everything by default.

        Raises:
            InputTypeError: Scores or hits are no numbers.
            TrainingError: Shapes differ, scores are not finite or not best first, hits outside [0, 1], or
                fewer than 20 known pairs.
        """
        try:
            s, h = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputTypeError(f"scores and hits are no numbers: {error}", "give rows of them") from None
        seen = np.ones(s.shape, dtype=bool) if known is None else np.asarray(known, dtype=bool)
        if s.ndim != 2 or not s.shape == h.shape == seen.shape:
            raise TrainingError(
                f"calibration needs aligned rows, got {s.shape} scores, {h.shape} hits, {seen.shape} known"
            )
        if (pairs := int(seen.sum())) < FEWEST_PAIRS:
            raise TrainingError(
                f"{pairs} judged pairs are too few to calibrate on, {FEWEST_PAIRS} are needed",
                "hold out more documents, or review more of them",
            )
        if not (np.isfinite(s).all() and ((h[seen] >= 0) & (h[seen] <= 1)).all()):
            raise TrainingError("calibration needs finite scores and hits in [0, 1]")
        if (np.diff(s, axis=1) > 0).any():
            raise TrainingError("calibration needs each document's scores best first")
        return cls(s, h, seen)

    @property
    def documents(self) -> int:
        """Documents with at least one known pair."""
        return int(self.known.any(axis=1).sum())

    @property
    def pairs(self) -> int:
        """Known pairs n."""
        return int(self.known.sum())

    @property
    def verdicts(self) -> Floats:
        """(n,) hits of the known pairs."""
        return self.hits[self.known]

    def take(self, rows: NDArray[np.int64]) -> JudgedRows:
        """These documents alone."""
        return JudgedRows(self.scores[rows], self.hits[rows], self.known[rows])


def log_ranks(scores: Floats) -> Floats:
    """Ln 1, ln 2, ... along the last axis, in the shape of `scores`."""
    return np.broadcast_to(np.log(np.arange(1, scores.shape[-1] + 1)), scores.shape)


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
