"""What people's labels buy: a linear model on gold, the ceiling and the measure of the student.

One linear SVM a label over word TF-IDF (as DiSMEC, arXiv 1609.02521, has it;
squared hinge). The vectoriser sees all unlabelled documents. C is chosen on a
fifth of the gold documents given, never on those reported on. Weights under
0.01 are dropped (DiSMEC, section 3.3), so that many labels fit in memory.
Labels without a gold document cannot be ranked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from ezxmc.bench.baselines.task import Method, Ranking, Task, best_rows
from ezxmc.metrics import precision_at_k

_CHOICES = (0.1, 0.3, 1.0, 3.0)
_APART, _K = 0.2, 5
# C is compared on at most so many labels, the most frequent: with many labels it saves hours.
_COMPARED = 500
_SMALL = 0.01
_CHUNK = 256


def _supervised(task: Task, seed: int) -> Ranking:
    labelled = [document for document in task.rest if document.uid in task.gold]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, dtype=np.float32)
    vectorizer.fit([document.shown for document in task.rest])
    features = vectorizer.transform([document.shown for document in labelled])
    row_of = {label.uid: row for row, label in enumerate(task.labels)}
    gold = [{row_of[uid] for uid in task.gold[document.uid]} for document in labelled]
    uids = [document.uid for document in labelled]
    c = _chosen(features, gold, uids, task.set_apart(uids, _APART, seed))
    model = _Linear(features, gold, sorted(set().union(*gold)), c, task.watch.stage("supervised"))
    return model.rank(vectorizer.transform([document.shown for document in task.report]))


def _chosen(features: csr_matrix, gold: Sequence[set[int]], uids: Sequence[str], apart: set[str]) -> float:
    """The C of the best P@5 on documents set apart; the middle one if there are none."""
    frequent = {row for row, _ in Counter(row for right in gold for row in right).most_common(_COMPARED)}
    known = [right & frequent for right in gold]
    test = [i for i, uid in enumerate(uids) if uid in apart and known[i]]
    train = [i for i, uid in enumerate(uids) if uid not in apart]
    seen = sorted(set().union(*(known[i] for i in train)))
    if not test or not seen:
        return 1.0

    def quality(c: float) -> float:
        found = _Linear(features[train], [known[i] for i in train], seen, c).rank(features[test])
        return precision_at_k(
            [list(map(str, row)) for row in found], [set(map(str, known[i])) for i in test], _K
        )

    return max(_CHOICES, key=quality)


class _Linear:
    """One SVM for each of the label rows `seen`."""

    def __init__(
        self,
        features: csr_matrix,
        gold: Sequence[set[int]],
        seen: Sequence[int],
        c: float,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.seen = np.array(seen)
        members: dict[int, list[int]] = {row: [] for row in seen}
        for i, right in enumerate(gold):
            for row in right:
                if row in members:
                    members[row].append(i)
        columns, self.offsets = [], np.empty(len(seen), dtype=np.float32)
        for done, row in enumerate(seen):
            weights, self.offsets[done] = _svm(features, members[row], c)
            columns.append(weights)
            progress(done + 1, len(seen))
        self.weights = hstack(columns, format="csr")

    def rank(self, features: csr_matrix) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, features.shape[0], _CHUNK):
            scores = (features[start : start + _CHUNK] @ self.weights).toarray() + self.offsets
            found += [self.seen[row].tolist() for row in best_rows(scores, above=-np.inf)]
        return found


def _svm(features: csr_matrix, members: list[int], c: float) -> tuple[csc_matrix, float]:
    """(V, 1) sparse weights and the offset; a label all documents have is a constant."""
    target = np.zeros(features.shape[0], dtype=np.bool_)
    target[members] = True
    if target.all():
        return csc_matrix((features.shape[1], 1), dtype=np.float32), 1.0
    model = LinearSVC(C=c, random_state=0).fit(features, target)
    weights: NDArray[np.float32] = model.coef_.ravel().astype(np.float32)
    weights[np.abs(weights) < _SMALL] = 0.0
    return csc_matrix(weights[:, None]), float(model.intercept_[0])


SUPERVISED = Method(_supervised, "gold labels of people", ("gold",), seeded=False, amount="gold")
