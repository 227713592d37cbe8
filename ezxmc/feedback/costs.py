"""What pairs cost a teacher: tokens counted without an engine, speed as a probe or the store knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ezxmc.feedback.probe import ProbeFigures
from ezxmc.feedback.totals import StoreTotals
from ezxmc.records import Document, Pair
from ezxmc.teacher.base import RendersPrompts, Teacher

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
    if not isinstance(teacher, RendersPrompts):
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
