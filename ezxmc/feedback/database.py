"""One SQLite file: opened, written in transactions, its errors put into words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ezxmc.errors import InputTypeError, StoreError, instance_of
from ezxmc.files import Inputs, check_file

VERSION = 3

# Uids are kept once: at 20 judgments a document, the text of a uid would be a
# third of every row. `counts` makes the totals of millions of rows a look-up.
_TABLES = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL
);
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE judgments (
    key BLOB PRIMARY KEY,
    teacher INTEGER NOT NULL REFERENCES teachers(id),
    doc INTEGER NOT NULL REFERENCES names(id),
    label INTEGER NOT NULL REFERENCES names(id),
    status TEXT NOT NULL,
    log_odds REAL,
    label_mass REAL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    CHECK ((log_odds IS NULL) = (status <> 'ok'))
) WITHOUT ROWID;
CREATE TABLE counts (
    teacher INTEGER NOT NULL REFERENCES teachers(id),
    status TEXT NOT NULL,
    judgments INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    PRIMARY KEY (teacher, status)
) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    teacher INTEGER NOT NULL REFERENCES teachers(id),
    started REAL NOT NULL,
    seconds REAL NOT NULL DEFAULT 0,
    judged INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    imported INTEGER
);
CREATE TABLE failures (
    key BLOB PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions(id),
    doc_uid TEXT NOT NULL,
    label_uid TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX failures_of_session ON failures (session, status, doc_uid);
"""
_GUARDS = """
CREATE TRIGGER judgments_are_kept BEFORE DELETE ON judgments
BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END;
CREATE TRIGGER judgments_are_final BEFORE UPDATE ON judgments
BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END;
"""

# What people said, apart from all judgments: a person is no teacher. The row of
# the latest time counts; no answer at all takes the one before back.
_REVIEWS = """
CREATE TABLE reviews (
    id INTEGER PRIMARY KEY,
    doc_hash BLOB NOT NULL,
    label_hash BLOB NOT NULL,
    doc INTEGER NOT NULL REFERENCES names(id),
    label INTEGER NOT NULL REFERENCES names(id),
    answer TEXT CHECK (answer IN ('yes', 'no', 'skip')),
    reviewer TEXT,
    at REAL NOT NULL
);
CREATE TRIGGER reviews_are_kept BEFORE DELETE ON reviews
BEGIN SELECT RAISE(ABORT, 'reviews are append-only'); END;
CREATE TRIGGER reviews_are_final BEFORE UPDATE ON reviews
BEGIN SELECT RAISE(ABORT, 'reviews are append-only'); END;
"""


ADDED = (
    "CREATE TABLE IF NOT EXISTS added (review INTEGER PRIMARY KEY REFERENCES reviews(id))",
    "CREATE TRIGGER IF NOT EXISTS added_is_kept BEFORE DELETE ON added "
    "BEGIN SELECT RAISE(ABORT, 'reviews are append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS added_is_final BEFORE UPDATE ON added "
    "BEGIN SELECT RAISE(ABORT, 'reviews are append-only'); END",
)
"""A table of the reviews that name a label nobody proposed, made by the first of them."""


def _run(db: sqlite3.Connection, script: str) -> None:
    """Run a script statement by statement; `executescript` would commit first."""
    current = ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            db.execute(current)
            current = ""


_MAGIC = b"SQLite format 3\0"
_LOOKUP = 500  # values per SELECT, below SQLite's oldest limit on parameters
_PATIENCE = 60.0  # seconds another process may write
_CACHE_KIB = 65_536  # keys are random: each insert falls on another page


def check_store(path: str | Path, inputs: Inputs = ()) -> None:
    """Whether a feedback store may be opened or made there, before any work.

    Raises:
        ConfigError: What is there is no store, or one of the inputs, or no file can be made there.
    """
    check_file(path, "a feedback store", made=_is_store, inputs=inputs)


