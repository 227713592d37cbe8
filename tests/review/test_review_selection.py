"""Which pairs are picked: votes of like documents, confident learning, quotas."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezxmc.records import Document
from ezxmc.review import picks as quality
from ezxmc.review.picks import (
    JudgedPairs,
    Reason,
    Suspects,
    choose,
    neighbour_votes,
    random_order,
    suspects,
)


def world(seed: int, documents: int = 30, labels: int = 5) -> tuple[np.ndarray, ...]:
    """Unit vectors, and about half of all pairs judged."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(documents, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = np.array([(d, t) for d in range(documents) for t in range(labels) if rng.random() < 0.5])
    pairs = pairs[rng.permutation(len(pairs))]
    return pairs[:, 0], pairs[:, 1], rng.random(len(pairs)), vectors


@pytest.mark.parametrize("seed", range(3))
def test_votes_are_those_of_the_other_documents(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_ROWS", 7)  # blocks, too
    documents, labels, answers, vectors = world(seed)
    found = neighbour_votes(documents, labels, answers, vectors, 0)
    for i in range(len(answers)):
        others = [j for j in range(len(answers)) if labels[j] == labels[i] and j != i]
        mean = (sum(answers[j] for j in others) + 2 * answers.mean()) / (len(others) + 2)
        weights = [np.exp((float(vectors[documents[i]] @ vectors[documents[j]]) - 0.5) / 0.1) for j in others]
        said = sum(w * answers[j] for w, j in zip(weights, others, strict=True))
        assert found.shares[i] == pytest.approx((said + 2 * mean) / (sum(weights) + 2), rel=1e-4)
        assert found.support[i] == pytest.approx(sum(weights), rel=1e-4)


def test_a_pair_has_no_vote_about_itself() -> None:
    documents, labels, answers, vectors = world(0)
    for i in range(10):
        turned = answers.copy()
        turned[i] = 1 - turned[i]
        # The mean of all pairs moves a little; the rest must not.
        turned[labels != labels[i]] += (answers.sum() - turned.sum()) / (labels != labels[i]).sum()
        before, after = (
            neighbour_votes(documents, labels, a, vectors, 0).shares[i] for a in (answers, turned)
        )
        assert after == pytest.approx(before)


def test_of_many_voters_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, labels, answers, vectors = world(0, 300, 1)
    every = neighbour_votes(documents, labels, answers, vectors, 0).shares
    monkeypatch.setattr(quality, "_MOST_VOTERS", 100)
    some = neighbour_votes(documents, labels, answers, vectors, 0).shares
    assert not np.array_equal(some, every) and np.abs(some - every).mean() < 0.1
    np.testing.assert_array_equal(some, neighbour_votes(documents, labels, answers, vectors, 0).shares)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30))
def test_suspects_are_off_the_diagonal_of_the_confident_joint(rows: list[tuple[bool, float]]) -> None:
    given_yes, shares = np.array([g for g, _ in rows]), np.array([p for _, p in rows])
    found = suspects(given_yes, shares)
    if given_yes.all() or not given_yes.any():
        assert not found.wrong.any()
        return
    # The paper, word by word: thresholds, then the most probable of the classes that reach theirs.
    p = np.stack([1 - shares, shares], axis=1)
    threshold = [p[given_yes == bool(j), j].mean() for j in (0, 1)]
    for i, g in enumerate(given_yes.astype(int)):
        reached = [j for j in (0, 1) if p[i, j] >= threshold[j]]
        if p[i, 0] == p[i, 1] and len(reached) == 2:
            continue
        true = max(reached, key=lambda j: p[i, j], default=None)
        assert bool(found.wrong[i]) == (true == 1 - g), (i, g, p[i], threshold)


def test_planted_errors_are_found() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))
    topic = rng.integers(0, 4, 400)
    vectors = centres[topic] + 0.5 * rng.normal(size=(400, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    documents, labels = (one.ravel() for one in np.meshgrid(np.arange(400), np.arange(4), indexing="ij"))
    right = topic[documents] == labels
    planted = rng.random(len(right)) < 0.05
    answers = np.where(right ^ planted, 0.9, 0.1)
    shares = neighbour_votes(documents, labels, answers, vectors, 0).shares
    wrong, margins = suspects(answers > 0.5, shares)
    assert planted[wrong].mean() > 0.9 and wrong[planted].mean() > 0.7
    strongest = np.argsort(-np.where(wrong, margins, -9))[: planted.sum() // 2]
    assert planted[strongest].all()


def pairs(seed: int, n: int = 400) -> JudgedPairs:
    rng = np.random.default_rng(seed)
    return JudgedPairs(
        rng.integers(0, 60, n),
        rng.integers(0, 25, n),
        rng.random(n),
        rng.random(n),
        Suspects(rng.random(n) < 0.2, rng.normal(size=n)),
        rng.random(n) < 0.8,
    )


@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 6), st.integers(1, 4))
def test_quotas_hold_and_every_pick_has_its_reason(seed: int, count: int, label: int, document: int) -> None:
    there = pairs(seed)
    found = choose(there, count, per_label=label, per_document=document, seed=1)
    rows = [row for row, _ in found]
    assert len(rows) == len(set(rows)) <= count and there.open[rows].all()
    assert max(Counter(there.labels[rows].tolist()).values(), default=0) <= label
    assert max(Counter(there.documents[rows].tolist()).values(), default=0) <= document
    for row, reason in found:
        p, s = there.teacher[row], there.student[row]
        assert {
            Reason.UNSURE: abs(p - 0.5) < 0.25,
            Reason.DISAGREEMENT: (p < 0.5) != (s < 0.5),
            Reason.QUALITY: bool(there.suspects.wrong[row]),
        }[reason]
    assert found == choose(there, count, per_label=label, per_document=document, seed=1)


def test_reasons_take_turns_strongest_first() -> None:
    there = pairs(0)
    found = choose(there, 60, per_label=99, per_document=99, seed=0)
    assert Counter(reason for _, reason in found) == dict.fromkeys(
        (Reason.UNSURE, Reason.DISAGREEMENT, Reason.QUALITY), 20
    )
    assert [reason for _, reason in found[:3]] == [Reason.UNSURE, Reason.DISAGREEMENT, Reason.QUALITY]
    unsure = [abs(there.teacher[row] - 0.5) for row, reason in found if reason is Reason.UNSURE]
    assert unsure == sorted(unsure)
    assert unsure[0] == np.abs(there.teacher - 0.5)[there.open].min()
    few = choose(there, 10**6, per_label=99, per_document=99, seed=0)
    assert len(few) < there.open.sum(), "a pair nobody doubts is not worth a minute"


def test_equal_pairs_are_drawn_by_seed() -> None:
    n = 50
    equal = JudgedPairs(
        np.arange(n), np.arange(n), np.full(n, 0.5), np.full(n, 0.5),
        Suspects(np.zeros(n, bool), np.zeros(n)), np.ones(n, bool),
    )  # fmt: skip
    drawn = [
        {row for row, _ in choose(equal, 10, per_label=9, per_document=9, seed=seed)} for seed in range(3)
    ]
    assert len(drawn[0]) == 10 and drawn[0] != drawn[1] != drawn[2]


def test_random_documents_stay_in_their_order() -> None:
    documents = [Document(f"d{i}", "", "text") for i in range(200)]
    there = random_order(documents, 0)
    assert there != documents and set(there) == set(documents) and random_order(documents, 1) != there
    fewer = random_order(documents[:150][::-1], 0)
    assert fewer == [document for document in there if int(document.uid[1:]) < 150]
