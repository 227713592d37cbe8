"""Groups of like labels, all of one size: the coarse classes of the auxiliary objective."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 5


def balanced_clusters(
    vectors: NDArray[np.float32], clusters: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Balanced spherical 2-means, applied until there are enough groups (Parabel, Prabhu et al., WWW 2018).

    Args:
        vectors: (L, D) label vectors.
        clusters: At least 1; rounded up to a power of two, at most L.
        rng: Draws the first two centres of each split.

    Returns:
        (L,) int64 group of each label; sizes differ by one at most.
    """
    groups = [np.arange(len(vectors))]
    while len(groups) < min(clusters, len(vectors)):
        groups = [half for group in groups for half in _halves(vectors, group, rng) if len(half)]
    cluster_of = np.empty(len(vectors), dtype=np.int64)
    for number, group in enumerate(groups):
        cluster_of[group] = number
    return cluster_of


def _halves(
    vectors: NDArray[np.float32], group: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if len(group) < 2:
        return group, group[:0]
    mine = vectors[group]
    one, other = mine[rng.choice(len(group), 2, replace=False)]
    middle = len(group) // 2
    for _ in range(_ROUNDS):
        order = np.argsort(mine @ (one - other), kind="stable")
        one, other = mine[order[middle:]].mean(axis=0), mine[order[:middle]].mean(axis=0)
    return group[order[:middle]], group[order[middle:]]
