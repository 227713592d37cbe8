"""Which pairs a person should see.

For training, pairs one decision is likely to change something about. Such pairs are doubtful by choice:
whoever calibrates on them believes in a world of doubt. For calibration there are documents drawn at
random, kept from training, each with its whole top list.

Which of the teacher's answers are likely wrong is told by confident learning on a vote of like documents.
Confident learning (Northcutt et al., arXiv 1911.00068) needs probabilities from a model that has not seen
the answer in question. Here that is a vote of the other documents judged on the same label, weighted by
likeness; a pair's own document has no vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ezxmc.feedback.reviews import pair_id
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_EVEN, _WIDTH = 0.5, 0.1
"""A voter at cosine c weighs exp((c − 0.5) / 0.1)."""
_PRIOR = 2.0  # weight of the label's own mean, and in it of the mean of all
_MOST_VOTERS = 2_000
_ROWS = 4_096


class Votes(NamedTuple):
    """What like documents say of P pairs.

    Attributes:
        shares: (P,) of "yes", in [0, 1].
        support: (P,) weight of the voters; 0 if nobody else was judged on the label.
    """

    shares: Floats
    support: Floats


class Suspects(NamedTuple):
    """Confident learning's findings on P pairs.

    Attributes:
        wrong: (P,) whether the pair is counted off the diagonal of the confident joint.
        margins: (P,) how far the other answer is ahead, both measured from their thresholds.
    """

    wrong: NDArray[np.bool_]
    margins: Floats


def neighbour_votes(
    documents: Ints, labels: Ints, answers: Floats, vectors: NDArray[np.float32], seed: int
) -> Votes:
    """For each pair, the mean answer of the other documents judged on its label.

    The mean is weighted by likeness and shrunk to the label's mean over the other documents, which is
    itself shrunk to the mean of all pairs.

    Args:
        documents: (P,) rows of `vectors`; a document occurs once with a label.
        labels: (P,) numbers of labels.
        answers: (P,) probabilities of "yes".
        vectors: (N, D) unit rows.
        seed: Of the voters drawn where a label has more than 2,000.
    """
    rng = np.random.default_rng(seed)
    shares, support = np.empty(len(answers)), np.empty(len(answers))
    overall = float(answers.mean()) if len(answers) else 0.0
    order = np.argsort(labels, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        voters = pairs
        if len(pairs) > _MOST_VOTERS:
            voters = np.sort(rng.choice(pairs, _MOST_VOTERS, replace=False))
        others = (answers[pairs].sum() - answers[pairs] + _PRIOR * overall) / (len(pairs) - 1 + _PRIOR)
        for start in range(0, len(pairs), _ROWS):
            part = pairs[start : start + _ROWS]
            cosines = (vectors[documents[part]] @ vectors[documents[voters]].T).astype(np.float64)
            weights = np.exp((cosines - _EVEN) / _WIDTH)
            weights[documents[part][:, None] == documents[voters]] = 0.0
            support[part] = weights.sum(axis=1)
            prior = _PRIOR * others[start : start + _ROWS]
            shares[part] = (weights @ answers[voters] + prior) / (support[part] + _PRIOR)
    return Votes(shares, support)


def suspects(given: NDArray[np.bool_], shares: Floats) -> Suspects:
    """Where the given answer is likely wrong.

    With p̂(yes) = share, p̂(no) = 1 − share, the threshold of an answer is its mean probability where it
    was given: t_j = mean{p̂_j : given j} (eq. 2 of the paper). A pair is a suspect if the other answer
    reaches its threshold, and the given one does not or is the less probable (eq. 1). Suspects are ranked
    by the margin (p̂_other − t_other) − (p̂_given − t_given): the paper's normalised margin, with
    thresholds taken off as cleanlab does.

    Args:
        given: (P,) the teacher's answers.
        shares: (P,) out-of-sample probabilities of "yes".
    """
    if given.all() or not given.any():
        return Suspects(np.zeros(len(given), dtype=np.bool_), np.zeros(len(given)))
    yes, no = float(shares[given].mean()), float((1 - shares[~given]).mean())
    own, least = np.where(given, shares, 1 - shares), np.where(given, yes, no)
    other, needed = np.where(given, 1 - shares, shares), np.where(given, no, yes)
    wrong = (other >= needed) & ((own < least) | (own < other))
    return Suspects(wrong, (other - needed) - (own - least))


_UNSURE = 0.25
"""The teacher is unsure nearer to ½ than this."""


class Reason(StrEnum):
    """Why a pair was picked."""

    UNSURE = "teacher_unsure"
    """The probability the student is taught is near ½."""
    DISAGREEMENT = "disagreement"
    """Student and teacher are on different sides of ½."""
    QUALITY = "label_quality"
    """Like documents vote against the teacher's answer (confident learning)."""
    RANDOM = "random_document"
    """A document drawn at random, for calibration."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A pair for a person.

    Attributes:
        document: The document.
        label: The label.
        reason: Why.
        teacher: Probability the student is taught, in [0, 1]; `None` for a whole document: a person who
            knows the answer of others calibrates nothing.
        student: The student's, on the same scale.
    """

    document: Document
    label: Label
    reason: Reason
    teacher: float | None = None
    student: float | None = None

    @property
    def id(self) -> str:
        """`pair_id`."""
        return pair_id(self.document, self.label)


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """P pairs the teacher has judged.

    Attributes:
        documents: (P,) numbers of documents.
        labels: (P,) numbers of labels.
        teacher: (P,) probabilities the student is taught.
        student: (P,) the student's own, on the same scale.
        suspects: What confident learning finds.
        open: (P,) whether nobody has decided yet.
    """

    documents: Ints
    labels: Ints
    teacher: Floats
    student: Floats
    suspects: Suspects
    open: NDArray[np.bool_]


