"""Scores of ranked labels with verdicts on some of them, and the curves from scores to probabilities.

- `Temperature`: temperature scaling, one parameter.
- `Platt`: a logistic curve, two parameters.
- `Ranked`: a logistic curve that also looks at the rank and at the margin to the best label.
- `Isotonic`: any non-decreasing shape.
- `Corrected`: a curve fitted to the teacher, moved to where people put it.

The parametric ones are fitted by logistic regression with bounds and a prior. Cross-fitting tells which to
believe: each is judged on documents its fit never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from ezxmc.errors import InputTypeError, TrainingError

Floats = NDArray[np.float64]

FEWEST_PAIRS = 20


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """The top k of N documents, and what is known of these pairs.

    Attributes:
        scores: (N, k) float64, each row best first.
        hits: (N, k) float64 in [0, 1] where `known`: 0 or 1, or for a teacher the share of its answer on
            "yes".
        known: (N, k) bool, which pairs somebody judged.
    """

    scores: Floats
    hits: Floats
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: ArrayLike, hits: ArrayLike, known: ArrayLike | None = None) -> JudgedRows:
        """Check and convert.

        Args:
            scores: (N, k), best first along each row.
            hits: (N, k); ignored where not `known`.
            known: (N, k) bool; everything by default.

        Raises:
            InputTypeError: Scores or hits are no numbers.
            TrainingError: Shapes differ, scores are not finite or not best first, hits outside [0, 1], or
                fewer than 20 known pairs.
        """
        try:
            s, h = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputTypeError(f"scores and hits are no numbers: {error}", "give rows of them") from None
        seen = np.ones(s.shape, dtype=bool) if known is None else np.asarray(known, dtype=bool)
        if s.ndim != 2 or not s.shape == h.shape == seen.shape:
            raise TrainingError(
                f"calibration needs aligned rows, got {s.shape} scores, {h.shape} hits, {seen.shape} known"
            )
        if (pairs := int(seen.sum())) < FEWEST_PAIRS:
            raise TrainingError(
                f"{pairs} judged pairs are too few to calibrate on, {FEWEST_PAIRS} are needed",
                "hold out more documents, or review more of them",
            )
        if not (np.isfinite(s).all() and ((h[seen] >= 0) & (h[seen] <= 1)).all()):
            raise TrainingError("calibration needs finite scores and hits in [0, 1]")
        if (np.diff(s, axis=1) > 0).any():
            raise TrainingError("calibration needs each document's scores best first")
        return cls(s, h, seen)

    @property
    def documents(self) -> int:
        """Documents with at least one known pair."""
        return int(self.known.any(axis=1).sum())

    @property
    def pairs(self) -> int:
        """Known pairs n."""
        return int(self.known.sum())

    @property
    def verdicts(self) -> Floats:
        """(n,) hits of the known pairs."""
        return self.hits[self.known]

    def take(self, rows: NDArray[np.int64]) -> JudgedRows:
        """These documents alone."""
        return JudgedRows(self.scores[rows], self.hits[rows], self.known[rows])


def log_ranks(scores: Floats) -> Floats:
    """Ln 1, ln 2, ... along the last axis, in the shape of `scores`."""
    return np.broadcast_to(np.log(np.arange(1, scores.shape[-1] + 1)), scores.shape)


_FOLDS = 5


class Curve(Protocol):
    """A map from rows of scores to probabilities."""

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities in [0, 1] of rows (..., k) of scores, best first; they never rise along a row."""
        ...


