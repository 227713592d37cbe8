"""Stores of earlier releases, and of later ones."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from ezxmc.errors import StoreError
from ezxmc.feedback import database as schema
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import text_hash
from ezxmc.records import Judgment, Status

# What release 0.1 wrote, frozen.
VERSION_1 = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL
);
CREATE TABLE judgments (
    key BLOB PRIMARY KEY,
    teacher INTEGER NOT NULL REFERENCES teachers(id),
    doc_uid TEXT NOT NULL,
    label_uid TEXT NOT NULL,
    status TEXT NOT NULL,
    log_odds REAL,
    label_mass REAL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    CHECK ((log_odds IS NULL) = (status <> 'ok'))
) WITHOUT ROWID;
CREATE TABLE failures (
    key BLOB NOT NULL,
    doc_uid TEXT NOT NULL,
    label_uid TEXT NOT NULL,
    status TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    teacher INTEGER NOT NULL REFERENCES teachers(id),
    started REAL NOT NULL,
    seconds REAL NOT NULL DEFAULT 0,
    judged INTEGER NOT NULL DEFAULT 0
);
CREATE TRIGGER judgments_are_kept BEFORE DELETE ON judgments
BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END;
CREATE TRIGGER judgments_are_final BEFORE UPDATE ON judgments
BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END;
PRAGMA user_version=1;
"""
ROWS = [
    Judgment(
        text_hash(teacher, str(i)),
        f"d{i // 5}",
        # A uid may name a document and a label.
        f"d{i % 5}",
        Status.OK if i % 7 else Status.LOW_MASS,
        i / 3 - 20 if i % 7 else None,
        0.9,
        100 + i,
        64,
    )
    for teacher in ("one", "two")
    for i in range(100)
]
FAILED = [bytes.fromhex(text_hash("failed", str(i))) for i in range(3)]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A version 1 store: two teachers, three sessions, failures answered since and not."""
    path = tmp_path / "old.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(VERSION_1)
    db.executemany(
        "INSERT INTO teachers VALUES (?, ?, ?)", [(1, "one", '{"backend": "x"}'), (2, "two", "{}")]
    )
    db.executemany(
        "INSERT INTO judgments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (bytes.fromhex(j.key), 1 + i // 100, j.doc_uid, j.label_uid, j.status.value, j.log_odds,
             j.label_mass, j.prompt_tokens, j.cached_tokens)
            for i, j in enumerate(ROWS)
        ],
    )  # fmt: skip
    db.executemany(
        "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)",
        [(1, 1, 1000.0, 5.0, 60), (2, 2, 2000.0, 10.0, 100), (3, 1, 3000.0, 20.0, 40)],
    )
    db.executemany(
        "INSERT INTO failures VALUES (?, ?, ?, ?, ?)",
        [
            (FAILED[0], "d8", "l1", "engine_error", 1500.0),
            (FAILED[0], "d8", "l1", "engine_error", 3500.0),
            (FAILED[1], "d9", "l1", "engine_error", 2500.0),
            (bytes.fromhex(ROWS[3].key), "d0", "d3", "engine_error", 1001.0),
        ],
    )
    db.commit()
    db.close()
    return path


def contents(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        found = list(db.iterdump())
    db.close()
    return found


def test_a_version_1_store_is_migrated_with_nothing_lost(old: Path) -> None:
    with FeedbackStore(old) as store:
        assert store.get([j.key for j in ROWS]) == {j.key: j for j in ROWS}
        assert {j.key for j in store.judgments("two")} == {j.key for j in ROWS[100:]}
        assert store.teachers() == {"two": {}, "one": {"backend": "x"}}
        assert store.newest_teacher() == "one"
        one, two = store.totals("one"), store.totals("two")
        assert one.statuses == {"ok": 85, "low_mass": 15} and one.judgments == 100
        assert one.prompt_tokens == sum(j.prompt_tokens for j in ROWS[:100])
        assert (one.seconds, one.judged, one.sessions, one.pairs_per_second) == (25.0, 100, 2, 4.0)
        assert (two.seconds, two.sessions) == (10.0, 1)
        # Failures find their teacher by the time; what was answered since is none.
        assert [(f.doc_uid, f.attempts) for f in store.failures("one")] == [("d8", 2)]
        assert [(f.doc_uid, f.attempts) for f in store.failures("two")] == [("d9", 1)]
    with sqlite3.connect(old) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            db.execute("DELETE FROM judgments")
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql NOT NULL")}
        # The same tables as in a store made afresh.
        FeedbackStore(old.with_name("new.sqlite")).close()
        new = sqlite3.connect(old.with_name("new.sqlite"))
        assert names == {row[0] for row in new.execute("SELECT name FROM sqlite_master WHERE sql NOT NULL")}
        new.close()
    db.close()


def test_a_migrated_store_goes_on(old: Path) -> None:
    with FeedbackStore(old) as store:
        session = store.open_session("one", {"backend": "x"})
        more = Judgment(text_hash("one", "more"), "d0", "new label", Status.OK, 1.0, 0.5, 10, 5)
        assert store.append(session, [ROWS[0], more], 1.0) == [more]
        assert store.totals("one").judgments == 101


def _die_in_migration(path: Path, statement: int) -> None:
    """Killed in the middle: after so many statements of the migration."""
    run, left = schema._run, iter(range(statement))

    class Deadly:
        def __init__(self, db: sqlite3.Connection) -> None:
            self.db = db

        def execute(self, sql: str) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), 9)
            self.db.execute(sql)

    schema._run = lambda db, script: run(Deadly(db), script)  # type: ignore[arg-type]
    FeedbackStore(path)


@pytest.mark.parametrize("statement", [3, 12, 17, 24])
def test_a_migration_killed_in_the_middle_leaves_version_1(old: Path, statement: int) -> None:
    before = contents(old)
    process = multiprocessing.get_context("fork").Process(target=_die_in_migration, args=(old, statement))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert contents(old) == before
    with FeedbackStore(old) as store:
        assert store.get([j.key for j in ROWS]) == {j.key: j for j in ROWS}


def test_a_migration_that_fails_leaves_version_1(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(old)
    with monkeypatch.context() as patch:
        patch.setitem(schema._STEPS, 1, f"{schema._STEPS[1]}CREATE TABLE judgments (key);\n")
        with pytest.raises(StoreError, match="already exists"):
            FeedbackStore(old)
    assert contents(old) == before
    FeedbackStore(old).close()


def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.sqlite"
    FeedbackStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={schema.VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"schema {schema.VERSION + 1}.*\n.*upgrade ezxmc"):
        FeedbackStore(path)
    assert path.read_bytes() == before
