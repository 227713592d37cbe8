"""The guarantees: their statistics exactly, and by simulation over many draws of reviewed documents.

In every simulation the same data also refute a rule without a guarantee, so a
broken one would be seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from ezxmc.calibration.decisions import Decision
from ezxmc.calibration.guarantees import (
    GRID,
    ReviewedDocuments,
    binomial_p_value,
    conformal_bound,
    control_false_tag_rate,
    control_missed_rate,
    control_top_error,
    false_tags,
    fixed_sequence,
    hoeffding_bentkus_p_value,
    missed,
)
from ezxmc.data import read_gold
from ezxmc.data.catalog import WithoutGold, settle_untagged
from ezxmc.errors import ConfigError, DataError
from ezxmc.records import Prediction

DELTA = 0.1


def world(rng: np.random.Generator, n: int, power: float = 1.0) -> tuple[ReviewedDocuments, np.ndarray]:
    """n documents with six candidates, and the true probabilities: p to a power; calibrated if that is 1."""
    ability = rng.normal(0.8, 1.5, (n, 1))
    logits = ability - 0.8 * np.arange(6) + rng.normal(0, 0.5, (n, 6))
    p = -np.sort(-1 / (1 + np.exp(-logits)), axis=1)
    true = p**power
    hits = rng.random(p.shape) < true
    return ReviewedDocuments(p, hits, hits.sum(axis=1) + rng.poisson(0.2, n)), true


def allowed(draws: int) -> int:
    """Violations that a promise of `DELTA` hardly ever exceeds."""
    return int(binom.ppf(0.999, draws, DELTA))


# The statistics.


def test_the_binomial_p_value_is_the_exact_test() -> None:
    errors, n = [0, 3, 40], [10, 40, 40]
    expected = [binomtest(e, m, 0.2, alternative="less").pvalue for e, m in zip(errors, n, strict=True)]
    np.testing.assert_allclose(binomial_p_value(errors, n, 0.2), expected, rtol=1e-12)
    assert binomial_p_value([0], [0], 0.2) == hoeffding_bentkus_p_value([0], [0], 0.2) == 1


@pytest.mark.parametrize("test", [binomial_p_value, hoeffding_bentkus_p_value])
@pytest.mark.parametrize(("n", "rate"), [(5, 0.3), (12, 0.1), (40, 0.2)])
def test_p_values_are_no_smaller_than_chance(test: Callable[..., np.ndarray], n: int, rate: float) -> None:
    """At an error rate of exactly `rate`, a p-value of at most u has a chance of at most u."""
    values = test(np.arange(n + 1), np.full(n + 1, n), rate)
    chances = binom.pmf(np.arange(n + 1), n, rate)
    assert (np.diff(values) >= 0).all()
    for value in values[values < 1]:
        assert chances[values <= value].sum() <= value + 1e-12


def test_hoeffding_bentkus_holds_for_losses_between_0_and_1() -> None:
    losses, chances = np.array([0.0, 0.4, 1.0]), np.array([0.5, 0.25, 0.25])
    outcomes = np.array(list(product(range(3), repeat=7)))
    probability = chances[outcomes].prod(axis=1)
    mean = float(losses @ chances)
    values = hoeffding_bentkus_p_value(losses[outcomes].sum(axis=1), np.full(len(outcomes), 7), mean)
    for value in np.unique(values):
        assert probability[values <= value].sum() <= value + 1e-12
    # Losses that small cannot come from so high a rate.
    assert hoeffding_bentkus_p_value([1.0], [100], 0.2) < 1e-4


def test_a_fixed_sequence_by_hand() -> None:
    def found(shares: list[float], *p_values: float) -> list[int]:
        return np.flatnonzero(fixed_sequence(p_values, shares, 0.1)).tolist()

    first = [1.0, 0, 0, 0]
    assert found(first, 0.1, 0.1, 0.1, 0.1) == [0, 1, 2, 3]
    assert found(first, 0.1, 0.1, 0.11, 0.0) == [0, 1]
    assert found(first, 0.11, 0.0, 0.0, 0.0) == []
    two = [0.25, 0, 0.75, 0]
    assert found(two, 0.025, 0.025, 0.1, 0.1) == [0, 1, 2, 3]
    assert found(two, 0.025, 0.026, 0.075, 0.075) == [0, 2, 3]
    assert found(two, 0.026, 0.0, 0.075, 0.076) == [2]
    assert found([]) == []


def test_a_fixed_sequence_hardly_ever_errs() -> None:
    """Three hypotheses are false, seven true; the p-values of all depend on each other."""
    rng = np.random.default_rng(0)
    draws = 3000
    common = rng.normal(size=(draws, 1)) * 0.7 + rng.normal(size=(draws, 10)) * np.sqrt(1 - 0.49)
    common[:, :3] -= 4
    p_values = norm.cdf(common)
    for starts in ({0: 1.0}, {0: 0.25, 5: 0.75}, dict.fromkeys(range(10), 0.1)):
        shares = [starts.get(position, 0.0) for position in range(10)]
        found = np.array([fixed_sequence(row, shares, DELTA) for row in p_values])
        assert found[:, 3:].any(axis=1).sum() <= allowed(draws)
        assert found[:, :3].all(axis=1).mean() > 0.8
    assert (p_values[:, 3:] <= DELTA).any(axis=1).sum() > allowed(draws)


# The missed-label rate.


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.05, 0.95), st.sampled_from([None, 0.5]))
def test_the_missed_rate_threshold_is_the_highest_that_keeps_the_bound(
    seed: int, n: int, target: float, abstain_below: float | None
) -> None:
    reviewed, _ = world(np.random.default_rng(seed), n)

    def bound(threshold: float) -> float:
        choice = Decision.at_threshold(threshold, depth=6, abstain_below=abstain_below)
        losses = missed(reviewed, choice.keep(reviewed.probabilities))
        return (losses.sum() + 1) / (len(losses) + 1)

    fitting = [t for t in np.unique(reviewed.probabilities) if bound(t) <= target]
    try:
        decision = control_missed_rate(reviewed, target, abstain_below=abstain_below)
    except ConfigError:
        assert not fitting
        return
    assert decision.threshold is not None and bound(decision.threshold) <= target
    above = reviewed.probabilities[reviewed.probabilities > decision.threshold]
    assert not len(above) or bound(float(above.min())) > target


@pytest.mark.parametrize("power", [1.0, 1.6])
def test_the_missed_rate_holds_in_expectation(power: float) -> None:
    rng = np.random.default_rng(1)
    target, n, draws = 0.4, 50, 400
    risks, naive = [], []
    for _ in range(draws):
        reviewed, _ = world(rng, n, power)
        fresh, _ = world(rng, 100, power)
        decision = control_missed_rate(reviewed, target)
        risks.append(missed(fresh, decision.keep(fresh.probabilities)).mean())
        levels = reviewed.probabilities[reviewed.hits]
        plug_in = max(t for t in levels if missed(reviewed, reviewed.probabilities >= t).mean() <= target)
        naive.append(missed(fresh, fresh.probabilities >= plug_in).mean())
    error = 3 * np.std(risks) / np.sqrt(draws)
    assert np.mean(risks) <= target + error
    # No looser than arXiv 2208.02814 says: α − 2 / (n + 1), n the documents with gold.
    assert np.mean(risks) >= target - 2 / (0.8 * n) - error
    assert np.mean(naive) > np.mean(risks)


def test_labels_beyond_the_candidates_are_missed_and_bound_what_can_be_promised() -> None:
    reviewed, _ = world(np.random.default_rng(2), 300)
    beyond = ReviewedDocuments(reviewed.probabilities, reviewed.hits, reviewed.gold + 1)
    decision = control_missed_rate(reviewed, 0.3)
    further = control_missed_rate(beyond, 0.6)
    assert missed(beyond, decision.keep(reviewed.probabilities)).mean() > 0.4
    assert further.promise is not None and further.promise.documents == 300
    with pytest.raises(ConfigError, match=r"0\.3 cannot be guaranteed.*all 6 candidates") as refused:
        control_missed_rate(beyond, 0.3)
    lowest = float(re.findall(r"gold labels is ([\d.]+)", str(refused.value))[0])
    everything = np.ones_like(beyond.hits)
    assert lowest == pytest.approx(conformal_bound(missed(beyond, everything)), abs=1e-4)
    assert control_missed_rate(beyond, lowest).threshold is not None
    with pytest.raises(ConfigError, match="cannot be guaranteed"):
        control_missed_rate(beyond, lowest - 2e-4)


def test_documents_without_gold_have_no_missed_rate() -> None:
    reviewed, _ = world(np.random.default_rng(3), 50)
    none = ReviewedDocuments(
        np.vstack([reviewed.probabilities, reviewed.probabilities]),
        np.vstack([reviewed.hits, np.zeros_like(reviewed.hits)]),
        np.concatenate([reviewed.gold, np.zeros_like(reviewed.gold)]),
    )
    assert control_missed_rate(none, 0.4) == control_missed_rate(reviewed, 0.4)
    only = ReviewedDocuments(none.probabilities[50:], none.hits[50:], none.gold[50:])
    with pytest.raises(ConfigError, match="0 reviewed documents with gold labels is not below 1"):
        control_missed_rate(only, 0.4)


# False tags and errors of the first tag.


@pytest.fixture(scope="module", params=[1.0, 1.6], ids=["calibrated", "too sure"])
def truth(request: pytest.FixtureRequest) -> tuple[float, np.ndarray, np.ndarray]:
    """Power, and by threshold of `GRID` the rate of false tags and of false first tags over all documents."""
    reviewed, true = world(np.random.default_rng(4), 40_000, request.param)
    false, top = [], []
    for threshold in GRID:
        kept = reviewed.probabilities >= threshold
        count = kept.sum(axis=1)
        some = count > 0
        false.append((((1 - true) * kept).sum(axis=1)[some] / count[some]).mean() if some.any() else np.nan)
        top.append((1 - true[some, 0]).mean() if some.any() else np.nan)
    return request.param, np.array(false), np.array(top)


Control = Callable[..., Decision]


@pytest.mark.parametrize(
    ("control", "target", "field", "column"),
    [
        (control_false_tag_rate, 0.25, "threshold", 1),
        (control_top_error, 0.2, "abstain_below", 2),
    ],
    ids=["false_tag_rate", "top_error"],
)
def test_rates_with_confidence_hold_in_nearly_all_draws(
    truth: tuple[float, np.ndarray, np.ndarray], control: Control, target: float, field: str, column: int
) -> None:
    rng = np.random.default_rng(5)
    power, rate_at = truth[0], truth[column]
    draws, n = 150, 250
    violations = naive = unproven = 0
    reached = []
    for _ in range(draws):
        reviewed, _ = world(rng, n, power)
        try:
            decision = control(reviewed, target, confidence=1 - DELTA)
        except ConfigError:
            unproven += 1
        else:
            at = int(np.flatnonzero(getattr(decision, field) == GRID)[0])
            violations += bool(rate_at[at] > target)
            reached.append(rate_at[at])
        # The lowest threshold with a measured rate that looks good enough.
        p = reviewed.probabilities
        if column == 1:
            measured = [false_tags(reviewed, p >= t) for t in GRID]
        else:
            measured = [1.0 - reviewed.hits[p[:, 0] >= t, 0] for t in GRID]
        good = [at for at, losses in enumerate(measured) if len(losses) and losses.mean() <= target]
        naive += bool(good and rate_at[good[-1]] > target)
    assert violations <= allowed(draws) < naive
    # Probabilities that are too sure cost tags, and no promise.
    assert unproven < draws * (0.1 if power == 1 else 0.6)
    assert np.mean(reached) > target - 0.12


@pytest.mark.parametrize("truth", [1.0], indirect=True, ids=["calibrated"])
@pytest.mark.parametrize(
    ("control", "target", "field", "column"),
    [(control_false_tag_rate, 0.4, "threshold", 1), (control_top_error, 0.2, "abstain_below", 2)],
    ids=["false_tag_rate", "top_error"],
)
def test_rates_hold_though_gold_has_no_line_for_documents_that_nothing_fits(
    truth: tuple[float, np.ndarray, np.ndarray],
    control: Control,
    target: float,
    field: str,
    column: int,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(10)
    draws, n, names = 100, 400, "abcdef"
    violations, unproven = {"none": 0, "unreviewed": 0}, 0
    for _ in range(draws):
        drawn, _ = world(rng, n)
        lines = [f"d{row}\t{names[place]}\n" for row, place in np.argwhere(drawn.hits)]
        (tmp_path / "gold.tsv").write_text("".join(lines))
        predictions = [
            Prediction(f"d{row}", tuple(names), tuple(names), (), tuple(p))
            for row, p in enumerate(drawn.probabilities)
        ]
        for meaning in get_args(WithoutGold):
            gold, _ = read_gold(tmp_path / "gold.tsv")
            uids = [one.uid for one in predictions]
            with pytest.raises(DataError, match=r"of 400 documents have no label in .*'d\d+'"):
                settle_untagged(gold, uids, "gold.tsv", None, print)
            settle_untagged(gold, uids, "gold.tsv", meaning, lambda line: None)
            try:
                decision = control(
                    ReviewedDocuments.of(predictions, gold, without_gold=meaning),
                    target,
                    confidence=1 - DELTA,
                )
            except ConfigError:
                unproven += 1
                continue
            at = int(np.flatnonzero(getattr(decision, field) == GRID)[0])
            violations[meaning] += bool(truth[column][at] > target)
    assert violations["none"] <= allowed(draws) < violations["unreviewed"]
    assert unproven < 0.1 * draws


def test_a_rate_that_cannot_be_proven_is_refused_with_one_that_can() -> None:
    reviewed, _ = world(np.random.default_rng(6), 60)
    for control in (control_false_tag_rate, control_top_error):
        with pytest.raises(ConfigError, match=r"0\.01 cannot be guaranteed with confidence 0\.9") as refused:
            control(reviewed, 0.01)
        lowest = float(re.findall(r"lowest that can is ([\d.]+)", str(refused.value))[0])
        assert control(reviewed, lowest).promise is not None
        with pytest.raises(ConfigError):
            control(reviewed, lowest - 0.01)


def test_documents_abstained_from_do_not_hide_false_tags() -> None:
    reviewed, _ = world(np.random.default_rng(7), 400)
    wrong = ReviewedDocuments(reviewed.probabilities, np.zeros_like(reviewed.hits), reviewed.gold)
    # Tags of a few documents, all false: averaged over all documents that would look like 5 %.
    with pytest.raises(ConfigError, match="not below 1"):
        control_false_tag_rate(wrong, 0.5, abstain_below=float(np.quantile(wrong.probabilities[:, 0], 0.95)))


def test_abstaining_beforehand_is_part_of_what_is_controlled() -> None:
    reviewed, _ = world(np.random.default_rng(8), 400)
    plain = control_false_tag_rate(reviewed, 0.25)
    careful = control_false_tag_rate(reviewed, 0.25, abstain_below=0.8)
    assert plain.threshold is not None and careful.threshold is not None
    # Only sure documents are answered: their further tags may be less sure.
    assert careful.threshold < plain.threshold and careful.abstain_below == 0.8


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, float("nan")])
def test_shares_out_of_range(bad: float) -> None:
    reviewed, _ = world(np.random.default_rng(9), 10)
    for control in (control_missed_rate, control_false_tag_rate, control_top_error):
        with pytest.raises(ConfigError, match="not between 0 and 1"):
            control(reviewed, bad)
    with pytest.raises(ConfigError, match="confidence"):
        control_top_error(reviewed, 0.2, confidence=bad)


# Against MAPIE, where it does the same.


def test_p_values_equal_mapies() -> None:
    pytest.importorskip("mapie")
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value as theirs

    for mean, n, rate in [(0.1, 50, 0.2), (0.03, 200, 0.1), (0.4, 30, 0.2), (0.07, 100, 0.2)]:
        expected = theirs(np.array([mean]), n, np.array([rate]))[0, 0]
        assert hoeffding_bentkus_p_value([mean * n], [n], rate) == pytest.approx(expected, rel=1e-9)


def test_the_missed_rate_equals_mapies_up_to_its_grid() -> None:
    pytest.importorskip("mapie")
    from mapie.risk_control import MultiLabelClassificationController

    step = 0.04
    for seed in range(3):
        reviewed, _ = world(np.random.default_rng(seed), 60)
        some = reviewed.hits.any(axis=1)
        p, hits = reviewed.probabilities[some], reviewed.hits[some]
        theirs = MultiLabelClassificationController(
            lambda rows: rows,
            risk="recall",
            method="crc",
            target_level=0.7,
            predict_params=np.arange(0, 1, step),
        )
        theirs.calibrate(p, hits.astype(int))
        ours = control_missed_rate(ReviewedDocuments(p, hits, hits.sum(axis=1)), 0.3).threshold
        (on_the_grid,) = theirs.best_predict_param
        assert ours is not None and on_the_grid < ours <= on_the_grid + step
