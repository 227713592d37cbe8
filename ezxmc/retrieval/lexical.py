"""BM25 over what the labels say: finds the rare words an encoder blurs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s
from bm25s.stopwords import STOPWORDS_EN

from ezxmc.records import Label

_WORD = re.compile(r"\w+")
_STOPWORDS = frozenset(STOPWORDS_EN)
_QUERY_CHARACTERS = 20_000


class LexicalIndex:
    """BM25 (Lucene's variant) over label titles and aliases.

    Descriptions are left out: on debtags (700 documents) their words lower the
    recall of the fused shortlist by about a point.

    Args:
        labels: The labels; results are rows of this sequence.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        corpus = [words(" ".join((label.title, *label.aliases))) for label in labels]
        self._size = len(corpus)
        self._bm25 = bm25s.BM25() if any(corpus) else None
        if self._bm25:
            self._bm25.index(corpus, show_progress=False)

    def search(self, texts: Sequence[str], k: int) -> list[list[int]]:
        """Rows of the labels that share words with each text, best first, at most k.

        A word of the text counts once, and only its first 20,000 characters
        are read: a long document is no longer a query than its vocabulary.
        """
        if self._bm25 is None or not texts:
            return [[] for _ in texts]
        queries = [list(dict.fromkeys(words(text[:_QUERY_CHARACTERS]))) for text in texts]
        rows, scores = self._bm25.retrieve(queries, k=min(k, self._size), show_progress=False)
        return [
            [int(row) for row, score in zip(found, values, strict=True) if score > 0]
            for found, values in zip(rows, scores, strict=True)
        ]


def words(text: str) -> list[str]:
    """Lower-case words of `text`, English stop words left out, no stemming."""
    return [word for word in _WORD.findall(text.lower()) if word not in _STOPWORDS]
