"""Has the new student forgotten? Both rank old labels on old documents neither was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ezxmc.calibration import Isotonic, JudgedRows, Verdict, judged_rows
from ezxmc.calibration.crossfit import cross_fitted
from ezxmc.errors import TrainingError
from ezxmc.evaluation import compare, evaluate
from ezxmc.metrics import Difference, Terms, differences, ece_at_k
from ezxmc.records import Prediction

FEWEST_COMPARED = 20
"""Documents; fewer give no interval to decide by."""
_SURE = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two students on the same documents.

    Attributes:
        documents: Documents with a "yes" of the teacher among what either ranked.
        primary: The metric that decides.
        former: By metric, of the former student.
        new: Of the new one.
        changes: New minus former, with its interval, of metrics that have one.
    """

    documents: int
    primary: str
    former: dict[str, float]
    new: dict[str, float]
    changes: dict[str, Difference]

    @property
    def worse(self) -> bool:
        """Whether the new one is significantly worse."""
        change = self.changes.get(self.primary)
        return change is not None and change.value < 0 and change.p < _SURE


def compare_rankings(
    former: Sequence[Prediction], new: Sequence[Prediction], yes: Mapping[str, Collection[str]], k: int
) -> Comparison | None:
    """P@1, 3, 5, k and nDCG@5 by the teacher's word; P@k decides.

    Args:
        former: Rankings of the former student.
        new: Of the new one, of the same documents.
        yes: By document uid, labels the teacher calls relevant among all that
            either ranked: every one of these is judged.
        k: Tags a document gets.

    Returns:
        `None` if fewer than 20 documents have such a label.
    """
    gold = {uid: labels for uid, labels in yes.items() if labels}
    if len(gold) < FEWEST_COMPARED:
        return None
    ks = sorted({1, 3, 5, k})
    sides = [
        evaluate(side, gold, precision_ks=ks, recall_ks=(), ndcg_ks=(5,), coverage_ks=(), calibration_ks=())
        for side in (former, new)
    ]
    shown = [name for name in sides[0].values if name.startswith(("P@", "nDCG@"))]
    changes = compare(sides[1], sides[0])
    return Comparison(
        len(gold),
        f"P@{k}",
        {name: sides[0].values[name] for name in shown},
        {name: sides[1].values[name] for name in shown},
        {name: changes[name] for name in shown if name in changes},
    )


def with_calibration(
    found: Comparison, former: Sequence[Prediction], new: Sequence[Prediction], verdict: Verdict, depth: int
) -> Comparison:
    """The same with Brier score and ECE of both students' first tags.

    Each is calibrated (isotonic) on the other documents of these, so that
    neither is judged on what its curve was fitted to. ECE has no interval: it
    is no sum over documents.

    Args:
        found: What is added to.
        former: The former student's predictions, `depth` of each document.
        new: The new one's, of the same documents in the same order.
        verdict: The teacher's answers in [0, 1].
        depth: Tags calibrated on.
    """
    try:
        rows = [judged_rows(side, verdict, depth) for side in (former, new)]
        probabilities = [cross_fitted(Isotonic.fit, one) for one in rows]
    except TrainingError:
        return found
    name = f"Brier@{depth}"
    terms = [_squares(name, one, stated) for one, stated in zip(rows, probabilities, strict=True)]
    errors = [
        term.values() | {f"ECE@{depth}": ece_at_k(stated, one.verdicts)}
        for term, stated, one in zip(terms, probabilities, rows, strict=True)
    ]
    return replace(
        found,
        former=found.former | errors[0],
        new=found.new | errors[1],
        changes=found.changes | differences(terms[1], terms[0]),
    )


def _squares(name: str, rows: JudgedRows, stated: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Terms:
    """Squared errors and pairs, by document."""
    squares = np.zeros_like(rows.scores)
    squares[rows.known] = (stated - rows.verdicts) ** 2
    return Terms((name,), squares.sum(axis=1)[:, None], rows.known.sum(axis=1).astype(np.float64)[:, None])
