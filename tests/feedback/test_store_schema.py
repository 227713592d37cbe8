"""Stores of other schemas, and one that is killed while its tables are made."""

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


def _die(path: Path, statement: int) -> None:
    """Killed in the middle: after so many statements that make tables."""
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


@pytest.mark.parametrize("statement", [1, 9])
def test_killed_in_the_middle_of_its_tables_a_store_is_as_if_never_begun(
    tmp_path: Path, statement: int
) -> None:
    path = tmp_path / "new.sqlite"
    process = multiprocessing.get_context("fork").Process(target=_die, args=(path, statement))
    process.start()
    process.join()
    assert process.exitcode == -9
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,)
    db.close()
    judged = Judgment(text_hash("one"), "d0", "l0", Status.OK, 1.0, 0.5, 10, 5)
    with FeedbackStore(path) as store:
        assert store.append(store.open_session("one", {}), [judged], 1.0) == [judged]


@pytest.mark.parametrize(("version", "cure"), [(schema.VERSION + 1, "upgrade ezxmc"), (2, "of no release")])
def test_a_store_of_another_schema_is_refused_and_left_alone(tmp_path: Path, version: int, cure: str) -> None:
    path = tmp_path / "other.sqlite"
    FeedbackStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={version}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"schema {version}.*\n.*{cure}"):
        FeedbackStore(path)
    assert path.read_bytes() == before
