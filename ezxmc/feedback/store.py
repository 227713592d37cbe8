"""The feedback store: every judgment ever paid for, in one SQLite file.

Append-only, keyed by content, in WAL mode: a process killed at any moment, or
a power cut, loses at most the batch it had not yet committed, and a committed
judgment is never asked for again. Several processes may write at once.
"""

from __future__ import annotations

import json
import reprlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ezxmc.errors import ArgumentError, InputTypeError, instance_of, number_between, whole_number
from ezxmc.feedback.database import SqliteTable
from ezxmc.records import Judgment, Status


@dataclass(frozen=True, slots=True)
class StoreTotals:
    """What the judgments of one teacher cost, over all sessions.

    Attributes:
        judgments: Rows stored.
        statuses: Rows by status.
        failures: Pairs whose last attempt failed, not answered since; asked again by the next job.
        failures_by_kind: These by status.
        prompt_tokens: Sum of prompt lengths.
        cached_tokens: Of these, tokens the prefix cache supplied.
        seconds: Time spent judging, from the first question on; engine start-up excluded.
        judged: Judgments given in that time; the others were imported.
        sessions: How many times annotation was started.
    """

    judgments: int
    statuses: dict[str, int]
    failures: int
    failures_by_kind: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    judged: int
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
        return self.judged / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True)
class Failure:
    """A pair whose last attempt gave no judgment.

    Attributes:
        doc_uid: The document's uid.
        label_uid: The label's uid.
        status: What came of the last attempt.
        attempts: Failed attempts in the last session that asked.
        at: Time of the last, seconds since 1970.
    """

    doc_uid: str
    label_uid: str
    status: Status
    attempts: int
    at: float


_NAMES_KEPT = 200_000


