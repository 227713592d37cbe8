"""What people's decisions add to labels' scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ezxmc.errors import BundleError, ConfigError
from ezxmc.records import Label
from ezxmc.retrieval.index import LabelIndex
from ezxmc.retrieval.label_offsets import (
    _BIAS,
    _GROUP,
    _SHIFT,
    DecidedPairs,
    LabelOffsets,
    worth_of_counts,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def world(
    seed: int = 0, documents: int = 60, labels: int = 12, dimension: int = 6
) -> tuple[list[Label], np.ndarray, np.ndarray, DecidedPairs]:
    """Labels of three parents or none, half with a count, and decisions that a bias decides too."""
    rng = np.random.default_rng(seed)
    names = [
        Label(f"l{i}", f"label {i}", parent=f"p{i % 3}" if i else None, count=10.0**i if i % 2 else None)
        for i in range(labels)
    ]
    vectors, texts = unit(rng, labels, dimension), unit(rng, documents, dimension)
    scores = texts @ vectors.T
    where, which = (part.ravel() for part in np.indices((documents, labels)))
    some = rng.random(len(where)) < 0.4
    where, which = where[some], which[some]
    likely = 4 * scores[where, which] + 1.5 * np.sin(np.arange(labels))[which]
    answers = (rng.random(len(where)) < 1 / (1 + np.exp(-likely))).astype(np.float32)
    weights = rng.choice([1.0, 3.0], len(where)).astype(np.float32)
    return names, vectors, texts, DecidedPairs(texts, where, which, scores[where, which], answers, weights)


def test_the_fit_is_a_logistic_regression() -> None:
    """scikit-learn's, on the same columns, each scaled by its prior's spread: one penalty fits all."""
    labels, _, texts, pairs = world()
    found = LabelOffsets.fit(pairs, labels)
    assert found is not None
    size, dimension = len(labels), texts.shape[1]
    own = np.eye(size)[pairs.labels]
    parents = ["p0", "p1", "p2"]
    shared = np.array([[label.parent == name for name in parents] for label in labels])[pairs.labels]
    moved = (own[:, :, None] * texts[pairs.documents][:, None, :]).reshape(len(own), -1)
    # A column of huge scale has next to no penalty: the slope's.
    counts = np.array([np.nan if label.count is None else label.count for label in labels])
    often = np.nan_to_num((np.log1p(counts) - np.nanmean(np.log1p(counts))).clip(-3, 3))[pairs.labels]
    assert abs(often).max() == 3, "bounded"
    columns = np.hstack(
        [1e3 * pairs.scores[:, None], _BIAS * own, _GROUP * shared, often[:, None], _SHIFT * moved]
    )
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
    model.fit(columns, pairs.answers, sample_weight=pairs.weights)
    slope, *rest = model.coef_[0]
    slope *= 1e3
    bias, groups, beta, shifts = np.split(np.array(rest), [size, size + 3, size + 4])
    assert found.frequency[0] == pytest.approx(beta[0] / slope, abs=2e-3)
    np.testing.assert_allclose(found.bias, _BIAS * bias / slope, atol=2e-3)
    np.testing.assert_allclose([found.groups[p] for p in parents], _GROUP * groups / slope, atol=2e-3)
    np.testing.assert_allclose(found.shifts.ravel(), _SHIFT * shifts.reshape(-1) / slope, atol=2e-3)
    assert found.shifts.shape == (size, dimension)


def test_soft_answers_tell_what_counts_are_worth() -> None:
    """With answers by 10 s - 5 + 0.8 f a nat is worth 0.08; what moves nothing gains no more than chance."""
    rng = np.random.default_rng(0)
    names = [
        Label(f"l{i}", f"label {i}", count=float(count))
        for i, count in enumerate(np.exp(rng.normal(3, 1, 50)))
    ]
    of, which = np.repeat(np.arange(80), 10), rng.integers(0, 50, 800)
    scores = rng.uniform(0.2, 0.8, 800).astype(np.float32)
    often = np.log1p([label.count or 0 for label in names])
    odds = 10 * scores - 5 + 0.8 * (often - often.mean())[which]
    answers = (1 / (1 + np.exp(-odds))).astype(np.float32)
    worth, gain, error = worth_of_counts(of, scores, answers, which, names, 5)
    assert worth == pytest.approx(0.08, abs=0.01) and gain > 3 * error > 0
    mixed = [
        replace(label, count=names[i].count) for label, i in zip(names, rng.permutation(50), strict=True)
    ]
    blind = (1 / (1 + np.exp(5 - 10 * scores))).astype(np.float32)
    worth, gain, error = worth_of_counts(of, scores, blind, which, mixed, 5)
    assert abs(worth) < 0.005 and gain <= error
    assert worth_of_counts(of, scores, 1 - blind, which, names, 5)[0] == 0, "yes does not rise with scores"


def test_people_start_from_what_the_teacher_says_counts_are_worth() -> None:
    labels, _, _, pairs = world()
    few = pairs.of(np.arange(60) < 3)
    told = [LabelOffsets.fit(few, labels, worth) for worth in (0.0, 0.3)]
    assert told[0] and told[1] and told[0].frequency[0] + 0.02 < told[1].frequency[0] < 0.3


def test_what_a_count_is_worth_holds_for_labels_nobody_decided_on() -> None:
    labels, vectors, _, pairs = world()
    found = LabelOffsets.fit(pairs, labels)
    assert found is not None and found.frequency[0] != 0
    more = [*labels, Label("often", "often", count=1e9), Label("unknown", "unknown")]
    index = LabelIndex.build(np.vstack([vectors, vectors[:2]]))
    *_, often, unknown = found.on(more, index).bias
    assert often == pytest.approx(3 * found.frequency[0]) and unknown == 0


def test_few_of_many_pairs_are_fitted_as_all_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, _, _, pairs = world()
    found = LabelOffsets.fit(pairs, labels)
    monkeypatch.setattr("ezxmc.retrieval.label_offsets._WHOLE", 0)
    other = LabelOffsets.fit(pairs, labels)
    assert found is not None and other is not None
    np.testing.assert_allclose(found.bias, other.bias, atol=1e-3)
    np.testing.assert_allclose(found.shifts, other.shifts, atol=1e-3)


def test_nothing_is_fitted_where_nothing_can_be() -> None:
    labels, _, _, pairs = world()
    every = np.ones_like(pairs.answers)
    one_kind = DecidedPairs(pairs.vectors, pairs.documents, pairs.labels, pairs.scores, every, pairs.weights)
    assert LabelOffsets.fit(one_kind, labels) is None
    against = DecidedPairs(
        pairs.vectors,
        pairs.documents,
        pairs.labels,
        pairs.scores,
        np.float32(pairs.scores < 0),
        pairs.weights,
    )
    assert LabelOffsets.fit(against, labels) is None, "a no for the best scores"


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), k=st.integers(1, 30), decided=st.integers(0, 12))
def test_search_finds_the_best_of_all_labels(seed: int, k: int, decided: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(max(2, decided), 90))
    vectors, texts = unit(rng, size, 8), unit(rng, 5, 8)
    labels = [Label(f"l{i}", f"t{i}", parent=None if i % 2 else "even") for i in range(size)]
    index = LabelIndex.build(vectors)
    chosen = sorted(rng.choice(size, decided, replace=False).tolist())
    offsets = LabelOffsets(
        tuple((labels[i].uid, labels[i].title) for i in chosen),
        rng.normal(size=decided).astype(np.float32),
        rng.normal(size=(decided, 8)).astype(np.float32),
        {"even": 0.3},
    )
    removed = [i for i in range(size) if rng.random() < 0.2][: size - 1]
    index.remove(removed)
    wanted = texts @ vectors.T + np.array([0.3 if i % 2 == 0 else 0 for i in range(size)])
    for place, i in enumerate(chosen):
        wanted[:, i] += offsets.bias[place] + texts @ offsets.shifts[place]
    wanted[:, removed] = -np.inf
    scores, rows = offsets.on(labels, index).search(
        index.search, lambda x, some: x @ index.vectors(some).T, texts, k
    )
    best = -np.sort(-wanted, axis=1)[:, : min(k, size - len(removed))]
    np.testing.assert_allclose(scores, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(wanted, rows, 1), best, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_a_decided_label_far_down_comes_up() -> None:
    """The scores' own candidates are 100; what people raised is looked at beside them."""
    rng = np.random.default_rng(0)
    vectors, texts = unit(rng, 400, 8), unit(rng, 3, 8)
    labels = [Label(f"l{i}", f"t{i}") for i in range(400)]
    index = LabelIndex.build(vectors)
    last = int(np.argmin(texts[0] @ vectors.T))
    raised = LabelOffsets(((f"l{last}", f"t{last}"),), np.float32([3]), np.zeros((1, 8), np.float32))
    _, rows = raised.on(labels, index).search(index.search, lambda x, some: x @ vectors[some].T, texts, 1)
    assert rows[0, 0] == last


