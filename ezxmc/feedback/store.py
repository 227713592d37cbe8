"""The feedback store: every judgment ever paid for, in one SQLite file.

Append-only, keyed by content, in WAL mode: a process killed at any moment
loses at most the batch it had not yet committed, and a committed judgment is
never asked for again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ezxmc.errors import StoreError
from ezxmc.records import Judgment, Status

SCHEMA_VERSION = 1
_SCHEMA = """
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
"""
_LOOKUP = 500  # keys per SELECT, below SQLite's oldest limit on parameters


@dataclass(frozen=True, slots=True)
class StoreTotals:
    """What the judgments of one teacher cost, over all sessions.

    Attributes:
        judgments: Rows stored.
        statuses: Rows by status; failures not yet answered are in `failures`.
        failures: Failed attempts logged (they are asked again).
        prompt_tokens: Sum of prompt lengths.
        cached_tokens: Of these, tokens the prefix cache supplied.
        seconds: Time spent judging, engine start-up excluded.
        sessions: How many times annotation was started.
    """

    judgments: int
    statuses: dict[str, int]
    failures: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    sessions: int

    @property
    def computed_per_pair(self) -> float | None:
        """Mean tokens the engine computed for one pair."""
        return (self.prompt_tokens - self.cached_tokens) / self.judgments if self.judgments else None

    @property
    def cache_share(self) -> float | None:
        """Share of prompt tokens the prefix cache supplied, in [0, 1]."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def pairs_per_second(self) -> float | None:
        """Judgments per second over all sessions."""
        return self.judgments / self.seconds if self.seconds else None


