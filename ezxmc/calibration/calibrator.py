"""The persisted calibrator: one curve, what it was fitted on, and how far it can be believed.

It is fitted to predictions and someone's verdicts on them.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version as version_of
from os import PathLike
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, TypeAdapter, ValidationError

from ezxmc.calibration.curves import (
    Corrected,
    Floats,
    Isotonic,
    JudgedRows,
    Platt,
    Ranked,
    Temperature,
    cross_fitted,
)
from ezxmc.errors import ArgumentError, BundleError, InputTypeError, TrainingError, instance_of
from ezxmc.files import loads, write_file
from ezxmc.metrics.calibration import ReliabilityBin, ece_at_k, nll, reliability_bins
from ezxmc.records import Prediction, Result

Target = Literal["teacher", "human", "both"]
Kind = Literal["isotonic", "platt", "temperature", "ranked"]

FORMAT_VERSION: Final = 2
KINDS: Final[tuple[Kind, ...]] = ("isotonic", "platt", "temperature", "ranked")
_AnyCurve = Isotonic | Platt | Temperature | Ranked | Corrected
FITS: Final[Mapping[Kind, Callable[[JudgedRows], _AnyCurve]]] = {
    "isotonic": Isotonic.fit,
    "platt": Platt.fit,
    "temperature": Temperature.fit,
    "ranked": Ranked.fit,
}
"""How each kind is fitted."""


@dataclass(frozen=True, slots=True)
class Calibrator(Result):
    """From the scores of ranked labels to probabilities; the order is kept.

    Attributes:
        target: What the probability is of: the `teacher`'s "yes", a tag a `human` would give, or `both`:
            the latter, by the teacher's shape corrected by people.
        k: Ranks the pairs were taken from; deeper ranks are extrapolation.
        n: Pairs fitted on.
        curve: The map itself.
        documents: Documents these pairs are of, where known.
        ece_cross_fitted: Expected calibration error (10 equal-width bins, L1) on documents left out of the
            fit, over all pairs.
        reliability: The bins behind that error.
        ece_uncorrected: For the target `both`, the error against people of the teacher's probabilities as
            they were: what these mean to people.
        nll_cross_fitted: The same documents' NLL in nats by each curve that was tried; the least was chosen.
        versions: Of the packages it was fitted with.
        version: Of the file format.

    Example:
        >>> rows = JudgedRows.of([[0.9, 0.2], [0.8, 0.4]] * 10, [[1, 0], [1, 0]] * 10)
        >>> Calibrator.fit(rows, target="human", kinds=["platt"]).transform([[0.9, 0.2]]).round(1)
        array([[1., 0.]])
    """

    target: Target
    k: int
    n: int
    curve: Annotated[_AnyCurve, Field(discriminator="kind")]
    documents: int | None = None
    ece_cross_fitted: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    ece_uncorrected: float | None = None
    nll_cross_fitted: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        errors = (self.ece_cross_fitted, self.ece_uncorrected, *self.nll_cross_fitted.values())
        if not all(math.isfinite(error) for error in errors if error is not None):
            raise ValueError("calibration errors must be finite")

    @property
    def kind(self) -> str:
        """The method."""
        return self.curve.kind

    @classmethod
    def fit(
        cls, rows: JudgedRows, *, target: Literal["teacher", "human"], kinds: Sequence[Kind] = KINDS
    ) -> Calibrator:
        """Fit each kind, keep the one with the least cross-fitted NLL.

        Args:
            rows: Held-out documents with verdicts.
            target: Whose verdicts these are.
            kinds: What to choose from.

        Raises:
            TrainingError: All pairs are of one document.
            ArgumentError: Target or kind is unknown.
            InputTypeError: `rows` is something else.
        """
        instance_of(rows, JudgedRows, "rows", "make them with JudgedRows.of(scores, hits)")
        if target not in ("teacher", "human"):
            raise ArgumentError(f"the target is {target!r}", "give 'teacher' or 'human'")
        if not kinds or set(kinds) - set(FITS):
            raise ArgumentError(f"the kinds are {kinds!r}", f"choose of {', '.join(FITS)}")
        return cls._best({kind: FITS[kind] for kind in kinds}, rows, target)

    @classmethod
    def correct(cls, teachers: Sequence[Calibrator], rows: JudgedRows) -> Calibrator:
        """Few-shot: the teacher's shape, its zero point, sharpness and weight of the rank set by people.

        Args:
            teachers: Calibrators of target `teacher` (or `both`, to correct anew); the one that serves
                people best is kept.
            rows: Documents that people reviewed, 50 to 200 are enough.

        Raises:
            TrainingError: None of `teachers` knows the teacher, or all pairs are of one document.
        """
        shapes = [one.curve for one in teachers if one.target != "human"]
        if not shapes:
            raise TrainingError(
                "there is no calibrator fitted to the teacher that could be corrected",
                "give its judgments too (--store), or fit to people alone (--target human)",
            )
        plain = [shape.shape if isinstance(shape, Corrected) else shape for shape in shapes]
        fits = {f"corrected {one.kind}": partial(Corrected.fit, one) for one in plain}
        found = cls._best(fits, rows, "both")
        assert isinstance(found.curve, Corrected)
        as_they_were = found.curve.shape.transform(rows.scores)[rows.known]
        return replace(found, ece_uncorrected=ece_at_k(as_they_were, rows.verdicts))

    @classmethod
    def _best(
        cls, fits: Mapping[str, Callable[[JudgedRows], _AnyCurve]], rows: JudgedRows, target: Target
    ) -> Calibrator:
        unseen = {name: cross_fitted(fit, rows) for name, fit in fits.items()}
        losses = {name: nll(probabilities, rows.verdicts) for name, probabilities in unseen.items()}
        best = min(losses, key=losses.__getitem__)
        return cls(
            target,
            rows.scores.shape[1],
            rows.pairs,
            fits[best](rows),
            documents=rows.documents,
            ece_cross_fitted=ece_at_k(unseen[best], rows.verdicts),
            reliability=tuple(reliability_bins(unseen[best], rows.verdicts)),
            nll_cross_fitted=losses,
            versions={name: version_of(name) for name in ("ezxmc", "numpy", "scipy", "scikit-learn")},
        )

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores.

        Args:
            scores: (..., k), the last axis one document's labels, best first.

        Returns:
            The same shape, in [0, 1], never rising along a row. A label's probability does not depend on
            the labels after it.

        Raises:
            InputTypeError: `scores` are no array of numbers, or one is NaN.
        """
        try:
            rows = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError):
            rows = np.full(1, np.nan)
        if not rows.ndim or np.isnan(rows).any():
            raise InputTypeError(
                f"scores are no rows of numbers: {reprlib.repr(scores)}", "give (N, k) scores, best first"
            )
        return self.curve.transform(rows)

    def save(self, path: str | Path) -> None:
        """Write the calibrator as JSON; a former one is replaced, anything else is a ConfigError."""
        write_file(path, _JSON.dump_json(self, indent=1), "a calibrator", made=loads(Calibrator.load))

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """Read a calibrator written by `save`, of this format or an older one.

        Raises:
            BundleError: Missing, damaged, not monotone, or of a newer format.
        """
        instance_of(path, (str, PathLike), "path", "give the path of a calibrator.json")
        cure = "fit it again with `ezxmc calibrate`, or restore the bundle from a copy"
        try:
            raw = json.loads(Path(path).read_bytes())
            if not isinstance(raw, dict) or not isinstance(raw.get("version"), int):
                raise ValueError("it names no version")
            if raw["version"] > FORMAT_VERSION:
                raise BundleError(
                    f"calibrator {path} has format {raw['version']}, this ezxmc knows {FORMAT_VERSION}",
                    "upgrade ezxmc",
                )
            if raw["version"] == 1:
                # Isotonic alone, its knots beside the rest.
                curve = {name: raw.pop(name, None) for name in ("kind", "x", "y")}
                raw |= {"curve": curve, "version": FORMAT_VERSION}
            return _JSON.validate_python(raw)
        except (OSError, ValueError, ValidationError) as error:
            raise BundleError(f"calibrator {path} cannot be used: {error}", cure) from error


