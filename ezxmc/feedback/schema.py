"""The store's tables, and how the tables of earlier releases become these.

A migration runs in the transaction that finds the old version: interrupted, it
leaves the old file as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

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

# Version 1 repeated uids in every row and logged each failed attempt without
# its teacher; the session under way at that time tells it.
_FROM_1 = """
DROP TRIGGER judgments_are_kept;
DROP TRIGGER judgments_are_final;
ALTER TABLE judgments RENAME TO old_judgments;
ALTER TABLE failures RENAME TO old_failures;
ALTER TABLE sessions RENAME TO old_sessions;
ALTER TABLE teachers RENAME TO old_teachers;
{tables}
INSERT INTO teachers SELECT * FROM old_teachers;
INSERT OR IGNORE INTO names (name) SELECT doc_uid FROM old_judgments;
INSERT OR IGNORE INTO names (name) SELECT label_uid FROM old_judgments;
INSERT INTO judgments
SELECT key, teacher, docs.id, labels.id, status, log_odds, label_mass, prompt_tokens, cached_tokens
FROM old_judgments
CROSS JOIN names AS docs ON docs.name = doc_uid CROSS JOIN names AS labels ON labels.name = label_uid
ORDER BY key;
INSERT INTO counts
SELECT teacher, status, COUNT(*), SUM(prompt_tokens), SUM(cached_tokens) FROM judgments GROUP BY 1, 2;
CREATE TEMP TABLE attempts AS
SELECT *, COALESCE((SELECT MAX(id) FROM old_sessions WHERE started <= at), 1) AS session FROM old_failures;
INSERT INTO sessions
SELECT id, teacher, started, seconds, judged,
    (SELECT COUNT(*) FROM attempts WHERE session = old_sessions.id), NULL
FROM old_sessions;
INSERT INTO failures
SELECT key, session, doc_uid, label_uid, status, COUNT(*), MAX(at) FROM attempts
WHERE NOT EXISTS (SELECT 1 FROM judgments WHERE judgments.key = attempts.key) GROUP BY key;
DROP TABLE attempts;
DROP TABLE old_judgments;
DROP TABLE old_failures;
DROP TABLE old_sessions;
DROP TABLE old_teachers;
{guards}
"""


def create(db: sqlite3.Connection) -> None:
    """Make the tables in an empty file, within the caller's transaction."""
    _run(db, _TABLES + _GUARDS + _REVIEWS)
    db.execute(f"PRAGMA user_version={VERSION}")


def migrate(db: sqlite3.Connection, found: int) -> None:
    """Bring a store of version `found` to `VERSION`, within the caller's transaction."""
    for version in range(found, VERSION):
        _STEPS[version](db)
    db.execute(f"PRAGMA user_version={VERSION}")


def _from_1(db: sqlite3.Connection) -> None:
    _run(db, _FROM_1.format(tables=_TABLES, guards=_GUARDS))


def _from_2(db: sqlite3.Connection) -> None:
    _run(db, _REVIEWS)


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1, 2: _from_2}


def _run(db: sqlite3.Connection, script: str) -> None:
    """Run a script statement by statement; `executescript` would commit first."""
    current = ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            db.execute(current)
            current = ""
