"""What people decided, kept in the same file as the teacher's judgments and never mistaken for them.

A decision is about a text and a label, so it is kept by the content of both: a renamed document keeps its
decisions, an edited one needs new ones. Rows are only ever added; of several on one pair the latest counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ezxmc.feedback.database import ADDED, SqliteTable
from ezxmc.feedback.recall import alike
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label, Prediction

FEWEST_REVIEWED = 50
"""Reviewed documents it takes until a run's probabilities predict people (`ReviewedLists`)."""
_ID_DIGITS = 20
_HAS_ADDED = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'added'"


class Answer(StrEnum):
    """What a person says of a pair."""

    YES = "yes"
    NO = "no"
    SKIP = "skip"
    """Seen and left open; it teaches nothing."""
    ADDED = "added"
    """A yes to a label that nobody proposed: the person named it. It teaches like any yes, and tells nothing
    of how often proposed labels fit."""

    @property
    def verdict(self) -> bool | None:
        """Whether the label fits; `None` where that is left open."""
        return None if self is Answer.SKIP else self is not Answer.NO

    @classmethod
    def named(cls, before: Answer | None) -> Answer:
        """What it is to name a label on which this was the last word: what was decided on was proposed."""
        return cls.ADDED if before in (None, cls.ADDED) else cls.YES


@dataclass(frozen=True, slots=True)
class Review:
    """One decision.

    Attributes:
        doc_uid: The document's uid at that time.
        label_uid: The label's uid at that time.
        doc_hash: `document_hash`.
        label_hash: `label_hash`.
        answer: `None` takes the decision before it back.
        reviewer: Who decided, if known.
        at: When, in seconds since 1970.
    """

    doc_uid: str
    label_uid: str
    doc_hash: str
    label_hash: str
    answer: Answer | None
    reviewer: str | None
    at: float

    @classmethod
    def of(
        cls,
        document: Document,
        label: Label,
        answer: Answer | None,
        *,
        reviewer: str | None = None,
        at: float | None = None,
    ) -> Review:
        """A decision on a pair, made now where no time is given."""
        when, hashes = time.time() if at is None else at, (document_hash(document), label_hash(label))
        return cls(document.uid, label.uid, *hashes, answer, reviewer, when)


def document_hash(document: Document) -> str:
    """Tells the text people see from any other."""
    return text_hash(document.shown)


def label_hash(label: Label) -> str:
    """Tells title and description from any others."""
    return text_hash(label.title, label.text)


def pair_id(document: Document, label: Label) -> str:
    """A short name of a pair's content; its first letter keeps spreadsheets from taking it for a number."""
    return f"p{text_hash(document_hash(document), label_hash(label))[:_ID_DIGITS]}"


