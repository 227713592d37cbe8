"""Isotonic calibration of top-k scores, pooled over ranks, saved as JSON."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from ezxmc.errors import BundleError, TrainingError
from ezxmc.metrics.calibration import ReliabilityBin, ece_at_k, reliability_bins

Target = Literal["teacher", "human"]

FORMAT_VERSION = 1
_FEWEST_PAIRS = 20
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A non-decreasing, piecewise linear map from scores to probabilities.

    Attributes:
        target: What the probability is of: agreement with the `teacher`, or a
            tag a `human` would give.
        k: Ranks the pairs were taken from; deeper ranks are extrapolation.
        n: Pairs fitted on.
        x: Scores at the knots, strictly increasing.
        y: Probabilities at the knots, non-decreasing, in [0, 1].
        ece_cross_fitted: Expected calibration error (10 equal-width bins, L1)
            on documents left out of the fit, averaged over all pairs; `None`
            with fewer than two documents.
        reliability: The bins behind that error; empty where there is none.
        kind: The method.
        version: Of the file format.
    """

    target: Target
    k: int
    n: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    ece_cross_fitted: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    kind: Literal["isotonic"] = "isotonic"
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        knots, values = np.array(self.x), np.array(self.y)
        sound = (
            0 < len(knots) == len(values)
            and bool(np.isfinite(knots).all() and (np.diff(knots) > 0).all())
            and bool(((values >= 0) & (values <= 1)).all() and (np.diff(values) >= 0).all())
            and (self.ece_cross_fitted is None or math.isfinite(self.ece_cross_fitted))
        )
        if not sound:
            raise ValueError("knots must be finite and increasing, probabilities non-decreasing in [0, 1]")

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        hits: ArrayLike,
        groups: Sequence[Hashable],
        *,
        target: Target,
        k: int,
    ) -> Calibrator:
        """Fit by isotonic regression (Zadrozny and Elkan, KDD 2002).

        Args:
            scores: (n,) cosines of the top-k pairs of held-out documents.
            hits: (n,) what came true, in [0, 1]: 0 or 1, or for the target
                `teacher` the share of its answer on "yes".
            groups: (n,) document uid of each pair; the error is estimated on
                whole documents left out.
            target: Whose verdict `hits` is.
            k: Ranks per document in `scores`.

        Raises:
            TrainingError: Fewer than 20 pairs, unequal lengths, or values out of range.
        """
        s, h = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
        if s.ndim != 1 or s.shape != h.shape or len(groups) != len(s):
            raise TrainingError(
                f"calibration needs aligned columns, got {s.shape} scores, {h.shape} hits, {len(groups)} uids"
            )
        if len(s) < _FEWEST_PAIRS:
            raise TrainingError(
                f"{len(s)} judged pairs are too few to calibrate on, {_FEWEST_PAIRS} are needed",
                "hold out more documents, or review more of them",
            )
        if not (np.isfinite(s).all() and ((h >= 0) & (h <= 1)).all()):
            raise TrainingError("calibration needs finite scores and hits in [0, 1]")
        x, y = _knots(s, h)
        unseen = _cross_fitted(s, h, groups)
        return cls(
            target,
            k,
            len(s),
            tuple(x.tolist()),
            tuple(y.tolist()),
            ece_cross_fitted=None if unseen is None else ece_at_k(unseen, h),
            reliability=() if unseen is None else tuple(reliability_bins(unseen, h)),
        )

    def transform(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of scores of any shape; a higher score never gets a lower one."""
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), self.x, self.y))

    def save(self, path: str | Path) -> None:
        """Write the calibrator as JSON."""
        Path(path).write_bytes(_JSON.dump_json(self, indent=1))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """Read a calibrator written by `save`.

        Raises:
            BundleError: Missing, damaged, not monotone, or of a newer format.
        """
        cure = "fit it again with `ezxmc calibrate`, or restore the bundle from a copy"
        try:
            found = _JSON.validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleError(f"calibrator {path} cannot be used: {error}", cure) from error
        if found.version > FORMAT_VERSION:
            raise BundleError(
                f"calibrator {path} has format {found.version}, this ezxmc knows {FORMAT_VERSION}"
            )
        return found


_JSON = TypeAdapter(Calibrator)


def _knots(
    scores: NDArray[np.float64], hits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, hits)
    # Rounding inside the averages may leave a step of −1e-17.
    return model.X_thresholds_, np.clip(np.maximum.accumulate(model.y_thresholds_), 0.0, 1.0)


def _cross_fitted(
    scores: NDArray[np.float64], hits: NDArray[np.float64], groups: Sequence[Hashable]
) -> NDArray[np.float64] | None:
    """Each pair's probability by a fit that never saw its document."""
    ids = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(ids) < 2:
        return None
    probabilities = np.empty_like(scores)
    folds = GroupKFold(n_splits=min(_FOLDS, len(ids)))
    for rest, left_out in folds.split(scores, groups=[ids[group] for group in groups]):
        x, y = _knots(scores[rest], hits[rest])
        probabilities[left_out] = np.interp(scores[left_out], x, y)
    return probabilities
