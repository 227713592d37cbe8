"""Which of the teacher's answers are likely wrong: confident learning on a vote of like documents.

Confident learning (Northcutt et al., arXiv 1911.00068) needs probabilities
from a model that has not seen the answer in question. Here that is a vote of
the other documents judged on the same label, weighted by likeness; a pair's
own document has no vote.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_EVEN, _WIDTH = 0.5, 0.1
"""A voter at cosine c weighs exp((c − 0.5) / 0.1)."""
_PRIOR = 2.0  # weight of the label's own mean, and in it of the mean of all
_MOST_VOTERS = 2_000
_ROWS = 4_096


class Votes(NamedTuple):
    """What like documents say of P pairs.

    Attributes:
        shares: (P,) of "yes", in [0, 1].
        support: (P,) weight of the voters; 0 if nobody else was judged on the label.
    """

    shares: Floats
    support: Floats


class Suspects(NamedTuple):
    """Confident learning's findings on P pairs.

    Attributes:
        wrong: (P,) whether the pair is counted off the diagonal of the confident joint.
        margins: (P,) how far the other answer is ahead, both measured from their thresholds.
    """

    wrong: NDArray[np.bool_]
    margins: Floats


def neighbour_votes(
    documents: Ints, labels: Ints, answers: Floats, vectors: NDArray[np.float32], seed: int
) -> Votes:
    """For each pair, the mean answer of the other documents judged on its label.

    The mean is weighted by likeness and shrunk to the label's mean over the
    other documents, which is itself shrunk to the mean of all pairs.

    Args:
        documents: (P,) rows of `vectors`; a document occurs once with a label.
        labels: (P,) numbers of labels.
        answers: (P,) probabilities of "yes".
        vectors: (N, D) unit rows.
        seed: Of the voters drawn where a label has more than 2,000.
    """
    rng = np.random.default_rng(seed)
    shares, support = np.empty(len(answers)), np.empty(len(answers))
    overall = float(answers.mean()) if len(answers) else 0.0
    order = np.argsort(labels, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        voters = pairs
        if len(pairs) > _MOST_VOTERS:
            voters = np.sort(rng.choice(pairs, _MOST_VOTERS, replace=False))
        others = (answers[pairs].sum() - answers[pairs] + _PRIOR * overall) / (len(pairs) - 1 + _PRIOR)
        for start in range(0, len(pairs), _ROWS):
            part = pairs[start : start + _ROWS]
            cosines = (vectors[documents[part]] @ vectors[documents[voters]].T).astype(np.float64)
            weights = np.exp((cosines - _EVEN) / _WIDTH)
            weights[documents[part][:, None] == documents[voters]] = 0.0
            support[part] = weights.sum(axis=1)
            prior = _PRIOR * others[start : start + _ROWS]
            shares[part] = (weights @ answers[voters] + prior) / (support[part] + _PRIOR)
    return Votes(shares, support)


def suspects(given: NDArray[np.bool_], shares: Floats) -> Suspects:
    """Where the given answer is likely wrong.

    With p̂(yes) = share, p̂(no) = 1 − share, the threshold of an answer is its
    mean probability where it was given: t_j = mean{p̂_j : given j} (eq. 2 of
    the paper). A pair is a suspect if the other answer reaches its threshold,
    and the given one does not or is the less probable (eq. 1). Suspects are
    ranked by the margin (p̂_other − t_other) − (p̂_given − t_given): the
    paper's normalised margin, with thresholds taken off as cleanlab does.

    Args:
        given: (P,) the teacher's answers.
        shares: (P,) out-of-sample probabilities of "yes".
    """
    if given.all() or not given.any():
        return Suspects(np.zeros(len(given), dtype=np.bool_), np.zeros(len(given)))
    yes, no = float(shares[given].mean()), float((1 - shares[~given]).mean())
    own, least = np.where(given, shares, 1 - shares), np.where(given, yes, no)
    other, needed = np.where(given, 1 - shares, shares), np.where(given, no, yes)
    wrong = (other >= needed) & ((own < least) | (own < other))
    return Suspects(wrong, (other - needed) - (own - least))
