"""BM25 over what the labels say: finds the rare words an encoder blurs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ezxmc.records import Label

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_WORD = re.compile(r"\w+")
_QUERY_CHARACTERS = 20_000
_TEXTS_AT_ONCE = 64  # scores of so many texts are held at once


class LexicalIndex:
    """BM25 (Lucene's variant) over label titles and aliases.

    Descriptions are left out: on debtags (700 documents) their words lower the
    recall of the fused shortlist by about a point.

    Args:
        labels: The labels; results are rows of this sequence.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        corpus = [words(" ".join((label.title, *label.aliases))) for label in labels]
        self._column: dict[str, int] = {}
        if not any(corpus):
            return
        import bm25s  # brings a compiler, which who only tags does without
        from scipy.sparse import csr_matrix

        bm25 = bm25s.BM25()
        bm25.index(corpus, show_progress=False)
        self._column = bm25.vocab_dict
        parts = (bm25.scores[name] for name in ("data", "indices", "indptr"))
        # (V, L): what a word adds to the score of each label that has it.
        self._postings = csr_matrix(tuple(parts), shape=(len(bm25.scores["indptr"]) - 1, len(labels)))

    def search(self, texts: Sequence[str], k: int) -> list[list[int]]:
        """Rows of the labels that share words with each text, best first, at most k.

        A word of the text counts once, and only its first 20,000 characters
        are read: a long document is no longer a query than its vocabulary.
        Only labels with a word of the text are looked at, never all of them.
        """
        if not self._column:
            return [[] for _ in texts]
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            scores = self._queries(texts[start : start + _TEXTS_AT_ONCE]) @ self._postings
            for low, high in pairwise(scores.indptr.tolist()):
                found.append(_best(scores.indices[low:high], scores.data[low:high], k))
        return found

    def _queries(self, texts: Sequence[str]) -> csr_matrix:
        """(N, V): 1 where a text has a word of the labels."""
        from scipy.sparse import csr_matrix

        rows = [
            [self._column[word] for word in set(words(text[:_QUERY_CHARACTERS])) if word in self._column]
            for text in texts
        ]
        ends = np.cumsum([0, *map(len, rows)])
        columns = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=ends[-1])
        ones = np.ones(len(columns), dtype=np.float32)
        return csr_matrix((ones, columns, ends), shape=(len(texts), self._postings.shape[0]))


def _best(rows: NDArray[np.int32], scores: NDArray[np.float32], k: int) -> list[int]:
    """The k best rows, of equal ones the first."""
    if len(rows) > k:
        kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:k]
    best: list[int] = rows[order].tolist()
    return best


def words(text: str) -> list[str]:
    """Lower-case words of `text`, English stop words left out, no stemming."""
    left_out = _stop_words()
    return [word for word in _WORD.findall(text.lower()) if word not in left_out]


@cache
def _stop_words() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN

    return frozenset(STOPWORDS_EN)
