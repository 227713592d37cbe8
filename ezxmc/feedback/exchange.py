"""Judgments out of a store into a file, and back; and what workers had finished when their driver died.

The file is Parquet, JSON lines or CSV with the columns `doc`, `label`, `status`, `log_odds`, `mass`,
`prompt_tokens`, `cached_tokens`, `key`, `teacher` (its fingerprint) and `description` (of the teacher, JSON
text, in its first row only). The replay teacher reads the same file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow

from ezxmc.data import RowReport, iter_rows
from ezxmc.data.rows import row_format, whole_rows
from ezxmc.errors import StoreError
from ezxmc.feedback.recall import existing_store
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Judgment, Result, Status
from ezxmc.teacher.shards import COLUMNS, Shard, left_behind

_BATCH = 10_000
_SCHEMA = pyarrow.schema([*COLUMNS, *((name, pyarrow.string()) for name in ("teacher", "description"))])
_NAMES = _SCHEMA.names[:-1]
_MOST_TOKENS = 1 << 53  # beyond it, JSON readers do not keep a number
_WHOLE = 1.001  # label masses are sums of rounded probabilities


@dataclass(frozen=True, slots=True)
class ImportSummary(Result):
    """What `import_judgments` did.

    Attributes:
        new: Judgments the store did not hold.
        duplicates: Judgments it held already, left as they were.
    """

    new: int
    duplicates: int


def export_judgments(
    store: FeedbackStore,
    out: Path,
    *,
    teacher: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write judgments to a file, in one step: a reader sees the old file or the whole new one.

    Args:
        store: Streamed; memory does not grow with it.
        out: `.parquet`, `.jsonl` or `.csv`, the last two also `.gz`; a former export is replaced.
        teacher: Fingerprint, or an unmistakable beginning of one; all teachers without it.
        progress: Called with (rows written, rows in all).

    Returns:
        Rows written.

    Raises:
        StoreError: No such teacher, or the store cannot be read.
        ConfigError: Something else is in the file's place, or its suffix is of no format.
        DataError: The file cannot be written.
    """
    row_format(out)
    teachers = store.teachers()
    if teacher is not None:
        named = [fingerprint for fingerprint in teachers if fingerprint.startswith(teacher)]
        if len(named) != 1:
            raise StoreError(
                f"{store.path} holds {len(named)} teachers whose fingerprint begins with {teacher!r}",
                "`ezxmc judgments stats` shows them",
            )
        teachers = {named[0]: teachers[named[0]]}
    total = sum(store.totals(fingerprint).judgments for fingerprint in teachers)
    done = 0
    with whole_rows(out, "an export of judgments", _SCHEMA, is_row=_is_row, inputs=[store.path]) as write:
        for fingerprint, description in teachers.items():
            once: str | None = json.dumps(description, ensure_ascii=False, sort_keys=True)
            for rows in store.batches(fingerprint, _BATCH):
                found = [
                    dict(zip(_NAMES, (*values, key.hex(), fingerprint), strict=True)) for key, *values in rows
                ]
                if once is not None:
                    found[0]["description"], once = once, None
                write(found)
                done += len(rows)
                if progress:
                    progress(done, total)
    return done


def _is_row(row: dict[str, Any]) -> bool:
    return row.keys() - {"description"} == set(_NAMES)