class Reviews(SqliteTable):
    """People's decisions in a feedback store. Use as a context manager, from one thread.

    Args:
        path: The store; made if absent, brought to the present schema if older.

    Raises:
        StoreError: Not a store, written by a newer version, or not writable.
    """

    def add(self, reviews: Sequence[Review]) -> None:
        """Add decisions in one transaction; once it returns, not even a power cut loses them.

        Raises:
            StoreError: The file cannot be written; none was added.
        """
        with self._db.transaction():
            for review in reviews:
                for uid in (review.doc_uid, review.label_uid):
                    self._db.run("INSERT OR IGNORE INTO names (name) VALUES (?)", uid)
                self._db.run(
                    "INSERT INTO reviews (doc_hash, label_hash, doc, label, answer, reviewer, at) "
                    "SELECT ?, ?, docs.id, labels.id, ?, ?, ? FROM names AS docs, names AS labels "
                    "WHERE docs.name = ? AND labels.name = ?",
                    bytes.fromhex(review.doc_hash),
                    bytes.fromhex(review.label_hash),
                    Answer.YES if review.answer is Answer.ADDED else review.answer,
                    review.reviewer,
                    review.at,
                    review.doc_uid,
                    review.label_uid,
                )
                if review.answer is Answer.ADDED:
                    for statement in (*ADDED, "INSERT INTO added SELECT MAX(id) FROM reviews"):
                        self._db.run(statement)

    def history(self) -> Iterator[Review]:
        """Every decision, those taken back included, by time and then in the order they were added."""
        added = "SELECT review FROM added" if self._db.rows(_HAS_ADDED) else "NULL"
        for rows in self._db.batches(
            "SELECT docs.name, labels.name, doc_hash, label_hash, "
            f"CASE WHEN reviews.id IN ({added}) THEN 'added' ELSE answer END, reviewer, at FROM reviews "
            "JOIN names AS docs ON docs.id = doc JOIN names AS labels ON labels.id = label "
            "ORDER BY at, reviews.id"
        ):
            for doc, label, of_doc, of_label, answer, reviewer, at in rows:
                decided = None if answer is None else Answer(answer)
                yield Review(doc, label, of_doc.hex(), of_label.hex(), decided, reviewer, at)

    def latest(self) -> dict[tuple[str, str], Review]:
        """The last word on each pair, by (document hash, label hash); taken back, its answer is `None`."""
        found: dict[tuple[str, str], Review] = {}
        for review in self.history():
            pair = review.doc_hash, review.label_hash
            # Taken out first: the pairs come in the order of their last words.
            found.pop(pair, None)
            found[pair] = review
        return found


@dataclass(frozen=True, slots=True)
class ReviewedPairs:
    """People's decisions on the documents and labels of a catalog, by their present uids.

    Attributes:
        answers: By (document uid, label uid).
        elsewhere: Decisions on texts that are not in the catalog, or not any more.
    """

    answers: dict[tuple[str, str], Answer]
    elsewhere: int = 0

    @classmethod
    def of(
        cls, reviews: Iterable[Review], documents: Iterable[Document], labels: Iterable[Label]
    ) -> ReviewedPairs:
        """Find decisions in a catalog, by content; documents of equal text share theirs.

        Args:
            reviews: `Reviews.latest`.
            documents: Of the catalog.
            labels: Of the catalog.
        """
        wanted = [(review, review.answer) for review in reviews if review.answer is not None]
        if not wanted:
            return cls({})
        docs, tags = alike(documents, document_hash), alike(labels, label_hash)
        answers: dict[tuple[str, str], Answer] = {}
        elsewhere = 0
        for review, answer in wanted:
            pairs = [
                (doc.uid, label.uid)
                for doc in docs.get(review.doc_hash, ())
                for label in tags.get(review.label_hash, ())
            ]
            elsewhere += not pairs
            answers |= dict.fromkeys(pairs, answer)
        return cls(answers, elsewhere)

    @classmethod
    def load(cls, store: str | Path, documents: Iterable[Document], labels: Iterable[Label]) -> ReviewedPairs:
        """`of` the latest decisions in a store; errors as for `Reviews`."""
        with Reviews(store) as reviews:
            return cls.of(reviews.latest().values(), documents, labels)

    @property
    def verdicts(self) -> dict[tuple[str, str], bool]:
        """Those that say yes or no; a label that people added is a yes."""
        return {pair: yes for pair, answer in self.answers.items() if (yes := answer.verdict) is not None}

    def verdicts_outside(self, apart: Collection[str]) -> dict[tuple[str, str], bool]:
        """Those on documents other than these: the calibration part, of which nothing is learnt."""
        return {pair: yes for pair, yes in self.verdicts.items() if pair[0] not in apart}

    @property
    def line(self) -> str:
        """How many there are, for a person."""
        elsewhere = (
            f"; {self.elsewhere:,} more are on texts that are not in the catalog" if self.elsewhere else ""
        )
        return f"people decided on {len(self.answers):,} pairs{elsewhere}"

    def lists(self, predictions: Iterable[Prediction], depth: int) -> ReviewedLists:
        """What is decided of documents' top labels.

        Args:
            predictions: Best label first.
            depth: How many labels of each count.
        """
        verdicts: dict[str, dict[str, bool]] = {}
        for (doc, label), yes in self.verdicts.items():
            verdicts.setdefault(doc, {})[label] = yes
        answers: dict[str, dict[str, bool]] = {}
        added: dict[str, tuple[str, ...]] = {}
        whole = scarce = undecided = 0
        beside: list[bool] = []
        for p in predictions:
            top, said = p.labels[:depth], verdicts.get(p.uid, {})
            known = {label: said[label] for label in top if label in said}
            if not known:
                continue
            if 2 * len(known) < len(top):
                scarce += 1
                continue
            others = {label: yes for label, yes in said.items() if label not in known}
            named = tuple(label for label in others if self.answers[p.uid, label] is Answer.ADDED)
            if named:
                added[p.uid] = named
            answers[p.uid] = known
            whole += len(known) == len(top)
            undecided += len(top) - len(known)
            beside += [yes for label, yes in others.items() if label not in named]
        return ReviewedLists(answers, whole, scarce, undecided, sum(beside), len(beside), added)


