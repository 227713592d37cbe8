"""What the frequency of labels does to a metric: propensities, and head, torso and tail.

Annotators miss rare labels more often than frequent ones, and a metric that
counts every hit alike hardly sees the rare ones. PSP@k weights a hit by the
inverse of the label's propensity, the probability that a right label was
given at all (Jain, Prabhu and Varma, "Extreme Multi-label Loss Functions for
Recommendation, Tagging, Ranking & Other Missing Label Applications", KDD 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ezxmc.metrics.ranking import Gold, Ranked, hit_matrix

GROUPS = ("head", "torso", "tail")


def inverse_propensities(
    counts: Mapping[str, int], documents: int, *, a: float = 0.55, b: float = 1.5
) -> dict[str, float]:
    """1 / p_l = 1 + C·(N_l + b)^−a with C = (ln N − 1)·(b + 1)^a (Jain et al. 2016, section 4).

    Args:
        counts: N_l, the training documents that have label l; 0 for the others.
            Give every label, else `psp_at_k` does not know it.
        documents: N, the training documents with gold labels.
        a: 0.55 in general; 0.5 for Wikipedia, 0.6 for Amazon.
        b: 1.5 in general; 0.4 for Wikipedia, 2.6 for Amazon.

    Returns:
        At least 1 each; the rarer the label, the larger.

    Raises:
        ValueError: N < 3, for which C would be negative.
    """
    if documents < 3:
        raise ValueError(f"propensities need 3 training documents with gold labels, not {documents}")
    c = (math.log(documents) - 1) * (b + 1) ** a
    return {label: 1 + c * (count + b) ** -a for label, count in counts.items()}


def psp_at_k(ranked: Ranked, gold: Gold, inverse: Mapping[str, float], k: int) -> float:
    """PSP@k: hits weighted by inverse propensity, over the best that k labels allow.

    Σ_i Σ_{l ∈ top-k(i) ∩ gold(i)} 1/p_l, divided by the same sum of the best
    rankings: each document's k gold labels of lowest propensity. A ratio of
    sums over documents, as pyxclib and napkinXC compute it.

    Args:
        ranked: N ranked lists.
        gold: N non-empty collections.
        inverse: 1 / p_l of every gold label.
        k: Depth.

    Returns:
        In [0, 1].

    Raises:
        ValueError: As for `hit_matrix`, or a gold label is not in `inverse`.
    """
    hits = hit_matrix(ranked, gold, k)
    if missing := next((label for right in gold for label in right if label not in inverse), None):
        raise ValueError(f"no propensity of gold label {missing!r}")
    # fsum: the same weights in another order must give the same sum, so that a perfect ranking has 1.
    reached = math.fsum(
        inverse[label]
        for row, labels in zip(hits, ranked, strict=True)
        for hit, label in zip(row, labels, strict=False)
        if hit
    )
    best = math.fsum(
        weight
        for right in gold
        for weight in sorted((inverse[label] for label in frozenset(right)), reverse=True)[:k]
    )
    return reached / best


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
    order = sorted(counts, key=lambda label: (-counts[label], label))
    sizes = np.array([counts[label] for label in order], dtype=np.int64)
    before = np.cumsum(sizes) - sizes
    third = np.where(sizes > 0, 3 * before // max(1, int(sizes.sum())), len(GROUPS) - 1)
    return {label: GROUPS[i] for label, i in zip(order, third, strict=True)}
