"""Judgments to targets: order, zero point, priors, unknowns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.grids import grid, ok

from ezxmc.config import TrainingConfig
from ezxmc.errors import TrainingError
from ezxmc.feedback.targets import build_targets, context_documents, context_of, context_size, doubt
from ezxmc.records import Document, Judgment, Status


def unknown(doc: str, label: str) -> Judgment:
    return Judgment("0" * 64, doc, label, Status.LOW_MASS, None, 0.01)


@pytest.mark.parametrize("shift", [-7.0, 0.0, 5.0])
def test_the_zero_point_ignores_the_wording(shift: float) -> None:
    plain, moved = (build_targets(grid(shift=s), TrainingConfig()) for s in (0.0, shift))
    for a, b in zip(plain.documents, moved.documents, strict=True):
        assert a.labels == b.labels and a.positives == b.positives
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-9)
    total = sum(document.probabilities.sum() for document in moved.documents)
    assert total / 30 == pytest.approx(14 * 0.25, abs=1e-6)
    many = build_targets(grid(labels=40), TrainingConfig())
    assert sum(d.probabilities.sum() for d in many.documents) / 30 == pytest.approx(5.0, abs=1e-6)


def test_positives_are_the_head_and_negatives_the_improbable_tail() -> None:
    config = TrainingConfig(positives=4, negative_below=0.3)
    for document in build_targets(grid(), config).documents:
        p = dict(zip(document.labels, document.probabilities, strict=True))
        assert list(document.probabilities) == sorted(document.probabilities, reverse=True)
        assert (
            document.positives == document.labels[: len(document.positives)] and len(document.positives) <= 4
        )
        assert all(p[label] >= 0.3 for label in document.positives)
        assert set(document.negatives) == {label for label, value in p.items() if value < 0.3}


def test_a_label_that_always_gets_yes_is_taken_down() -> None:
    judgments = grid() + [ok(f"d{i:02}", "yes", 6.0 + 0.1 * (i % 3)) for i in range(30)]
    plain = build_targets(judgments, TrainingConfig(prior_alpha=0.0))
    corrected = build_targets(judgments, TrainingConfig(prior_alpha=1.0))
    assert sum(d.labels[0] == "yes" for d in plain.documents) > 25
    assert sum(d.labels[0] == "yes" for d in corrected.documents) < 15
    # The shift is the mean over the judgments, shrunk by 8 pseudo-counts to the overall mean.
    zs = [j.log_odds for j in judgments if j.label_uid == "yes"]
    mean = np.mean([j.log_odds for j in judgments])
    expected = (np.sum(zs) + 8 * mean) / (len(zs) + 8) - mean
    assert corrected.prior.shifts["yes"] == pytest.approx(expected)
    document = corrected.documents[0]
    z = next(
        j.log_odds for j in judgments if (j.doc_uid, j.label_uid) == (document.doc_uid, document.labels[0])
    )
    left = z - corrected.prior.shifts[document.labels[0]] - corrected.prior.zero
    assert document.probabilities[0] == pytest.approx(1 / (1 + np.exp(-left)))


def test_context_shows_a_prior_that_shortlists_hide() -> None:
    # "yes" gets 6 from any document, and is shortlisted only where it is right.
    judgments = [*grid(), ok("d00", "yes", 6.0)]
    labels = [*sorted({j.label_uid for j in grid()}), "yes"]
    context = [ok(f"c{i}", label, 6.0 if label == "yes" else -2.0) for i in range(4) for label in labels]
    config = TrainingConfig(prior_alpha=0.5)
    shifts = build_targets(judgments, config, context).prior.shifts
    mean = (6.0 - 2.0 * (len(labels) - 1)) / len(labels)
    assert shifts["yes"] == pytest.approx(0.5 * (6.0 - mean))
    assert shifts["l00"] == pytest.approx(0.5 * (-2.0 - mean))
    assert shifts["yes"] > build_targets(judgments, config).prior.shifts["yes"]
    assert build_targets(judgments, TrainingConfig(prior="none"), context).prior.shifts == {}


def test_context_is_found_among_judgments_and_drawn_the_same_every_time() -> None:
    full = [ok("c", f"l{i:02}", 0.0) for i in range(20)]
    listed = grid(labels=9)
    assert context_of([*listed, *full], 20) == full
    assert context_of([*listed, *full[:18]], 20) == []
    documents = [Document(f"d{i}", "", "text") for i in range(50)]
    there = [documents[i] for i in context_documents(documents, range(40), 5)]
    documents.reverse()
    back = [documents[i] for i in context_documents(documents, range(10, 50), 5)]
    assert len(set(there)) == 5 and back == there


@pytest.mark.parametrize("late", [1, 25, 400])
def test_labels_that_came_later_do_not_cost_the_others_their_priors(late: int) -> None:
    context = [ok(f"c{i}", f"l{j:03}", -1.0) for i in range(8) for j in range(466)]
    rng = np.random.default_rng(late)
    listed = [
        ok(f"d{i}", f"l{j:03}", 2.0) for i in range(300) for j in rng.permutation(466 + late)[: 14 + i % 50]
    ]
    # One of the documents is near a new label.
    near = [ok("c3", "l466", 5.0)]
    assert context_of([*listed, *context, *near], 466 + late) == context
    # Every document's shortlist holds most of a small catalog; none was asked on purpose.
    short = [ok(f"d{i}", f"l{j}", 0.0) for i in range(40) for j in rng.permutation(20)[: 12 + i % 3]]
    assert context_of(short, 20) == []
    assert context_of([*short, *(ok("c", f"l{j}", 0.0) for j in range(20))], 21)[0].doc_uid == "c"


@pytest.mark.parametrize(
    ("prior", "labels", "pairs", "size"),
    [
        ("auto", 466, 14_000, 8),
        ("auto", 466, 4_060, 4),
        ("auto", 466, 1_800, 0),
        ("auto", 10**5, 10**7, 2),
        ("auto", 10**6, 10**7, 0),
        ("contextual", 466, 100, 8),
        ("estimated", 466, 10**6, 0),
        ("none", 466, 10**6, 0),
    ],
)
def test_how_many_documents_the_prior_is_worth(prior: str, labels: int, pairs: int, size: int) -> None:
    assert context_size(TrainingConfig(prior=prior), labels, pairs) == size


def test_unknown_judgments_are_masked_and_counted() -> None:
    judgments = [*grid(), unknown("d00", "l99"), unknown("lost", "l01")]
    targets = build_targets(judgments, TrainingConfig())
    assert (targets.judged, targets.unknown, targets.without_judgments) == (420, 2, 1)
    assert [d.doc_uid for d in targets.documents] == [f"d{i:02}" for i in range(30)]
    assert "l99" not in targets.documents[0].labels
    with pytest.raises(TrainingError, match="none of 1 judgments"):
        build_targets([unknown("d", "l")], TrainingConfig())


def test_a_low_temperature_makes_targets_surer_and_keeps_their_sum() -> None:
    plain, sure = (build_targets(grid(), TrainingConfig(target_temperature=t)) for t in (1.0, 0.5))
    for a, b in zip(plain.documents, sure.documents, strict=True):
        assert a.labels == b.labels
    left, right = (np.concatenate([d.probabilities for d in t.documents]) for t in (plain, sure))
    assert np.abs(right - 0.5).mean() > np.abs(left - 0.5).mean() + 0.05
    assert left.sum() == pytest.approx(right.sum())


def test_fusion_adds_the_proposers_opinion_to_the_log_odds() -> None:
    asked: list[tuple[str, str]] = []

    def cosines(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        asked.extend(pairs)
        return np.array([0.5 if label == "l03" else 0.0 for _, label in pairs])

    config = TrainingConfig(fusion=6.0, prior="none")
    fused = build_targets(grid(), config, proposals=cosines)
    by_hand = [replace(j, log_odds=(j.log_odds or 0.0) + 3.0 * (j.label_uid == "l03")) for j in grid()]
    expected = build_targets(by_hand, config)
    assert sorted(asked) == sorted((j.doc_uid, j.label_uid) for j in grid())
    for a, b in zip(fused.documents, expected.documents, strict=True):
        assert a.labels == b.labels
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-12)
    build_targets(grid(), TrainingConfig(fusion=0.0), proposals=cosines)
    assert len(asked) == 420, "without weight, nobody is asked"


def test_hopeless_documents_have_no_positive() -> None:
    judgments = [j for j in grid() if j.doc_uid != "d00"] + [ok("d00", f"l{j:02}", -40.0) for j in range(14)]
    targets = build_targets(judgments, TrainingConfig())
    assert targets.without_positives == 1
    assert targets.documents[0].positives == () and len(targets.documents[0].negatives) == 14


def test_the_order_of_the_judgments_does_not_matter() -> None:
    judgments = grid()
    shuffled = random.Random(1).sample(judgments, len(judgments))
    a, b = (build_targets(part, TrainingConfig()) for part in (judgments, shuffled))
    assert [d.labels for d in a.documents] == [d.labels for d in b.documents]
    assert a.prior.zero == pytest.approx(b.prior.zero, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.floats(-60, 60)), min_size=1, max_size=40))
def test_any_judgments_give_sound_targets(rows: list[tuple[int, int, float]]) -> None:
    targets = build_targets([ok(str(d), str(label), z) for d, label, z in rows], TrainingConfig())
    assert targets.judged == len({(d, label) for d, label, _ in rows})
    for document in targets.documents:
        assert np.isfinite(document.probabilities).all() and len(document.labels) == len(set(document.labels))
        assert not set(document.positives) & set(document.negatives)
        assert len(document.positives) <= 5


@pytest.mark.parametrize(
    ("yes", "said"), [(0, '"no" to 200 of 200'), (1, '"no" to 199'), (200, '"yes" to 200')]
)
def test_a_teacher_that_says_the_same_to_nearly_everything_is_told(yes: int, said: str) -> None:
    judgments = [ok("d", str(n), (n + 1) / 50 if n < yes else -2 - n / 50) for n in range(200)]
    assert said in (doubt(judgments) or "") and "cure" in (doubt(judgments) or "")
    build_targets(judgments, TrainingConfig())  # there still is an order to learn from


def test_a_teacher_that_gives_one_answer_to_everything_teaches_nothing() -> None:
    same = [ok(f"d{n}", "l", -4.0) for n in range(40)]
    with pytest.raises(TrainingError, match="gave all 40 pairs the same answer"):
        build_targets(same, TrainingConfig())
    assert build_targets(same, TrainingConfig(), verdicts={("d1", "l"): True}).documents
    assert doubt(grid()) is None and doubt(same[:5]) is None
