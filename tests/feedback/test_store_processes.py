"""One store, several processes: killed at any moment, or working side by side."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from support.fakes import FakeTeacher, catalog

from ezxmc.config import BudgetConfig
from ezxmc.errors import StoreError
from ezxmc.feedback.annotate import PairLocks, annotate, pairs_of
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Pair, Status

# Forked, a process starts at once; nothing imported here holds threads.
PROCESSES = multiprocessing.get_context("fork")


def job(first: int, last: int) -> Callable[[], Iterator[Pair]]:
    docs, tags = catalog(last, 10)
    return lambda: pairs_of(docs[first:], tags, [range(10)] * (last - first))


@contextmanager
def started(target: Callable[..., None], *values: Any) -> Iterator[BaseProcess]:
    process = PROCESSES.Process(target=target, args=values)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def work(path: Path, log: Path, first: int, last: int, delay: float) -> None:
    """Annotate a job; `log` gets every key asked, and the number committed after each commit."""
    teacher = FakeTeacher(log=log, delay=delay, fails=failing())
    committed = log.with_suffix(".committed")
    with FeedbackStore(path) as store:
        annotate(job(first, last), teacher, store, progress=lambda done, _: committed.write_text(f"{done}\n"))


def failing() -> Callable[[Pair], bool]:
    """Ten pairs always fail, some others at first: failures are part of what is interrupted."""
    met: set[str] = set()

    def fails(pair: Pair) -> bool:
        if pair.doc.uid == "d7":
            return True
        first = pair.doc.uid not in met
        met.add(pair.doc.uid)
        return first and pair.label.uid == "l0"

    return fails


def stored(path: Path) -> list[str]:
    if not path.exists():
        return []
    with FeedbackStore(path) as store:
        return [judgment.key for judgment in store.judgments()]


def check(path: Path) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        # The counts beside the judgments agree with them, and no answered pair is still called failed.
        kept = "SELECT teacher, status, judgments, prompt_tokens, cached_tokens FROM counts"
        counted = (
            "SELECT teacher, status, COUNT(*), SUM(prompt_tokens), SUM(cached_tokens) "
            "FROM judgments GROUP BY 1, 2"
        )
        assert db.execute(kept).fetchall() == db.execute(counted).fetchall()
        assert db.execute("SELECT COUNT(*) FROM failures JOIN judgments USING (key)").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.long)])
def test_kills_lose_nothing_and_store_nothing_twice(tmp_path: Path, kills: int) -> None:
    path, rng = tmp_path / "f.sqlite", random.Random(0)
    done: set[str] = set()
    killed, last, asked_twice = 0, 200, 0
    for number in count():
        if killed == kills:
            break
        log = tmp_path / f"asked-{number}"
        asking = rng.random() > 0.25
        with started(work, path, log, 0, last, 0.0005) as process:
            # A quarter of the kills fall from before the file is opened on, the others into the asking.
            while asking and not log.exists() and process.is_alive():
                time.sleep(0.002)
            process.join(rng.uniform(0, 0.3))
            finished = process.exitcode
        assert finished in (None, 0)
        killed += finished is None
        last += 0 if finished is None else 200  # more work, for the next to be killed at
        now = stored(path)
        assert len(now) == len(set(now))
        assert done <= set(now), "a stored judgment was lost"
        committed = log.with_suffix(".committed")
        if committed.exists() and (told := committed.read_text()).endswith("\n"):
            assert int(told) <= len(now), "a judgment told to be committed is not there"
        asked_twice += len(set(log.read_text().split()) & done) if log.exists() else 0
        done = set(now)
    assert asked_twice == 0
    assert len(done) > 10 * kills
    with FeedbackStore(path) as store:
        summary = annotate(job(0, last), FakeTeacher(), store)
    assert summary.known + summary.asked == summary.wanted == last * 10
    assert len(stored(path)) == last * 10
    check(path)


@pytest.mark.parametrize("second", [(0, 60), (30, 90)], ids=["the same job", "overlapping jobs"])
def test_two_processes_share_a_job(tmp_path: Path, second: tuple[int, int]) -> None:
    path, logs = tmp_path / "f.sqlite", [tmp_path / "one", tmp_path / "two"]
    # Both also make the file: there is none yet.
    with (
        started(work, path, logs[0], 0, 60, 0.002) as one,
        started(work, path, logs[1], *second, 0.002) as two,
    ):
        one.join()
        two.join()
        assert (one.exitcode, two.exitcode) == (0, 0)
    keys = stored(path)
    answerable = max(60, second[1]) * 10 - 10
    assert len(keys) == len(set(keys)) == answerable
    asked = [set(log.read_text().split()) for log in logs]
    fragile = {FakeTeacher().key(pair) for pair in job(0, 90)() if pair.label.uid == "l0"}
    both = (asked[0] & asked[1] & set(keys)) - fragile  # what failed here may be answered there
    assert not both, "one was asked for what the other had"
    assert min(map(len, asked)) > 150, "they share the work"
    check(path)


def opened_at_once(path: Path, start: Any, ended: Any) -> None:
    start.wait()
    try:
        FeedbackStore(path).close()
    except StoreError as error:
        ended.put(str(error))
    else:
        ended.put("")


def test_a_store_that_many_make_at_once_is_made(tmp_path: Path) -> None:
    for attempt in range(4):
        start, ended = PROCESSES.Barrier(8), PROCESSES.SimpleQueue()
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(started(opened_at_once, tmp_path / f"{attempt}.sqlite", start, ended))
            assert [ended.get() for _ in range(8)] == [""] * 8


def test_the_switch_to_a_log_waits_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself waits for nobody there."""
    path, waits = tmp_path / "f.sqlite", list[float]()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            other.execute("COMMIT")

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda name, **options: connect(name, **{**options, "timeout": 0})
    )
    monkeypatch.setattr("ezxmc.feedback.database.time.sleep", sleep)
    FeedbackStore(path).close()
    assert len(waits) == 3
    other.close()


