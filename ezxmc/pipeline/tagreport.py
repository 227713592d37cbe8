"""What a run's tags look like: examples, thresholds, disagreements, labels nobody gets."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ezxmc.data import Catalog
from ezxmc.records import Prediction
from ezxmc.report import (
    DisagreementEntry,
    ExampleDocument,
    ExampleTag,
    ThresholdRow,
    UnusedLabels,
)

_EXAMPLES, _DISAGREEMENTS, _UNUSED = 30, 10, 60
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def examples(catalog: Catalog, predictions: Sequence[Prediction], k: int) -> list[ExampleDocument]:
    """Documents spread over the catalog, those with gold first, each with its first k tags."""
    titles = {label.uid: label.title for label in catalog.labels}
    order = sorted(range(len(predictions)), key=lambda i: predictions[i].uid not in catalog.gold)
    pool = order[: len(catalog.gold)] if catalog.gold else order
    return [
        ExampleDocument(
            uid=prediction.uid,
            title=document.title,
            text=document.text[:500],
            tags=[
                ExampleTag(title=title, probability=probability)
                for title, probability in zip(
                    prediction.titles[:k], prediction.probabilities[:k] or (None,) * k, strict=False
                )
            ],
            gold=sorted(titles[uid] for uid in catalog.gold[prediction.uid])
            if prediction.uid in catalog.gold
            else None,
        )
        for prediction, document in (
            (predictions[i], catalog.documents[i])
            for i in pool[:: max(1, len(pool) // _EXAMPLES)][:_EXAMPLES]
        )
    ]


def thresholds(catalog: Catalog, predictions: Sequence[Prediction], k: int) -> list[ThresholdRow]:
    """What a threshold on the first k probabilities would keep; empty where there are none.

    Precision and recall are micro averages over the documents with gold, those
    that nothing fits included, with at most k tags each.
    """
    if not all(prediction.probabilities for prediction in predictions):
        return []
    gold = catalog.gold
    tagged = [prediction for prediction in predictions if prediction.uid in gold]
    right = sum(len(gold[prediction.uid]) for prediction in tagged)
    hit = sorted(
        probability
        for prediction in tagged
        for label, probability in zip(prediction.labels[:k], prediction.probabilities[:k], strict=True)
        if label in gold[prediction.uid]
    )
    pairs, judged = _probabilities(predictions, k), _probabilities(tagged, k)
    best = sorted(prediction.probabilities[0] for prediction in predictions)
    rows = []
    for threshold in _THRESHOLDS:
        kept, hits, tried = _above(pairs, threshold), _above(hit, threshold), _above(judged, threshold)
        rows.append(
            ThresholdRow(
                threshold=threshold,
                tags_per_document=kept / len(predictions),
                answered=_above(best, threshold) / len(predictions),
                stated=float(np.mean(pairs[-kept:])) if kept else None,
                precision=hits / tried if tried else None,
                recall=hits / right if right else None,
            )
        )
    return rows


def _probabilities(predictions: Iterable[Prediction], k: int) -> list[float]:
    return sorted(p for prediction in predictions for p in prediction.probabilities[:k])


def _above(ascending: Sequence[float], threshold: float) -> int:
    return len(ascending) - bisect.bisect_left(ascending, threshold)


def disagreements(
    catalog: Catalog, predictions: Sequence[Prediction], verdict: Callable[[str, str], float | None]
) -> list[DisagreementEntry]:
    """The pairs where the student's probability and the teacher's answer lie furthest apart.

    Args:
        catalog: For titles.
        predictions: One per document, in order.
        verdict: The teacher's share of "yes" by document and label uid, `None` where it was not asked.

    Returns:
        At most ten where the student says more, then ten where the teacher does, the widest first;
        one pair a document.
    """
    found = []
    for document, prediction in zip(catalog.documents, predictions, strict=True):
        pairs = zip(prediction.labels, prediction.titles, prediction.probabilities, strict=False)
        asked = [
            (p, said, title) for uid, title, p in pairs if (said := verdict(prediction.uid, uid)) is not None
        ]
        for p, said, title in asked and {max(asked, key=_gap), min(asked, key=_gap)}:
            name = (document.title or document.text)[:200]
            entry = DisagreementEntry(uid=document.uid, title=name, label=title, student=p, teacher=said)
            found.append(entry)
    found.sort(key=lambda one: one.student - one.teacher)
    more = [one for one in reversed(found) if one.student > one.teacher][:_DISAGREEMENTS]
    return more + [one for one in found if one.student < one.teacher][:_DISAGREEMENTS]


def _gap(asked: tuple[float, float, str]) -> float:
    return asked[0] - asked[1]


def unused(catalog: Catalog, predictions: Iterable[Prediction], k: int) -> UnusedLabels:
    """Labels among no document's first k."""
    used = {uid for prediction in predictions for uid in prediction.labels[:k]}
    never = [label for label in catalog.labels if label.uid not in used]
    wanted = {uid for right in catalog.gold.values() for uid in right}
    return UnusedLabels(
        k=k,
        count=len(never),
        labels=len(catalog.labels),
        with_gold=sum(label.uid in wanted for label in never) if catalog.gold else None,
        titles=[label.title for label in never[:_UNUSED]],
    )
