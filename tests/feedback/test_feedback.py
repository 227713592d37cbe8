"""The feedback store and the annotation job."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeTeacher, catalog
from support.spying import Messages
from support.toytokens import CHATML, tokenizer

from ezxmc.errors import StoreError, TeacherError
from ezxmc.feedback.annotate import ProblemDocuments, annotate, pairs_of
from ezxmc.feedback.annotator import Annotator
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Label, Pair, Status
from ezxmc.teacher.check import renderer_for
from ezxmc.teacher.prompt import Prompt


def job(documents: int = 20, labels: int = 10, size: int = 5):
    docs, tags = catalog(documents, labels)
    rows = [[(i + j) % labels for j in range(size)] for i in range(documents)]
    return lambda: pairs_of(docs, tags, rows)


def test_only_missing_pairs_are_asked(tmp_path: Path) -> None:
    teacher = FakeTeacher()
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        first = annotate(job(10), teacher, store)
        again = annotate(job(10), teacher, store)
        more = annotate(job(12), teacher, store)
    assert (first.wanted, first.known, first.asked) == (50, 0, 50)
    assert (again.wanted, again.known, again.asked) == (50, 50, 0)
    assert (more.known, more.asked) == (50, 10)
    assert len(teacher.asked) == len(set(teacher.asked)) == 60


def test_equal_content_is_asked_once_and_renaming_costs_nothing(tmp_path: Path) -> None:
    teacher = FakeTeacher()
    label = Label("l", "Editor")
    pairs = [Pair(Document("a", "T", "same"), label), Pair(Document("b", "T", "same"), label)]
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(lambda: pairs, teacher, store)
        renamed = annotate(lambda: [Pair(Document("z", "T", "same"), Label("x", "Editor"))], teacher, store)
    assert (summary.wanted, summary.asked) == (1, 1)
    assert renamed.asked == 0


def test_two_teachers_never_mix(tmp_path: Path) -> None:
    one, two = FakeTeacher(name="one"), FakeTeacher(name="two")
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        annotate(job(4), one, store)
        assert annotate(job(4), two, store).asked == 20
        assert {j.key for j in store.judgments(one.fingerprint)} == set(one.asked)
        assert store.totals(two.fingerprint).judgments == 20


def test_failed_pairs_are_asked_thrice_then_reported_then_asked_again(tmp_path: Path) -> None:
    broken = FakeTeacher(fails=lambda pair: pair.doc.uid in ("d2", "d3"))
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(job(6), broken, store)
        # The second round answered nothing: there is no third.
        assert len(broken.asked) == 30 + 10
        assert summary.statuses == {"ok": 20, "engine_error": 10} and summary.asked == 30
        assert summary.problems == {"engine_error": ProblemDocuments(2, ["d2", "d3"])}
        assert summary.problem_docs == ["d2", "d3"]
        assert json.loads(json.dumps(summary.to_dict()))["problems"]["engine_error"]["count"] == 2
        assert store.totals(broken.fingerprint).failures_by_kind == {"engine_error": 10}
        assert {(f.doc_uid, f.attempts) for f in store.failures(broken.fingerprint)} == {("d2", 2), ("d3", 2)}
        assert store.totals(FakeTeacher(name="other").fingerprint).failures == 0
        again = annotate(job(6), FakeTeacher(), store)
        assert (again.known, again.asked) == (20, 10)
        totals = store.totals(broken.fingerprint)
        assert (totals.judgments, totals.failures) == (30, 0)


def test_a_second_and_a_third_attempt_are_made_while_they_help(tmp_path: Path) -> None:
    attempts: Counter[str] = Counter()

    def fails(pair: Pair) -> bool:
        attempts[key := f"{pair.doc.uid} {pair.label.uid}"] += 1
        return attempts[key] <= int(pair.doc.uid[1:]) % 5  # d0 at once ... d4 never, in three attempts

    seen: list[int] = []
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(
            job(10), FakeTeacher(fails=fails), store, progress=lambda done, total: seen.append(done)
        )
    assert summary.statuses == {"ok": 30, "engine_error": 20}
    assert set(attempts.values()) == {1, 2, 3}
    assert summary.problems["engine_error"] == ProblemDocuments(4, ["d3", "d4", "d8", "d9"])
    assert seen == sorted(seen) and seen[-1] == 30, "a failed pair is not done"


def test_an_engine_that_only_fails_is_not_asked_everything_again(tmp_path: Path) -> None:
    broken = FakeTeacher(fails=lambda pair: True)
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(job(400), broken, store)
    assert summary.statuses == {"engine_error": 2000}
    assert 2000 < len(broken.asked) < 2500


class Speechless(FakeTeacher):
    """Puts no probability on the answers, but for one pair in a hundred if it may."""

    def __init__(self, status: Status, *, scores: bool = False) -> None:
        super().__init__()
        self.status, self.scores = status, scores

    def score(self, pairs, *, expected=None):
        for number, judgment in enumerate(super().score(pairs, expected=expected)):
            silent = not (self.scores and number % 100 == 99)
            yield replace(judgment, status=self.status, log_odds=None) if silent else judgment


@pytest.mark.parametrize("status", [Status.LOW_MASS, Status.NO_LOGPROBS, Status.NOT_FINITE])
def test_a_teacher_that_never_answers_is_not_paid_for_a_whole_catalog(tmp_path: Path, status: Status) -> None:
    teacher = Speechless(status)
    told = rf"none of the first 256 pairs got a score \(256 {status}\)[\s\S]*cure: see .*prompts check"
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        with pytest.raises(TeacherError, match=told):
            annotate(job(400), teacher, store)
        assert len(teacher.asked) == 256
        totals = store.totals(teacher.fingerprint)
        assert totals.judgments + totals.failures == 256, "what was asked is kept"
        with pytest.raises(TeacherError, match=told):
            annotate(job(400), teacher, store)
        assert len(teacher.asked) == (256 if status.final else 512)


def test_a_teacher_that_answers_now_and_then_goes_on(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(job(400), Speechless(Status.LOW_MASS, scores=True), store)
        assert summary.statuses == {"ok": 20, "low_mass": 1980}
        # Later sessions of a teacher that has scored are not held to their own beginnings.
        more = Speechless(Status.LOW_MASS)
        assert annotate(job(800), more, store).statuses == {"low_mass": 2000}


def test_a_prompt_that_cannot_work_is_told_before_and_in_the_end(tmp_path: Path) -> None:
    template = CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    teacher, watch = Speechless(Status.LOW_MASS), Messages()
    teacher.renderer = renderer_for(Prompt.load("generic"), tokenizer(template), 32)
    said = r"the prompt ends inside <think>[\s\S]*close it in the prompt file"
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        Annotator(SimpleNamespace(documents=[], labels=[]), teacher, store, None, watch)
        assert re.search(said, "\n".join(watch.said))
        with pytest.raises(TeacherError, match=said):
            annotate(job(400), teacher, store)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_every_kind_without_a_score_is_counted_with_its_documents(tmp_path: Path, status: Status) -> None:
    class Dumb(FakeTeacher):
        def score(self, pairs, *, expected=None):
            for judgment in super().score(pairs, expected=expected):
                bad = int(judgment.doc_uid[1:]) % 2
                yield replace(judgment, status=status, log_odds=None) if bad else judgment

    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(job(60), Dumb(), store)
        assert summary.statuses == {"ok": 150, status.value: 150}
        assert summary.problems[status.value].count == 30
        assert len(summary.problems[status.value].some) == 20
        totals = store.totals(Dumb().fingerprint)
        assert totals.statuses.get(status.value, 0) == (150 if status.final else 0)
        assert totals.failures == (0 if status.final else 150)


def test_stop_ends_the_asking_and_keeps_what_is_in_flight(tmp_path: Path) -> None:
    class Ahead(FakeTeacher):
        """Reads ten pairs before it answers the first."""

        def score(self, pairs, *, expected=None):
            stream = iter(pairs)
            while some := list(islice(stream, 10)):
                yield from super().score(some)

    teacher, looks = Ahead(), iter(range(1000))
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        stopped = annotate(job(20), teacher, store, stop=lambda: next(looks) >= 37)
        assert (stopped.stopped, stopped.asked, stopped.known, stopped.wanted) == (True, 37, 0, 100)
        rest = annotate(job(20), teacher, store)
        assert (rest.stopped, rest.asked, rest.known) == (False, 63, 37)
        assert annotate(job(20), teacher, store, stop=lambda: True).stopped is False, (
            "nothing was left to ask"
        )
    assert len(teacher.asked) == len(set(teacher.asked)) == 100


def test_counts_are_exact_with_repeated_pairs_anywhere(tmp_path: Path) -> None:
    docs, tags = catalog(40, 7)
    twins = [Document(f"twin{i}", doc.title, doc.text) for i, doc in enumerate(docs)]
    rng = random.Random(1)
    pairs = [Pair(rng.choice(docs + twins), rng.choice(tags)) for _ in range(1000)]
    teacher = FakeTeacher()
    keys = {teacher.key(pair) for pair in pairs}
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        half = annotate(lambda: pairs[:100], teacher, store)
        summary = annotate(lambda: pairs, teacher, store)
    assert half.asked == half.wanted == len({teacher.key(pair) for pair in pairs[:100]})
    assert (summary.wanted, summary.known) == (len(keys), half.asked)
    assert sorted(teacher.asked) == sorted(keys)


def test_a_teacher_that_dies_loses_nothing_it_answered(tmp_path: Path) -> None:
    class Dying(FakeTeacher):
        def score(self, pairs, *, expected=None):
            for count, judgment in enumerate(super().score(pairs, expected=expected)):
                if count == 33:
                    raise TeacherError("the engine died")
                yield judgment

    with FeedbackStore(tmp_path / "f.sqlite") as store:
        with pytest.raises(TeacherError):
            annotate(job(20), Dying(), store)
        assert annotate(job(20), FakeTeacher(), store).known == 33


def test_progress_counts_only_what_is_committed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "f.sqlite"

    def progress(done: int, total: int) -> None:
        assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM judgments").fetchone()[0] == done
        seen.append((done, total))

    with FeedbackStore(path) as store:
        annotate(job(30), FakeTeacher(), store, progress=progress)
    assert seen[0] == (0, 150) and seen[-1] == (150, 150)


def test_judgments_cannot_be_changed_or_deleted(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        annotate(job(2), FakeTeacher(), store)
    db = sqlite3.connect(tmp_path / "f.sqlite")
    for statement in ("DELETE FROM judgments", "UPDATE judgments SET log_odds = 1"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            db.execute(statement)


def test_faulty_files_are_named_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    path.write_text("this is no database, although it is long enough to look like one" * 20)
    with pytest.raises(StoreError, match=r"f\.sqlite.*\n.*cure"):
        FeedbackStore(path)
    newer = tmp_path / "newer.sqlite"
    with FeedbackStore(newer):
        pass
    sqlite3.connect(newer).execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="schema 99"):
        FeedbackStore(newer)


finite = st.floats(-50, 50, allow_nan=False)


@given(
    rows=st.lists(
        st.tuples(st.text(max_size=20), st.text(max_size=20), st.sampled_from(list(Status)), finite),
        max_size=30,
    )
)
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    from ezxmc.hashing import text_hash

    judgments = {
        key: Judgment(key, doc, label, status, value if status is Status.OK else None, 0.5, 10, 5)
        for doc, label, status, value in rows
        if (key := text_hash(doc, label)) and _encodable(doc + label)
    }
    with FeedbackStore(tmp_path_factory.mktemp("s") / "f.sqlite") as store:
        session = store.open_session("t", {})
        store.append(session, list(judgments.values()), 0.1)
        final = {key: j for key, j in judgments.items() if j.status.final}
        assert store.get(list(judgments)) == final
        assert {j.key: j for j in store.judgments("t")} == final


def _encodable(text: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_judgment_is_a_value_or_a_status(status: Status) -> None:
    with pytest.raises(ValueError, match="log_odds"):
        Judgment("0", "d", "l", status, log_odds=0.0)
    with pytest.raises(ValueError, match="log_odds"):
        Judgment("0", "d", "l", Status.OK)
    with pytest.raises(ValueError, match="cannot hold"):
        Judgment("0", "d", "l", Status.OK, log_odds=float("nan"))
