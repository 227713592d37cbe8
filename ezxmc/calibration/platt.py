"""Platt scaling: a logistic curve, two parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ezxmc.calibration.logistic import fit_logistic, pull_of_scores, sigmoid, smoothed
from ezxmc.calibration.rows import Floats, JudgedRows


@dataclass(frozen=True, slots=True)
class Platt:
    """p = σ(slope · score + offset).

    J. Platt, "Probabilistic outputs for support vector machines", 1999.

    Attributes:
        slope: At least 0.
        offset: Log-odds at a score of 0.
    """

    slope: float
    offset: float
    kind: Literal["platt"] = "platt"

    def __post_init__(self) -> None:
        if not (self.slope >= 0 and np.isfinite([self.slope, self.offset]).all()):
            raise ValueError("slope and offset must be finite, the slope not negative")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Platt:
        """Maximum a posteriori on Platt's smoothed targets; see `pull_of_scores`."""
        scores = rows.scores[rows.known]
        features = np.stack([scores, np.ones_like(scores)], axis=1)
        slope, offset = fit_logistic(
            features,
            smoothed(rows.verdicts),
            lower=[0.0, -np.inf],
            strength=[pull_of_scores(scores), 0.0],
        )
        return cls(float(slope), float(offset))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores of any shape."""
        return sigmoid(self.slope * np.asarray(scores, dtype=np.float64) + self.offset)
