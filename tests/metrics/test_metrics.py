"""Metrics against independent implementations: scikit-learn and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, ndcg_score

from ezxmc.metrics import (
    ace_at_k,
    brier,
    ece_at_k,
    frequency_groups,
    hit_matrix,
    inverse_propensities,
    ndcg_at_k,
    nll,
    precision_at_k,
    precision_by_document,
    psp_at_k,
    recall_at_k,
    recall_by_document,
    reliability_bins,
)

UIDS = [f"l{n}" for n in range(12)]
lists = st.lists(st.sampled_from(UIDS), unique=True, max_size=12)
sets = st.sets(st.sampled_from(UIDS), min_size=1)
cases = st.lists(st.tuples(lists, sets), min_size=1, max_size=6)
pairs = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
RNG = np.random.default_rng(0)


def test_by_hand() -> None:
    ranked = [["a", "x", "b"], ["y"], []]
    gold = [{"a", "b", "c"}, {"z"}, {"a"}]
    assert precision_at_k(ranked, gold, 1) == pytest.approx(1 / 3)
    assert precision_at_k([["a"]], [{"a"}], 5) == pytest.approx(1 / 5)  # divided by k, not by what there is
    assert recall_at_k(ranked, gold, 3) == pytest.approx((2 / 3 + 0 + 0) / 3)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at_k(ranked, gold, 3) == pytest.approx((1 + 1 / 2) / ideal / 3)
    assert ndcg_at_k([["a", "b"]], [set("abcdefgh")], 2) == pytest.approx(1.0)


@given(cases=cases, k=st.integers(1, 15))
def test_ranking_equals_a_plain_loop(cases: list[tuple[list[str], set[str]]], k: int) -> None:
    ranked, gold = [case[0] for case in cases], [case[1] for case in cases]
    p = r = n = 0.0
    for labels, right in cases:
        found = [rank for rank, label in enumerate(labels, 1) if rank <= k and label in right]
        p += len(found) / k
        r += len(found) / len(right)
        best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(right)) + 1))
        n += sum(1 / math.log2(rank + 1) for rank in found) / best
    assert precision_at_k(ranked, gold, k) == pytest.approx(p / len(cases))
    assert recall_at_k(ranked, gold, k) == pytest.approx(r / len(cases))
    assert ndcg_at_k(ranked, gold, k) == pytest.approx(n / len(cases))


@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_ndcg_equals_scikit_learn(k: int) -> None:
    scores = RNG.permuted(np.tile(np.arange(12.0), (40, 1)), axis=1)
    relevant = RNG.random((40, 12)) < 0.3
    relevant[:, 0] |= ~relevant.any(axis=1)
    ranked = [[UIDS[n] for n in np.argsort(-row)] for row in scores]
    gold = [{UIDS[n] for n in np.flatnonzero(row)} for row in relevant]
    assert ndcg_at_k(ranked, gold, k) == pytest.approx(ndcg_score(relevant, scores, k=k))


def test_ranking_refuses_what_has_no_value() -> None:
    for ranked, gold, k in (([["a"]], [set[str]()], 1), ([], [], 1), ([["a"]], [], 1), ([["a"]], [{"a"}], 0)):
        with pytest.raises(ValueError):
            hit_matrix(ranked, gold, k)
    assert hit_matrix([["a", "b"]], [["b"]], 3).tolist() == [[False, True, False]]


counts = st.fixed_dictionaries({uid: st.integers(0, 900) for uid in UIDS})


@given(cases=cases, counts=counts, k=st.integers(1, 15))
def test_psp_equals_a_plain_loop(
    cases: list[tuple[list[str], set[str]]], counts: dict[str, int], k: int
) -> None:
    inverse = inverse_propensities(counts, 1000, a=0.6, b=2.6)
    reached = best = 0.0
    for labels, right in cases:
        for label in labels[:k]:
            if label in right:
                reached += 1 + (math.log(1000) - 1) * 3.6**0.6 / (counts[label] + 2.6) ** 0.6
        every = sorted(1 + (math.log(1000) - 1) * 3.6**0.6 / (counts[x] + 2.6) ** 0.6 for x in right)
        best += sum(every[::-1][:k])
    found = psp_at_k([case[0] for case in cases], [case[1] for case in cases], inverse, k)
    assert found == pytest.approx(reached / best)


def test_psp_by_hand_and_at_its_ends() -> None:
    inverse = {"rare": 4.0, "common": 1.5, "other": 1.5}
    gold = [{"rare", "common"}, {"common"}]
    assert psp_at_k([["common"], ["other"]], gold, inverse, 1) == pytest.approx(1.5 / (4.0 + 1.5))
    assert psp_at_k([["rare", "common"], ["common"]], gold, inverse, 5) == pytest.approx(1.0)
    assert psp_at_k([[], []], gold, inverse, 5) == 0.0
    # Equal propensities make it precision over the best precision.
    flat = dict.fromkeys(inverse, 2.0)
    assert psp_at_k([["common"], ["other"]], gold, flat, 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no propensity of gold label 'common'"):
        psp_at_k([["common"]], [{"common"}], {"rare": 1.0}, 1)
    with pytest.raises(ValueError, match="3 training documents"):
        inverse_propensities({"a": 1}, 2)
    some = inverse_propensities({"never": 0, "seldom": 3, "often": 500}, 1000)
    assert some["never"] > some["seldom"] > some["often"] > 1


def test_psp_equals_napkinxc() -> None:
    theirs = pytest.importorskip("napkinxc.metrics")
    seen = (RNG.random((300, 12)) < np.linspace(0.02, 0.6, 12)).astype(float)
    scores = RNG.permuted(np.tile(np.arange(12.0), (40, 1)), axis=1)
    relevant = RNG.random((40, 12)) < 0.3
    relevant[:, 0] |= ~relevant.any(axis=1)
    inverse = theirs.Jain_et_al_inverse_propensity(seen, A=0.55, B=1.5)
    ours = inverse_propensities(dict(zip(UIDS, seen.sum(axis=0).astype(int).tolist(), strict=True)), 300)
    assert list(ours.values()) == pytest.approx(inverse.tolist())
    ranked = [[UIDS[n] for n in np.argsort(-row)] for row in scores]
    gold = [{UIDS[n] for n in np.flatnonzero(row)} for row in relevant]
    expected = theirs.psprecision_at_k(relevant.astype(float), scores, inverse, k=5)
    for k in range(1, 6):
        assert psp_at_k(ranked, gold, ours, k) == pytest.approx(expected[k - 1])


def test_values_by_document_are_the_terms_of_the_mean() -> None:
    ranked, gold = [["a", "x"], ["b", "a", "c"], []], [{"a", "b", "c", "d"}, {"c"}, {"a"}]
    assert precision_by_document(ranked, gold, 2).tolist() == [0.5, 0.0, 0.0]
    assert recall_by_document(ranked, gold, 3).tolist() == [0.25, 1.0, 0.0]
    assert recall_at_k(ranked, gold, 3) == pytest.approx(1.25 / 3)


def test_frequency_groups_hold_a_third_of_the_pairs_each() -> None:
    # 30 pairs: before a 0, b 10, c 16, d 20, e 24; thirds begin at 10 and 20.
    groups = frequency_groups({"e": 4, "c": 4, "b": 6, "a": 10, "d": 4, "f": 2, "g": 0})
    assert groups == {
        "a": "head",
        "b": "torso",
        "c": "torso",
        "d": "tail",
        "e": "tail",
        "f": "tail",
        "g": "tail",
    }
    assert frequency_groups({"x": 0, "y": 0}) == {"x": "tail", "y": "tail"}


@given(pairs=pairs, bins=st.integers(1, 15))
def test_ece_equals_a_direct_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    p, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for b in range(bins):
        last = b == bins - 1
        inside = [n for n in range(len(p)) if edges[b] <= p[n] and (p[n] < edges[b + 1] or last)]
        if inside:
            gap = sum(y[n] for n in inside) / len(inside) - sum(p[n] for n in inside) / len(inside)
            expected += len(inside) / len(p) * abs(gap)
    assert ece_at_k(p, y, bins) == pytest.approx(expected, abs=1e-12)
    assert sum(point.n for point in reliability_bins(p, y, bins)) == len(p)


def test_ece_at_the_edges() -> None:
    assert ece_at_k([1.0, 1.0], [1, 1]) == 0
    assert ece_at_k([1.0, 0.0], [0, 1]) == 1
    points = reliability_bins([1.0, 0.95, 0.9, 0.0], [1, 0, 1, 0])
    assert [(point.low, point.high, point.n) for point in points] == [(0.0, 0.1, 1), (0.9, 1.0, 3)]
    assert points[1].mean_probability == pytest.approx(0.95) and points[1].hit_rate == pytest.approx(2 / 3)


def test_a_calibrated_source_has_a_small_error_and_a_shifted_one_its_shift() -> None:
    p = RNG.uniform(0.2, 0.8, 200_000)
    y = RNG.random(200_000) < p
    for metric in (ece_at_k, ace_at_k):
        assert metric(p, y) < 0.01
        assert metric(p + 0.2, y) == pytest.approx(0.2, abs=0.01)
    assert ece_at_k(p.reshape(-1, 5), y.reshape(-1, 5)) == ece_at_k(p, y)


def test_ace_equals_sorted_chunks_without_ties_and_ignores_order_with_them() -> None:
    p = RNG.permutation(100) / 100
    y = RNG.random(100) < 0.5
    order = np.argsort(p)
    chunks = zip(np.split(p[order], 10), np.split(y[order], 10), strict=True)
    assert ace_at_k(p, y) == pytest.approx(np.mean([abs(a.mean() - b.mean()) for a, b in chunks]))
    tied, hits = np.repeat([0.3, 0.6], 37), RNG.random(74) < 0.5
    shuffled = RNG.permutation(74)
    assert ace_at_k(tied, hits) == pytest.approx(ace_at_k(tied[shuffled], hits[shuffled]))
    assert ace_at_k([0.25], [1], bins=10) == 0.75


def test_brier_and_nll_equal_scikit_learn() -> None:
    p = RNG.random(500)
    y = RNG.random(500) < p
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p))
    assert nll(p, y) == pytest.approx(log_loss(y, p))
    assert nll([0.0, 1.0], [1, 0]) == pytest.approx(-math.log(1e-12), rel=1e-4)
    assert nll([0.0, 1.0], [0, 1]) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize(
    ("p", "y"), [([], []), ([0.5], [1, 0]), ([1.1], [1]), ([float("nan")], [1]), ([0.5], [2])]
)
def test_calibration_refuses_what_is_no_probability(p: list[float], y: list[float]) -> None:
    for metric in (ece_at_k, ace_at_k, brier, nll):
        with pytest.raises(ValueError):
            metric(p, y)
    with pytest.raises(ValueError, match="bins"):
        ece_at_k([0.5], [1], bins=0)
