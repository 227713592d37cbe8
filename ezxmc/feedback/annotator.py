"""Puts a catalog's pairs to the teacher within a budget, shows what it answers, and recalls the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from ezxmc.data import Catalog
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.recall import recall
from ezxmc.feedback.store import FeedbackStore
from ezxmc.progress import Progress, printable
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.teacher.base import Teacher
from ezxmc.teacher.check import tell_faults

_EVERY = 30.0  # seconds
_TAGS = 3
_KEPT = 64  # documents; the engine answers those it has in hand in any order


class Glimpses:
    """Shows the share of "yes" so far and a document with its surest tags, now and then.

    Args:
        documents: Of the catalog. Their titles are untrusted text: what is not printable is left out.
        labels: Of the catalog.
        show: Gets a line.
    """

    def __init__(
        self, documents: Sequence[Document], labels: Sequence[Label], show: Callable[[str], None]
    ) -> None:
        # Searched when something is shown: a table of all would cost memory for a line in half a minute.
        self._documents, self._labels = documents, labels
        self._show, self._last = show, time.monotonic()
        self._yes = self._scored = 0
        self._recent: dict[str, list[tuple[float, str]]] = {}

    def see(self, judgments: Sequence[Judgment]) -> None:
        """Count new judgments; show something if it is time."""
        for judgment in judgments:
            if judgment.log_odds is not None:
                self._scored += 1
                self._yes += judgment.log_odds > 0
                # To the end: what is kept is what was asked about last.
                tags = self._recent.pop(judgment.doc_uid, [])
                self._recent[judgment.doc_uid] = [*tags, (judgment.log_odds, judgment.label_uid)]
        while len(self._recent) > _KEPT:
            del self._recent[next(iter(self._recent))]
        if self._recent and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self._show(self._line())

    def _line(self) -> str:
        uid, tags = max(self._recent.items(), key=lambda item: max(item[1]))
        document = next(document for document in self._documents if document.uid == uid)
        surest = [label for odds, label in sorted(tags, reverse=True)[:_TAGS] if odds > 0]
        titles = {label.uid: label.title for label in self._labels if label.uid in surest}
        named = ", ".join(printable(titles[label]) for label in surest) or "nothing asked so far fits"
        return f"{self._yes / self._scored:.0%} yes; {named} <- {printable(document.title or document.text)}"


class Annotator:
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
        self, catalog: Catalog, teacher: Teacher, store: FeedbackStore, budget: Budget, watch: Progress
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

    def ask_whole(
        self,
        documents: Sequence[int],
        rows: Sequence[Sequence[int]],
        title: str,
        cycle: int | None = None,
        *,
        compares: bool = False,
        most: int | None = None,
    ) -> list[int]:
        """`ask` about the first `most` documents; the places of those whose every row is judged then.

        Documents beyond `most` count as far as all before them are whole, and where the budget ended
        the asking, none counts after the first that is not: what happens to be known of later ones is
        no random choice.
        """
        most = len(documents) if most is None else most
        asked = self.ask(documents[:most], rows[:most], title, cycle, compares=compares)
        whole: list[int] = []
        for place, (document, row) in enumerate(zip(documents, rows, strict=True)):
            if len(self.judged(document, row)) == len(row):
                whole.append(place)
            elif asked.stopped or place >= most:
                break
        return whole

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