class FeedbackStore(SqliteTable):
    """Judgments on disk. Use as a context manager, from one thread.

    Args:
        path: The SQLite file; made with its folder if absent.

    Raises:
        StoreError: Not a store, written by another version, or not writable.

    Example:
        >>> with FeedbackStore("feedback.sqlite") as store:
        ...     len(list(store.judgments()))
        1500
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._ids: dict[str, int] = {}
        self.answered = 0
        """New judgments that `append` stored here, whatever other processes do."""

    @property
    def size(self) -> int:
        """Bytes on disk, those still in the write-ahead log included."""
        return self._db.size

    @property
    def shards(self) -> Path:
        """Folder beside the file, for answers of workers on their way here."""
        return self.path.with_name(f"{self.path.name}-shards")

    def open_session(self, fingerprint: str, description: dict[str, Any]) -> int:
        """Register a teacher and the start of an annotation session; returns its id.

        Raises:
            InputTypeError: The fingerprint is no text, or the description no JSON object.
        """
        instance_of(fingerprint, str, "fingerprint", "give a teacher's fingerprint")
        instance_of(description, dict, "description", "give a teacher's description")
        try:
            text = json.dumps(description, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise InputTypeError(f"the description is no JSON: {error}", "give texts and numbers") from None
        with self._db.transaction():
            self._db.run(
                "INSERT OR IGNORE INTO teachers (fingerprint, description) VALUES (?, ?)", fingerprint, text
            )
            row = self._db.rows(
                "INSERT INTO sessions (teacher, started) SELECT id, ? FROM teachers WHERE fingerprint = ? "
                "RETURNING id",
                time.time(),
                fingerprint,
            )[0]
        return int(row[0])

    def append(self, session: int, judgments: Sequence[Judgment], seconds: float) -> list[Judgment]:
        """Store a batch in one transaction; once it returns, neither crash nor power cut can lose it.

        Passing failures (`Status.final` is false) are noted apart and stay
        unknown, so they are asked again; an answer takes the note away.

        Args:
            session: From `open_session`.
            judgments: Any statuses; a key already stored is left as it is.
            seconds: Time this batch took to judge.

        Returns:
            The judgments that were new.

        Raises:
            InputTypeError, ArgumentError: There is no such session, or they are no judgments.
        """
        self._check(session, judgments)
        seconds = number_between(seconds, "seconds", 0)
        failed = [j for j in judgments if not j.status.final]
        with self._writing():
            new = self._insert(session, judgments)
            if failed:
                self._note(session, failed)
            self._db.run(
                "UPDATE sessions SET seconds = seconds + ?, judged = judged + ?, failed = failed + ? "
                "WHERE id = ?",
                seconds,
                len(new),
                len(failed),
                session,
            )
        self.answered += len(new)
        return new

    def merge(self, session: int, judgments: Sequence[Judgment]) -> int:
        """Store judgments made elsewhere, in one transaction; returns how many were new."""
        self._check(session, judgments)
        with self._writing():
            new = len(self._insert(session, judgments))
            self._db.run(
                "UPDATE sessions SET imported = COALESCE(imported, 0) + ? WHERE id = ?", new, session
            )
        return new

    def _check(self, session: int, judgments: Sequence[Judgment]) -> None:
        whole_number(session, "session")
        cure = "give a list of ezxmc.records.Judgment"
        instance_of(judgments, Sequence, "judgments", cure)
        for judgment in judgments:
            instance_of(judgment, Judgment, "a judgment", cure)
        if not self._db.rows("SELECT 1 FROM sessions WHERE id = ?", session):
            raise ArgumentError(f"there is no session {session}", "open one with `open_session`")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._db.transaction():
                yield
        except BaseException:
            self._ids.clear()  # ids of a transaction that is undone go to other names
            raise

    def _insert(self, session: int, judgments: Sequence[Judgment]) -> list[Judgment]:
        """Within a transaction: the final ones among `judgments` that are not stored yet."""
        final = {j.key: j for j in judgments if j.status.final}
        known = self.known(list(final))
        # In key order neighbours fall on the same page.
        new = [final[key] for key in sorted(final) if key not in known]
        if not new:
            return new
        teacher = self._db.rows("SELECT teacher FROM sessions WHERE id = ?", session)[0][0]
        ids = self._named({uid for j in new for uid in (j.doc_uid, j.label_uid)})
        self._db.run_each(
            "INSERT INTO judgments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    bytes.fromhex(j.key),
                    teacher,
                    ids[j.doc_uid],
                    ids[j.label_uid],
                    j.status.value,
                    j.log_odds,
                    j.label_mass,
                    j.prompt_tokens,
                    j.cached_tokens,
                )
                for j in new
            ),
        )
        counts: dict[str, list[int]] = {}
        for j in new:
            count = counts.setdefault(j.status.value, [0, 0, 0])
            for i, value in enumerate((1, j.prompt_tokens, j.cached_tokens)):
                count[i] += value
        self._db.run_each(
            "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "judgments = judgments + excluded.judgments, "
            "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "cached_tokens = cached_tokens + excluded.cached_tokens",
            ((teacher, status, *count) for status, count in counts.items()),
        )
        self._db.run_each("DELETE FROM failures WHERE key = ?", ((bytes.fromhex(j.key),) for j in new))
        return new

    def _named(self, uids: set[str]) -> dict[str, int]:
        """Row ids of uids, new ones added."""
        if len(self._ids) > _NAMES_KEPT:
            self._ids.clear()
        if unknown := [uid for uid in uids if uid not in self._ids]:
            self._db.run_each("INSERT OR IGNORE INTO names (name) VALUES (?)", zip(unknown))
            self._ids.update(self._db.among("SELECT name, id FROM names WHERE name", unknown))
        return self._ids

    def _note(self, session: int, failed: Sequence[Judgment]) -> None:
        """Within a transaction: what each pair's last attempt came to, unless it is answered by now."""
        known = self.known([j.key for j in failed])
        now = time.time()
        self._db.run_each(
            "INSERT INTO failures VALUES (?, ?, ?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET "
            "session = excluded.session, doc_uid = excluded.doc_uid, label_uid = excluded.label_uid, "
            "status = excluded.status, at = excluded.at, "
            "attempts = IIF(session = excluded.session, attempts, 0) + 1",
            (
                (bytes.fromhex(j.key), session, j.doc_uid, j.label_uid, j.status.value, now)
                for j in failed
                if j.key not in known
            ),
        )

    def known(self, keys: Sequence[str]) -> set[str]:
        """The keys among `keys` that are already judged."""
        return {row[0].hex() for row in self._db.among("SELECT key FROM judgments WHERE key", _raw(keys))}

    def given_up(self, session: int, keys: Sequence[str], attempts: int) -> set[str]:
        """The keys among `keys` that failed `attempts` times or more in one session."""
        rows = self._db.among("SELECT key, session, attempts FROM failures WHERE key", _raw(keys))
        return {row[0].hex() for row in rows if row[1] == session and row[2] >= attempts}

    def get(self, keys: Sequence[str]) -> dict[str, Judgment]:
        """The stored judgments among `keys`, by key."""
        found = map(_judgment, self._db.among(f"{_ROWS} WHERE key", _raw(keys)))
        return {judgment.key: judgment for judgment in found}

    def judgments(self, fingerprint: str | None = None) -> Iterator[Judgment]:
        """All judgments, streamed in key order; of one teacher if `fingerprint` is given.

        Their uids are names of the time of asking: `ezxmc.feedback.recall` finds what is about present texts.
        """
        for teacher in self.teachers() if fingerprint is None else (fingerprint,):
            for rows in self.batches(teacher):
                yield from map(_judgment, rows)

    def to_dataset(self, fingerprint: str | None = None, *, scored: bool = True) -> Any:
        """Judgments as a `datasets.Dataset`, in memory, in key order.

        Its columns are those of an export: `doc`, `label` (uids), `status`, `log_odds`, `mass`,
        `prompt_tokens`, `cached_tokens`, `key`. It is feedback as `train_bi_encoder` takes it.

        Args:
            fingerprint: Whose; by default the newest teacher's, for answers of two do not compare.
            scored: Whether judgments without a score are left out, which teach nothing; with them,
                `log_odds` is missing where there was none.

        Example:
            >>> with FeedbackStore("answers.sqlite") as store:
            ...     session = store.open_session("mine", {"model": "a model"})
            ...     answer = Judgment("0" * 64, "d1", "music", Status.OK, 2.5, 0.75)
            ...     stored = store.append(session, [answer], seconds=0.5)
            ...     found = store.to_dataset()
            >>> found.select_columns(["doc", "label", "log_odds", "mass"])[0]
            {'doc': 'd1', 'label': 'music', 'log_odds': 2.5, 'mass': 0.75}
        """
        import pyarrow
        from datasets import Dataset, Features

        from ezxmc.teacher.shards import COLUMNS

        features = Features.from_arrow_schema(pyarrow.schema(COLUMNS))
        rows = (row for rows in self.batches(fingerprint or self.newest_teacher() or "") for row in rows)
        kept = [(*row[1:], row[0].hex()) for row in rows if not scored or row[4] is not None]
        columns = zip(*kept, strict=True) if kept else ((),) * len(features)
        return Dataset.from_dict(dict(zip(features, map(list, columns), strict=True)), features=features)

    def batches(self, fingerprint: str, size: int = 10_000) -> Iterator[list[tuple[Any, ...]]]:
        """One teacher's judgments as rows.

        Yields:
            Up to `size` rows (key, doc uid, label uid, status, log-odds, label
            mass, prompt tokens, cached tokens).

        Raises:
            ArgumentError: `size` is below 1.
        """
        whole_number(size, "size")
        return self._db.batches(
            f"{_ROWS} WHERE teacher = (SELECT id FROM teachers WHERE fingerprint = ?) ORDER BY key",
            fingerprint,
            size=size,
        )

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Fingerprints and descriptions, the teacher asked last at the end, imported ones before."""
        rows = self._db.rows(
            "SELECT fingerprint, description FROM teachers LEFT JOIN sessions ON teacher = teachers.id "
            "GROUP BY teachers.id ORDER BY MAX(IIF(imported IS NULL, sessions.id, NULL)), MAX(sessions.id)"
        )
        return {fingerprint: json.loads(description) for fingerprint, description in rows}

    def newest_teacher(self) -> str | None:
        """Fingerprint of the teacher asked last, else imported last; `None` in an empty store."""
        return next(reversed(self.teachers()), None)

    def judged(self, fingerprint: str) -> int:
        """Judgments one teacher was asked for and gave, over all sessions."""
        return int(self._over_sessions("TOTAL(judged)", fingerprint))

    def judging_seconds(self, fingerprint: str) -> float:
        """Time one teacher has spent judging, over all sessions."""
        return self._over_sessions("TOTAL(seconds)", fingerprint)

    def _over_sessions(self, value: str, fingerprint: str) -> float:
        return float(
            self._db.rows(
                f"SELECT {value} FROM sessions JOIN teachers ON teachers.id = sessions.teacher "
                "WHERE fingerprint = ?",
                fingerprint,
            )[0][0]
        )

    def failures(self, fingerprint: str) -> Iterator[Failure]:
        """Pairs one teacher still owes a judgment after failed attempts, by kind and document."""
        for rows in self._db.batches(
            "SELECT failures.doc_uid, label_uid, status, attempts, at FROM failures "
            f"{_OF_TEACHER} ORDER BY status, doc_uid, label_uid",
            fingerprint,
        ):
            for doc, label, status, attempts, at in rows:
                yield Failure(doc, label, Status(status), attempts, at)

    def failed(self, session: int) -> dict[Status, tuple[int, int]]:
        """By status: pairs whose attempts in one session all failed, and documents they belong to."""
        rows = self._db.rows(
            "SELECT status, COUNT(*), COUNT(DISTINCT doc_uid) FROM failures WHERE session = ? GROUP BY 1",
            session,
        )
        return {Status(status): (pairs, documents) for status, pairs, documents in rows}

    def failed_documents(self, session: int, status: Status, limit: int) -> list[str]:
        """Some documents of such pairs."""
        instance_of(status, Status, "status", "give an ezxmc.records.Status")
        rows = self._db.rows(
            "SELECT DISTINCT doc_uid FROM failures WHERE session = ? AND status = ? LIMIT ?",
            session,
            status.value,
            limit,
        )
        return [uid for (uid,) in rows]

    def totals(self, fingerprint: str) -> StoreTotals:
        """Counts and cost of one teacher's judgments; no scan, however many there are."""
        counts = self._db.rows(
            "SELECT status, judgments, prompt_tokens, cached_tokens FROM counts "
            "WHERE teacher = (SELECT id FROM teachers WHERE fingerprint = ?)",
            fingerprint,
        )
        kinds = dict(
            self._db.rows(f"SELECT status, COUNT(*) FROM failures {_OF_TEACHER} GROUP BY status", fingerprint)
        )
        return StoreTotals(
            judgments=sum(row[1] for row in counts),
            statuses={row[0]: row[1] for row in counts},
            failures=sum(kinds.values()),
            failures_by_kind=kinds,
            prompt_tokens=sum(row[2] for row in counts),
            cached_tokens=sum(row[3] for row in counts),
            seconds=self.judging_seconds(fingerprint),
            judged=self.judged(fingerprint),
            sessions=int(self._over_sessions("COUNT(*) - COUNT(imported)", fingerprint)),
        )


# CROSS keeps SQLite from walking the names first.
_ROWS = (
    "SELECT key, docs.name, labels.name, status, log_odds, label_mass, prompt_tokens, cached_tokens "
    "FROM judgments CROSS JOIN names AS docs ON docs.id = doc CROSS JOIN names AS labels ON labels.id = label"
)
_OF_TEACHER = (
    "JOIN sessions ON sessions.id = failures.session JOIN teachers ON teachers.id = sessions.teacher "
    "WHERE fingerprint = ?"
)


def _raw(keys: Sequence[str]) -> list[bytes]:
    try:
        if not isinstance(keys, str):
            return [bytes.fromhex(key) for key in keys]
    except (TypeError, ValueError):
        pass
    raise InputTypeError(f"keys are {reprlib.repr(keys)}", "give a list of content keys, 64 hex digits each")


def _judgment(row: tuple[Any, ...]) -> Judgment:
    return Judgment(row[0].hex(), row[1], row[2], Status(row[3]), *row[4:])
