"""A calibrator out of predictions and someone's verdicts on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ezxmc.calibration.isotonic import Calibrator, Target
from ezxmc.records import Prediction

Verdict = Callable[[str, str], float | None]
"""(document uid, label uid) to how far the label applies, in [0, 1]; `None`: nobody said."""


def fit_calibrator(
    predictions: Sequence[Prediction], verdict: Verdict, *, target: Target, k: int
) -> Calibrator:
    """Fit on the pooled top-k pairs that have a verdict.

    Args:
        predictions: Of documents the student was not trained on, best label first.
        verdict: What is known of a pair.
        target: Whose verdict it is.
        k: Ranks used.

    Raises:
        TrainingError: Fewer than 20 pairs have a verdict.
    """
    pairs = [
        (score, hit, prediction.uid)
        for prediction in predictions
        for label, score in zip(prediction.labels[:k], prediction.scores[:k], strict=True)
        if (hit := verdict(prediction.uid, label)) is not None
    ]
    return Calibrator.fit(
        np.array([score for score, _, _ in pairs], dtype=np.float64),
        np.array([hit for _, hit, _ in pairs], dtype=np.float64),
        target=target,
        k=k,
        groups=[uid for _, _, uid in pairs],
    )
