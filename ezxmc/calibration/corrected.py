"""The few-shot correction: a curve fitted to the teacher, moved to where people put it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ezxmc.calibration.isotonic import Isotonic
from ezxmc.calibration.logistic import PULL, fit_logistic, sigmoid
from ezxmc.calibration.platt import Platt
from ezxmc.calibration.ranked import Ranked
from ezxmc.calibration.rows import Floats, JudgedRows, log_ranks
from ezxmc.calibration.temperature import Temperature

Simple = Annotated[Isotonic | Platt | Temperature | Ranked, Field(discriminator="kind")]

_EDGE = 1e-4


@dataclass(frozen=True, slots=True)
class Corrected:
    """logit p_j = slope · logit shape_j − rank · ln j + offset for the label of rank j.

    The zero point and the sharpness of a teacher's answers depend on the
    wording of its prompt, and it tells a document's best label less clearly
    from the next ones than people do. These are set by people here; what many
    answers of the teacher say about the shape is kept. It is the logistic form
    of beta calibration (Kull et al., AISTATS 2017, with a = b) on top of
    `shape`, with the rank added.

    Attributes:
        shape: A curve fitted to the teacher's answers.
        slope: At least 0; 1 leaves the sharpness as it is.
        rank: At least 0; 0 leaves the weight of the rank as it is.
        offset: In nats; 0 leaves the zero point as it is.
    """

    shape: Simple
    slope: float
    rank: float
    offset: float
    kind: Literal["corrected"] = "corrected"

    def __post_init__(self) -> None:
        finite = np.isfinite([self.slope, self.rank, self.offset]).all()
        if not (finite and self.slope >= 0 and self.rank >= 0):
            raise ValueError("weights must be finite, slope and rank not negative")

    @classmethod
    def fit(cls, shape: Simple, rows: JudgedRows) -> Corrected:
        """Maximum a posteriori on people's verdicts, the identity being the mode of the prior."""
        slope, rank, offset = fit_logistic(
            np.stack([column[rows.known] for column in _features(shape, rows.scores)], axis=1),
            rows.verdicts,
            lower=[0.0, 0.0, -np.inf],
            prior=[1.0, 0.0, 0.0],
            # A stronger one holds on to the teacher's zero point, which can be off by several nats.
            strength=PULL,
        )
        return cls(shape, float(slope), float(rank), float(offset))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of rows (..., k) of scores, best first."""
        logits, rank, one = _features(self.shape, np.asarray(scores, dtype=np.float64))
        return sigmoid(self.slope * logits + self.rank * rank + self.offset * one)


def _features(shape: Simple, scores: Floats) -> tuple[Floats, Floats, Floats]:
    from scipy.special import logit

    # A curve may say 0 or 1; no finite correction could move that.
    logits = logit(np.clip(shape.transform(scores), _EDGE, 1 - _EDGE))
    return np.asarray(logits), -log_ranks(scores), np.ones_like(scores)
