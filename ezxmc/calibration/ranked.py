"""A logistic curve that also looks at the rank and at the margin to the best label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ezxmc.calibration.logistic import PULL, fit_logistic, pull_of_scores, sigmoid, smoothed
from ezxmc.calibration.rows import Floats, JudgedRows, log_ranks


@dataclass(frozen=True, slots=True)
class Ranked:
    """p_j = σ(best·s_1 − margin·(s_1 − s_j) − rank·ln j + offset) for the label of rank j.

    With `margin` and `rank` not negative p falls along a row, so the order is
    kept; `best` is free. Nothing looks at later ranks: a label's probability
    does not depend on how many labels were asked for.

    Attributes:
        best: Weight of the document's best score s_1.
        margin: Weight of the margin to the best, at least 0.
        rank: Weight of ln(rank), ranks from 1, at least 0.
        offset: Log-odds where the rest is 0.
    """

    best: float
    margin: float
    rank: float
    offset: float
    kind: Literal["ranked"] = "ranked"

    def __post_init__(self) -> None:
        finite = np.isfinite([self.best, self.margin, self.rank, self.offset]).all()
        if not (finite and self.margin >= 0 and self.rank >= 0):
            raise ValueError("weights must be finite, those of margin and rank not negative")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Ranked:
        """Maximum a posteriori on Platt's smoothed targets, the weights bounded so that the order is kept."""
        pull = pull_of_scores(rows.scores[rows.known])
        best, margin, rank, offset = fit_logistic(
            np.stack([column[rows.known] for column in _features(rows.scores)], axis=1),
            smoothed(rows.verdicts),
            lower=[-np.inf, 0.0, 0.0, -np.inf],
            strength=[pull, pull, PULL, 0.0],
        )
        return cls(float(best), float(margin), float(rank), float(offset))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of rows (..., k) of scores, best first."""
        best, margin, rank, one = _features(np.asarray(scores, dtype=np.float64))
        return sigmoid(self.best * best + self.margin * margin + self.rank * rank + self.offset * one)


def _features(scores: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    best = np.broadcast_to(scores[..., :1], scores.shape)
    return best, scores - best, -log_ranks(scores), np.ones_like(scores)
