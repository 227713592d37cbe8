"""The annotation job: pairs − already judged → teacher → store.

A job of millions of pairs is read several times and never held: keys are counted in a temporary file, and
what is asked about is looked up in the store a window at a time.

Processes on one store tell each other which pairs they have in hand: one byte of an empty file
beside the store is locked for each pair a teacher is being asked about. The operating system gives
a dead process's locks back, so no claim outlives its owner and no clock is needed.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ezxmc.errors import StoreError, TeacherError, instance_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Label, Pair, Status
from ezxmc.teacher.base import ShardedTeacher, Teacher, startup_seconds


class PairLocks:
    """The pairs this process is asking about.

    Locks belong to a process: they part processes, not the threads of one.

    Args:
        store: The feedback store's file.

    Raises:
        StoreError: The file of claims cannot be made.
    """

    def __init__(self, store: Path) -> None:
        self.path = store.with_name(f"{store.name}-asking")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(f"{self.path}: {error}", "put the store into a writable folder") from error

    def acquire(self, key: str) -> bool:
        """Claim a pair; false if another process has it in hand."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreError(
                f"{self.path}: {error}", "put the store on a file system that has locks"
            ) from error
        return True

    def release(self, key: str) -> None:
        """Give a claimed pair back, once its judgment is stored or its turn has passed."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(key))

    def close(self) -> None:
        """Give everything back."""
        os.close(self._file)


def _place(key: str) -> int:
    """A file offset for a key; equal ones (2^-60) only make one process wait for the other."""
    return int(key[:15], 16)


_BATCH = 64
_FLUSH_SECONDS = 2.0
_CHUNK = 10_000  # pairs looked up at once
_WINDOW = 64  # pairs claimed at once; what other processes can take meanwhile begins after them
_ATTEMPTS = 3
_HOPELESS = 256  # failures in a row that end a round of second attempts
_SPEECHLESS = 256  # of a teacher's first judgments; if none holds a score, it is not paid for more
_NO_ANSWER = frozenset((Status.LOW_MASS, Status.NO_LOGPROBS, Status.NOT_FINITE))
_POLL_SECONDS = 0.2
_NAMED = 20  # documents named for each kind of problem


@dataclass(frozen=True, slots=True)
class ProblemDocuments:
    """Documents with pairs that got no score.

    Attributes:
        count: How many, exactly.
        some: The uids of the first of them.
    """

    count: int
    some: list[str]


@dataclass(slots=True)
class AnnotateSummary:
    """What one call of `annotate` did.

    Attributes:
        wanted: Distinct pairs in the job.
        known: Of these, in the store without asking: before, or given by another process meanwhile.
        asked: Pairs the teacher was asked about now.
        statuses: These by what came of them in the end; a kind that is not
            `Status.final` still has no judgment and is asked again by the next job.
        seconds: From the first answer asked for to the last stored, engine start-up included.
        startup_seconds: Of these, until the engine was ready for its first question, where the teacher tells.
        prompt_tokens: Prompt lengths of what was asked, repeated attempts included.
        cached_tokens: Of these, supplied by the prefix cache.
        stopped: Whether `stop` ended the job before its last pair.
        problems: By status, the documents with pairs that got no score.
    """

    wanted: int = 0
    known: int = 0
    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    startup_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    stopped: bool = False
    problems: dict[str, ProblemDocuments] = field(default_factory=dict)

    @property
    def problem_docs(self) -> list[str]:
        """Some documents with a pair that got no score."""
        return list(dict.fromkeys(uid for found in self.problems.values() for uid in found.some))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "statuses": dict(self.statuses)}


def annotate(
    pairs: Callable[[], Iterable[Pair]],
    teacher: Teacher,
    store: FeedbackStore,
    *,
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[Sequence[Judgment]], None] | None = None,
) -> AnnotateSummary:
    """Ask the teacher for every pair the store does not hold yet.

    Killed at any moment and called again with the same arguments, it goes on where the last commit was.
    Several processes may work on one store: none asks about a pair another has in hand, and all return when
    all is answered. Failed pairs are asked again at the end, twice at most, and only while that gives
    answers. A teacher whose first 256 answers hold no score is asked nothing more.

    Args:
        pairs: Gives the job's pairs, document by document, the same each time;
            called at least twice, so that the job is never held in memory.
        teacher: Asked only if something is missing.
        store: Where judgments go.
        stop: Looked at before each pair is handed to the teacher; once true, no further pair is asked, and
            what is in flight is finished and stored.
        progress: Called with (in the store, wanted), only after a commit.
        seen: Called with new judgments, a few dozen at a time, only after their commit.

    Returns:
        Counts, statuses and tokens.

    Raises:
        TeacherError: The engine could not start or died, or the model does not
            answer the question; stored judgments stay.
        StoreError: The store could not be written.
        InputTypeError: `pairs` is no function (a list, say) or gives something else than `Pair`s, or
            teacher or store is none.

    Example:
        >>> from ezxmc.config.teacher import ReplayTeacherConfig
        >>> teacher = load_teacher(ReplayTeacherConfig(judgments="judgments.jsonl"))
        >>> pair = Pair(Document("d1", "", ""), Label("l-guitar", "guitar"))
        >>> with FeedbackStore("new.sqlite") as store:
        ...     annotate(lambda: [pair], teacher, store).asked
        1
    """
    cure = "give a function that gives the pairs again at each call: lambda: pairs_of(...)"
    instance_of(pairs, Callable, "pairs", cure)  # type: ignore[arg-type]
    instance_of(store, FeedbackStore, "store", "open one: FeedbackStore('feedback.sqlite')")
    instance_of(teacher, Teacher, "teacher", "give what load_teacher returns, or any ezxmc.Teacher")
    ignore: Callable[..., Any] = lambda *_: None  # noqa: E731
    job = _Job(pairs, teacher, store, stop or ignore, progress or ignore, seen or ignore)
    if missing := job.count():
        job.answer(missing)
    return job.summary


@dataclass(slots=True)
class _Job:
    """The state of one call of `annotate`, with its arguments.

    Attributes:
        in_hand: Keys the teacher was asked and nothing is stored of, with the chunk they are in.
        failing: Chunks with failed pairs.
        scoreless: By final status, documents with a judgment that holds no score.
        speechless: Answers of this teacher without a score, by kind, as long as none had one.
    """

    pairs: Callable[[], Iterable[Pair]]
    teacher: Teacher
    store: FeedbackStore
    stop: Callable[[], bool]
    progress: Callable[[int, int], None]
    seen: Callable[[Sequence[Judgment]], None]
    summary: AnnotateSummary = field(default_factory=AnnotateSummary)
    answered: int = 0
    in_hand: dict[str, int] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    scoreless: dict[str, set[str]] = field(default_factory=dict)
    in_vain: int = 0
    scored: bool = False
    speechless: Counter[str] = field(default_factory=Counter)
    session: int = field(init=False)
    claims: PairLocks = field(init=False)

    def count(self) -> set[int]:
        """Count the job; returns the chunks something is missing of."""
        missing, tally = set(), _Tally()
        for number, chunk in enumerate(_chunks(self.pairs())):
            keys = {self.teacher.key(pair) for pair in chunk}
            known = self.store.known(list(keys))
            tally.add(keys, known)
            if len(known) < len(keys):
                missing.add(number)
        self.summary.wanted, self.summary.known = tally.close()
        self._tell()
        return missing

    def answer(self, chunks: set[int]) -> None:
        """Ask about what is missing in `chunks`, until all is known or asking again does not help."""
        summary, started, startup = self.summary, time.monotonic(), startup_seconds(self.teacher)
        before = self.store.totals(self.teacher.fingerprint).statuses
        self.scored = bool(before.get(Status.OK))
        self.speechless[Status.LOW_MASS.value] = before.get(Status.LOW_MASS, 0)
        self._heed_silence()
        self.session = self.store.open_session(self.teacher.fingerprint, self.teacher.description)
        self.claims = PairLocks(self.store.path)
        if isinstance(self.teacher, ShardedTeacher):
            self.teacher.keep(self.store.shards)
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                answered, self.failing, self.in_vain = self.answered, set(), 0
                elsewhere = self._round(chunks, attempt)
                while elsewhere and not summary.stopped:
                    looked = time.monotonic()
                    elsewhere = self._round(elsewhere, attempt)
                    if elsewhere:
                        time.sleep(max(_POLL_SECONDS, time.monotonic() - looked))
                        summary.stopped = self.stop()
                if summary.stopped or not self.failing or (attempt > 1 and self.answered == answered):
                    break
                chunks = self.failing
        finally:
            self.claims.close()
            summary.seconds = time.monotonic() - started
            summary.startup_seconds = startup_seconds(self.teacher) - startup
        self._sum_up()

    def _round(self, chunks: set[int], attempt: int) -> set[int]:
        """Ask what is missing once; returns the chunks with pairs that other processes have in hand."""
        elsewhere: set[int] = set()
        stream = self._offered(chunks, attempt, elsewhere)
        # The engine is not started for nothing.
        if first := next(stream, None):
            self._ask(chain((first,), stream))
        return elsewhere

    def _offered(self, chunks: set[int], attempt: int, elsewhere: set[int]) -> Iterator[Pair]:
        """Pairs that nobody has judged or has in hand and that failed less than `attempt` times."""
        for number, chunk in enumerate(_chunks(self.pairs())):
            if number not in chunks:
                continue
            keyed = {self.teacher.key(pair): pair for pair in chunk}
            known = self.store.known(list(keyed))
            missing = iter([key for key in keyed if key not in known])
            while window := list(islice(missing, _WINDOW)):
                if attempt > 1 and self.in_vain > _HOPELESS:
                    return
                free = [key for key in window if key not in self.in_hand]
                mine = [key for key in free if self.claims.acquire(key)]
                if len(mine) < len(free):
                    elsewhere.add(number)
                # Only now can nobody else answer them.
                settled = self.store.known(mine) | self.store.given_up(self.session, mine, attempt)
                for key in mine:
                    if key in settled:
                        self.claims.release(key)
                        continue
                    if self.stop():
                        self.summary.stopped = True
                        return
                    self.in_hand[key] = number
                    yield keyed[key]

    def _ask(self, stream: Iterator[Pair]) -> None:
        expected = self.summary.wanted - self.summary.known - self.answered
        batch: list[Judgment] = []
        # The clock runs from the first question on; an engine's start-up is no part of its speed.
        clock, full = _Clock(self.teacher), list[Judgment]()
        try:
            for judgment in self.teacher.score(stream, expected=expected):
                batch.append(judgment)
                if len(batch) >= _BATCH or clock.elapsed() > _FLUSH_SECONDS:
                    # Emptied first: an interrupt inside `_keep` must not keep it twice.
                    full, batch = batch, []
                    self._keep(full, clock.elapsed())
                    full, clock = [], _Clock(self.teacher)
                    self._heed_silence()
        finally:
            if full:
                self.store.append(self.session, full, 0.0)  # interrupted before it was stored
            if batch:
                self._keep(batch, clock.elapsed())

    def _keep(self, batch: Sequence[Judgment], seconds: float) -> None:
        new = self.store.append(self.session, batch, seconds)
        if isinstance(self.teacher, ShardedTeacher):
            self.teacher.stored(len(batch))
        for judgment in batch:
            chunk = self.in_hand.pop(judgment.key)
            self.claims.release(judgment.key)
            if not judgment.status.final:
                self.failing.add(chunk)
            self.in_vain = 0 if judgment.status.final else self.in_vain + 1
            self.scored |= judgment.log_odds is not None
            self.speechless[judgment.status.value] += judgment.status in _NO_ANSWER
            self.summary.prompt_tokens += judgment.prompt_tokens
            self.summary.cached_tokens += judgment.cached_tokens
        for judgment in new:
            self.summary.statuses[judgment.status.value] += 1
            if judgment.log_odds is None:
                self.scoreless.setdefault(judgment.status.value, set()).add(judgment.doc_uid)
        self.answered += len(new)
        self._tell()
        self.seen(new)

    def _heed_silence(self) -> None:
        """Raise if the teacher has given many answers and not one score."""
        if self.scored or (count := self.speechless.total()) < _SPEECHLESS:
            return
        from ezxmc.teacher.check import faults_of

        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.speechless.items() if number)
        faults = faults_of(self.teacher)
        raise TeacherError(
            f"none of the first {count:,} pairs got a score ({kinds}): "
            + ("; ".join(fault.problem for fault in faults) or "the model does not answer the question"),
            "; ".join(fault.cure for fault in faults)
            or "see with `ezxmc prompts check` whether prompt and model go together; in place of a model "
            "that can only think aloud before it answers use its instruct version; judgments so far are kept",
        )

    def _tell(self) -> None:
        self.progress(self.summary.known + self.answered, self.summary.wanted)

    def _sum_up(self) -> None:
        summary = self.summary
        for kind, uids in self.scoreless.items():
            summary.problems[kind] = ProblemDocuments(len(uids), sorted(uids)[:_NAMED])
        failed = self.store.failed(self.session)
        for status, (count, documents) in failed.items():
            summary.statuses[status.value] = count
            summary.problems[status.value] = ProblemDocuments(
                documents, self.store.failed_documents(self.session, status, _NAMED)
            )
        summary.asked = summary.statuses.total()
        if not summary.stopped:
            summary.known = summary.wanted - summary.asked
            self._tell()


class _Clock:
    """Seconds of judging since it was made: all that passed but for the teacher's starts."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self._since = teacher, time.monotonic()
        self._startup = startup_seconds(teacher)

    def elapsed(self) -> float:
        starting = startup_seconds(self._teacher) - self._startup
        return max(0.0, time.monotonic() - self._since - starting)


class _Tally:
    """Distinct pairs, counted exactly; their keys lie in a temporary file, not in memory."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA cache_size=-32768")
        self._db.execute("CREATE TABLE keys (key BLOB PRIMARY KEY, known INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def add(self, keys: set[str], known: set[str]) -> None:
        """Count pairs not met before."""
        try:
            # 128 bits tell 10^9 pairs apart; in key order neighbours fall on the same page.
            rows = sorted((bytes.fromhex(key[:32]), key in known) for key in keys)
            self._db.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise StoreError(
                f"temporary file of pair keys: {error}", "make room where TMPDIR or SQLITE_TMPDIR points"
            ) from error

    def close(self) -> tuple[int, int]:
        """How many pairs, and how many of them are known."""
        wanted, known = self._db.execute("SELECT COUNT(*), TOTAL(known) FROM keys").fetchone()
        self._db.close()
        return wanted, int(known)


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    stream = iter(pairs)
    while chunk := list(islice(stream, _CHUNK)):
        for pair in chunk:
            instance_of(pair, Pair, "a pair", "give ezxmc.records.Pair(document, label)")
        yield chunk


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
