"""A short measured annotation: how fast a teacher is once it runs, how long it takes to start.

Without an engine, tokens are counted, and the speed is taken as the store knows it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil

from ezxmc.feedback.annotate import annotate
from ezxmc.feedback.store import FeedbackStore, StoreTotals
from ezxmc.records import Document, Judgment, Pair
from ezxmc.teacher.base import HasRenderer, Teacher, startup_seconds

# Warming up is a large part of a short session; and earlier releases left out the first batch's time.
_LONG_SESSION = 2000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Mean prompt lengths.

    Attributes:
        document: Tokens all labels of a document share: computed once.
        label: Tokens of one label and the turn's end: computed for every pair.
        correction: Computed tokens over what these two say, as measured: more
            where cached blocks were evicted, less where all documents share a head.
    """

    document: float
    label: float
    correction: float = 1.0

    def prompts(self, pairs: float) -> int:
        """Tokens of so many whole prompts."""
        return round(pairs * (self.document + self.label))

    def computed(self, pairs: float, documents: float) -> int:
        """Tokens the engine computes for so many pairs of so many documents."""
        return round(self.correction * (documents * self.document + pairs * self.label))


def count_tokens(
    teacher: Teacher,
    documents: Sequence[Document],
    pairs: Sequence[Pair],
    probed: Sequence[Pair] = (),
    measured: ProbeFigures | None = None,
) -> Tokens | None:
    """Mean prompt lengths of a job, exactly counted where the teacher can render prompts.

    Args:
        teacher: Whose prompts.
        documents: A sample of the job's documents.
        pairs: A sample of its pairs.
        probed: The pairs a probe asked; they may be shorter than the job's.
        measured: What it measured.

    Returns:
        `None` where neither a renderer nor a probe tells.
    """
    if measured and not measured.prompt_tokens:
        measured = None
    if not isinstance(teacher, HasRenderer):
        if measured is None:
            return None
        # All of a prompt counts as the label's, and the correction takes the cached part off.
        mean = measured.prompt_tokens / measured.pairs
        return Tokens(0.0, mean, 1 - measured.cached_tokens / measured.prompt_tokens)
    prefix, suffix = teacher.renderer.prefix, teacher.renderer.suffix
    own = {title: len(suffix(title)) for title in {pair.label.title for pair in (*pairs, *probed)}}
    found = Tokens(
        sum(len(prefix(document.shown)) for document in documents) / max(1, len(documents)),
        sum(own[pair.label.title] for pair in pairs) / max(1, len(pairs)),
    )
    if measured is None:
        return found
    expected = sum(len(prefix(shown)) for shown in {pair.doc.shown for pair in probed})
    expected += sum(own[pair.label.title] for pair in probed)
    return replace(found, correction=(measured.prompt_tokens - measured.cached_tokens) / expected)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a teacher is, start-up excluded.

    Attributes:
        pairs: Per second.
        computed: Tokens computed per second; 0 for a teacher without tokens.
        startup: Seconds one start takes; 0 where unknown.
    """

    pairs: float
    computed: float
    startup: float

    def seconds(self, pairs: int, computed: int | None, starts: int = 1) -> float:
        """Time for so many pairs and engine starts; none for nothing."""
        if not pairs:
            return 0.0
        judging = computed / self.computed if computed and self.computed else pairs / self.pairs
        return starts * self.startup + judging


def earlier_speed(totals: StoreTotals) -> Speed | None:
    """The speed of a store's sessions, if they were long enough to mean something."""
    if not totals.seconds or totals.judgments < _LONG_SESSION * totals.sessions:
        return None
    computed = (totals.prompt_tokens - totals.cached_tokens) / totals.seconds
    return Speed(totals.judged / totals.seconds, computed, 0.0)


_MEMORY_EVERY = 1.0
# A wait this much shorter than the longest, or than this many seconds, is no
# engine step, only the next answer of one.
_STEP, _STEP_SECONDS = 0.1, 0.002


