"""How a ranking is scored in the table of methods, and what the scores are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.metrics import (
    frequency_groups,
    inverse_propensities,
    ndcg_at_k,
    precision_at_k,
    precision_by_document,
    psp_at_k,
    recall_at_k,
    recall_by_document,
)
from ezxmc.metrics.propensity import GROUPS

PAIRED = {
    "P@1": (precision_by_document, 1),
    "P@5": (precision_by_document, 5),
    "R@10": (recall_by_document, 10),
}
"""Metrics kept document by document, for intervals and for the human equivalent."""

_RESAMPLES = 2_000
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """Scores rankings against gold no method has seen.

    Attributes:
        gold: Right labels of each document to report on, none empty.
        inverse: Inverse propensity of every label, counted outside the report part.
        group: Head, torso or tail of every label, counted there too.
    """

    gold: Sequence[set[str]]
    inverse: dict[str, float]
    group: dict[str, str]

    @classmethod
    def of(
        cls, gold: Sequence[set[str]], counts: Mapping[str, int], documents: int, a: float, b: float
    ) -> Judge:
        """A judge with propensities and groups of the gold outside the report part.

        Args:
            gold: Right labels of each document to report on.
            counts: Gold documents of every label outside the report part.
            documents: Gold documents there.
            a: See `inverse_propensities`.
            b: See `inverse_propensities`.
        """
        return cls(gold, inverse_propensities(counts, documents, a=a, b=b), frequency_groups(counts))

    def score(
        self, ranked: Sequence[Sequence[str] | None]
    ) -> tuple[dict[str, float], dict[str, list[float | None]]]:
        """Metrics of a ranking; documents ranked `None` are left out.

        P@5 and R@10 of a group count the gold labels of that group only, in
        the ranking over all labels; documents without one are left out.

        Returns:
            Means by metric, in [0, 1], and `PAIRED` by document (`None` where left out).
        """
        kept = [i for i, labels in enumerate(ranked) if labels is not None]
        lists = [list(labels) for labels in ranked if labels is not None]
        gold = [self.gold[i] for i in kept]
        values = {f"P@{k}": precision_at_k(lists, gold, k) for k in (1, 3, 5)}
        values |= {f"R@{k}": recall_at_k(lists, gold, k) for k in (5, 10, 50)}
        values |= {"nDCG@5": ndcg_at_k(lists, gold, 5), "PSP@5": psp_at_k(lists, gold, self.inverse, 5)}
        for name in GROUPS:
            parts = [{label for label in right if self.group[label] == name} for right in gold]
            some = [i for i, right in enumerate(parts) if right]
            if some:
                ranks, right = [lists[i] for i in some], [parts[i] for i in some]
                values[f"P@5 {name}"] = precision_at_k(ranks, right, 5)
                values[f"R@10 {name}"] = recall_at_k(ranks, right, 10)
        by_document = {}
        for name, (metric, k) in PAIRED.items():
            column: list[float | None] = [None] * len(ranked)
            for i, value in zip(kept, metric(lists, gold, k).tolist(), strict=True):
                column[i] = round(value, 5)
            by_document[name] = column
        return values, by_document


def difference(first: _Floats, second: _Floats) -> dict[str, Any]:
    """Mean of `first − second` over the documents both have, and its 95% interval.

    Percentile bootstrap over documents (Efron 1979): the spread from another
    draw of documents, not from another seed.

    Args:
        first: (N,) one value a document; NaN where it has none.
        second: The same documents.

    Returns:
        `mean`, `low`, `high` and `documents`; without common documents only the last, 0.
    """
    both = (first - second)[~np.isnan(first - second)]
    if not len(both):
        return {"documents": 0}
    rng = np.random.default_rng(0)
    means = [float(both[rng.integers(len(both), size=len(both))].mean()) for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(both.mean()), "low": float(low), "high": float(high), "documents": len(both)}


def human_equivalent(quality: float, curve: Mapping[int, float]) -> tuple[str, float]:
    """How many human-labelled documents give a supervised model the same quality.

    Between two points of its learning curve quality is linear in ln n; a point
    below an earlier one counts as that one.

    Args:
        quality: Of the model compared.
        curve: Quality of the supervised model by number of documents; not empty.

    Returns:
        ("=", documents), or ("<", fewest) or (">", most) beyond the curve's ends.
    """
    sizes = np.array(sorted(curve), dtype=np.float64)
    values = np.maximum.accumulate([curve[int(size)] for size in sizes])
    if quality < values[0]:
        return "<", float(sizes[0])
    if quality > values[-1]:
        return ">", float(sizes[-1])
    # np.interp needs rising points: of equal ones the smallest number of documents counts.
    first = np.unique(values, return_index=True)[1]
    return "=", float(np.exp(np.interp(quality, values[first], np.log(sizes[first]))))
