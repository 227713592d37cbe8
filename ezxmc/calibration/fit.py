"""A calibrator out of predictions and someone's verdicts on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

import numpy as np

from ezxmc.calibration.calibrator import KINDS, Calibrator, Kind
from ezxmc.calibration.ranked import Ranked
from ezxmc.calibration.rows import JudgedRows
from ezxmc.errors import TrainingError
from ezxmc.records import Prediction

Verdict = Callable[[str, str], float | None]
"""(document uid, label uid) to how far the label applies, in [0, 1]; `None`: nobody said."""


LEAST_JUDGED = 0.9
"""Share of a student's own first labels that must be judged: as much too high may a probability be."""


def unjudged(
    predictions: Sequence[Prediction], judged: Collection[tuple[str, str]], k: int
) -> dict[str, list[str]]:
    """What is missing of documents that somebody judged, or of all where nobody judged any.

    Pairs that another model proposed are right more often than those only this
    student ranks first, so rates among them are too high for it.

    Args:
        predictions: Of N documents, best label first.
        judged: Pairs of a document's and a label's uid that were asked about, answered or not.
        k: Ranks used.

    Returns:
        By document the labels of its top k that nobody judged; empty if there are none.
    """
    begun = {doc for doc, _ in judged}
    some = [p for p in predictions if p.uid in begun] or predictions
    return {p.uid: [label for label in p.labels[:k] if (p.uid, label) not in judged] for p in some}


def judged_rows(predictions: Sequence[Prediction], verdict: Verdict, k: int) -> JudgedRows:
    """The top k of each document, with the verdicts there are.

    Args:
        predictions: Of documents the student was not trained on, best label first.
        verdict: What is known of a pair.
        k: Ranks used; all there are where they are fewer.

    Raises:
        TrainingError: Predictions of different lengths, fewer than 20 pairs with a verdict, or none right.
    """
    lengths = {min(k, len(prediction.labels)) for prediction in predictions}
    if len(lengths) > 1:
        raise TrainingError(
            f"documents have from {min(lengths)} to {max(lengths)} labels: ranks cannot be compared",
            "predict without a threshold",
        )
    verdicts = [[verdict(p.uid, label) for label in p.labels[:k]] for p in predictions]
    shape = (len(predictions), lengths.pop() if lengths else k)
    hits = np.array([[0.0 if hit is None else hit for hit in row] for row in verdicts], dtype=np.float64)
    known = np.array([[hit is not None for hit in row] for row in verdicts], dtype=bool)
    scores = np.array([p.scores[:k] for p in predictions], dtype=np.float64)
    rows = JudgedRows.of(scores.reshape(shape), hits.reshape(shape), known.reshape(shape))
    if not rows.verdicts.any():
        raise TrainingError(
            f"none of {rows.pairs:,} judged pairs is right: every probability fitted to them would be 0",
            "are the verdicts of these documents and labels? If so, this bundle ranks no right label so high",
        )
    return rows


class PartlyDecided(Protocol):
    """What people decided of top labels, and of labels that a former student had there."""

    @property
    def right_beside(self) -> int:
        """Of `beside`, those that fit."""
        ...

    @property
    def beside(self) -> int:
        """Decided labels of the same documents that are not among the top."""
        ...

    def verdict(self, doc_uid: str, label_uid: str) -> float | None:
        """As `Verdict`."""
        ...


def completed(predictions: Sequence[Prediction], decided: PartlyDecided, k: int) -> Verdict:
    """People's verdicts on a former student's top labels, completed for those that only the present one has.

    What both students rank first is right more often than what one does alone: probabilities fitted to the
    decided pairs would be too high. The labels that the former student alone had on top stand for those that
    the present one alone has: of two students of one recipe, each is as likely to be the former. Where the
    new one is the better, this is too low, by less than the decided pairs alone are too high
    (tests/bench/promises.py).

    Args:
        predictions: Of documents the student was not trained on, best label first.
        decided: What people decided; a document with a decision counts.
        k: Ranks used, and reviewed.

    Returns:
        The verdicts, and for an undecided pair of a document with a decision how likely it fits: as its score
            and rank say, less by what the labels beside fit more seldom. As many are moved as stand beside;
            of what is undecided for other reasons nothing is known but its score.

    Raises:
        TrainingError: As for `judged_rows`.
    """
    rows, beside = judged_rows(predictions, decided.verdict, k), decided.beside
    unknown = ~rows.known & rows.known.any(axis=1, keepdims=True)
    if not beside or not unknown.any():
        return decided.verdict
    likely = Ranked.fit(rows).transform(rows.scores)
    usual, moved = float(likely[unknown].mean()), min(1.0, beside / int(unknown.sum()))
    fall = 1 - moved + moved * min(1.0, (decided.right_beside + 1) / (beside + 2) / usual)
    guessed = {
        (predictions[i].uid, predictions[i].labels[j]): float(fall * likely[i, j])
        for i, j in np.argwhere(unknown)
    }

    def complete(doc_uid: str, label_uid: str) -> float | None:
        known = decided.verdict(doc_uid, label_uid)
        return guessed.get((doc_uid, label_uid)) if known is None else known

    return complete


def fit_calibrator(
    predictions: Sequence[Prediction],
    verdict: Verdict,
    *,
    target: Literal["teacher", "human"],
    k: int,
    kinds: Sequence[Kind] = KINDS,
) -> Calibrator:
    """Fit on the pooled top-k pairs that have a verdict.

    Args:
        predictions: Of documents the student was not trained on, best label first.
        verdict: What is known of a pair. A person who reviews a document
            decides on each label of its top k.
        target: Whose verdict it is.
        k: Ranks used.
        kinds: Chosen from by cross-fitted NLL.

    Raises:
        TrainingError: Fewer than 20 pairs or 2 documents have a verdict.
    """
    return Calibrator.fit(judged_rows(predictions, verdict, k), target=target, kinds=kinds)


def fit_few_shot(
    predictions: Sequence[Prediction],
    teacher: Verdict,
    human: Verdict,
    *,
    k: int,
    kinds: Sequence[Kind] = KINDS,
) -> Calibrator:
    """The shape by the teacher's answers, moved to people by 50 to 200 reviewed documents.

    Args:
        predictions: Of documents the student was not trained on, best label first.
        teacher: The teacher's answers, on these documents or others of them.
        human: People's decisions.
        k: Ranks used.
        kinds: Of shape, chosen from by cross-fitted NLL on people's decisions.

    Raises:
        TrainingError: Fewer than 20 pairs or 2 documents have a verdict of either.
    """
    answers = judged_rows(predictions, teacher, k)
    shapes = [Calibrator.fit(answers, target="teacher", kinds=[kind]) for kind in kinds]
    return Calibrator.correct(shapes, judged_rows(predictions, human, k))
