"""Sparse and streaming metrics against napkinXC, scikit-learn and a dense loop written apart from them."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array, csr_matrix
from sklearn.metrics import f1_score, ndcg_score

from ezxmc.metrics import (
    GROUPS,
    Frequencies,
    RankingMetrics,
    encode,
    inverse_propensity,
    precision_at_k,
    top_labels,
)

KS = (1, 2, 3, 5)
LABELS = 9


def measure(
    predicted: Any, gold: Any, *, chunks: int = 1, kept: Any = None, **known: Any
) -> dict[str, float]:
    metrics = RankingMetrics(precision_ks=KS, recall_ks=(*KS, 10), ndcg_ks=KS, coverage_ks=KS, **known)
    gold = csr_array(gold)
    for rows in np.array_split(np.arange(len(predicted)), chunks):
        metrics.update(predicted[rows], gold[rows], kept=None if kept is None else kept[rows])
    return metrics.result().values


def dense_loop(
    ranked: Sequence[Sequence[int]],
    gold: Sequence[set[int]],
    inverse: Sequence[float],
    group: Sequence[int],
    tags: Sequence[set[int]],
) -> dict[str, float]:
    """The same from the definitions, one document and one label at a time."""
    n = len(ranked)
    found: dict[str, float] = {}
    for k in (*KS, 10):
        found[f"R@{k}"] = (
            sum(len(set(r[:k]) & g) / len(g) for r, g in zip(ranked, gold, strict=True) if g) / n
        )
    for k in KS:
        found[f"P@{k}"] = sum(len(set(r[:k]) & g) / k for r, g in zip(ranked, gold, strict=True)) / n
        ndcg = psp = best_psp = psndcg = best_psndcg = 0.0
        for r, g in zip(ranked, gold, strict=True):
            if not g:
                continue
            ideal = sum(1 / math.log2(i + 2) for i in range(min(k, len(g))))
            ndcg += sum(1 / math.log2(i + 2) for i, x in enumerate(r[:k]) if x in g) / ideal
            best = sorted((inverse[x] for x in g), reverse=True)[:k]
            psp += sum(inverse[x] for x in r[:k] if x in g)
            best_psp += sum(best)
            psndcg += sum(inverse[x] / math.log2(i + 2) for i, x in enumerate(r[:k]) if x in g) / ideal
            best_psndcg += sum(w / math.log2(i + 2) for i, w in enumerate(best)) / ideal
        found[f"nDCG@{k}"] = ndcg / n
        found[f"PSP@{k}"], found[f"PSnDCG@{k}"] = psp / best_psp, psndcg / best_psndcg
        used = set().union(*gold)
        reached = set().union(*(set(r[:k]) & g for r, g in zip(ranked, gold, strict=True)))
        found[f"coverage@{k}"] = len(reached) / len(used)
    for place, name in enumerate(GROUPS):
        parts = [{x for x in g if group[x] == place} for g in gold]
        some = [(r, part) for r, part in zip(ranked, parts, strict=True) if part]
        if some:
            found[f"P@5 {name}"] = sum(len(set(r[:5]) & part) / 5 for r, part in some) / len(some)
            found[f"R@10 {name}"] = sum(len(set(r[:10]) & part) / len(part) for r, part in some) / len(some)
    right = sum(len(t & g) for t, g in zip(tags, gold, strict=True))
    found["micro-F1"] = 2 * right / sum(len(t) + len(g) for t, g in zip(tags, gold, strict=True))
    by_label = []
    for x in range(len(inverse)):
        both = sum(x in t and x in g for t, g in zip(tags, gold, strict=True))
        given = sum((x in t) + (x in g) for t, g in zip(tags, gold, strict=True))
        if given:
            by_label.append(2 * both / given)
    found["macro-F1"] = sum(by_label) / len(by_label)
    return found


# Few distinct scores, negative ones and zero among them: ties. Rows may be empty or shorter than any k.
row = st.tuples(
    st.dictionaries(st.integers(0, LABELS - 1), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])),
    st.sets(st.integers(0, LABELS - 1)),
)


@given(
    rows=st.lists(row, min_size=1, max_size=8).filter(lambda rows: any(g for _, g in rows)), data=st.data()
)
def test_everything_equals_a_dense_loop(rows: list[tuple[dict[int, float], set[int]]], data: Any) -> None:
    inverse = inverse_propensity(np.arange(LABELS) ** 2, 500)
    group = np.arange(LABELS, dtype=np.int8) // 3
    scores, gold = sparse([r for r, _ in rows]), sparse([dict.fromkeys(g, 1.0) for _, g in rows])
    predicted, values = top_labels(scores, 6)
    ranked = [sorted(r, key=lambda label: (-r[label], label))[:6] for r, _ in rows]
    assert [[x for x in labels if x >= 0] for labels in predicted.tolist()] == ranked
    assert [[r[x] for x in labels] for (r, _), labels in zip(rows, ranked, strict=True)] == [
        v[: len(labels)].tolist() for v, labels in zip(values, ranked, strict=True)
    ]
    kept = values >= 0.5
    tags = [{x for x in labels if r[x] >= 0.5} for (r, _), labels in zip(rows, ranked, strict=True)]
    expected = dense_loop(ranked, [g for _, g in rows], inverse.tolist(), group.tolist(), tags)
    chunks = data.draw(st.integers(1, len(rows)))
    found = measure(predicted, gold, chunks=chunks, kept=kept, inverse=inverse, group=group)
    assert found == pytest.approx(expected, abs=1e-12)


def sparse(rows: list[dict[int, float]]) -> csr_array:
    """Stored zeros stay stored."""
    indices = [label for r in rows for label in r]
    data = [value for r in rows for value in r.values()]
    return csr_array((data, indices, np.cumsum([0, *map(len, rows)])), (len(rows), LABELS))


def random_case(seed: int, n: int = 60, labels: int = 40) -> tuple[csr_matrix, csr_matrix]:
    """Scores (distinct, half negative, some rows empty or short) and gold (some rows empty)."""
    rng = np.random.default_rng(seed)
    there = rng.random((n, labels)) < rng.choice([0.0, 0.05, 0.5], (n, 1))
    scores = np.where(there, rng.permutation(n * labels).reshape(n, labels) - n * labels / 2 + 0.5, 0)
    gold = rng.random((n, labels)) < rng.choice([0.0, 0.02, 0.3], (n, 1))
    return csr_matrix(scores), csr_matrix(gold.astype(float))


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_napkinxc(seed: int) -> None:
    theirs = pytest.importorskip("napkinxc.metrics")
    scores, gold = random_case(seed)
    train = random_case(seed + 100, n=300)[1]
    inverse = theirs.Jain_et_al_inverse_propensity(train, A=0.6, B=2.6)
    counts = np.asarray(train.sum(axis=0)).ravel().astype(int)
    assert inverse_propensity(counts, 300, 0.6, 2.6) == pytest.approx(inverse)
    predicted, _ = top_labels(scores, 5)
    compared(theirs, scores, gold, measure(predicted, gold, chunks=7, inverse=inverse), inverse)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_napkinxc_where_scores_tie(seed: int) -> None:
    theirs = pytest.importorskip("napkinxc.metrics")
    scores, gold = random_case(seed)
    scores.data = np.sign(scores.data)
    predicted, _ = top_labels(scores, 5)
    inverse = inverse_propensity(np.arange(40), 100)
    # Each breaks ties, theirs as numpy's sort happens to: so it is given the ranking.
    ranked = [[x for x in labels if x >= 0] for labels in predicted.tolist()]
    right = [gold[row].indices.tolist() for row in range(gold.shape[0])]
    compared(theirs, ranked, right, measure(predicted, gold, inverse=inverse), inverse)


def compared(theirs: Any, predicted: Any, gold: Any, found: dict[str, float], inverse: Any) -> None:
    for name, values in {
        "P": theirs.precision_at_k(gold, predicted, k=5),
        "R": theirs.recall_at_k(gold, predicted, k=5),
        "nDCG": theirs.ndcg_at_k(gold, predicted, k=5),
        "PSP": theirs.psprecision_at_k(gold, predicted, inverse, k=5),
        "PSnDCG": theirs.psndcg_at_k(gold, predicted, inverse, k=5),
        "coverage": theirs.coverage_at_k(gold, predicted, k=5),
    }.items():
        for k in KS:
            assert found[f"{name}@{k}"] == pytest.approx(values[k - 1]), (name, k)


def test_unnormalised_psp_is_the_mean_of_the_numerators() -> None:
    theirs = pytest.importorskip("napkinxc.metrics")
    scores, gold = random_case(1)
    inverse = inverse_propensity(np.arange(40), 100)
    metrics = RankingMetrics(inverse=inverse)
    metrics.update(top_labels(scores, 5)[0], gold)
    terms = metrics.result().terms
    for name, values in {
        "PSP@3": theirs.psprecision_at_k(gold, scores, inverse, k=5, normalize=False)[2],
        "PSnDCG@5": theirs.psndcg_at_k(gold, scores, inverse, k=5, normalize=False)[4],
    }.items():
        assert terms.numerators[:, terms.names.index(name)].mean() == pytest.approx(values)


@pytest.mark.parametrize("seed", range(4))
def test_f1_equals_scikit_learn_and_napkinxc(seed: int) -> None:
    scores, gold = random_case(seed, n=80, labels=25)
    predicted, values = top_labels(scores, 25)
    kept = (predicted >= 0) & (values >= 100)
    found = measure(predicted, gold, chunks=3, kept=kept)
    tags = scores.toarray() * (scores.toarray() >= 100) > 0
    right = gold.toarray() > 0
    assert found["micro-F1"] == pytest.approx(f1_score(right, tags, average="micro"))
    assert found["macro-F1"] == pytest.approx(f1_score(right, tags, average="macro", zero_division=np.nan))
    theirs = pytest.importorskip("napkinxc.metrics")
    assert found["micro-F1"] == pytest.approx(theirs.micro_f1_measure(csr_matrix(right), csr_matrix(tags)))
    everywhere = (right | tags).any(axis=0)
    assert found["macro-F1"] == pytest.approx(
        theirs.macro_f1_measure(csr_matrix(right[:, everywhere]), csr_matrix(tags[:, everywhere]))
    )


def test_labels_nobody_uses_have_no_f1() -> None:
    predicted = np.array([[0, 7], [2, -1]])
    found = measure(predicted, csr_array(np.eye(2, 5)), kept=np.array([[True, True], [False, True]]))
    # Label 0 is right, 1 is missed, 7 (in no gold matrix) is wrong; a fill-up is no tag.
    assert found["macro-F1"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["micro-F1"] == pytest.approx(2 / 4)
    nothing = measure(np.array([[3]]), csr_array(np.eye(1, 5)), kept=np.array([[False]]))
    assert nothing["macro-F1"] == 0 == nothing["micro-F1"]


def test_ndcg_equals_scikit_learn_on_dense_scores_and_averages_to_it_over_ties() -> None:
    rng = np.random.default_rng(0)
    gold = rng.random((50, 12)) < 0.3
    scores = rng.permutation(600).reshape(50, 12) - 300.5
    found = measure(top_labels(csr_array(scores), 12)[0], gold)
    for k in KS:
        assert found[f"nDCG@{k}"] == pytest.approx(ndcg_score(gold, scores, k=k))  # empty gold: 0 there too
    tied, right = np.array([[2, 1, 1, 1, 0]]), np.array([[0, 1, 0, 1, 1]])
    orders = [np.array([[0, *middle, 4]]) for middle in permutations((1, 2, 3))]
    for k in KS:
        values = [measure(order, right)[f"nDCG@{k}"] for order in orders]
        assert np.mean(values) == pytest.approx(ndcg_score(right, tied, k=k))


def test_ties_go_to_the_smaller_id_whatever_the_order_of_storage() -> None:
    scores = csr_array(([0.5, 0.5, 0.9, 0.5], [8, 2, 5, 0], [0, 4]), (1, 9))
    assert top_labels(scores, 3)[0].tolist() == [[5, 0, 2]]
    assert scores.indices.tolist() == [8, 2, 5, 0], "the caller's matrix was reordered"
    assert top_labels(csr_array((2, 4)), 2)[0].tolist() == [[-1, -1], [-1, -1]]


def test_long_and_short_rows_are_ranked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(30, 50)) * (rng.random((30, 50)) < np.linspace(0, 1, 30)[:, None])
    whole = top_labels(csr_array(dense), 7)
    monkeypatch.setattr("ezxmc.metrics.ranking._CELLS", 64)
    for one, other in zip(whole, top_labels(csr_array(dense), 7), strict=True):
        assert np.array_equal(one, other)
    for labels, values, wanted in zip(*whole, dense, strict=True):
        assert values[labels >= 0].tolist() == sorted(wanted[wanted != 0], reverse=True)[:7]


def test_gold_may_be_stored_in_any_way() -> None:
    predicted = np.array([[3, 1], [0, 2]])
    messy = csr_array(([1.0, 1.0, 0.0, 2.0, 1.0], [3, 0, 1, 0, 2], [0, 4, 5]), (2, 4))  # 0 twice, 1 not right
    assert not messy.has_canonical_format
    clean = csr_array(np.array([[1, 0, 0, 1], [0, 0, 1, 0]]))
    assert measure(predicted, messy) == measure(predicted, clean)
    assert measure(predicted, csr_matrix(clean)) == measure(predicted, clean)
    assert messy.nnz == 5, "the caller's matrix was changed"
    assert measure(predicted, clean)["P@2"] == pytest.approx(0.5)


def test_labels_beyond_the_gold_matrix_are_never_right() -> None:
    # Label 4 of the first document must not be taken for label 0 of the second.
    found = measure(np.array([[4, 5], [9, 0]]), csr_array(np.array([[0, 0, 0, 1], [1, 0, 0, 0]])))
    assert (found["P@1"], found["R@2"]) == (0, 0.5)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.array([[0, 1]]), "must be integers"),
        (np.array([0, 1]), "must be integers"),
        (np.array([[0.0], [1.0]]), "must be integers"),
        (np.array([[0, 0], [1, 2]]), "twice"),
        (np.array([[0, -2], [1, 2]]), "-2"),
    ],
)
def test_predictions_that_are_none_are_refused(predicted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankingMetrics().update(predicted, csr_array(np.eye(2, 4)))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no documents"):
        RankingMetrics().result()
    with pytest.raises(ValueError, match="k is 0"):
        RankingMetrics(ndcg_ks=(0,))
    for known in ({"inverse": np.ones(2)}, {"group": np.zeros(2, np.int8)}):
        with pytest.raises(ValueError, match="gold label 3"):
            measure(np.array([[0]]), csr_array(np.array([[0, 0, 0, 1]])), **known)
    metrics = RankingMetrics()
    metrics.update(np.array([[0]]), csr_array(np.eye(1)), kept=np.array([[True]]))
    with pytest.raises(ValueError, match="every chunk"):
        metrics.update(np.array([[0]]), csr_array(np.eye(1)))
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            top_labels(csr_array(np.array([[wrong, 1.0]])), 1)
    with pytest.raises(ValueError, match="twice"):
        top_labels(csr_array(([1.0, 2.0], [0, 0], [0, 2]), (1, 3)), 1)
    with pytest.raises(ValueError, match="k is 0"):
        top_labels(csr_array((1, 3)), 0)
    with pytest.raises(ValueError, match="twice"):
        precision_at_k([["a", "a"]], [{"a"}], 2)
    for wrong in ((0.0, 1.5), (0.55, 0.0), (math.nan, 1.5)):
        with pytest.raises(ValueError, match=r"positive|give a finite number"):
            inverse_propensity(np.arange(3), 100, *wrong)
    with pytest.raises(ValueError, match="as many"):
        encode([["a"]], [], {})


def test_memory_does_not_grow_with_documents() -> None:
    rng = np.random.default_rng(0)
    labels, size = 200_000, 500
    metrics = RankingMetrics(inverse=inverse_propensity(np.arange(labels), 1000))

    def feed(chunks: int) -> int:
        for _ in range(chunks):
            predicted = (rng.integers(labels, size=(size, 1)) + np.arange(5)) % labels
            gold = csr_array((np.ones(size), (np.arange(size), predicted[:, 2])), (size, labels))
            metrics.update(predicted, gold)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, last = feed(25), feed(25)
    finally:
        tracemalloc.stop()
    assert last - first < 200_000, "bytes for 12,500 documents"
    found = metrics.result()
    assert (
        found.documents == 25_000 and found.values["R@5"] == 1 and found.values["P@5"] == pytest.approx(0.2)
    )


def test_frequencies_are_those_of_labels() -> None:
    known = Frequencies.of({"often": 60, "seldom": 30, "rare": 10, "never": 0}, 100)
    assert known.ids == {"often": 0, "seldom": 1, "rare": 2, "never": 3}
    assert [GROUPS[place] for place in known.group] == ["head", "torso", "tail", "tail"]
    assert known.inverse.tolist() == inverse_propensity(np.array([60, 30, 10, 0]), 100).tolist()
    with pytest.raises(ValueError, match="3 training documents"):
        Frequencies.of({"a": 1}, 2)
