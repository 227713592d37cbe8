"""Judgments → what the student learns: soft probabilities, positives, negatives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ezxmc.config import TrainingConfig
from ezxmc.errors import TrainingError
from ezxmc.feedback.priors import label_shifts
from ezxmc.records import Judgment, Status

# A shortlist holds many near misses: where few labels were judged, at most
# this share of them is expected to be positive (5 of 14, as measured).
_POSITIVE_SHARE = 5 / 14


@dataclass(frozen=True, slots=True)
class PriorCorrection:
    """How a log-odds becomes a probability.

    The zero point of an LLM's log-odds depends on the prompt's wording, and
    some labels get a "yes" from any document; only the order is trusted.

    Attributes:
        shifts: By label uid, α·(z̄_l − z̄) in nats; absent labels shift by 0.
        zero: The log-odds that count as even.
    """

    shifts: dict[str, float]
    zero: float

    def probability(self, label_uid: str, log_odds: float) -> float:
        """The soft label σ(z − α·(z̄_l − z̄) − zero)."""
        return float(expit(log_odds - self.shifts.get(label_uid, 0.0) - self.zero))


@dataclass(frozen=True, slots=True)
class DocumentTargets:
    """What the teacher said about one document; labels it did not judge are unknown.

    Attributes:
        doc_uid: The document's uid.
        labels: Judged label uids, the most probable first.
        probabilities: (len(labels),) float64 in [0, 1], aligned with `labels`.
        positives: The head of `labels` that is taught as relevant; may be empty.
        negatives: The tail of `labels` that is taught as irrelevant.
    """

    doc_uid: str
    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of every document with a usable judgment, in the order of their uids.

    Attributes:
        documents: One entry a document.
        prior: The correction behind the probabilities.
        judged: Judgments used.
        unknown: Judgments without a score, left out.
        without_judgments: Documents dropped: none of their judgments has a score.
        without_positives: Documents kept whose labels are all improbable; they
            are not trained on.
    """

    documents: list[DocumentTargets]
    prior: PriorCorrection
    judged: int
    unknown: int
    without_judgments: int
    without_positives: int


def build_targets(
    judgments: Iterable[Judgment], config: TrainingConfig, context: Sequence[Judgment] = ()
) -> Targets:
    """Correct the log-odds for each label's prior and set their zero point.

    z′ = z − α·(z̄_l − z̄), see `label_shifts`. p = σ(z′ − t) with t such that
    the probabilities add up to `config.positives` per document on average
    (less where few labels were judged). Up to `config.positives` of the most
    probable labels are positives, those below `config.negative_below`
    negatives, the rest neither.

    Args:
        judgments: Of one teacher; the last of several on the same pair counts.
        config: `prior_alpha`, `positives` and `negative_below`.
        context: All labels judged on random documents, for the labels' priors.

    Raises:
        TrainingError: No judgment has a score.
    """
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    seen: set[str] = set()
    unknown = 0
    for judgment in judgments:
        seen.add(judgment.doc_uid)
        if judgment.status is Status.OK and judgment.log_odds is not None:
            scores[judgment.doc_uid][judgment.label_uid] = judgment.log_odds
        else:
            unknown += 1
    if not scores:
        raise TrainingError(
            f"none of {unknown} judgments has a score: there is nothing to learn from",
            "look at the statuses with `ezxmc annotate`; the prompt or the teacher may not fit",
        )
    shifts = label_shifts(scores, context, config)
    corrected = {
        doc: {label: z - shifts.get(label, 0.0) for label, z in sorted(row.items())}
        for doc, row in sorted(scores.items())
    }
    zero = _zero_point(corrected, config.positives)
    documents = [_targets_of(doc, row, zero, config) for doc, row in corrected.items()]
    return Targets(
        documents,
        PriorCorrection(shifts, zero),
        judged=sum(map(len, scores.values())),
        unknown=unknown,
        without_judgments=len(seen) - len(scores),
        without_positives=sum(not document.positives for document in documents),
    )


def teacher_verdicts(judgments: Iterable[Judgment]) -> Callable[[str, str], float | None]:
    """The share of its answer that the teacher gives to "yes", by (document uid, label uid).

    σ(log-odds), raw: a calibrated value of it can be checked by asking. A hard
    yes or no would lose how sure the teacher was, and its share of "yes" says
    more about the prompt's wording than about the labels. `None` where there
    is no scored judgment.
    """
    answers = {
        (j.doc_uid, j.label_uid): float(expit(j.log_odds)) for j in judgments if j.log_odds is not None
    }
    return lambda doc_uid, label_uid: answers.get((doc_uid, label_uid))


def _targets_of(doc: str, row: dict[str, float], zero: float, config: TrainingConfig) -> DocumentTargets:
    labels = sorted(row, key=lambda label: -row[label])
    probabilities = expit(np.array([row[label] for label in labels]) - zero)
    likely = int((probabilities >= config.negative_below).sum())
    return DocumentTargets(
        doc,
        tuple(labels),
        probabilities,
        positives=tuple(labels[: min(likely, config.positives)]),
        negatives=tuple(labels[likely:]),
    )


def _zero_point(corrected: dict[str, dict[str, float]], positives: int) -> float:
    """The t at which Σ σ(z′ − t) is the expected number of positives, by bisection."""
    values = np.concatenate([list(row.values()) for row in corrected.values()])
    expected = sum(min(positives, _POSITIVE_SHARE * len(row)) for row in corrected.values())
    low, high = float(values.min()) - 50.0, float(values.max()) + 50.0
    for _ in range(80):
        middle = (low + high) / 2
        if expit(values - middle).sum() > expected:
            low = middle
        else:
            high = middle
    return (low + high) / 2