@dataclass(frozen=True, slots=True)
class ProbeFigures:
    """What a probe measured.

    Attributes:
        pairs: Judgments given; all are stored.
        steps: Batches they came in.
        seconds: Wall time, start-up included.
        startup_seconds: From asking to the first engine step: what the teacher tells, or else an estimate.
        pairs_per_second: After the first batch, which warms the engine up; of the only one where
            there is no other.
        computed_per_second: The same in tokens not found in the cache.
        prompt_tokens: Of all pairs.
        cached_tokens: Of these, supplied by the prefix cache.
        memory_bytes: Peak of this process and its children; shared pages count once where the system tells.
        steady: Whether start-up and speed are told apart: by the teacher, or by a batch after the
            first; if not, speeds include the start-up.
    """

    pairs: int
    steps: int
    seconds: float
    startup_seconds: float
    pairs_per_second: float
    computed_per_second: float
    prompt_tokens: int
    cached_tokens: int
    memory_bytes: int
    steady: bool


def probe(
    pairs: Sequence[Pair],
    teacher: Teacher,
    store: FeedbackStore,
    *,
    expected: int,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeFigures | None:
    """Judge and store some pairs of a job, and measure.

    Args:
        pairs: Whole documents with their candidates; what is known is skipped.
        teacher: Closed at the end, whatever happens.
        store: Where the judgments go: the job will find them.
        expected: Pairs of the whole job; the engine starts as it would for these.
        progress: Called with (stored, wanted).

    Returns:
        `None` if all pairs were known.

    Raises:
        TeacherError: The engine could not start or died.
        StoreError: The store could not be written.
    """
    timed = _Timed(teacher, expected)
    started = time.monotonic()
    try:
        with _Memory() as memory:
            annotate(lambda: pairs, timed, store, progress=progress)
    finally:
        teacher.close()
    if not timed.answers:
        return None
    return _figures(timed.answers, time.monotonic() - started, memory.peak, timed.startup_seconds)


@dataclass(frozen=True, slots=True)
class _Answer:
    at: float
    waited: float
    prompt_tokens: int
    cached_tokens: int

    @property
    def computed(self) -> int:
        return self.prompt_tokens - self.cached_tokens


class _Timed:
    """A teacher that knows the size of the whole job, and whose answers are timed."""

    def __init__(self, teacher: Teacher, expected: int) -> None:
        self._teacher, self._expected = teacher, expected
        self._before = startup_seconds(teacher)
        self.answers: list[_Answer] = []

    @property
    def fingerprint(self) -> str:
        return self._teacher.fingerprint

    @property
    def description(self) -> dict[str, Any]:
        return self._teacher.description

    @property
    def startup_seconds(self) -> float:
        """During the probe."""
        return startup_seconds(self._teacher) - self._before

    def key(self, pair: Pair) -> str:
        return self._teacher.key(pair)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        before = time.monotonic()
        for judgment in self._teacher.score(pairs, expected=self._expected):
            now = time.monotonic()
            self.answers.append(_Answer(now, now - before, judgment.prompt_tokens, judgment.cached_tokens))
            yield judgment
            before = time.monotonic()

    def close(self) -> None:
        self._teacher.close()


def _figures(answers: Sequence[_Answer], seconds: float, memory: int, startup: float) -> ProbeFigures:
    # An engine answers a whole step at once: the first of its answers is waited for.
    longest = max((answer.waited for answer in answers[1:]), default=0.0)
    least = max(_STEP_SECONDS, _STEP * longest)
    begins = [0, *(i for i, a in enumerate(answers[1:], start=1) if a.waited > least)]
    if len(begins) > 1:
        measured, since = answers[begins[1] :], answers[begins[1] - 1].at
        span = answers[-1].at - since
    else:
        # The same clock as the store's: from the first question to the last answer.
        measured, span = answers, max(seconds - startup, _STEP_SECONDS)
    computed = sum(answer.computed for answer in measured) / span
    steady = len(begins) > 1 or startup > 0
    if not startup and steady:
        first = sum(answer.computed for answer in answers[: begins[1]]) / computed if computed else 0.0
        startup = answers[0].waited - first
    elif not startup:
        startup = answers[0].waited
    return ProbeFigures(
        pairs=len(answers),
        steps=len(begins),
        seconds=seconds,
        startup_seconds=max(0.0, startup),
        pairs_per_second=len(measured) / span,
        computed_per_second=computed,
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        memory_bytes=memory,
        steady=steady,
    )


class _Memory:
    """Watches the memory of this process and its children."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while True:
            self.peak = max(self.peak, sum(map(_bytes, [this, *this.children(recursive=True)])))
            if self._done.wait(_MEMORY_EVERY):
                return


def _bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.Error:  # it ended meanwhile, or is not ours to look into
        return 0
