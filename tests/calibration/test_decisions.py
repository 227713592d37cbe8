"""Decisions: the rules themselves, expected F1 against brute force, and what is on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from ezxmc.calibration.decisions import Decision, Guarantee, best_sizes, micro_threshold
from ezxmc.calibration.guarantees import Rates, ReviewedDocuments, maximise_f1, rates
from ezxmc.errors import ArgumentError, BundleError, ConfigError, DataError
from ezxmc.records import Prediction

ROWS = np.array([[0.9, 0.6, 0.2], [0.5, 0.5, 0.1], [0.3, 0.1, 0.0]])


def kept(decision: Decision) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in decision.keep(ROWS)]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (Decision.top_k(2), [[0, 1], [0, 1], [0, 1]]),
        (Decision.top_k(2, abstain_below=0.5), [[0, 1], [0, 1], []]),
        (Decision.at_threshold(0.5, depth=3), [[0, 1], [0, 1], []]),
        (Decision.at_threshold(0.5, depth=1), [[0], [0], []]),
        (Decision.at_threshold(0.1, depth=3, abstain_below=0.6), [[0, 1, 2], [], []]),
        (
            Decision("top_error", 3, k=1, abstain_below=0.5, promise=Guarantee(0.1, 9, 0.9)),
            [[0], [0], []],
        ),
    ],
)
def test_what_is_kept(decision: Decision, expected: list[list[int]]) -> None:
    assert kept(decision) == expected
    assert decision.abstains(ROWS).tolist() == [not row for row in expected]
    deeper = np.hstack([ROWS, np.zeros((3, 4))])
    assert not decision.keep(deeper)[:, decision.depth :].any()
    np.testing.assert_array_equal(decision.keep(deeper)[:, :3], decision.keep(ROWS))


def test_no_documents() -> None:
    for decision in (Decision.top_k(2), Decision("expected_document_f1", 3)):
        assert decision.keep(np.empty((0, 3))).shape == (0, 3)


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(ConfigError, match="looks at 4 candidates"):
        Decision.at_threshold(0.5, depth=4).keep(ROWS)
    with pytest.raises(ConfigError, match="shape"):
        Decision.top_k(1).keep(ROWS[0])


probabilities = st.lists(st.lists(st.floats(0.01, 0.99), min_size=4, max_size=4), min_size=1, max_size=6).map(
    lambda rows: -np.sort(-np.array(rows), axis=1)
)


@given(probabilities, st.floats(0, 3))
def test_micro_f1_has_no_better_threshold(p: np.ndarray, beyond: float) -> None:
    def expected(threshold: float) -> float:
        chosen = p[p >= threshold]
        return 2 * chosen.sum() / (len(chosen) + p.sum() + beyond * len(p))

    chosen = micro_threshold(p, beyond)
    best = max(expected(threshold) for threshold in np.unique(p))
    assert expected(chosen) == pytest.approx(best, rel=1e-12)
    # arXiv 1402.1892: what is kept is what is above half the best F1.
    assert (p[p >= chosen] > best / 2 - 1e-9).all() and (p[p < chosen] < best / 2 + 1e-9).all()


@given(probabilities)
def test_no_set_of_labels_has_a_better_expected_f1(p: np.ndarray) -> None:
    outcomes = np.array(list(product([0, 1], repeat=4)))
    for row, size in zip(p, best_sizes(p), strict=True):
        chance = np.where(outcomes, row, 1 - row).prod(axis=1)

        def expected(chosen: np.ndarray, chance: np.ndarray = chance) -> float:
            right, wrong = outcomes @ chosen, outcomes.sum(axis=1)
            return float((chance * 2 * right / (chosen.sum() + wrong)).sum())

        best = max(expected(subset) for subset in outcomes if subset.any())
        assert expected((np.arange(4) < size).astype(int)) == pytest.approx(best, rel=1e-9)


def test_sizes_do_not_depend_on_how_many_documents_are_counted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = -np.sort(-np.random.default_rng(0).random((11, 5)), axis=1)
    whole = best_sizes(p)
    assert len(set(whole.tolist())) > 1
    monkeypatch.setattr("ezxmc.calibration.decisions._CELLS", 1)
    np.testing.assert_array_equal(best_sizes(p), whole)


def sample(n: int, seed: int = 0) -> ReviewedDocuments:
    """Calibrated documents: each candidate is right with its probability."""
    rng = np.random.default_rng(seed)
    p = -np.sort(-rng.beta(0.6, 1.4, (n, 6)), axis=1)
    hits = rng.random(p.shape) < p
    return ReviewedDocuments(p, hits, hits.sum(axis=1) + rng.poisson(0.3, n))


def test_expected_f1_comes_true_and_beats_other_rules() -> None:
    fitted, fresh = sample(4000), sample(4000, seed=1)
    micro, document = maximise_f1(fitted), maximise_f1(fitted, per_document=True)
    thresholds = {t: rates(fresh, fresh.probabilities >= t).f1 or 0.0 for t in np.arange(0.05, 1, 0.05)}
    assert micro.threshold is not None
    reached = rates(fresh, micro.keep(fresh.probabilities))
    assert reached.f1 is not None and reached.f1 > max(thresholds.values()) - 0.003
    assert micro.threshold == pytest.approx(reached.f1 / 2, abs=0.02)
    own = rates(fresh, document.keep(fresh.probabilities)).document_f1
    tops = [rates(fresh, Decision.top_k(k).keep(fresh.probabilities)).document_f1 for k in range(1, 7)]
    assert own is not None and own > max(top for top in tops if top is not None) + 0.01
    assert reached.document_f1 is not None and own > reached.document_f1


def test_rates_by_hand_and_by_scikit_learn() -> None:
    hits = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    reviewed = ReviewedDocuments(np.vstack([ROWS, ROWS[2:]]), hits, np.array([3, 1, 1, 0]))
    choice = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=bool)
    assert rates(reviewed, choice) == Rates(
        documents=4,
        answered=0.75,
        tags=1.25,
        missed=pytest.approx((2 / 3 + 1 + 0) / 3),
        false_tags=pytest.approx((0.5 + 0.5 + 1) / 3),
        false_tags_pooled=pytest.approx(3 / 5),
        top_error=pytest.approx(2 / 3),
        f1=pytest.approx(2 * 2 / (5 + 5)),
        document_f1=pytest.approx((2 / 5 + 0 + 2 / 3) / 3),
    )
    assert reviewed.beyond == 0.5
    inside = replace(reviewed, gold=hits.sum(axis=1))
    assert rates(inside, choice).f1 == pytest.approx(f1_score(hits, choice, average="micro"))
    some = hits.any(axis=1)
    assert rates(inside, choice).document_f1 == pytest.approx(
        f1_score(hits[some], choice[some], average="samples", zero_division=0)
    )
    nothing = rates(reviewed, np.zeros_like(hits))
    assert (nothing.answered, nothing.missed, nothing.f1, nothing.document_f1) == (0, 1, 0, 0)
    assert nothing.false_tags is nothing.false_tags_pooled is nothing.top_error is None


def test_reviewed_documents_out_of_predictions() -> None:
    predictions = [
        Prediction("a", ("x", "y"), ("X", "Y"), (0.9, 0.1), (0.8, 0.2)),
        Prediction("nobody looked", ("x", "y"), ("X", "Y"), (0.9, 0.1), (0.8, 0.2)),
        Prediction("b", ("y", "z"), ("Y", "Z"), (0.5, 0.4), (0.4, 0.3)),
    ]
    tags: dict[str, set[str]] = {"a": {"y", "far"}, "b": set()}
    with pytest.raises(
        DataError, match=r"1 of 3 documents have no label in gold .*'nobody looked'.*reviewed\?"
    ):
        ReviewedDocuments.of(predictions, tags)
    nothing = ReviewedDocuments.of(predictions, tags, without_gold="none")
    assert nothing.gold.tolist() == [2, 0, 0] and len(nothing.hits) == 3
    assert ReviewedDocuments.of([predictions[0], predictions[2]], tags).gold.tolist() == [2, 0], (
        "nothing to ask"
    )
    with pytest.raises(ArgumentError, match="without_gold is 'no'"):
        ReviewedDocuments.of(predictions, tags, without_gold="no")  # type: ignore[arg-type]
    reviewed = ReviewedDocuments.of(predictions, tags, without_gold="unreviewed")
    assert reviewed.probabilities.tolist() == [[0.8, 0.2], [0.4, 0.3]]
    assert reviewed.hits.tolist() == [[False, True], [False, False]]
    assert reviewed.gold.tolist() == [2, 0] and reviewed.beyond == 0.5
    with pytest.raises(DataError, match="no document was reviewed"):
        ReviewedDocuments.of(predictions, {"c": {"x"}})
    with pytest.raises(DataError, match="needs probabilities"):
        ReviewedDocuments.of([replace(predictions[0], probabilities=())], {"a": {"x"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hits": np.zeros((2, 3), dtype=bool)}, "do not align"),
        ({"gold": np.zeros(2, dtype=np.int64)}, "do not align"),
        ({"probabilities": ROWS[:, ::-1]}, "best first"),
        ({"probabilities": ROWS * 2}, r"in \[0, 1\]"),
        ({"probabilities": ROWS * np.nan}, r"in \[0, 1\]"),
        ({"hits": np.ones((3, 3), dtype=bool)}, "more hits than gold"),
    ],
)
def test_reviewed_documents_that_cannot_be(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "probabilities": ROWS,
        "hits": np.zeros((3, 3), dtype=bool),
        "gold": np.zeros(3, dtype=np.int64),
    }
    ReviewedDocuments(**good)
    with pytest.raises(DataError, match=message):
        ReviewedDocuments(**good | change)


DECISIONS = [
    Decision.top_k(3),
    Decision.at_threshold(0.25, depth=7, abstain_below=0.5),
    Decision("expected_f1", 5, threshold=1 / 3),
    Decision("expected_document_f1", 5),
    Decision("missed_rate", 50, threshold=0.1 + 0.2, promise=Guarantee(0.1, 400)),
    Decision("false_tag_rate", 50, threshold=0.58, promise=Guarantee(0.2, 400, 0.9)),
    Decision("top_error", 50, k=1, abstain_below=0.6, promise=Guarantee(0.05, 400, 0.95)),
]


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.kind)
def test_a_decision_survives_the_disk_and_says_what_it_promises(tmp_path: Path, decision: Decision) -> None:
    decision.save(tmp_path / "decision.json")
    assert Decision.load(tmp_path / "decision.json") == decision
    words = decision.guarantee
    if decision.promise is None:
        assert words == "no rate is guaranteed"
        return
    assert f"{100 * decision.promise.target:g} %" in words and "exchangeable" in words and "400" in words
    assert ("in expectation" in words) == (decision.promise.confidence is None)
    assert ("confidence 90 %" in words) == (decision.promise.confidence == 0.9)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 1.5},
        {"threshold": None},
        {"threshold": float("nan")},
        {"depth": 0},
        {"k": 99},
        {"abstain_below": -0.1},
        {"kind": "magic"},
        {"kind": "missed_rate"},
        {"kind": "top_k"},
        {"promise": {"target": 2.0, "documents": 3}},
        {"version": 99},
        {"depth": None},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "decision.json"
    good = DECISIONS[1].to_dict()
    path.write_text(json.dumps(good))
    assert Decision.load(path) == DECISIONS[1]
    path.write_text(json.dumps(good | change))
    with pytest.raises(BundleError, match=r"decision\.json"):
        Decision.load(path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_no_decision_at_all(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "decision.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"decision\.json"):
        Decision.load(path)
