"""Bootstrap intervals and paired differences: against theory, against a plain loop, at their ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binomtest, norm, permutation_test
from scipy.stats import t as student

from ezxmc.metrics import RankingMetrics, Terms, differences, intervals
from ezxmc.metrics.bootstrap import RESAMPLES


def mean_of(values: np.ndarray) -> Terms:
    return Terms(("mean",), values[:, None], np.ones((len(values), 1)))


@pytest.mark.parametrize(("right", "documents"), [(0, 3), (1, 2), (30, 30), (58, 60), (140, 200)])
def test_an_interval_of_right_and_wrong_is_exact(right: int, documents: int) -> None:
    """That of Clopper and Pearson, but for the noise of random weights."""
    ends = intervals(mean_of(np.arange(documents) < right), resamples=20_000)["mean"]
    exact = binomtest(right, documents).proportion_ci(0.95)
    assert ends == pytest.approx((exact.low, exact.high), abs=0.006)


def test_an_interval_is_that_of_weighted_documents() -> None:
    """One at each bound beside them; without bounds at the expanded percentiles instead."""
    rng = np.random.default_rng(1)
    numerators, denominators = rng.random((40, 1)), rng.random((40, 1)) + 1
    rates, plain = [], []
    draws = np.random.default_rng(0)
    beside = draws.standard_exponential(300) * denominators.mean()
    for more in beside:
        weights = draws.standard_exponential(40)
        top, whole = weights @ numerators[:, 0], weights @ denominators[:, 0]
        rates.append((top / (whole + more), (top + more) / (whole + more)))
        plain.append(5 * top / whole)
    least, most = np.array(rates).T
    found = intervals(Terms(("rate", "loss"), numerators * [[1, 5]], denominators * [[1, 1]]), resamples=300)
    assert found["rate"] == pytest.approx((np.percentile(least, 2.5), np.percentile(most, 97.5)))
    tail = 100 * norm.cdf(-math.sqrt(41 / 39) * student.ppf(0.975, 39))
    assert 1.7 < tail < 2.4
    assert found["loss"] == pytest.approx(tuple(np.percentile(plain, [tail, 100 - tail])))


def test_it_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    top = rng.random(30_000)
    whole = 2 * top + rng.random(30_000)
    ratio = top.sum() / whole.sum()
    error = np.std(top - ratio * whole) / whole.mean() / math.sqrt(30_000)  # the delta method
    low, high = intervals(Terms(("ratio",), top[:, None], whole[:, None]), resamples=500)["ratio"]
    assert low == pytest.approx(ratio - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(ratio + 1.96 * error, abs=0.15 * error)


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = intervals(mean_of(rng.random(150) < 0.3), resamples=400)["mean"]
        inside += low <= 0.3 <= high
    assert binomtest(inside, 200, 0.95).pvalue > 0.001, inside


def test_many_documents_share_rows_and_the_interval_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = 30
    predicted = rng.permuted(np.tile(np.arange(labels), (6_000, 1)), axis=1)[:, :5]
    # A trend over the documents must not matter: neighbours do not share a row.
    right = rng.integers(labels, size=6_000) * (rng.random(6_000) < np.linspace(0, 1, 6_000))
    gold = csr_array((np.ones(6_000), (np.arange(6_000), right)), (6_000, labels))
    widths = []
    for rows in (10_000, 500):
        monkeypatch.setattr("ezxmc.metrics.streaming.ROWS", rows)
        metrics = RankingMetrics()
        for start in range(0, 6_000, 700):
            metrics.update(predicted[start : start + 700], gold[start : start + 700])
        found = metrics.result()
        assert len(found.terms.numerators) == min(rows, 6_000)
        low, high = intervals(found.terms)["P@5"]
        assert low < found.values["P@5"] < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.12)


def test_runs_are_paired_by_document() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(500)  # what both runs share
    first, second = hard + 0.02 + rng.normal(0, 0.05, 500), hard + rng.normal(0, 0.05, 500)
    found = differences(mean_of(first), mean_of(second))["mean"]
    error = (first - second).std() / math.sqrt(500)
    assert found.value == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.2 * error
    )
    assert found.p == pytest.approx(2 / (RESAMPLES + 1)), "as small as so many resamples can tell"
    # Unpaired, nothing would be seen: the documents differ far more than the runs.
    assert differences(mean_of(first), mean_of(rng.permutation(second)))["mean"].p > 0.05
    turned = differences(mean_of(second), mean_of(first))["mean"]
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low)) and turned.p == found.p


def test_p_is_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    low = sum(
        differences(mean_of(rng.random(100)), mean_of(rng.random(100)), resamples=300)["mean"].p < 0.1
        for _ in range(200)
    )
    assert binomtest(low, 200, 0.1).pvalue > 0.001, low


@pytest.mark.parametrize("documents", [1, 2, 3, 5, 10, 19])
def test_few_documents_alarm_no_more_often_than_stated(documents: int) -> None:
    rng = np.random.default_rng(documents)
    worlds = [rng.normal(size=(2, documents)) ** 3 for _ in range(300)]
    found = [differences(mean_of(a), mean_of(b), resamples=20).get("mean") for a, b in worlds]
    alarms = sum(gap is not None and gap.p <= 0.05 for gap in found)
    assert binomtest(alarms, 300, 0.05, alternative="greater").pvalue > 0.001, alarms
    if documents in (1, 2, 3, 5):
        assert alarms == 0, "2 / 2ⁿ is more than .05"
    else:
        assert alarms > 0
    if documents == 1:
        assert found == [None] * 300 and intervals(mean_of(worlds[0][0])) == {}


def test_p_of_few_documents_is_that_of_the_sign_flip_test() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(9) + 0.5, rng.random(9)
    found = differences(mean_of(first), mean_of(second))["mean"]
    flips = permutation_test(
        (first, second), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert found.p == pytest.approx(flips.pvalue) and found.p < 0.05


@pytest.mark.parametrize("documents", [5, 10])
def test_an_interval_of_few_documents_holds_the_truth_as_often(documents: int) -> None:
    rng = np.random.default_rng(documents)
    ends = [intervals(mean_of(rng.normal(size=documents)), resamples=1000)["mean"] for _ in range(200)]
    inside = sum(low <= 0 <= high for low, high in ends)
    # The plain percentiles hold it in 84 and 90 of 100.
    assert binomtest(inside, 200, 0.92, alternative="less").pvalue > 0.001, inside


@pytest.mark.parametrize(("documents", "rate"), [(5, 0.9), (50, 0.99), (200, 0.995)])
def test_documents_that_are_all_alike_are_no_certainty(documents: int, rate: float) -> None:
    rng = np.random.default_rng(documents)
    inside = apart = 0
    for _ in range(200):
        right = mean_of(rng.random(documents) < rate)
        low, high = intervals(right, resamples=100)["mean"]
        inside += low <= rate <= high
        gap = differences(right, mean_of(np.ones(documents)), resamples=100)["mean"]
        apart += gap.low <= rate - 1 <= gap.high
    # Resamples alone hold it in 41, 39 and 63 of 100.
    for count in (inside, apart):
        assert binomtest(count, 200, 0.92, alternative="less").pvalue > 0.001, count


def test_how_far_documents_that_are_all_alike_leave_it_open() -> None:
    low, high = intervals(mean_of(np.ones(30)))["mean"]
    assert high == 1 and binomtest(30, 30).proportion_ci(0.95).low == pytest.approx(low, abs=0.005)
    # A loss without bounds may be anything elsewhere: nothing is said.
    loss = Terms(("NLL",), np.full((30, 1), 1.5), np.ones((30, 1)))
    assert intervals(loss) == differences(loss, loss) == {}


def test_equal_runs_do_not_differ() -> None:
    same = mean_of(np.array([0.0, 1.0, 0.5]))
    found = differences(same, same)["mean"]
    assert (
        (found.value, found.p, found.rows) == (0, 1, 3)
        and found.high == pytest.approx(-found.low)
        and found.high < 1
    )


@pytest.mark.parametrize(("for_one", "for_other"), [(4, 0), (5, 0), (6, 1), (11, 3)])
def test_p_is_that_of_the_documents_that_part_the_runs(for_one: int, for_other: int) -> None:
    """However many others there are: the test of McNemar, exactly."""
    first, second = np.ones(1_000), np.ones(1_000)
    second[:for_one] = first[for_one : for_one + for_other] = 0
    found = differences(mean_of(first), mean_of(second))["mean"]
    exact = binomtest(for_one, for_one + for_other).pvalue
    assert found.p == pytest.approx(exact, abs=0.01) and found.rows == 1_000


def test_what_has_no_value_has_no_interval() -> None:
    numbers = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    terms = Terms(("P@1", "P@5 tail"), numbers, np.array([[1.0, 0.0]] * 3))
    assert terms.values() == {"P@1": pytest.approx(2 / 3)}
    assert set(intervals(terms)) == {"P@1"} == set(differences(terms, terms))
    # Two documents in three count for this one: draws without them are left out.
    rare = Terms(("tail",), np.array([[0.5], [0.5], [0.0]]), np.array([[1.0], [1.0], [0.0]]))
    low, high = intervals(rare)["tail"]
    assert (low, high) == pytest.approx((0.5 * 0.025**0.5, 1 - 0.5 * 0.025**0.5), abs=0.01)
    only = Terms(("P@1",), numbers[:, :1], np.ones((3, 1)))
    assert set(differences(terms, only)) == {"P@1"}
    with pytest.raises(ValueError, match="cannot be paired"):
        differences(terms, mean_of(np.ones(4)))