class FeedbackStore:
    """Judgments on disk. Use as a context manager, from one thread.

    Args:
        path: The SQLite file; made with its folder if absent.

    Raises:
        StoreError: Not a store, written by a newer version, or not writable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            try:
                # NORMAL survives the death of the process; only a power cut may
                # take the last commits, and then the file stays consistent.
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._migrate()
            except BaseException:
                self._db.close()
                raise

    def _migrate(self) -> None:
        with self._transaction():
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif found > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} has schema {found}, this ezxmc knows {SCHEMA_VERSION}", "upgrade ezxmc"
                )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            cure = "is the disk full or read-only? judgments already stored are safe"
            if "not a database" in str(error) or "malformed" in str(error):
                cure = "move the file away, or restore it from a copy"
            raise StoreError(f"feedback store {self.path}: {error}", cure) from error
        except OSError as error:
            raise StoreError(f"feedback store {self.path}: {error}", "choose a writable place") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; committed judgments are already safe."""
        self._db.close()

    def open_session(self, fingerprint: str, description: dict[str, Any]) -> int:
        """Register a teacher and the start of an annotation session; returns its id."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO teachers (fingerprint, description) VALUES (?, ?)",
                (fingerprint, json.dumps(description, sort_keys=True)),
            )
            row = self._db.execute(
                "INSERT INTO sessions (teacher, started) SELECT id, ? FROM teachers WHERE fingerprint = ? "
                "RETURNING id",
                (time.time(), fingerprint),
            ).fetchone()
        return int(row[0])

    def append(self, session: int, judgments: Sequence[Judgment], seconds: float) -> int:
        """Store a batch in one transaction; once it returns, a crash cannot lose it.

        Judgments with a passing failure (`engine_error`) are logged and stay
        unknown, so they are asked again.

        Args:
            session: From `open_session`.
            judgments: Any statuses; a key already stored is left as it is.
            seconds: Time this batch took to judge.

        Returns:
            How many judgments were new.
        """
        final = [j for j in judgments if j.status.final]
        now = time.time()
        with self._transaction():
            teacher = self._db.execute("SELECT teacher FROM sessions WHERE id = ?", (session,)).fetchone()[0]
            before = self._db.total_changes
            self._db.executemany(
                "INSERT OR IGNORE INTO judgments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        bytes.fromhex(j.key),
                        teacher,
                        j.doc_uid,
                        j.label_uid,
                        j.status.value,
                        j.log_odds,
                        j.label_mass,
                        j.prompt_tokens,
                        j.cached_tokens,
                    )
                    for j in final
                ],
            )
            new = self._db.total_changes - before
            self._db.executemany(
                "INSERT INTO failures VALUES (?, ?, ?, ?, ?)",
                [
                    (bytes.fromhex(j.key), j.doc_uid, j.label_uid, j.status.value, now)
                    for j in judgments
                    if not j.status.final
                ],
            )
            self._db.execute(
                "UPDATE sessions SET seconds = seconds + ?, judged = judged + ? WHERE id = ?",
                (seconds, new, session),
            )
        return new

    def known(self, keys: Sequence[str]) -> set[str]:
        """The keys among `keys` that are already judged."""
        return {row[0].hex() for row in self._lookup("key", keys)}

    def get(self, keys: Sequence[str]) -> dict[str, Judgment]:
        """The stored judgments among `keys`, by key."""
        found = map(_judgment, self._lookup(_COLUMNS, keys))
        return {judgment.key: judgment for judgment in found}

    def _lookup(self, columns: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with self._translated():
            for start in range(0, len(keys), _LOOKUP):
                part = [bytes.fromhex(key) for key in keys[start : start + _LOOKUP]]
                marks = ",".join("?" * len(part))
                yield from self._db.execute(f"SELECT {columns} FROM judgments WHERE key IN ({marks})", part)

    def judgments(self, fingerprint: str | None = None) -> Iterator[Judgment]:
        """All judgments, streamed; of one teacher if `fingerprint` is given."""
        where, values = "", []
        if fingerprint is not None:
            where = " WHERE teacher = (SELECT id FROM teachers WHERE fingerprint = ?)"
            values = [fingerprint]
        with self._translated():
            yield from map(_judgment, self._db.execute(f"SELECT {_COLUMNS} FROM judgments{where}", values))

    def newest_teacher(self) -> str | None:
        """Fingerprint of the teacher asked last; `None` in an empty store."""
        with self._translated():
            row = self._db.execute(
                "SELECT fingerprint FROM sessions JOIN teachers ON teachers.id = sessions.teacher "
                "ORDER BY sessions.id DESC LIMIT 1"
            ).fetchone()
        return row[0] if row else None

    def judging_seconds(self, fingerprint: str) -> float:
        """Time one teacher has spent judging, over all sessions; cheap, unlike `totals`."""
        with self._translated():
            return float(
                self._db.execute(
                    "SELECT TOTAL(seconds) FROM sessions JOIN teachers ON teachers.id = sessions.teacher "
                    "WHERE fingerprint = ?",
                    (fingerprint,),
                ).fetchone()[0]
            )

    def totals(self, fingerprint: str) -> StoreTotals:
        """Counts and cost of one teacher's judgments."""
        with self._translated():
            row = self._db.execute("SELECT id FROM teachers WHERE fingerprint = ?", (fingerprint,)).fetchone()
            teacher = row[0] if row else -1
            statuses = dict(
                self._db.execute(
                    "SELECT status, COUNT(*) FROM judgments WHERE teacher = ? GROUP BY status", (teacher,)
                )
            )
            prompt, cached = self._db.execute(
                "SELECT TOTAL(prompt_tokens), TOTAL(cached_tokens) FROM judgments WHERE teacher = ?",
                (teacher,),
            ).fetchone()
            sessions = self._db.execute(
                "SELECT COUNT(*) FROM sessions WHERE teacher = ?", (teacher,)
            ).fetchone()[0]
            failures = self._db.execute("SELECT COUNT(*) FROM failures").fetchone()[0]
        return StoreTotals(
            judgments=sum(statuses.values()),
            statuses=statuses,
            failures=failures,
            prompt_tokens=int(prompt),
            cached_tokens=int(cached),
            seconds=self.judging_seconds(fingerprint),
            sessions=sessions,
        )


_COLUMNS = "key, doc_uid, label_uid, status, log_odds, label_mass, prompt_tokens, cached_tokens"


def _judgment(row: tuple[Any, ...]) -> Judgment:
    return Judgment(row[0].hex(), row[1], row[2], Status(row[3]), *row[4:])


def _statements(script: str) -> list[str]:
    """Split a schema script; `executescript` would commit each statement by itself."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