def cross_fitted(fit: Callable[[JudgedRows], Curve], rows: JudgedRows) -> Floats:
    """Each known pair's probability by a fit without its document.

    Args:
        fit: Makes a curve.
        rows: N documents, dealt to five parts in a fixed random order.

    Returns:
        (n,) float64, in the order of `rows.verdicts`.

    Raises:
        TrainingError: Fewer than two documents have a known pair.
    """
    judged = np.flatnonzero(rows.known.any(axis=1))
    if len(judged) < 2:
        raise TrainingError(
            "the judged pairs are all of one document: nothing says how the next one would do",
            "hold out more documents, or review more of them",
        )
    probabilities = np.zeros_like(rows.scores)
    for part in np.array_split(np.random.default_rng(0).permutation(judged), min(_FOLDS, len(judged))):
        curve = fit(rows.take(np.setdiff1d(judged, part)))
        probabilities[part] = curve.transform(rows.scores[part])
    return probabilities[rows.known]


def sigmoid(values: ArrayLike) -> Floats:
    """1 / (1 + e^−v), of any shape."""
    from scipy.special import expit  # a third of a second, which who only reads labels does without

    return np.asarray(expit(values))


def fit_logistic(
    features: Floats,
    hits: Floats,
    *,
    lower: Sequence[float],
    prior: Sequence[float] | None = None,
    strength: float | Sequence[float] = 0.0,
) -> Floats:
    """Weights w that minimise Σ_i NLL(h_i, σ(x_i·w)) + ½·Σ_j strength_j·(w_j − prior_j)².

    The problem is convex; fractional hits weigh both answers.

    Args:
        features: (n, d).
        hits: (n,) in [0, 1].
        lower: (d,) least weights; −inf where any is allowed.
        prior: (d,) where the weights are drawn to; zeros by default.
        strength: How strongly, in nats per squared unit, all alike or each; 0 for maximum likelihood.

    Returns:
        (d,) weights.
    """
    from scipy.optimize import minimize

    center = np.zeros(features.shape[1]) if prior is None else np.asarray(prior, dtype=np.float64)
    # Columns of like size: cosines vary by hundredths, ranks by whole numbers.
    size = np.sqrt(np.mean(features**2, axis=0))
    size[size == 0] = 1.0
    scaled = features / size
    n, pull = len(hits), np.broadcast_to(np.asarray(strength, dtype=np.float64), center.shape)

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits, away = scaled @ weights, weights / size - center
        value = np.logaddexp(0.0, logits).sum() - hits @ logits + 0.5 * pull @ away**2
        slope = scaled.T @ (sigmoid(logits) - hits) + pull * away / size
        return float(value) / n, slope / n

    bounds = [(low * by if np.isfinite(low) else None, None) for low, by in zip(lower, size, strict=True)]
    start = np.maximum(center, lower) * size
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}
    )
    return np.asarray(found.x / size, dtype=np.float64)


PULL = 0.1
"""Nats per squared unit of a weight: a normal prior of deviation 3."""


def pull_of_scores(scores: Floats) -> float:
    """`PULL` for the weight of scores, their own deviation being the unit.

    Few documents may part hits and misses by the last digits of their scores: then nothing but a prior
    keeps other scores from certainty.
    """
    return PULL * float(np.var(scores))


