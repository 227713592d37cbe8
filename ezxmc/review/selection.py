"""Which pairs a person should see.

For training, pairs one decision is likely to change something about. Such
pairs are doubtful by choice: whoever calibrates on them believes in a world of
doubt. For calibration there are documents drawn at random, kept from training,
each with its whole top list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ezxmc.feedback.reviews import pair_id
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label
from ezxmc.review.quality import Floats, Ints, Suspects

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
        teacher: Probability the student is taught, in [0, 1]; `None` for a random document:
            a person who knows the answer of others calibrates nothing.
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
