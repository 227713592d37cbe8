"""Logistic regression with bounds and a prior: what every parametric calibrator here is fitted by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ezxmc.calibration.rows import Floats


def sigmoid(values: ArrayLike) -> Floats:
    """1 / (1 + e^−v), of any shape."""
    from scipy.special import expit  # a third of a second, which who only reads labels does without

    return np.asarray(expit(values))


def fit_logistic(
    features: Floats,
    hits: Floats,
    *,
    lower: Sequence[float],
    prior: Sequence[float] | None = None,
    strength: float | Sequence[float] = 0.0,
) -> Floats:
    """Weights w that minimise Σ_i NLL(h_i, σ(x_i·w)) + ½·Σ_j strength_j·(w_j − prior_j)².

    The problem is convex; fractional hits weigh both answers.

    Args:
        features: (n, d).
        hits: (n,) in [0, 1].
        lower: (d,) least weights; −inf where any is allowed.
        prior: (d,) where the weights are drawn to; zeros by default.
        strength: How strongly, in nats per squared unit, all alike or each; 0 for maximum likelihood.

    Returns:
        (d,) weights.
    """
    from scipy.optimize import minimize

    center = np.zeros(features.shape[1]) if prior is None else np.asarray(prior, dtype=np.float64)
    # Columns of like size: cosines vary by hundredths, ranks by whole numbers.
    size = np.sqrt(np.mean(features**2, axis=0))
    size[size == 0] = 1.0
    scaled = features / size
    n, pull = len(hits), np.broadcast_to(np.asarray(strength, dtype=np.float64), center.shape)

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits, away = scaled @ weights, weights / size - center
        value = np.logaddexp(0.0, logits).sum() - hits @ logits + 0.5 * pull @ away**2
        slope = scaled.T @ (sigmoid(logits) - hits) + pull * away / size
        return float(value) / n, slope / n

    bounds = [(low * by if np.isfinite(low) else None, None) for low, by in zip(lower, size, strict=True)]
    start = np.maximum(center, lower) * size
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}
    )
    return np.asarray(found.x / size, dtype=np.float64)


PULL = 0.1
"""Nats per squared unit of a weight: a normal prior of deviation 3."""


def pull_of_scores(scores: Floats) -> float:
    """`PULL` for the weight of scores, their own deviation being the unit.

    Few documents may part hits and misses by the last digits of their scores:
    then nothing but a prior keeps other scores from certainty.
    """
    return PULL * float(np.var(scores))


def smoothed(hits: Floats) -> Floats:
    """Platt's targets: hits between 1/(n₋+2) and (n₊+1)/(n₊+2), so that no fit runs off to infinity.

    J. Platt, "Probabilistic outputs for support vector machines", 1999, §2.2,
    with n₊ the sum of fractional hits.
    """
    positives = float(hits.sum())
    low, high = 1 / (len(hits) - positives + 2), (positives + 1) / (positives + 2)
    return np.asarray(low + (high - low) * hits)