def test_a_limit_counts_what_other_processes_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ezxmc.feedback.budget._LOOK_SECONDS", -1.0)
    path = tmp_path / "f.sqlite"
    fingerprint, budget = FakeTeacher().fingerprint, Budget(BudgetConfig(max_pairs=300), [])
    with FeedbackStore(path) as here, FeedbackStore(path) as there:
        stop = budget.stop(here, fingerprint)
        assert stop

        def meanwhile(done: int, wanted: int) -> None:
            if done == 64:
                annotate(job(20, 32), FakeTeacher(), there)

        # 64 are handed out and stored before the other 120 are there, 116 after.
        mine = annotate(job(0, 20), FakeTeacher(), here, stop=stop, progress=meanwhile)
        assert mine.stopped and mine.asked == 180
        assert here.judged(fingerprint) == 300
        again = annotate(job(0, 20), FakeTeacher(), here, stop=budget.stop(here, fingerprint))
        assert again.stopped and again.asked == 0


def test_a_dead_process_claims_nothing(tmp_path: Path) -> None:
    path, log = tmp_path / "f.sqlite", tmp_path / "asked"
    with started(work, path, log, 0, 20, 0.2) as process:
        while not log.exists():
            time.sleep(0.01)
        taken = PairLocks(path)
        assert not taken.acquire(log.read_text().split()[0])
        process.kill()
        process.join()
    taken.close()
    teacher = FakeTeacher()
    with FeedbackStore(path) as store:
        summary = annotate(job(0, 20), teacher, store)  # it would wait for the dead for ever
    assert summary.statuses[Status.OK] == summary.asked == 200 - summary.known


def hold(path: Path, key: str, ready: Any, answer: bool) -> None:
    claims = PairLocks(path)
    assert claims.acquire(key)
    ready.set()
    time.sleep(1.0)
    if answer:
        with FeedbackStore(path) as store:
            teacher = FakeTeacher()
            session = store.open_session(teacher.fingerprint, {})
            pair = next(iter(job(0, 5)()))
            store.append(session, list(teacher.score([pair])), 0.1)


@pytest.mark.parametrize("answer", [True, False], ids=["answers it", "dies without an answer"])
def test_a_job_waits_for_the_pair_another_process_has_in_hand(tmp_path: Path, answer: bool) -> None:
    path, ready, teacher = tmp_path / "f.sqlite", PROCESSES.Event(), FakeTeacher()
    FeedbackStore(path).close()
    key = teacher.key(next(iter(job(0, 5)())))
    with started(hold, path, key, ready, answer):
        assert ready.wait(600)
        with FeedbackStore(path) as store:
            summary = annotate(job(0, 5), teacher, store)
    assert (key in teacher.asked) is not answer
    assert (summary.wanted, summary.known, summary.asked) == (50, int(answer), 50 - answer)
    assert len(stored(path)) == 50
