"""What the frequency of labels does to a metric: propensities, and head, torso and tail.

Annotators miss rare labels more often than frequent ones, and a metric that counts every hit alike hardly
sees the rare ones. PSP@k weights a hit by the inverse of the label's propensity, the probability that a right
label was given at all (Jain, Prabhu and Varma, "Extreme Multi-label Loss Functions for Recommendation,
Tagging, Ranking & Other Missing Label Applications", KDD 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ezxmc.errors import ArgumentError, instance_of, number_between, whole_number
from ezxmc.metrics.ranking import (
    Floats,
    Gold,
    Hits,
    Ids,
    Ranked,
    Sizes,
    check_lists,
    encode,
    gains,
    heaviest,
    hits_of,
    ideal_dcg,
)

GROUPS = ("head", "torso", "tail")


def inverse_propensity(counts: NDArray[np.int64], documents: int, a: float = 0.55, b: float = 1.5) -> Floats:
    """1 / p_l = 1 + C·(N_l + b)^−a with C = (ln N − 1)·(b + 1)^a (Jain et al. 2016, section 4).

    Args:
        counts: `(L,)` N_l, the training documents that have label l.
        documents: N, the training documents with gold labels.
        a: 0.55 in general; 0.5 for Wikipedia, 0.6 for Amazon.
        b: 1.5 in general; 0.4 for Wikipedia, 2.6 for Amazon.

    Returns:
        `(L,)`, at least 1 each; the rarer the label, the larger.

    Raises:
        ArgumentError: N < 3, for which C would be negative, A or B is not positive, or a
            count is no number from 0.
    """
    if whole_number(documents, "documents", least=0) < 3:
        raise ArgumentError(
            f"propensities need 3 training documents with gold labels, not {documents}", "give more of them"
        )
    if not (number_between(a, "A") > 0 and number_between(b, "B") > 0):
        raise ArgumentError(f"A and B of propensities must be positive, not {a} and {b}", "0.55 and 1.5, say")
    counts = np.asarray(counts)
    if counts.dtype.kind not in "iuf" or not (counts >= 0).all():
        raise ArgumentError(f"counts of labels are {counts!r:.80}", "give numbers, 0 or more")
    values: Floats = 1 + (math.log(documents) - 1) * (b + 1) ** a * (counts + b) ** -a
    return values


def inverse_propensities(
    counts: Mapping[str, int], documents: int, *, a: float = 0.55, b: float = 1.5
) -> dict[str, float]:
    """`inverse_propensity` by label uid; arguments and errors as there.

    Give every label, with 0 for those of no training document, else `psp_at_k` does not know it.
    """
    instance_of(counts, Mapping, "counts", "give a dict of label uid to a number")
    values = inverse_propensity(np.fromiter(counts.values(), np.int64, len(counts)), documents, a, b)
    return dict(zip(counts, values.tolist(), strict=True))


def psp_terms(weighted: Floats, best: Floats, k: int) -> tuple[Floats, Floats]:
    """PSP@k: hits weighted by inverse propensity, over the best that k labels allow.

    Σ_i Σ_{l ∈ top-k(i) ∩ gold(i)} 1/p_l, divided by the same sum of the best rankings: each document's k gold
    labels of lowest propensity. A ratio of sums over documents, as pyxclib and napkinXC compute it. The
    unnormalised PSP@k, which can exceed 1, is the mean of the numerators.

    Args:
        weighted: `(N, any)`, see `weigh`.
        best: `(N, k)` or fewer columns, see `ezxmc.metrics.ranking.heaviest`.
        k: Depth.

    Returns:
        Numerators and denominators `(N,)`; the metric is the ratio of their sums.
    """
    return weighted[:, :k].sum(axis=1) / k, best[:, :k].sum(axis=1) / k


def psndcg_terms(weighted: Floats, best: Floats, sizes: Sizes, k: int) -> tuple[Floats, Floats]:
    """PSnDCG@k: DCG of hits weighted by inverse propensity, over the best attainable.

    Both are divided by the document's ideal DCG without weights before they are summed, and the sums by each
    other, as pyxclib and napkinXC do. The unnormalised PSnDCG@k is the mean of the numerators.

    `sizes` are the `(N,)` gold labels of each document; else arguments and returns as for `psp_terms`.
    """
    ideal, first, best = ideal_dcg(sizes, k), weighted[:, :k], best[:, :k]
    return first @ gains(first.shape[1]) / ideal, best @ gains(best.shape[1]) / ideal


def weigh(predicted: Ids, hits: Hits, inverse: Floats) -> Floats:
    """(N, k) the inverse propensity of each predicted label that is right, 0 elsewhere."""
    weighted = np.zeros(hits.shape)
    weighted[hits] = inverse[predicted[hits]]
    return weighted


def psp_at_k(ranked: Ranked, gold: Gold, inverse: Mapping[str, float], k: int) -> float:
    """PSP@k of lists, see `psp_terms`.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        inverse: 1 / p_l of every gold label.
        k: Depth.

    Returns:
        In [0, 1].

    Raises:
        ArgumentError, InputTypeError: As for `hit_matrix`, or a gold label is not in `inverse`.
    """
    check_lists(ranked, gold, k)
    instance_of(inverse, Mapping, "inverse", "give what `inverse_propensities` does")
    if missing := next((label for right in gold for label in right if label not in inverse), None):
        raise ArgumentError(f"no propensity of gold label {missing!r}", "count all labels")
    predicted, right = encode(ranked, gold, {label: row for row, label in enumerate(inverse)})
    weights = np.fromiter(inverse.values(), np.float64, len(inverse))
    weighted = weigh(predicted, hits_of(predicted, right), weights)
    reached, best = psp_terms(weighted, heaviest(right, weights, k), k)
    # Rounding may carry a perfect ranking beyond 1.
    return min(1.0, float(reached.sum() / best.sum()))


def frequency_groups(counts: Mapping[str, int]) -> dict[str, str]:
    """Which labels are head, which torso, which tail: about a third of all gold pairs each.

    From the most frequent label down, a label is head while the labels before
    it hold less than a third of the pairs, torso while less than two thirds,
    tail after that. Labels without any pair are tail. Ties go by uid.

    Args:
        counts: Gold pairs of each label.

    Returns:
        A name of `GROUPS` by label uid.
    """
    instance_of(counts, Mapping, "counts", "give a dict of label uid to a number")
    order = sorted(counts, key=lambda label: (-counts[label], label))
    sizes = np.array([counts[label] for label in order], dtype=np.int64)
    before = np.cumsum(sizes) - sizes
    third = np.where(sizes > 0, 3 * before // max(1, int(sizes.sum())), len(GROUPS) - 1)
    return {label: GROUPS[i] for label, i in zip(order, third, strict=True)}


@dataclass(frozen=True, slots=True)
class Frequencies:
    """How often labels were used, in the form `RankingMetrics` takes.

    Attributes:
        ids: A number for every label, from 0.
        inverse: `(L,)` inverse propensities.
        group: `(L,)` places in `GROUPS`.
    """

    ids: dict[str, int]
    inverse: Floats
    group: NDArray[np.int8]

    @classmethod
    def of(cls, counts: Mapping[str, int], documents: int, a: float = 0.55, b: float = 1.5) -> Frequencies:
        """From the training documents of every label; arguments and errors as for `inverse_propensities`."""
        group = frequency_groups(counts)
        return cls(
            {label: number for number, label in enumerate(counts)},
            inverse_propensity(np.fromiter(counts.values(), np.int64, len(counts)), documents, a, b),
            np.array([GROUPS.index(group[label]) for label in counts], dtype=np.int8),
        )


def group_sizes(gold: csr_array, group: NDArray[np.int8]) -> list[Sizes]:
    """For each of `GROUPS` the (N,) gold labels of each document that belong to it."""
    rows = np.repeat(np.arange(gold.shape[0]), np.diff(gold.indptr))
    of = group[gold.indices]
    return [np.bincount(rows[of == number], minlength=gold.shape[0]) for number in range(len(GROUPS))]
