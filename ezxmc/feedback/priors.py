"""What a teacher answers about a label whatever the document is: the label's prior.

Some labels get a "yes" from any document. Asking about every label on a few
documents drawn at random shows how far; measured on debtags it lifts the
teacher's own P@1 by ten points, more than estimating it from the shortlists'
judgments, whose documents are near the label already (tests/bench/quality.py).
The idea is contextual calibration (arXiv 2102.09690), with real documents in
place of empty ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ezxmc.config import TrainingConfig
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Judgment

_PSEUDO_COUNTS = 8.0
# `auto` spends at most this share of the shortlists' pairs on it, holds at most
# so many judgments in memory, and wants so many documents.
_MOST, _HELD, _FEWEST = 0.5, 200_000, 2
_COMPLETE = 0.95  # of the labels: a failed pair or two does not spoil a document
# Documents judged on this share of what the longest judged one is are of its kind.
_AS_LONG = 0.75


def context_size(config: TrainingConfig, labels: int, pairs: int) -> int:
    """On how many random documents all labels are asked about.

    Args:
        config: `prior` and `prior_documents`.
        labels: How many labels there are.
        pairs: How many pairs the shortlists ask about.
    """
    if config.prior == "contextual":
        return config.prior_documents
    if config.prior != "auto":
        return 0
    affordable = min(config.prior_documents, int(_MOST * pairs / labels), _HELD // labels)
    return affordable if affordable >= _FEWEST else 0


def context_documents(documents: Sequence[Document], among: Iterable[int], count: int) -> list[int]:
    """Positions of `count` documents out of `among`, drawn by hash: the same in every session."""
    return sorted(among, key=lambda position: text_hash("prior", documents[position].uid))[:count]


def context_of(judgments: Iterable[Judgment], labels: int) -> list[Judgment]:
    """Those judgments that tell of labels' priors: of documents judged on (nearly) all labels.

    Labels that came later may never have been asked on these documents. So the
    documents judged on most labels count where they share nearly all of these,
    and these are at least half of all; a label judged on few of the documents,
    those near it, is left out. Else only documents judged on nearly all labels count.

    Args:
        judgments: Of any documents.
        labels: How many labels there are.
    """
    by_document: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_document[judgment.doc_uid].append(judgment)
    most = max(map(len, by_document.values()), default=0)
    rows = [row for row in by_document.values() if 2 * len(row) >= labels and len(row) >= _AS_LONG * most]
    times = Counter(judgment.label_uid for row in rows for judgment in row)
    shared = {label for label, count in times.items() if 2 * count >= len(rows)}
    kept = [[judgment for judgment in row if judgment.label_uid in shared] for row in rows]
    if len(rows) >= _FEWEST and 2 * len(shared) >= labels and min(map(len, kept)) >= _COMPLETE * len(shared):
        return [judgment for row in kept for judgment in row]
    return [judgment for row in rows if len(row) >= _COMPLETE * labels for judgment in row]


def label_shifts(
    scores: Mapping[str, Mapping[str, float]], context: Sequence[Judgment], config: TrainingConfig
) -> dict[str, float]:
    """What to take off each label's log-odds: α·(z̄_l − z̄).

    Args:
        scores: Log-odds by document and label, of shortlists. Without context
            the means are theirs, shrunk to the overall mean by 8 pseudo-counts.
        context: All labels on random documents; their means then count as they are.
        config: α is `prior_alpha`.

    Returns:
        Nats, by label uid; labels without a score are absent.
    """
    if config.prior == "none":
        return {}
    by_label: dict[str, list[float]] = defaultdict(list)
    for label, z in (
        ((j.label_uid, j.log_odds) for j in context)
        if context
        else (item for row in scores.values() for item in row.items())
    ):
        if z is not None:
            by_label[label].append(z)
    if not by_label:
        return {}
    mean = float(np.mean([z for values in by_label.values() for z in values]))
    pseudo = 0.0 if context else _PSEUDO_COUNTS
    return {
        label: config.prior_alpha * float(np.sum(np.subtract(values, mean))) / (len(values) + pseudo)
        for label, values in sorted(by_label.items())
    }