def smoothed(hits: Floats) -> Floats:
    """Platt's targets: hits between 1/(n₋+2) and (n₊+1)/(n₊+2), so that no fit runs off to infinity.

    J. Platt, "Probabilistic outputs for support vector machines", 1999, §2.2, with n₊ the sum of fractional
    hits.
    """
    positives = float(hits.sum())
    low, high = 1 / (len(hits) - positives + 2), (positives + 1) / (positives + 2)
    return np.asarray(low + (high - low) * hits)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A non-decreasing, piecewise linear map from scores to probabilities.

    Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD
    2002.

    Attributes:
        x: Scores at the knots, strictly increasing.
        y: Probabilities at the knots, non-decreasing, in [0, 1].
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Literal["isotonic"] = "isotonic"

    def __post_init__(self) -> None:
        knots, values = np.array(self.x), np.array(self.y)
        sound = (
            0 < len(knots) == len(values)
            and bool(np.isfinite(knots).all() and (np.diff(knots) > 0).all())
            and bool(((values >= 0) & (values <= 1)).all() and (np.diff(values) >= 0).all())
        )
        if not sound:
            raise ValueError("knots must be finite and increasing, probabilities non-decreasing in [0, 1]")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Isotonic:
        """Least squares under monotony, the pairs pooled over ranks.

        A block that holds only misses, or only hits, is no certainty: its probability is set by Laplace's
        rule, 1/(n+2) or (n+1)/(n+2), as far as that does not pass the rate of the block beside it.
        """
        from sklearn.isotonic import IsotonicRegression  # a second, which who only tags does without

        scores, hits = rows.scores[rows.known], rows.verdicts
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, hits)
        values = model.predict(scores)
        misses, certain = int((values <= 0).sum()), int((values >= 1).sum())
        # Rounding inside the averages may leave a step of −1e-17.
        y = np.clip(np.maximum.accumulate(model.y_thresholds_), 0.0, 1.0)
        inner = y[(y > 0) & (y < 1)]
        low, high = 1 / (misses + 2), (certain + 1) / (certain + 2)
        if len(inner):
            low, high = min(low, inner[0]), max(high, inner[-1])
        y = np.where(y <= 0, low, np.where(y >= 1, high, y))
        return cls(tuple(model.X_thresholds_.tolist()), tuple(y.tolist()))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores of any shape."""
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), self.x, self.y))


@dataclass(frozen=True, slots=True)
class Platt:
    """p = σ(slope · score + offset).

    J. Platt, "Probabilistic outputs for support vector machines", 1999.

    Attributes:
        slope: At least 0.
        offset: Log-odds at a score of 0.
    """

    slope: float
    offset: float
    kind: Literal["platt"] = "platt"

    def __post_init__(self) -> None:
        if not (self.slope >= 0 and np.isfinite([self.slope, self.offset]).all()):
            raise ValueError("slope and offset must be finite, the slope not negative")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Platt:
        """Maximum a posteriori on Platt's smoothed targets; see `pull_of_scores`."""
        scores = rows.scores[rows.known]
        features = np.stack([scores, np.ones_like(scores)], axis=1)
        slope, offset = fit_logistic(
            features, smoothed(rows.verdicts), lower=[0.0, -np.inf], strength=[pull_of_scores(scores), 0.0]
        )
        return cls(float(slope), float(offset))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores of any shape."""
        return sigmoid(self.slope * np.asarray(scores, dtype=np.float64) + self.offset)


_COLDEST = 1e-6
"""Least 1/T: without it scores that say nothing would ask for an infinite temperature."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """p = σ(score / temperature).

    Guo et al., arXiv 1706.04599, in its binary form. It takes a score of 0 for even odds: right for scores
    that are log-odds, wrong for cosines, where nearly every score is above 0 and every probability then
    above 1/2.

    Attributes:
        temperature: Positive, in units of the score.
    """

    temperature: float
    kind: Literal["temperature"] = "temperature"

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise ValueError("the temperature must be positive and finite")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Temperature:
        """Maximum likelihood on Platt's smoothed targets."""
        scores = rows.scores[rows.known]
        (inverse,) = fit_logistic(scores[:, None], smoothed(rows.verdicts), lower=[_COLDEST])
        return cls(1 / float(inverse))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores of any shape."""
        return sigmoid(np.asarray(scores, dtype=np.float64) / self.temperature)


@dataclass(frozen=True, slots=True)
class Ranked:
    """p_j = σ(best·s_1 − margin·(s_1 − s_j) − rank·ln j + offset) for the label of rank j.

    With `margin` and `rank` not negative p falls along a row, so the order is kept; `best` is free. Nothing
    looks at later ranks: a label's probability does not depend on how many labels were asked for.

    Attributes:
        best: Weight of the document's best score s_1.
        margin: Weight of the margin to the best, at least 0.
        rank: Weight of ln(rank), ranks from 1, at least 0.
        offset: Log-odds where the rest is 0.
    """

    best: float
    margin: float
    rank: float
    offset: float
    kind: Literal["ranked"] = "ranked"

    def __post_init__(self) -> None:
        finite = np.isfinite([self.best, self.margin, self.rank, self.offset]).all()
        if not (finite and self.margin >= 0 and self.rank >= 0):
            raise ValueError("weights must be finite, those of margin and rank not negative")

    @classmethod
    def fit(cls, rows: JudgedRows) -> Ranked:
        """Maximum a posteriori on Platt's smoothed targets, the weights bounded so that the order is kept."""
        pull = pull_of_scores(rows.scores[rows.known])
        best, margin, rank, offset = fit_logistic(
            np.stack([column[rows.known] for column in _features(rows.scores)], axis=1),
            smoothed(rows.verdicts),
            lower=[-np.inf, 0.0, 0.0, -np.inf],
            strength=[pull, pull, PULL, 0.0],
        )
        return cls(float(best), float(margin), float(rank), float(offset))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of rows (..., k) of scores, best first."""
        best, margin, rank, one = _features(np.asarray(scores, dtype=np.float64))
        return sigmoid(self.best * best + self.margin * margin + self.rank * rank + self.offset * one)


def _features(scores: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    best = np.broadcast_to(scores[..., :1], scores.shape)
    return best, scores - best, -log_ranks(scores), np.ones_like(scores)


Simple = Annotated[Isotonic | Platt | Temperature | Ranked, Field(discriminator="kind")]

_EDGE = 1e-4


@dataclass(frozen=True, slots=True)
class Corrected:
    """logit p_j = slope · logit shape_j − rank · ln j + offset for the label of rank j.

    The zero point and the sharpness of a teacher's answers depend on the wording of its prompt, and it
    tells a document's best label less clearly from the next ones than people do. These are set by people
    here; what many answers of the teacher say about the shape is kept. It is the logistic form of beta
    calibration (Kull et al., AISTATS 2017, with a = b) on top of `shape`, with the rank added.

    Attributes:
        shape: A curve fitted to the teacher's answers.
        slope: At least 0; 1 leaves the sharpness as it is.
        rank: At least 0; 0 leaves the weight of the rank as it is.
        offset: In nats; 0 leaves the zero point as it is.
    """

    shape: Simple
    slope: float
    rank: float
    offset: float
    kind: Literal["corrected"] = "corrected"

    def __post_init__(self) -> None:
        finite = np.isfinite([self.slope, self.rank, self.offset]).all()
        if not (finite and self.slope >= 0 and self.rank >= 0):
            raise ValueError("weights must be finite, slope and rank not negative")

    @classmethod
    def fit(cls, shape: Simple, rows: JudgedRows) -> Corrected:
        """Maximum a posteriori on people's verdicts, the identity being the mode of the prior."""
        slope, rank, offset = fit_logistic(
            np.stack([column[rows.known] for column in _shape_features(shape, rows.scores)], axis=1),
            rows.verdicts,
            lower=[0.0, 0.0, -np.inf],
            prior=[1.0, 0.0, 0.0],
            # A stronger one holds on to the teacher's zero point, which can be off by several nats.
            strength=PULL,
        )
        return cls(shape, float(slope), float(rank), float(offset))

    def transform(self, scores: ArrayLike) -> Floats:
        """Probabilities of rows (..., k) of scores, best first."""
        logits, rank, one = _shape_features(self.shape, np.asarray(scores, dtype=np.float64))
        return sigmoid(self.slope * logits + self.rank * rank + self.offset * one)


def _shape_features(shape: Simple, scores: Floats) -> tuple[Floats, Floats, Floats]:
    from scipy.special import logit

    # A curve may say 0 or 1; no finite correction could move that.
    logits = logit(np.clip(shape.transform(scores), _EDGE, 1 - _EDGE))
    return np.asarray(logits), -log_ranks(scores), np.ones_like(scores)
