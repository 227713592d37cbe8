"""Words in common: TF-IDF over words or characters, and BM25. Nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from ezxmc.bench.baselines.task import DEPTH, Method, Task, best_rows
from ezxmc.records import Document
from ezxmc.retrieval import LexicalIndex

_CHUNK = 256
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
    for start in range(0, len(documents), _CHUNK):
        rows = vectorizer.transform([document.shown for document in documents[start : start + _CHUNK]])
        found += best_rows((rows @ columns).toarray(), above=0.0)
    return found


def _tfidf(task: Task, seed: int, analyzer: Literal["word", "char"]) -> list[list[int]]:
    return tfidf_rows(task, task.report, analyzer)


def _bm25(task: Task, seed: int) -> list[list[int]]:
    return LexicalIndex(task.labels).search([document.shown for document in task.report], DEPTH)


TFIDF_WORD = Method(partial(_tfidf, analyzer="word"), "label titles, unlabelled documents", seeded=False)
TFIDF_CHAR = Method(partial(_tfidf, analyzer="char"), "label titles, unlabelled documents", seeded=False)
BM25 = Method(_bm25, "label titles and aliases", seeded=False)