def _no_database(path: Path) -> bool:
    """Whether there is a file that SQLite did not make; it takes a file of one byte for an empty one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) not in (b"", _MAGIC)


def _is_store(path: Path) -> bool:
    if _no_database(path):
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as opened:
            return not _foreign(opened)
    except sqlite3.DatabaseError as error:
        # One that cannot be read now is reported when it is opened.
        return not isinstance(error, sqlite3.OperationalError)


def _foreign(opened: sqlite3.Connection) -> bool:
    tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return bool(tables) and not {"teachers", "judgments"} <= tables


class Database:
    """A connection to a store's file, in write-ahead mode.

    Args:
        path: Made with its folder if absent.

    Raises:
        StoreError: Not a store, written by another version, or not writable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise StoreError(f"feedback store {self.path} is a folder", "name a file in it")
        with self.translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if _no_database(self.path):
                raise sqlite3.DatabaseError("file is not a database")
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            try:
                if _foreign(self._db):
                    raise StoreError(f"{self.path} is a database, and no feedback store", "name another file")
                self._write_ahead()
                # What is reported as stored outlives a power cut: each commit waits for the disk, in batches
                # of 64 at 12,000 judgments a second, more than any teacher gives.
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
                if self._version() != VERSION:
                    self._create()
            except BaseException:
                self._db.close()
                raise

    def _write_ahead(self) -> None:
        """Switch to a write-ahead log; SQLite waits for no other process there, as it does elsewhere."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _create(self) -> None:
        with self.transaction():
            # Another process may have been faster, so the version is looked at under the lock.
            found = self._version()
            if found not in (0, VERSION):
                cure = "upgrade ezxmc" if found > VERSION else "name another file: it is of no release"
                raise StoreError(f"{self.path} has schema {found}, this ezxmc knows {VERSION}", cure)
            if not found:
                _run(self._db, _TABLES + _GUARDS + _REVIEWS)
                self._db.execute(f"PRAGMA user_version={VERSION}")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Errors of the file or the disk come out as `StoreError`."""
        try:
            yield
        except (sqlite3.DatabaseError, OverflowError) as error:
            if isinstance(error, OverflowError) or "binding parameter" in str(error):
                cure = "give fingerprints and uids as texts, sessions as whole numbers"
                raise InputTypeError(f"feedback store {self.path}: {error}", cure) from None
            raise StoreError(f"feedback store {self.path}: {error}", _cure(error)) from error
        except OSError as error:
            raise StoreError(f"feedback store {self.path}: {error}", "choose a writable place") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and safe from a power cut at its end; other processes wait before they write."""
        with self.translated():
            try:
                # Within: an interrupt right after it must not leave the transaction open.
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file; committed rows are already safe."""
        self._db.close()

    @property
    def size(self) -> int:
        """Bytes on disk, those still in the write-ahead log included."""
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def run(self, statement: str, *values: Any) -> None:
        """Execute one statement."""
        with self.translated():
            self._db.execute(statement, values)

    def run_each(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute one statement for each row of values."""
        with self.translated():
            self._db.executemany(statement, rows)

    def batches(self, query: str, *values: Any, size: int = 10_000) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of `query`, at most `size` of them in memory."""
        with self.translated():
            cursor = self._db.execute(query, values)
            while rows := cursor.fetchmany(size):
                yield rows

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of `query`."""
        with self.translated():
            return self._db.execute(query, values).fetchall()

    def among(self, query: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Rows of `query` followed by "IN (values)", a few values at a time."""
        for start in range(0, len(values), _LOOKUP):
            part = values[start : start + _LOOKUP]
            yield from self.rows(f"{query} IN ({','.join('?' * len(part))})", *part)


def _cure(error: sqlite3.DatabaseError) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return "move the file away, or restore it from a copy"
    if name.startswith("SQLITE_FULL"):
        return "the disk is full: make room, then run the same command; judgments already stored are safe"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
        return "the file or its folder is read-only: copy the store to a writable folder and use the copy"
    if name.startswith("SQLITE_BUSY"):
        return "another process has been writing for a minute: wait for it, or end it"
    return "is the disk full or failing? judgments already stored are safe"


class SqliteTable:
    """What keeps its rows in a `Database`. Use as a context manager, from one thread.

    Args:
        path: As for `Database`.

    Raises:
        StoreError: As for `Database`.
    """

    def __init__(self, path: str | Path) -> None:
        instance_of(path, (str, PathLike), "path", "give a path, such as 'feedback.sqlite'")
        self.path = Path(path)
        self._db = Database(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was committed is safe already."""
        self._db.close()
