"""Temperature scaling: one parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ezxmc.calibration.logistic import fit_logistic, sigmoid, smoothed
from ezxmc.calibration.rows import Floats, JudgedRows

_COLDEST = 1e-6
"""Least 1/T: without it scores that say nothing would ask for an infinite temperature."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """p = σ(score / temperature).

    Guo et al., arXiv 1706.04599, in its binary form. It takes a score of 0
    for even odds: right for scores that are log-odds, wrong for cosines,
    where nearly every score is above 0 and every probability then above 1/2.

    Attributes:
        temperature: Positive, in units of the score.
    """

    temperature: float
    kind: Literal["temperature"] = "temperature"

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise ValueError("the temperature must be positive and finite")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Temperature:
        """Maximum likelihood on Platt's smoothed targets."""
        scores = rows.scores[rows.known]
        (inverse,) = fit_logistic(scores[:, None], smoothed(rows.verdicts), lower=[_COLDEST])
        return cls(1 / float(inverse))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores of any shape."""
        return sigmoid(np.asarray(scores, dtype=np.float64) / self.temperature)