_JSON = TypeAdapter(Calibrator)


Verdict = Callable[[str, str], float | None]
"""(document uid, label uid) to how far the label applies, in [0, 1]; `None`: nobody said."""


LEAST_JUDGED = 0.9
"""Share of a student's own first labels that must be judged: as much too high may a probability be."""


def unjudged(
    predictions: Sequence[Prediction], judged: Collection[tuple[str, str]], k: int
) -> dict[str, list[str]]:
    """What is missing of documents that somebody judged, or of all where nobody judged any.

    Pairs that another model proposed are right more often than those only this student ranks first, so
    rates among them are too high for it.

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
        """ReviewedPairs labels of the same documents that are not among the top."""
        ...

    def verdict(self, doc_uid: str, label_uid: str) -> float | None:
        """As `Verdict`."""
        ...


def completed(predictions: Sequence[Prediction], decided: PartlyDecided, k: int) -> Verdict:
    """People's verdicts on a former student's top labels, completed for those that only the present one has.

    What both students rank first is right more often than what one does alone: probabilities fitted to the
    decided pairs would be too high. The labels that the former student alone had on top stand for those
    that the present one alone has: of two students of one recipe, each is as likely to be the former. Where
    the new one is the better, this is too low, by less than the decided pairs alone are too high
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
        verdict: What is known of a pair. A person who reviews a document decides on each label of its top k.
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
    ranked: Sequence[Prediction] | None = None,
) -> Calibrator:
    """The shape by the teacher's answers, moved to people by 50 to 200 reviewed documents.

    Args:
        predictions: Of documents the student was not trained on, best label first.
        teacher: The teacher's answers, on these documents or others of them.
        human: People's decisions.
        k: Ranks used.
        kinds: Of shape, chosen from by cross-fitted NLL on people's decisions.
        ranked: What people's decisions are of, where these changed ranks.

    Raises:
        TrainingError: Fewer than 20 pairs or 2 documents have a verdict of either.
    """
    answers = judged_rows(predictions, teacher, k)
    shapes = [Calibrator.fit(answers, target="teacher", kinds=[kind]) for kind in kinds]
    return Calibrator.correct(shapes, judged_rows(ranked or predictions, human, k))
