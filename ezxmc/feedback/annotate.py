"""The annotation job: pairs − already judged → teacher → store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.teacher.base import Teacher

_BATCH = 64
_FLUSH_SECONDS = 2.0
_LOOKUP = 10_000


@dataclass(slots=True)
class AnnotateSummary:
    """What one call of `annotate` did.

    Attributes:
        wanted: Distinct pairs in the job.
        known: Of these, already in the store.
        asked: Judgments the teacher gave now.
        statuses: These by status.
        seconds: From the first answer asked for to the last stored, engine
            start-up included.
        prompt_tokens: Prompt lengths of what was asked.
        cached_tokens: Of these, supplied by the prefix cache.
        problem_docs: Some documents with a judgment that is not `ok`.
    """

    wanted: int = 0
    known: int = 0
    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    problem_docs: list[str] = field(default_factory=list)

    def add(self, judgment: Judgment) -> None:
        """Count one new judgment."""
        self.asked += 1
        self.statuses[judgment.status.value] += 1
        self.prompt_tokens += judgment.prompt_tokens
        self.cached_tokens += judgment.cached_tokens
        if (
            judgment.log_odds is None
            and len(self.problem_docs) < 20
            and judgment.doc_uid not in self.problem_docs
        ):
            self.problem_docs.append(judgment.doc_uid)


def annotate(
    pairs: Callable[[], Iterable[Pair]],
    teacher: Teacher,
    store: FeedbackStore,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> AnnotateSummary:
    """Ask the teacher for every pair the store does not hold yet.

    Killed at any moment and called again with the same arguments, it goes on
    where the last commit was. A judgment is counted in `progress` only once it
    is committed.

    Args:
        pairs: Gives the job's pairs, document by document; called twice, so
            that the job is never held in memory.
        teacher: Asked only if something is missing.
        store: Where judgments go.
        progress: Called with (stored, wanted).

    Returns:
        Counts, statuses and tokens.

    Raises:
        TeacherError: The engine could not start or died; stored judgments stay.
        StoreError: The store could not be written.
    """
    summary = AnnotateSummary()
    for wanted, missing in _missing(pairs(), teacher, store):
        summary.wanted += wanted
        summary.known += wanted - len(missing)
    expected = summary.wanted - summary.known
    if progress:
        progress(summary.known, summary.wanted)
    if not expected:
        return summary

    session = store.open_session(teacher.fingerprint, teacher.description)
    todo = (pair for _, missing in _missing(pairs(), teacher, store) for pair in missing)
    started = flushed = time.monotonic()
    first: float | None = None
    batch: list[Judgment] = []

    def flush() -> None:
        nonlocal flushed
        now = time.monotonic()
        store.append(session, batch, now - flushed)
        for judgment in batch:
            summary.add(judgment)
        batch.clear()
        flushed = time.monotonic()
        if progress:
            progress(summary.known + summary.asked, summary.wanted)

    try:
        for judgment in teacher.score(todo, expected=expected):
            if first is None:
                # The engine's start-up is no part of its speed.
                first = flushed = time.monotonic()
            batch.append(judgment)
            if len(batch) >= _BATCH or time.monotonic() - flushed > _FLUSH_SECONDS:
                flush()
    finally:
        if batch:
            flush()
        summary.seconds = time.monotonic() - started
    return summary


def _missing(
    pairs: Iterable[Pair], teacher: Teacher, store: FeedbackStore
) -> Iterator[tuple[int, list[Pair]]]:
    """Chunks of the job: how many distinct pairs, and those of them not judged yet."""
    stream = iter(pairs)
    seen: set[bytes] = set()
    while chunk := list(islice(stream, _LOOKUP)):
        keyed: dict[str, Pair] = {}
        for pair in chunk:
            key = teacher.key(pair)
            short = bytes.fromhex(key[:32])
            if short not in seen:
                seen.add(short)
                keyed[key] = pair
        known = store.known(list(keyed))
        yield len(keyed), [pair for key, pair in keyed.items() if key not in known]


def pairs_of(
    documents: Sequence[Document], labels: Sequence[Label], rows: Iterable[Sequence[int]]
) -> Iterator[Pair]:
    """Pairs of a shortlist, document by document.

    Args:
        documents: N documents.
        labels: All labels.
        rows: N sequences of positions in `labels`.
    """
    for doc, candidates in zip(documents, rows, strict=True):
        for row in candidates:
            yield Pair(doc, labels[row])


def recall(pairs: Iterable[Pair], teacher: Teacher, store: FeedbackStore) -> Iterator[Judgment]:
    """What the store holds of these pairs, under the pairs' own uids.

    Judgments are kept by content: two documents of equal text share one, and
    a renamed document keeps its own.
    """
    stream = iter(pairs)
    while chunk := list(islice(stream, _LOOKUP)):
        keys = [teacher.key(pair) for pair in chunk]
        found = store.get(keys)
        for key, pair in zip(keys, chunk, strict=True):
            if key in found:
                yield replace(found[key], doc_uid=pair.doc.uid, label_uid=pair.label.uid)