def test_a_label_with_another_title_has_no_offset() -> None:
    offsets = LabelOffsets((("a", "old"), ("b", "same")), np.float32([1, 2]), np.zeros((2, 4), np.float32))
    index = LabelIndex.build(unit(np.random.default_rng(0), 2, 4))
    found = offsets.on([Label("a", "new"), Label("b", "same")], index)
    assert found.bias.tolist() == [0, 2] and found.rows.tolist() == [1]


def test_saved_and_read_it_is_the_same(tmp_path: Path) -> None:
    labels, *_, pairs = world()
    found = LabelOffsets.fit(pairs, labels)
    assert found is not None
    found = replace(found, documents=frozenset({"ab"}), gain={"P@1": 0.1})
    found.save(tmp_path / "offsets.safetensors")
    other = LabelOffsets.load(tmp_path / "offsets.safetensors")
    np.testing.assert_array_equal(found.bias, other.bias)
    np.testing.assert_array_equal(found.shifts, other.shifts)
    assert (found.labels, found.groups, found.documents, found.gain) == (
        other.labels,
        other.groups,
        other.documents,
        other.gain,
    )
    with pytest.raises(BundleError, match="6 dimensions, the index of 4"):
        other.on(labels, LabelIndex.build(unit(np.random.default_rng(0), 12, 4)))


def test_what_is_damaged_is_refused_and_what_is_foreign_kept(tmp_path: Path) -> None:
    file = tmp_path / "offsets.safetensors"
    file.write_bytes(b"mine")
    with pytest.raises(BundleError, match="cannot be read"):
        LabelOffsets.load(file)
    offsets = LabelOffsets((("a", "t"),), np.float32([1]), np.zeros((1, 4), np.float32))
    with pytest.raises(ConfigError):
        offsets.save(file)
    assert file.read_bytes() == b"mine"
    file.unlink()
    LabelOffsets((("a", "t"),), np.float32([np.nan]), np.zeros((1, 4), np.float32)).save(file)
    with pytest.raises(BundleError, match="not finite"):
        LabelOffsets.load(file)
    file.unlink()
    LabelOffsets((("a", "t"),), np.float32([1, 2]), np.zeros((1, 4), np.float32)).save(file)
    with pytest.raises(BundleError, match="1 labels have biases"):
        LabelOffsets.load(file)