def import_judgments(
    store: FeedbackStore,
    source: str | Path,
    report: RowReport,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ImportSummary:
    """Put exported judgments into a store; interrupted, the same call goes on.

    Args:
        store: What it holds already is left as it is.
        source: What `export_judgments` wrote; any row format is read.
        report: Receives rows that are no judgment (`bad_judgment`).
        progress: Called with (rows read, 0): the number of rows is not known.

    Raises:
        DataError: The file cannot be read.
        StoreError: The store cannot be written.
    """
    sessions: dict[str, int] = {}
    waiting: dict[str, list[Judgment]] = {}
    held = new = 0

    def flush() -> None:
        nonlocal held, new
        for fingerprint, judgments in waiting.items():
            new += store.merge(sessions[fingerprint], judgments)
        waiting.clear()
        held = 0
        if progress:
            progress(report.rows, 0)

    for file, line, row in iter_rows(source, report):
        try:
            judgment, fingerprint, description = _read(row)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            detail = f"no column {error}" if isinstance(error, KeyError) else str(error)
            report.add(file, line, "bad_judgment", detail)
            continue
        report.kept += 1
        if fingerprint not in sessions:
            sessions[fingerprint] = store.open_session(fingerprint, description)
        waiting.setdefault(fingerprint, []).append(judgment)
        held += 1
        if held >= _BATCH:
            flush()
    flush()
    return ImportSummary(new, report.kept - new)


def _read(row: dict[str, Any]) -> tuple[Judgment, str, dict[str, Any]]:
    key, doc, label, teacher = (row[name] for name in ("key", "doc", "label", "teacher"))
    if not all(isinstance(value, str) for value in (key, doc, label, teacher)) or not teacher:
        raise ValueError("key, doc, label and teacher must be text")
    f"{doc}{label}{teacher}".encode()  # a lone surrogate is no text
    if len(key) != 64 or bytes.fromhex(key).hex() != key:
        raise ValueError(f"a key is 64 lower-case hex digits, not {key[:80]!r}")
    status = Status(row["status"])
    if not status.final:
        raise ValueError(f"{status} is a failed attempt, no judgment")
    mass = _number(row, "mass")
    if mass is not None and not 0 <= mass <= _WHOLE:
        raise ValueError(f"mass {mass} is no probability")
    prompt, cached = (int(row.get(name) or 0) for name in ("prompt_tokens", "cached_tokens"))
    if not 0 <= cached <= prompt < _MOST_TOKENS:
        raise ValueError(f"{cached} cached of {prompt} prompt tokens")
    description = json.loads(row.get("description") or "{}")
    if not isinstance(description, dict):
        raise ValueError("a description is a JSON object")
    return (
        Judgment(key, doc, label, status, _number(row, "log_odds"), mass, prompt, cached),
        teacher,
        description,
    )


def _number(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value in (None, ""):
        return None
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{name} {number} is no number")
    return number


def merge_shards(store: FeedbackStore) -> int:
    """Store what interrupted jobs left behind; their teachers need not be there.

    A shard is deleted after its commit. Killed in between, its judgments are known the next time, and nothing
    is stored or counted twice. Shards of a job at work, in another process, are left to it.

    Returns:
        Judgments that were new.

    Raises:
        StoreError: A shard is damaged, or the store cannot be written.
    """
    merged = 0
    for job in left_behind(store.shards):
        sessions: dict[str, int] = {}
        for path in job:
            shard = Shard.read(path)
            known = store.known([judgment.key for judgment in shard.judgments])
            fresh = [judgment for judgment in shard.judgments if judgment.key not in known]
            if fresh:
                if shard.teacher not in sessions:
                    sessions[shard.teacher] = store.open_session(shard.teacher, shard.description)
                answered = sum(judgment.status.final for judgment in fresh)
                seconds = shard.seconds * answered / len(shard.judgments)
                merged += len(store.append(sessions[shard.teacher], fresh, seconds))
            path.unlink()
    return merged


def store_statistics(store: str | Path) -> dict[str, Any]:
    """What a store holds, JSON-ready: its size, and of each teacher the counts, costs and speed.

    Raises:
        StoreError: There is no such store.
    """
    with existing_store(store) as feedback:
        teachers = []
        for fingerprint, description in feedback.teachers().items():
            totals = feedback.totals(fingerprint)
            derived = {name: getattr(totals, name) for name in _DERIVED}
            teachers.append({"teacher": fingerprint, "description": description, **asdict(totals), **derived})
        rows = sum(one["judgments"] for one in teachers)
        return {
            "store": str(store),
            "judgments": rows,
            "bytes": feedback.size,
            "bytes_per_judgment": feedback.size / rows if rows else None,
            "teachers": teachers,
        }


_DERIVED = ("cache_share", "computed_per_pair", "pairs_per_second")


def failed_pairs(store: str | Path, limit: int = 1_000) -> list[dict[str, Any]]:
    """By teacher, how many pairs got no judgment for which reason, and the first `limit` of them, JSON-ready.

    Raises:
        StoreError: There is no such store.
    """
    with existing_store(store) as feedback:
        return [
            {
                "teacher": teacher,
                "counts": feedback.totals(teacher).failures_by_kind,
                "pairs": [
                    dict(status=one.status.value, doc=one.doc_uid, label=one.label_uid, attempts=one.attempts)
                    for one in islice(feedback.failures(teacher), limit)
                ],
            }
            for teacher in feedback.teachers()
        ]
