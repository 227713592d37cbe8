"""The feedback store and the annotation job."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fakes import FakeTeacher, catalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezxmc.errors import StoreError, TeacherError
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Label, Pair, Status


def job(documents: int = 20, labels: int = 10, size: int = 5):
    docs, tags = catalog(documents, labels)
    rows = [[(i + j) % labels for j in range(size)] for i in range(documents)]
    return lambda: pairs_of(docs, tags, rows)


def stored_keys(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with FeedbackStore(path) as store:
        return {judgment.key for judgment in store.judgments()}


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


def test_engine_errors_are_asked_again_and_reported(tmp_path: Path) -> None:
    broken = FakeTeacher(fails=lambda pair: pair.doc.uid == "d3")
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        summary = annotate(job(6), broken, store)
        assert summary.statuses == {"ok": 25, "engine_error": 5}
        assert summary.problem_docs == ["d3"]
        assert annotate(job(6), FakeTeacher(), store).asked == 5
        assert store.totals(broken.fingerprint).judgments == 30
        assert store.totals(broken.fingerprint).failures == 5


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


_KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fakes import FakeTeacher
from test_feedback import job
from ezxmc.feedback.annotate import annotate
from ezxmc.feedback.store import FeedbackStore
with FeedbackStore(sys.argv[2]) as store:
    print(annotate(job(60, 20, 10), FakeTeacher(log=Path(sys.argv[3]), delay=0.002), store).asked)
"""


def test_kill_9_loses_nothing_committed_and_asks_nothing_twice(tmp_path: Path) -> None:
    path, rng = tmp_path / "f.sqlite", random.Random(0)
    done: set[str] = set()
    for attempt in range(12):
        log = tmp_path / f"asked-{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_KILLED), str(Path(__file__).parent), str(path), str(log)]
        )
        if attempt < 5:
            while not log.exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
        process.wait()
        asked = set(log.read_text().split()) if log.exists() else set()
        assert not asked & done, "a stored pair was asked again"
        now = stored_keys(path)
        assert done <= now, "a stored judgment was lost"
        done = now
        if attempt >= 5:
            break
    assert len(done) == 600


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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
