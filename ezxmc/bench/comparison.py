"""How a ranking is scored in the table of methods, and what the scores are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.metrics import (
    Frequencies,
    RankingMetrics,
    Terms,
    differences,
    encode,
    precision_by_document,
    recall_by_document,
)

PAIRED = {
    "P@1": (precision_by_document, 1),
    "P@5": (precision_by_document, 5),
    "R@10": (recall_by_document, 10),
}
"""Metrics kept document by document, for intervals and for the human equivalent."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """Scores rankings against gold no method has seen.

    Attributes:
        gold: Right labels of each document to report on, none empty.
        frequencies: Of every label, counted outside the report part.
    """

    gold: Sequence[set[str]]
    frequencies: Frequencies

    @classmethod
    def of(
        cls, gold: Sequence[set[str]], counts: Mapping[str, int], documents: int, a: float, b: float
    ) -> Judge:
        """A judge with propensities and groups of the gold outside the report part.

        Args:
            gold: Right labels of each document to report on.
            counts: Gold documents of every label outside the report part.
            documents: Gold documents there.
            a: See `inverse_propensity`.
            b: See `inverse_propensity`.
        """
        return cls(gold, Frequencies.of(counts, documents, a, b))

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
        known = self.frequencies
        metrics = RankingMetrics(coverage_ks=(), inverse=known.inverse, group=known.group)
        metrics.update(*encode(lists, gold, dict(known.ids)))
        by_document = {}
        for name, (metric, k) in PAIRED.items():
            column: list[float | None] = [None] * len(ranked)
            for i, value in zip(kept, metric(lists, gold, k).tolist(), strict=True):
                column[i] = round(value, 5)
            by_document[name] = column
        return metrics.result().values, by_document


def difference(first: _Floats, second: _Floats) -> dict[str, Any]:
    """Mean of `first − second` over the documents both have, and its 95% interval (`differences`).

    Args:
        first: (N,) one value a document; NaN where it has none.
        second: The same documents.

    Returns:
        `mean`, `low`, `high` and `documents`; without common documents only the last, 0.
    """
    both = ~np.isnan(first - second)
    count = int(both.sum())
    if not count:
        return {"documents": 0}
    runs = [Terms(("mean",), run[both, None], np.ones((count, 1))) for run in (first, second)]
    found = differences(*runs)["mean"]
    return {"mean": found.value, "low": found.low, "high": found.high, "documents": count}


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
