"""Each curve against an independent computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ezxmc.calibration import Isotonic, JudgedRows, Platt, Ranked, Temperature
from ezxmc.calibration.curves import fit_logistic, smoothed
from ezxmc.metrics import nll

RNG = np.random.default_rng(11)
SCORES = -np.sort(-RNG.uniform(0, 1, size=(800, 6)), axis=1)
LAW = expit(6 * SCORES - 3 - 1.2 * np.log(np.arange(1, 7)))
ROWS = JudgedRows.of(SCORES, RNG.random(SCORES.shape) < LAW, RNG.random(SCORES.shape) < 0.8)


def reference(
    features: np.ndarray, hits: np.ndarray, units: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """scikit-learn's logistic regression; a fractional hit is a yes and a no with weights.

    `units`: of each feature; then weights in these units have a prior of deviation √10.
    """
    size = np.ones(features.shape[1]) if units is None else units
    model = LogisticRegression(C=np.inf if units is None else 10.0, tol=1e-10, max_iter=10_000)
    scaled = features / size
    model.fit(
        np.concatenate([scaled, scaled]),
        np.repeat([1, 0], len(hits)),
        sample_weight=np.concatenate([hits, 1 - hits]),
    )
    return model.coef_[0] / size, float(model.intercept_[0])


def platt_targets(hits: np.ndarray) -> np.ndarray:
    yes, no = hits.sum(), len(hits) - hits.sum()
    return np.where(hits == 1, (yes + 1) / (yes + 2), 1 / (no + 2))


def test_isotonic_equals_scikit_learn() -> None:
    soft = replace(ROWS, hits=np.clip(LAW + RNG.normal(0, 0.1, LAW.shape), 0.01, 0.99))
    model = IsotonicRegression(out_of_bounds="clip").fit(soft.scores[soft.known], soft.verdicts)
    probe = np.linspace(-1, 2, 500)
    np.testing.assert_allclose(Isotonic.fit(soft).transform(probe), model.predict(probe), atol=1e-12)


def test_isotonic_is_never_certain() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.2, 0.1]] * 4)
    hits = np.array([[1, 1, 0, 0, 0]] * 4)
    curve = Isotonic.fit(JudgedRows.of(scores, hits))
    assert curve.transform([0.95, 0.8, 0.7, 0.0]) == pytest.approx([9 / 10, 9 / 10, 1 / 14, 1 / 14])
    all_hit = Isotonic.fit(JudgedRows.of(scores, np.ones_like(hits)))
    assert all_hit.transform([0.0, 1.0]) == pytest.approx(21 / 22)


def test_what_isotonic_says_of_a_short_block_stays_in_it() -> None:
    # Two misses at the bottom, then 1 of 100; 99 of 100, then two hits at the top.
    scores = np.concatenate([[0.0, 0.0], np.full(100, 0.3), np.full(100, 0.7), [1.0, 1.0]])
    hits = np.concatenate([[0, 0], np.arange(100) < 1, np.arange(100) < 99, [1, 1]])
    curve = Isotonic.fit(JudgedRows.of(scores[None, ::-1], hits[None, ::-1]))
    assert curve.transform([0.0, 0.3, 0.7, 1.0]) == pytest.approx([0.01, 0.01, 0.99, 0.99])


def test_platt_equals_scikit_learn_on_platts_targets() -> None:
    scores = ROWS.scores[ROWS.known]
    (slope,), offset = reference(scores[:, None], platt_targets(ROWS.verdicts), scores.std(keepdims=True))
    found = Platt.fit(ROWS)
    assert (found.slope, found.offset) == pytest.approx((slope, offset), rel=1e-3)
    assert found.transform(0.4) == pytest.approx(1 / (1 + np.exp(-slope * 0.4 - offset)), rel=1e-3)


def test_platt_on_what_falls_with_the_score_or_is_separable() -> None:
    falling = Platt.fit(replace(ROWS, hits=1 - ROWS.scores))
    assert falling.slope == 0 and falling.transform(0.3) == pytest.approx(0.5, abs=0.1)
    apart = Platt.fit(replace(ROWS, hits=(ROWS.scores > 0.5) * 1.0))
    assert np.isfinite([apart.slope, apart.offset]).all()
    assert apart.transform([0.1, 0.9]) == pytest.approx([0, 1], abs=0.02)


def test_temperature_is_the_best_of_a_grid() -> None:
    odds = -np.sort(-RNG.normal(0, 4, size=(200, 5)), axis=1)
    rows = JudgedRows.of(odds, RNG.random(odds.shape) < expit(odds / 2.5))
    targets = platt_targets(rows.verdicts)
    grid = np.linspace(1, 5, 801)
    best = min(grid, key=lambda t: nll(expit(rows.scores.ravel() / t), targets))
    found = Temperature.fit(rows)
    assert found.temperature == pytest.approx(best, abs=0.006) and 2 < best < 3
    assert found.transform([0.0, 2.0]) == pytest.approx([0.5, expit(2 / best)], abs=1e-3)


def test_ranked_equals_scikit_learn_inside_its_bounds() -> None:
    best = np.repeat(ROWS.scores[:, :1], 6, axis=1)
    columns = [best, ROWS.scores - best, -np.log(np.tile(np.arange(1, 7), (800, 1)))]
    features = np.stack([column[ROWS.known] for column in columns], axis=1)
    deviation = ROWS.scores[ROWS.known].std()
    weights, offset = reference(features, platt_targets(ROWS.verdicts), np.array([deviation, deviation, 1]))
    assert weights[1] > 0 and weights[2] > 0
    found = Ranked.fit(ROWS)
    assert [found.best, found.margin, found.rank, found.offset] == pytest.approx(
        [*weights, offset], rel=2e-3, abs=2e-3
    )
    row = ROWS.scores[3]
    byhand = weights[0] * row[0] + weights[1] * (row - row[0]) - weights[2] * np.log(np.arange(1, 7)) + offset
    assert found.transform(ROWS.scores)[3] == pytest.approx(expit(byhand), abs=1e-3)


def test_ranked_keeps_the_order_where_hits_rise_with_the_rank() -> None:
    upside_down = replace(ROWS, hits=np.tile(np.linspace(0.1, 0.9, 6), (800, 1)))
    found = Ranked.fit(upside_down)
    assert found.margin >= 0 and found.rank == 0
    assert (np.diff(found.transform(ROWS.scores), axis=1) <= 0).all()


def test_equal_scores_fall_by_rank_only() -> None:
    p = Ranked.fit(ROWS).transform(np.full((1, 6), 0.5))[0]
    assert (np.diff(p) < 0).all()


def test_a_strong_prior_holds_and_a_weak_one_gives_way() -> None:
    x = np.stack([RNG.normal(size=2000), np.ones(2000)], axis=1)
    hits = (RNG.random(2000) < expit(2 * x[:, 0] - 1)).astype(float)
    bounds = {"lower": [-np.inf, -np.inf], "prior": [5.0, 3.0]}
    assert fit_logistic(x, hits, **bounds, strength=1e7) == pytest.approx([5, 3], abs=1e-2)
    (slope,), offset = reference(x[:, :1], hits)
    assert fit_logistic(x, hits, **bounds, strength=1e-6) == pytest.approx([slope, offset], abs=1e-2)


def test_smoothing_is_platts() -> None:
    hits = np.array([1.0] * 6 + [0.0] * 3)
    assert smoothed(hits) == pytest.approx(platt_targets(hits))
    assert smoothed(np.array([0.5, 0.5])) == pytest.approx([0.5, 0.5])
