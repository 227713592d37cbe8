"""A catalog's pairs put to the teacher: asked within the budget, kept in the store, recalled from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ezxmc.data import Catalog
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.glimpses import Glimpses
from ezxmc.feedback.recall import recall
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Pair
from ezxmc.teacher.base import Teacher
from ezxmc.teacher.prompt_check import tell_faults
from ezxmc.watch import Watch


class Inquiry:
    """What a run asks. Documents and labels are given as positions in the catalog.

    Args:
        catalog: Documents and labels.
        teacher: Who is asked.
        store: Where answers are kept.
        budget: When to stop.
        watch: Sees progress and problems.

    Attributes:
        unasked_pairs: Pairs the budget left unasked while asking.
        problem_docs: Some documents with judgments that hold no score.
    """

    def __init__(
        self, catalog: Catalog, teacher: Teacher, store: FeedbackStore, budget: Budget, watch: Watch
    ) -> None:
        self.catalog, self.teacher, self.store = catalog, teacher, store
        self.budget, self._watch = budget, watch
        self._glimpses = Glimpses(catalog.documents, catalog.labels, watch.show)
        tell_faults(teacher, watch.say)
        self.unasked_pairs = 0
        self.problem_docs: list[str] = []

    def ask(
        self,
        documents: Sequence[int],
        rows: Sequence[Sequence[int]],
        title: str,
        cycle: int | None = None,
        *,
        compares: bool = False,
    ) -> AnnotateSummary:
        """Ask what is not known yet.

        Args:
            documents: N documents, in the order they are asked about.
            rows: Labels of each.
            title: For the progress bar.
            cycle: Whose part of the hours counts; `None`: all of them.
            compares: As for `Budget.stop`.
        """
        summary = annotate(
            lambda: self._pairs(documents, rows),
            self.teacher,
            self.store,
            stop=self.budget.stop(self.store, self.teacher.fingerprint, cycle, compares=compares),
            progress=self._watch.stage(title),
            seen=self._glimpses.see,
        )
        if summary.stopped:
            self.unasked_pairs += summary.wanted - summary.known - summary.asked
        for kind, found in summary.problems.items():
            number, named = summary.statuses[kind], ", ".join(found.some[:5])
            self._watch.say(f"  {number:,} pairs: {kind}, in {found.count:,} documents: {named} ...")
        self.problem_docs.extend(summary.problem_docs)
        return summary

    def answers(self, documents: Sequence[int], rows: Sequence[Sequence[int]]) -> list[Judgment]:
        """What the store holds of these pairs."""
        return list(recall(self._pairs(documents, rows), self.teacher, self.store))

    def judged(self, document: int, rows: Sequence[int]) -> list[int]:
        """Those of a document's `rows` that the store holds."""
        keys = [self.teacher.key(pair) for pair in self._pairs([document], [rows])]
        known = self.store.known(keys)
        return [row for row, key in zip(rows, keys, strict=True) if key in known]

    def seconds(self) -> float:
        """Judging time of all sessions."""
        return self.store.judging_seconds(self.teacher.fingerprint)

    def _pairs(self, documents: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[Pair]:
        return pairs_of(self.documents(documents), self.catalog.labels, rows)

    def documents(self, positions: Sequence[int]) -> list[Document]:
        """The catalog's documents at these positions."""
        return [self.catalog.documents[i] for i in positions]
