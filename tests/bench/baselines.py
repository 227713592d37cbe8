"""Methods to compare with: untrained encoder, student, teacher, words in common, a linear model.

Words in common are TF-IDF over words or characters, and BM25: nothing is learned. The linear model tells what
people's labels buy, the ceiling and the measure of the student. One linear SVM a label over word TF-IDF (as
DiSMEC, arXiv 1609.02521, has it; squared hinge). The vectoriser sees all unlabelled documents. C is chosen on
a fifth of the gold documents given, never on those reported on. Weights under 0.01 are dropped (DiSMEC,
section 3.3), so that many labels fit in memory. Labels without a gold document cannot be ranked.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC
from task import DEPTH, Method, Ranking, Task, best_rows

from ezxmc.feedback.targets import build_targets
from ezxmc.metrics import precision_at_k
from ezxmc.records import Document
from ezxmc.retrieval import BiEncoder, LexicalIndex
from ezxmc.training import cosines_of, refined_label_vectors, train_bi_encoder

_DOCUMENTS = 256
_SETTINGS: dict[str, dict[str, Any]] = {
    "word": {"analyzer": "word", "ngram_range": (1, 2)},
    "char": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}


def tfidf_rows(
    task: Task, documents: Sequence[Document], analyzer: Literal["word", "char"] = "word"
) -> list[list[int]]:
    """Labels by cosine of TF-IDF vectors (sublinear term frequency), for each of `documents`.

    Document frequencies are those of the unlabelled documents and the label
    titles together. Labels that share nothing with a document are not ranked.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **_SETTINGS[analyzer])
    vectorizer.fit([*(document.shown for document in task.rest), *task.titles])
    columns = vectorizer.transform(task.titles).T.tocsr()
    found: list[list[int]] = []
    for start in range(0, len(documents), _DOCUMENTS):
        rows = vectorizer.transform([document.shown for document in documents[start : start + _DOCUMENTS]])
        found += best_rows((rows @ columns).toarray(), above=0.0)
    return found


def _tfidf(task: Task, seed: int, analyzer: Literal["word", "char"]) -> list[list[int]]:
    return tfidf_rows(task, task.report, analyzer)


def _bm25(task: Task, seed: int) -> list[list[int]]:
    return LexicalIndex(task.labels).search([document.shown for document in task.report], DEPTH)


TFIDF_WORD = Method(partial(_tfidf, analyzer="word"), "label titles, unlabelled documents", seeded=False)
TFIDF_CHAR = Method(partial(_tfidf, analyzer="char"), "label titles, unlabelled documents", seeded=False)
BM25 = Method(_bm25, "label titles and aliases", seeded=False)


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


def _untrained(task: Task, seed: int) -> Ranking:
    return task.untrained


def _student(task: Task, seed: int, label_vectors: Literal["refined", "titles"] = "refined") -> Ranking:
    """One round of distillation from the judgments, as a run does it; a share of them selects the epoch."""
    judged = {judgment.doc_uid for judgment in task.judgments}
    uids = [document.uid for document in task.rest if document.uid in judged]
    apart = task.set_apart(uids, task.config.held_out, seed)
    judged -= apart
    bar = task.watch.stage("student")
    train = [document for document in task.rest if document.uid in judged]
    proposals = None
    if task.proposer:
        proposals = cosines_of(
            BiEncoder(task.proposer, max_length=task.config.max_length), task.rest, task.labels
        )
    targets = build_targets(task.judgments, task.config, task.context, proposals)

    def refine(encoder: BiEncoder, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return refined_label_vectors(encoder, train, task.labels, targets, vectors, seed=seed)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "student")
        train_bi_encoder(
            train,
            task.labels,
            targets,
            task.config,
            out,
            former=task.proposer,
            held_out=[document for document in task.rest if document.uid in apart],
            seed=seed,
            progress=lambda done, total, loss: bar(done, total),
        )
        encoder = BiEncoder(out, max_length=task.config.max_length)
        return task.ranked_by(encoder, refine if label_vectors == "refined" else None)


def _teacher(task: Task, seed: int) -> Ranking:
    """The judged labels by the LLM's prior-corrected log-odds, then the others as the encoder ranks them.

    An LLM at inference, as ICXML has it (arXiv 2311.09649): what distillation
    from this teacher can be measured by. Documents it did not judge are left out.
    """
    row_of = {label.uid: row for row, label in enumerate(task.labels)}
    targets = build_targets(task.report_judgments, task.config, task.context)
    judged = {target.doc_uid: [row_of[uid] for uid in target.labels] for target in targets.documents}
    return [
        list(dict.fromkeys([*judged[document.uid], *after]))[:DEPTH] if document.uid in judged else None
        for document, after in zip(task.report, task.untrained, strict=True)
    ]


UNTRAINED = Method(_untrained, "label titles", seeded=False)
STUDENT = Method(_student, "judgments", ("judgments", "training"), amount="judgments")
STUDENT_TITLES = Method(
    partial(_student, label_vectors="titles"),
    "judgments; labels by their titles alone",
    ("judgments", "training"),
    amount="judgments",
)
TEACHER = Method(
    _teacher,
    "judgments of the document itself: an LLM at inference",
    ("report_judgments", "judgments", "training"),
    seeded=False,
)
