"""Calibration metrics at k against torchmetrics, scikit-learn and the definition of arXiv 2411.04276."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from ezxmc.metrics import ace_at_k, brier, ece_at_k, nll, reliability_bins

RNG = np.random.default_rng(4)
FULL = RNG.beta(0.4, 2.0, size=(300, 40))  # (documents, labels)
TRUE = RNG.random(FULL.shape) < FULL**0.7
ORDER = np.argsort(-FULL, axis=1)
KS = pytest.mark.parametrize("k", [1, 3, 5, 10])


def top(k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.take_along_axis(FULL, ORDER, 1)[:, :k], np.take_along_axis(TRUE, ORDER, 1)[:, :k]


@KS
def test_ece_at_k_is_that_of_the_paper(k: int) -> None:
    """All (document, label) pairs of the top k pooled, ten bins, L1, weights n_b/(N k)."""
    pairs = [
        (FULL[i, label], TRUE[i, label])
        for i in range(300)
        for label in sorted(range(40), key=lambda x: -FULL[i, x])[:k]
    ]
    error = 0.0
    for low in range(10):
        inside = [(p, y) for p, y in pairs if low / 10 <= p < (low + 1) / 10]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            error += len(inside) / (300 * k) * abs(sum(y for _, y in inside) / len(inside) - confidence)
    assert ece_at_k(*top(k)) == pytest.approx(error, abs=1e-12)


@KS
def test_ece_equals_torchmetrics(k: int) -> None:
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    p, y = (torch.from_numpy(part.copy()).flatten() for part in top(k))
    expected = theirs.binary_calibration_error(p, y.long(), n_bins=10, norm="l1")
    assert ece_at_k(*top(k)) == pytest.approx(float(expected), abs=1e-6)


@KS
def test_brier_and_nll_at_k_equal_scikit_learn(k: int) -> None:
    p, y = top(k)
    assert brier(p, y) == pytest.approx(brier_score_loss(y.ravel(), p.ravel()))
    assert nll(p, y) == pytest.approx(log_loss(y.ravel(), p.ravel()))


@KS
def test_reliability_bins_equal_scikit_learns_curve(k: int) -> None:
    p, y = top(k)
    rate, confidence = calibration_curve(y.ravel(), p.ravel(), n_bins=10)
    points = reliability_bins(p, y)
    assert [point.hit_rate for point in points] == pytest.approx(rate.tolist())
    assert [point.mean_probability for point in points] == pytest.approx(confidence.tolist())


@KS
def test_ace_at_k_equals_quantile_bins(k: int) -> None:
    p, y = top(k)
    rate, confidence = calibration_curve(y.ravel(), p.ravel(), n_bins=10, strategy="quantile")
    # Quantile edges fall between pairs, so their bins hold equally many up to one pair.
    assert ace_at_k(p, y) == pytest.approx(
        float(np.mean(abs(rate - confidence))), abs=2 / len(p.ravel()) * 10
    )