def choose(
    pairs: JudgedPairs, count: int, *, per_label: int, per_document: int, seed: int
) -> list[tuple[int, Reason]]:
    """Take turns among the reasons, each giving its strongest pair that is left.

    Whoever stops early has seen equally many of each reason.

    Args:
        pairs: What there is to choose from.
        count: Pairs at most.
        per_label: Pairs of one label at most.
        per_document: Pairs of one document at most.
        seed: Decides between equal ones.

    Returns:
        Positions in `pairs` with the reason each was picked for, the first to be seen first.
    """
    lists = [(reason, iter(rows)) for reason, rows in _by_reason(pairs, seed)]
    of_label, of_document = Counter[int](), Counter[int]()
    chosen: dict[int, Reason] = {}

    def free(row: int) -> bool:
        return (
            row not in chosen
            and of_label[int(pairs.labels[row])] < per_label
            and of_document[int(pairs.documents[row])] < per_document
        )

    while lists and len(chosen) < count:
        reason, rows = lists.pop(0)
        # What is not free now never will be.
        row = next((row for row in rows if free(row)), None)
        if row is None:
            continue
        chosen[row] = reason
        of_label[int(pairs.labels[row])] += 1
        of_document[int(pairs.documents[row])] += 1
        lists.append((reason, rows))
    return list(chosen.items())


def _by_reason(pairs: JudgedPairs, seed: int) -> Iterator[tuple[Reason, list[int]]]:
    doubt = np.abs(pairs.teacher - 0.5)
    apart = np.abs(pairs.teacher - pairs.student)
    opposed = (pairs.teacher >= 0.5) != (pairs.student >= 0.5)
    shuffled = np.random.default_rng(seed).permutation(len(doubt))
    for reason, wanted, strength in (
        (Reason.UNSURE, doubt < _UNSURE, -doubt),
        (Reason.DISAGREEMENT, opposed, apart),
        (Reason.QUALITY, pairs.suspects.wrong, pairs.suspects.margins),
    ):
        rows = shuffled[(wanted & pairs.open)[shuffled]]
        yield reason, rows[np.argsort(-strength[rows], kind="stable")].tolist()


def random_order(documents: Sequence[Document], seed: int) -> list[Document]:
    """Documents in an order that is random, repeatable, and stays when documents are added."""
    return sorted(documents, key=lambda document: text_hash("review", str(seed), document.uid))


def tally(picks: Sequence[Pick]) -> dict[str, int]:
    """How many pairs, documents and labels there are, and how many pairs of each reason."""
    counts = {"pairs": len(picks), "documents": len({pick.document.uid for pick in picks})}
    counts["labels"] = len({pick.label.uid for pick in picks})
    return {**counts, **Counter(pick.reason.value for pick in picks)}
