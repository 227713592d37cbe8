"""Isotonic calibration: any non-decreasing shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ezxmc.calibration.rows import Floats, JudgedRows


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A non-decreasing, piecewise linear map from scores to probabilities.

    Zadrozny and Elkan, "Transforming classifier scores into accurate
    multiclass probability estimates", KDD 2002.

    Attributes:
        x: Scores at the knots, strictly increasing.
        y: Probabilities at the knots, non-decreasing, in [0, 1].
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Literal["isotonic"] = "isotonic"

    def __post_init__(self) -> None:
        knots, values = np.array(self.x), np.array(self.y)
        sound = (
            0 < len(knots) == len(values)
            and bool(np.isfinite(knots).all() and (np.diff(knots) > 0).all())
            and bool(((values >= 0) & (values <= 1)).all() and (np.diff(values) >= 0).all())
        )
        if not sound:
            raise ValueError("knots must be finite and increasing, probabilities non-decreasing in [0, 1]")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Isotonic:
        """Least squares under monotony, the pairs pooled over ranks.

        A block that holds only misses, or only hits, is no certainty: its
        probability is set by Laplace's rule, 1/(n+2) or (n+1)/(n+2), as far as
        that does not pass the rate of the block beside it.
        """
        from sklearn.isotonic import IsotonicRegression  # a second, which who only tags does without

        scores, hits = rows.scores[rows.known], rows.verdicts
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, hits)
        values = model.predict(scores)
        misses, certain = int((values <= 0).sum()), int((values >= 1).sum())
        # Rounding inside the averages may leave a step of −1e-17.
        y = np.clip(np.maximum.accumulate(model.y_thresholds_), 0.0, 1.0)
        inner = y[(y > 0) & (y < 1)]
        low, high = 1 / (misses + 2), (certain + 1) / (certain + 2)
        if len(inner):
            low, high = min(low, inner[0]), max(high, inner[-1])
        y = np.where(y <= 0, low, np.where(y >= 1, high, y))
        return cls(tuple(model.X_thresholds_.tolist()), tuple(y.tolist()))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores of any shape."""
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), self.x, self.y))