@dataclass(frozen=True, slots=True)
class ReviewedLists:
    """People's word on the top labels of documents, as far as probabilities may follow it.

    A document counts once half of its top labels have a yes or no: the others
    were skipped, are not reached yet, or came up in a training since, and are
    unknown. With fewer, those known are mostly picks, and doubtful by choice.

    Attributes:
        answers: By document uid and label uid, whether the label fits.
        whole: Documents among these whose every top label is decided.
        scarce: Documents left out, with a decision on fewer than half.
        undecided: Top labels of the documents that count on which nobody decided.
        right_beside: Of `beside`, those that fit.
        beside: Decisions on labels of these documents that are not among the top: a former student
            ranked them there. Labels that people added are no part of it, for nobody proposed them.
        added: By document uid, labels of these documents that people added (`Answer.ADDED`) and that are
            not among the top.
    """

    answers: dict[str, dict[str, bool]]
    whole: int = 0
    scarce: int = 0
    undecided: int = 0
    right_beside: int = 0
    beside: int = 0
    added: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def verdict(self, doc_uid: str, label_uid: str) -> float | None:
        """1 for yes, 0 for no, `None` where nothing is known."""
        fits = self.answers.get(doc_uid, {}).get(label_uid)
        return None if fits is None else float(fits)

    @property
    def enough(self) -> bool:
        """Whether a run's probabilities follow them."""
        return len(self.answers) >= FEWEST_REVIEWED

    @property
    def counts(self) -> str:
        """How many documents count, for a person."""
        n = len(self.answers)
        said = f"people reviewed {n:,} documents"
        if n > self.whole:
            said += f", of {n - self.whole:,} a part of the top labels"
        if self.undecided:
            pairs = self.undecided + sum(map(len, self.answers.values()))
            said += f"; {self.undecided:,} of these documents' {pairs:,} top labels are undecided"
        if self.undecided and self.beside:
            said += (
                f" and count as right no more often than the {self.beside:,} that were on top before "
                f"({self.right_beside / self.beside:.2f})"
            )
        if self.scarce:
            said += f"; {self.scarce:,} with less than half of them decided are left out"
        return said

    @property
    def line(self) -> str:
        """`counts`, what is missing, and what more documents would bring; empty where nobody reviewed."""
        n = len(self.answers)
        if not n and not self.scarce:
            return ""
        said, wanted = self.counts, 2 * n
        if not self.enough:
            wanted = FEWEST_REVIEWED
            said += (
                f"; probabilities predict people from {wanted} documents on: {wanted - n} are missing "
                "(`ezxmc review export --for calibration`)"
            )
        shares = [statistics.fmean(known.values()) for known in self.answers.values()]
        spread = statistics.stdev(shares) if n > 1 else 0.0
        if spread:
            now, then = (1.96 * spread / math.sqrt(size) for size in (n, wanted))
            said += (
                f"; the share of right labels is {statistics.fmean(shares):.2f} ± {now:.3f}, with {wanted:,} "
                f"documents it will be known to ± {then:.3f}"
            )
        return said
