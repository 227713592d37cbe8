"""What a choice of tags is worth on reviewed documents: losses per document, rates, curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ezxmc.data.catalog import WithoutGold, settle_untagged
from ezxmc.errors import DataError
from ezxmc.records import Prediction, Result


@dataclass(frozen=True, slots=True)
class ReviewedDocuments:
    """Documents with calibrated candidates and the labels people gave them.

    Attributes:
        probabilities: (N, k) float64, every row best first.
        hits: (N, k) bool, whether people gave the document this label.
        gold: (N,) int64, all labels people gave, wherever they rank: those beyond the k candidates count,
            and no decision can keep them.

    Raises:
        DataError: There is no document or no candidate, the arrays do not align, or probabilities are not
            in [0, 1] and best first.
    """

    probabilities: NDArray[np.float64]
    hits: NDArray[np.bool_]
    gold: NDArray[np.int64]

    def __post_init__(self) -> None:
        p = self.probabilities
        if p.ndim != 2 or 0 in p.shape or p.shape != self.hits.shape or self.gold.shape != p.shape[:1]:
            raise DataError(
                f"reviewed documents do not align: probabilities {p.shape}, hits {self.hits.shape}, "
                f"gold {self.gold.shape}",
                "give at least one document, each with the same number of candidates",
            )
        if not ((p >= 0) & (p <= 1)).all() or (np.diff(p, axis=1) > 0).any():
            raise DataError("probabilities must be in [0, 1], every row best first", "calibrate the scores")
        if (self.hits.sum(axis=1) > self.gold).any():
            raise DataError("a document has more hits than gold labels", "count every label people gave")

    @classmethod
    def of(
        cls,
        predictions: Sequence[Prediction],
        gold: Mapping[str, Collection[str]],
        *,
        without_gold: WithoutGold | None = None,
    ) -> ReviewedDocuments:
        """Out of predictions of one depth with probabilities.

        Args:
            predictions: Best label first.
            gold: All right labels by document uid; empty for a document that people saw and nothing fits.
            without_gold: What documents without a row in `gold` are. "none": nothing fits them, so they
                count; "unreviewed": nobody saw them, so they are left out. Has to be told where there are
                any: documents left out because nothing fits them make the rates look better than they are.

        Raises:
            DataError: No prediction has a row in `gold`, some have none and nobody says what they are, or
                one has no probabilities.
            ArgumentError: `without_gold` is something else.
        """
        if not any(prediction.uid in gold for prediction in predictions):
            raise DataError("no document was reviewed", "check that documents and gold use the same uids")
        tags = {uid: set(labels) for uid, labels in gold.items()}
        settle_untagged(tags, (prediction.uid for prediction in predictions), "gold", without_gold)
        known = [prediction for prediction in predictions if prediction.uid in tags]
        if any(len(prediction.probabilities) != len(prediction.labels) for prediction in known):
            raise DataError("a decision needs probabilities", "run `ezxmc calibrate` on the bundle")
        return cls(
            np.array([prediction.probabilities for prediction in known], dtype=np.float64),
            np.array([[label in tags[p.uid] for label in p.labels] for p in known], dtype=np.bool_),
            np.array([len(tags[prediction.uid]) for prediction in known], dtype=np.int64),
        )

    @property
    def beyond(self) -> float:
        """Gold labels per document that are not among the candidates."""
        return float((self.gold - self.hits.sum(axis=1)).mean())


def missed(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of its gold labels each document misses: one value per document that has any, in order."""
    found = (reviewed.hits & kept).sum(axis=1)
    some = reviewed.gold > 0
    return np.asarray(1 - found[some] / reviewed.gold[some])


def false_tags(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of false tags among those kept: one value per answered document, in order.

    A document with nothing kept has no value: counted as 0, abstaining on many documents would hide any
    number of false tags on the others.
    """
    count = kept.sum(axis=1)
    right = (reviewed.hits & kept).sum(axis=1)
    return np.asarray(1 - right[count > 0] / count[count > 0])


@dataclass(frozen=True, slots=True)
class Rates(Result):
    """What a choice did on reviewed documents; `None` where there is nothing to average.

    Attributes:
        documents: Reviewed documents.
        answered: Share of them with at least one tag.
        tags: Kept per document, answered or not.
        missed: Mean share of a document's gold labels that are not kept, over documents with gold; labels
            beyond the candidates count as missed.
        false_tags: Mean share of false tags among a document's tags, over answered documents.
        false_tags_pooled: False tags of all tags kept.
        top_error: Share of answered documents whose first tag is false.
        f1: Micro-averaged, all gold labels counted.
        document_f1: Averaged over documents with gold; an empty answer gets 0.
    """

    documents: int
    answered: float
    tags: float
    missed: float | None
    false_tags: float | None
    false_tags_pooled: float | None
    top_error: float | None
    f1: float | None
    document_f1: float | None


def rates(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> Rates:
    """Measure a choice.

    Args:
        reviewed: N documents with k candidates.
        kept: (N, k), what is kept.
    """
    count, right = kept.sum(axis=1), (reviewed.hits & kept).sum(axis=1)
    answered, some = count > 0, reviewed.gold > 0
    total = int(count.sum() + reviewed.gold.sum())
    return Rates(
        documents=len(kept),
        answered=float(answered.mean()),
        tags=float(count.mean()),
        missed=_mean(missed(reviewed, kept)),
        false_tags=_mean(false_tags(reviewed, kept)),
        false_tags_pooled=float(1 - right.sum() / count.sum()) if count.any() else None,
        top_error=_mean(~reviewed.hits[answered, 0]),
        f1=2 * int(right.sum()) / total if total else None,
        document_f1=_mean(2 * right[some] / (count[some] + reviewed.gold[some])),
    )


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
