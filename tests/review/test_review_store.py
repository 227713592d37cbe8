"""People's decisions in the store: apart from teachers, append-only, crash-safe, found by content."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeTeacher, catalog
from support.grids import grid

from ezxmc.calibration import completed, fit_calibrator, fit_few_shot
from ezxmc.config import TrainingConfig
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.reviews import (
    Answer,
    Review,
    ReviewedLists,
    ReviewedPairs,
    Reviews,
    pair_id,
)
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import build_targets
from ezxmc.metrics import ece_at_k
from ezxmc.pipeline.people_ranks import Decided, verdicts_of
from ezxmc.records import Document, Label, Prediction
from ezxmc.training.dataset import collate_in_batch, examples
from ezxmc.training.losses import LOSSES, combined
from ezxmc.training.step import scored

DOCS, LABELS = catalog(4, 3)


def say(doc: int, label: int, answer: Answer | None, at: float | None = None, who: str = "ann") -> Review:
    return Review.of(DOCS[doc], LABELS[label], answer, reviewer=who, at=at)


def answers(path: Path) -> dict[tuple[str, str], str | None]:
    with Reviews(path) as reviews:
        return {(r.doc_uid, r.label_uid): r.answer and r.answer.value for r in reviews.latest().values()}


def test_a_person_is_no_teacher(tmp_path: Path) -> None:
    path, teacher = tmp_path / "s.sqlite", FakeTeacher()
    with FeedbackStore(path) as store, Reviews(path) as reviews:
        annotate(lambda: pairs_of(DOCS, LABELS, [[0, 1, 2]] * 4), teacher, store)
        before = list(store.judgments()), store.teachers(), store.totals(teacher.fingerprint)
        reviews.add([say(doc, label, Answer.NO) for doc in range(4) for label in range(3)])
        assert (list(store.judgments()), store.teachers(), store.totals(teacher.fingerprint)) == before
        assert store.newest_teacher() == teacher.fingerprint
    with Reviews(tmp_path / "people_only.sqlite") as reviews:
        reviews.add([say(0, 0, Answer.YES)])
    with FeedbackStore(tmp_path / "people_only.sqlite") as store:
        assert store.newest_teacher() is None and not list(store.judgments())


def test_decisions_are_only_added(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Reviews(path) as reviews:
        reviews.add([say(0, 0, Answer.YES, 1.0), say(0, 0, None, 2.0)])
    with sqlite3.connect(path) as db:
        for statement in ("DELETE FROM reviews", "UPDATE reviews SET answer = 'no'"):
            with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                db.execute(statement)
        with pytest.raises(sqlite3.DatabaseError, match="CHECK"):
            db.execute("INSERT INTO reviews VALUES (9, x'00', x'00', 1, 1, 'maybe', NULL, 0)")
    db.close()
    assert answers(path) == {("d0", "l0"): None}


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([*Answer, None]), st.integers(0, 5))
    )
)
def test_the_last_word_counts(rows: list[tuple[int, int, Answer | None, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Reviews(Path(folder) / "s.sqlite") as reviews:
        for doc, label, answer, at in rows:
            reviews.add([say(doc, label, answer, float(at))])
        found = [(r.doc_uid, r.label_uid, r.answer) for r in reviews.latest().values()]
    expected = {}
    for doc, label in {(doc, label) for doc, label, _, _ in rows}:
        mine = [(at, i, answer) for i, (d, one, answer, at) in enumerate(rows) if (d, one) == (doc, label)]
        expected[f"d{doc}", f"l{label}"] = max(mine, key=lambda row: row[:2])
    # In the order of the last words, so that the last can be taken back.
    order = sorted(expected, key=lambda pair: expected[pair][:2])
    assert found == [(*pair, expected[pair][2]) for pair in order]


def _decide_and_die(path: Path) -> None:
    reviews = Reviews(path)
    for number in range(3):
        reviews.add([say(number, 0, Answer.YES)])
    os.kill(os.getpid(), 9)


def test_what_was_added_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    process = multiprocessing.get_context("fork").Process(target=_decide_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert answers(path) == {(f"d{number}", "l0"): "yes" for number in range(3)}


def test_what_people_add_is_a_yes_to_stores_and_programs_of_before(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"

    def rows(query: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as db:
            return db.execute(query).fetchall()

    with Reviews(path) as reviews:
        reviews.add([say(0, 0, Answer.YES, 1.0)])
    tables = rows("SELECT name FROM sqlite_master")
    assert answers(path) == {("d0", "l0"): "yes"} and ("added",) not in tables
    with Reviews(path) as reviews, Reviews(path) as other:
        reviews.add([say(1, 1, Answer.ADDED, 2.0), say(1, 2, Answer.NO, 3.0), say(2, 0, Answer.ADDED, 4.0)])
        other.add([say(2, 0, None, 5.0), say(3, 1, Answer.ADDED, 6.0)])
        reviews.add([say(3, 1, Answer.YES, 7.0)])
    assert answers(path) == {
        ("d0", "l0"): "yes",
        ("d1", "l1"): "added",
        ("d1", "l2"): "no",
        ("d2", "l0"): None,
        ("d3", "l1"): "yes",
    }
    assert rows("SELECT answer FROM reviews ORDER BY at") == [
        (said,) for said in ("yes", "yes", "no", "yes", None, "yes", "yes")
    ]
    for statement in ("DELETE FROM added", "UPDATE added SET review = 1"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            rows(statement)


def test_what_people_add_teaches_and_tells_nothing_of_what_students_propose() -> None:
    top = [Prediction("d0", ("l0", "l1", "l2"), (), ()), Prediction("d1", ("l0", "l1", "l2"), (), ())]
    proposed = {("d0", f"l{i}"): Answer.YES if i == 1 else Answer.NO for i in range(3)}
    proposed |= {("d0", "former"): Answer.NO, ("d0", "right before"): Answer.YES}
    named = {("d0", "l0"): Answer.ADDED, ("d0", "far"): Answer.ADDED, ("d0", "off"): Answer.ADDED}
    alone = {("d1", "l0"): Answer.ADDED, ("d1", "far"): Answer.ADDED}
    before = ReviewedPairs(proposed).lists(top, 3)
    assert (before.beside, before.right_beside, before.added) == (2, 1, {})
    decided = ReviewedPairs(proposed | named | alone)
    found = decided.lists(top, 3)
    assert found.answers == {"d0": {"l0": True, "l1": True, "l2": False}} and found.scarce == 1
    assert (found.whole, found.beside, found.right_beside) == (1, 2, 1)
    assert found.added == {"d0": ("far", "off")}
    assert decided.verdicts["d1", "far"] is True and decided.verdicts_outside({"d0"}) == {
        ("d1", "l0"): True,
        ("d1", "far"): True,
    }
    assert [answer.verdict for answer in (Answer.YES, Answer.NO, Answer.SKIP, Answer.ADDED)] == [
        *(True, False, None, True)
    ]


def test_decisions_wait_for_the_disk(tmp_path: Path) -> None:
    with Reviews(tmp_path / "s.sqlite") as reviews:
        assert reviews._db.rows("PRAGMA synchronous") == [(2,)]


def test_decisions_belong_to_texts() -> None:
    said = [say(0, 0, Answer.YES), say(1, 0, Answer.SKIP), say(2, 1, Answer.NO), say(3, 1, None)]
    renamed = Document("other", DOCS[0].title, DOCS[0].text)
    twin = Document("twin", DOCS[0].title, DOCS[0].text)
    edited = Document("d2", DOCS[2].title, DOCS[2].text + " more")
    found = ReviewedPairs.of(said, [renamed, twin, DOCS[1], edited, DOCS[3]], LABELS)
    assert found.answers == {
        ("other", "l0"): Answer.YES,
        ("twin", "l0"): Answer.YES,
        ("d1", "l0"): Answer.SKIP,
    }
    assert found.verdicts == {("other", "l0"): True, ("twin", "l0"): True}
    assert found.elsewhere == 1 and "1 more" in found.line
    described = [Label("l0", LABELS[0].title, "now with a description"), *LABELS[1:]]
    assert ReviewedPairs.of(said, DOCS, described).answers == {("d2", "l1"): Answer.NO}
    assert pair_id(DOCS[0], described[0]) != pair_id(DOCS[0], LABELS[0]) == pair_id(renamed, LABELS[0])


def test_top_lists_decided_by_half_calibrate_with_what_is_known() -> None:
    decided = ReviewedPairs(
        {
            **{("whole", f"l{i}"): Answer.YES if i == 1 else Answer.NO for i in range(3)},
            ("part", "l0"): Answer.YES,
            ("skipped", "l0"): Answer.YES,
            ("skipped", "l1"): Answer.SKIP,
            ("skipped", "l2"): Answer.NO,
        }
    )
    top = [Prediction(uid, ("l0", "l1", "l2"), (), ()) for uid in ("whole", "part", "skipped", "unseen")]
    found = decided.lists(top, 3)
    assert found.answers == {
        "whole": {"l0": False, "l1": True, "l2": False},
        "skipped": {"l0": True, "l2": False},
    }
    assert (found.whole, found.scarce) == (1, 1), "one of three labels is a pick, no review"
    said = [found.verdict("skipped", label) for label in ("l0", "l1", "l2")]
    assert said == [1.0, None, 0.0] and found.verdict("part", "l0") is None
    assert decided.lists(top, 2).whole == 1 and set(decided.lists(top, 2).answers) == {
        "whole",
        "part",
        "skipped",
    }
    assert decided.lists(top[3:], 3).line == ""
    verdict = verdicts_of({"whole": Decided(frozenset({"l1"}), others=1.0)})
    assert [verdict("whole", "l1"), verdict("whole", "l2"), verdict("part", "l1")] == [1.0, 0.0, None]


def test_what_is_missing_is_told_and_what_more_would_bring() -> None:
    def reviewed(documents: int) -> ReviewedLists:
        """Of four labels one or three fit, by turns; of every tenth document one is skipped."""
        answers = {}
        for row in range(documents):
            for label in range(4):
                fits = Answer.YES if label < 1 + 2 * (row % 2) else Answer.NO
                answers[f"d{row}", f"l{label}"] = Answer.SKIP if row % 10 == 0 and label == 3 else fits
        top = [Prediction(f"d{row}", tuple(f"l{j}" for j in range(4)), (), ()) for row in range(documents)]
        return ReviewedPairs(answers).lists(top, 4)

    few, enough = reviewed(40), reviewed(60)
    assert not few.enough and enough.enough and (enough.whole, len(enough.answers)) == (54, 60)
    assert "people reviewed 40 documents, of 4 a part of the top labels" in few.line
    assert "; 4 of these documents' 160 top labels are undecided;" in few.line, (
        "skipped: nothing stands for them"
    )
    assert "from 50 documents on: 10 are missing" in few.line
    assert "missing" not in enough.line and "with 120 documents" in enough.line
    shares = [np.mean(list(known.values())) for known in few.answers.values()]
    now, then = (1.96 * np.std(shares, ddof=1) / np.sqrt(n) for n in (40, 50))
    assert f"± {now:.3f}, with 50 documents it will be known to ± {then:.3f}" in few.line


def test_after_another_training_what_was_reviewed_still_calibrates() -> None:
    """People decided on one student's top ten; another student's differ by two labels of ten."""
    rng = np.random.default_rng(0)
    depth, names = 10, tuple(f"l{label:03}" for label in range(200))

    def world(documents: int) -> tuple[list[Prediction], Any, list[Prediction]]:
        truth = rng.normal(-5.5, 2, (documents, len(names)))
        right = rng.random(truth.shape) < 1 / (1 + np.exp(-truth))
        shared = truth + rng.normal(0, 1, truth.shape)
        students = []
        for _ in range(2):
            scores = shared + rng.normal(0, 0.35, truth.shape)
            top = np.argsort(-scores, axis=1)[:, :depth]
            students.append(
                [
                    Prediction(
                        f"d{row}", tuple(names[i] for i in best), (), tuple(map(float, scores[row, best]))
                    )
                    for row, best in enumerate(top)
                ]
            )
        return students[0], lambda doc, label: float(right[int(doc[1:]), int(label[1:])]), students[1]

    former, fits, new = world(60)
    decided = ReviewedPairs(
        {(p.uid, u): Answer.YES if fits(p.uid, u) else Answer.NO for p in former for u in p.labels}
    )
    lists = decided.lists(new, depth)
    assert lists.whole < 20 and len(lists.answers) == 60 and lists.enough
    overlap = np.mean([label in lists.answers[p.uid] for p in new for label in p.labels])
    assert 0.7 < overlap < 0.9

    def boastful(doc: str, label: str) -> float:
        return 0.6 + 0.4 * fits(doc, label)

    fitted = fit_few_shot(new, boastful, lists.verdict, k=depth)
    assert (fitted.target, fitted.documents) == ("both", 60)
    fresh, truth, _ = world(2_000)
    scores = np.array([p.scores for p in fresh])
    hits = np.array([[truth(p.uid, label) for label in p.labels] for p in fresh])
    by_people = ece_at_k(fitted.transform(scores).ravel(), hits.ravel())
    by_teacher = ece_at_k(
        fit_calibrator(new, boastful, target="teacher", k=depth).transform(scores).ravel(), hits.ravel()
    )
    assert by_people < 0.05 and by_teacher > 0.3


def test_people_override_the_teacher_in_training() -> None:
    config = TrainingConfig(positives=2, negative_below=0.3)
    plain = build_targets(grid(), config)
    first = plain.documents[0]
    top, low = first.labels[0], first.labels[-3:]
    verdicts = {(first.doc_uid, top): False, **{(first.doc_uid, label): True for label in low}}
    verdicts |= {(first.doc_uid, "unasked"): True, ("a new one", "l00"): True, ("d01", "l00"): False}
    found = {target.doc_uid: target for target in build_targets(grid(), config, verdicts=verdicts).documents}
    changed = found[first.doc_uid]
    p = dict(zip(changed.labels, changed.probabilities, strict=True))
    # Four labels by people, though the teacher's may be two.
    assert (
        set(changed.positives) == {*low, "unasked"} and [p[label] for label in changed.positives] == [1] * 4
    )
    assert changed.labels[-1] == top and p[top] == 0 and top in changed.negatives
    before = dict(zip(first.labels, first.probabilities, strict=True))
    for label in set(first.labels) - {top, *low}:
        assert p[label] == before[label]
    assert found["a new one"].positives == ("l00",) and list(found) == sorted(found)
    untouched = [target for target in plain.documents if target.doc_uid not in {first.doc_uid, "d01"}]
    for target in untouched:
        np.testing.assert_array_equal(found[target.doc_uid].probabilities, target.probabilities)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_certain_targets(name: str) -> None:
    docs = [Document(f"d{i:02}", "", "text") for i in range(4)]
    labels = [Label(f"l{j:02}", f"label {j}") for j in range(14)]
    verdicts = {(f"d{i:02}", f"l{j:02}"): j < 3 for i in range(4) for j in range(6)}
    targets = build_targets(grid(4), TrainingConfig(), verdicts=verdicts)
    batch = collate_in_batch(examples(docs, labels, targets), 3, np.random.default_rng(0))
    assert (batch.probabilities[:, :3] == 1).all() and (batch.probabilities[:, 3:6] == 0).all()
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand((4, len(batch.labels)), generator=generator).requires_grad_()
    loss = combined({name: 1.0}, 0.05)(scored(scores, batch))
    loss.backward()
    assert torch.isfinite(loss) and scores.grad is not None and torch.isfinite(scores.grad).all()


def test_what_only_a_new_student_has_on_top_counts_like_what_only_the_former_one_had() -> None:
    """Of the known top labels half are right; of those that were on top before, a tenth."""
    answers = {
        (f"d{row}", f"l{label}"): Answer.YES if (row % 10 == 0 if label == 9 else row % 2) else Answer.NO
        for row in range(40)
        for label in (0, 1, 9)
    }
    top = [Prediction(f"d{row}", ("l0", "l1", "l2"), (), (0.9, 0.8, 0.7)) for row in range(40)]
    lists = ReviewedPairs(answers).lists(top, 3)
    assert (lists.undecided, lists.beside, lists.right_beside) == (40, 40, 4)
    assert (
        "40 of these documents' 120 top labels are undecided and count as right no more often than"
        in lists.counts
    )
    said = completed(top, lists, 3)
    assert said("d1", "l0") == 1 and said("d2", "l0") == 0 and said("another", "l2") is None
    guesses = [said(f"d{row}", "l2") for row in range(40)]
    assert guesses == pytest.approx([5 / 42] * 40)
    # With half of them beside, the other half counts by its score: about one half.
    half = completed(top, replace(lists, beside=20, right_beside=2), 3)("d1", "l2")
    assert half is not None and 0.2 < half < 0.4
    assert completed(top, replace(lists, beside=0), 3)("d1", "l2") is None
