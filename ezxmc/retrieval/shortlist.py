"""Which labels the teacher is asked about, document by document.

BM25 over what the labels say finds the rare words an encoder blurs.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ezxmc.config import ShortlistConfig
from ezxmc.data.in_memory import as_documents, as_labels
from ezxmc.errors import InputTypeError, instance_of
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label
from ezxmc.retrieval.index import LabelIndex
from ezxmc.text import words

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

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
        corpus = [terms(" ".join((label.title, *label.aliases))) for label in labels]
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
            [self._column[word] for word in set(terms(text[:_QUERY_CHARACTERS])) if word in self._column]
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


def terms(text: str) -> list[str]:
    """The words BM25 compares: `ezxmc.text.words`, English stop words left out."""
    left_out = _stop_words()
    return [word for word in words(text) if word not in left_out]


@cache
def _stop_words() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN

    return frozenset(STOPWORDS_EN)


Source = Literal["dense", "lexical", "explore"]

_RANK_OFFSET = 60  # the usual constant of reciprocal rank fusion (Cormack et al., SIGIR 2009)
_DEEPER = 4  # exploration draws from ranks size .. 4 * size
_BACKGROUND = 512  # documents whose mean stands for the catalog's


class Encoder(Protocol):
    """What a shortlist needs of a `BiEncoder`."""

    def encode_documents(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """(N, D) unit rows."""

    def encode_labels(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(L, D) unit rows."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """One document's shortlist, best first; the three tuples align.

    Attributes:
        doc_uid: The document's uid.
        labels: Rows of the label list.
        scores: Cosine of document and label.
        sources: What put the label here: its dense rank, BM25's lift over it, or exploration.
    """

    doc_uid: str
    labels: tuple[int, ...]
    scores: tuple[float, ...]
    sources: tuple[Source, ...]


def candidate_row(candidates: Candidates, labels: Sequence[Label]) -> dict[str, Any]:
    """A shortlist as a JSON line: `{"doc", "labels", "scores", "sources"}`, labels by uid."""
    return {
        "doc": candidates.doc_uid,
        "labels": [labels[row].uid for row in candidates.labels],
        "scores": [round(score, 4) for score in candidates.scores],
        "sources": candidates.sources,
    }


def shortlist(
    documents: Iterable[Any],
    labels: Iterable[Any],
    encoder: Encoder,
    config: ShortlistConfig,
    *,
    judged: Mapping[str, set[str]] | None = None,
    background: Sequence[Document] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidates]:
    """Choose `config.size` labels per document by fused dense and lexical rank.

    The dense order is that of cos(x, t) + w·cos(x, d) for document x, the label's title t and all that is
    told of it d (w = `descriptions`), less `centre` times its mean over the catalog: some labels are near
    everything (hubs) and would crowd every shortlist. Centring is Suzuki et al., EMNLP 2013; CSLS (arXiv
    1710.04087) takes off the mean over neighbours only. Of an encoder that puts all texts near each other
    as much more is taken off as the documents' mean vector is long: of unit vectors that is 0.4 for
    all-MiniLM-L6-v2 on English and 0.9 for multilingual-e5-small, whose recall at 8 on French package
    descriptions this lifts from 32.7 to 36.1 %, on Russian ones from 35.6 to 37.1 %.

    A label's score is Σ w / (60 + rank) over the rankings it occurs in (dense w = 1, BM25 w =
    `lexical_weight`). `config.explore` of the places go to labels drawn from the ranks right below the
    shortlist. Labels already judged for a document are left out: every cycle buys new information.

    Args:
        documents: N documents, as `Predictor.predict` takes them.
        labels: L labels, or their titles; with L ≤ size each document gets all of them.
        encoder: The current student.
        config: Sizes and weights.
        judged: Label uids already judged, by document uid.
        background: The catalog, where `documents` are a part of it: the mean is taken over 512 of these,
            drawn by hash.
        seed: With the document's uid it decides what is explored.
        progress: Called with (done, total) documents.

    Returns:
        N shortlists in the documents' order.

    Raises:
        DataError, InputTypeError: There are documents or labels that cannot be used.

    Example:
        >>> from ezxmc import BiEncoder
        >>> encoder, titles = BiEncoder("all-MiniLM-L6-v2"), ["cooking", "music", "law"]
        >>> (found,) = shortlist(["A song for guitar"], titles, encoder, ShortlistConfig(size=2, explore=0))
        >>> titles[found.labels[0]]
        'music'
    """
    documents, labels = as_documents(documents), as_labels(labels)
    instance_of(config, ShortlistConfig, "config", "give an ezxmc.config.ShortlistConfig")
    instance_of(judged or {}, Mapping, "judged", "give a dict of document uid to a set of label uids")
    if not hasattr(encoder, "encode_documents"):
        raise InputTypeError(f"encoder is {encoder!r}", "open one: BiEncoder('all-MiniLM-L6-v2')")
    if not documents or not labels:
        return [Candidates(document.uid, (), (), ()) for document in documents]
    row_of = {label.uid: row for row, label in enumerate(labels)}
    known = [
        {row_of[uid] for uid in (judged or {}).get(document.uid, ()) if uid in row_of}
        for document in documents
    ]
    texts = [document.shown for document in documents]
    label_vectors = encoder.encode_labels([label.title for label in labels])
    vectors = encoder.encode_documents(texts, progress=progress)
    queries, keys = vectors, label_vectors
    if config.centre:
        mean = _mean(documents, vectors, background or documents, encoder)
        queries = vectors - max(config.centre, float(np.linalg.norm(mean))) * mean
    if config.descriptions:
        keys = label_vectors + config.descriptions * _described(labels, label_vectors, encoder)
    depth = _DEEPER * config.size + max(map(len, known))
    _, dense = LabelIndex.for_once(keys, queries).search(queries, depth)
    lexical: list[list[int]] = [[] for _ in documents]
    if config.lexical:
        lexical = LexicalIndex(labels).search(texts, depth)
    found = []
    for i, document in enumerate(documents):
        ranking = [row for row in dense[i].tolist() if row not in known[i]]
        fused = [
            row for row in fuse(dense[i].tolist(), lexical[i], config.lexical_weight) if row not in known[i]
        ]
        chosen, explored = choose(fused, config.size, config.explore, text_hash(str(seed), document.uid))
        best = set(ranking[: config.size])
        sources: list[Source] = ["dense" if row in best else "lexical" for row in chosen]
        rows = chosen + explored
        scores = (label_vectors[rows] @ vectors[i]).tolist()
        sources += ["explore"] * len(explored)
        found.append(Candidates(document.uid, tuple(rows), tuple(scores), tuple(sources)))
    return found


def _mean(
    documents: Sequence[Document],
    vectors: NDArray[np.float32],
    background: Sequence[Document],
    encoder: Encoder,
) -> NDArray[np.float32]:
    """Mean vector (D,) of the catalog. (x − c·m)·t = x·t − c·mean(x·t): no N × L matrix is needed.

    Drawn by hash, the same documents stand for a large catalog when some are added.
    """
    drawn = heapq.nsmallest(_BACKGROUND, background, key=lambda document: text_hash("mean", document.uid))
    place = {document.uid: i for i, document in enumerate(documents)}
    total = vectors[[place[document.uid] for document in drawn if document.uid in place]].sum(axis=0)
    if others := [document.shown for document in drawn if document.uid not in place]:
        total += encoder.encode_documents(others).sum(axis=0)
    mean: NDArray[np.float32] = total / np.float32(len(drawn))
    return mean


def _described(labels: Sequence[Label], titles: NDArray[np.float32], encoder: Encoder) -> NDArray[np.float32]:
    """(L, D) unit rows: title, aliases and description as one text; the title's row where there are none.

    Measured with weight 0.5: recall at 14 from 57.3 to 58.8 on debtags, 56.9 to 59.1 on
    WordNet (tests/bench/shortlists.py). The parent's title before the label's gained nothing.
    """
    rows = [row for row, label in enumerate(labels) if label.aliases or label.text]
    described = titles.copy()
    if rows:
        described[rows] = encoder.encode_labels([_told(labels[row]) for row in rows])
    return described


def _told(label: Label) -> str:
    return ". ".join(filter(None, (label.title, ", ".join(label.aliases), label.text)))


def fuse(dense: Sequence[int], lexical: Sequence[int], lexical_weight: float) -> list[int]:
    """Union of two rankings by reciprocal rank; ties keep the dense order."""
    scores = {row: 1 / (_RANK_OFFSET + rank) for rank, row in enumerate(dense, 1)}
    for rank, row in enumerate(lexical, 1):
        scores[row] = scores.get(row, 0.0) + lexical_weight / (_RANK_OFFSET + rank)
    return sorted(scores, key=lambda row: -scores[row])


def choose(ranking: Sequence[int], size: int, explore: int, seed: str) -> tuple[list[int], list[int]]:
    """The best of a ranking, and a draw from the ranks `size` to `4 * size`, both best first."""
    deeper = range(size, min(len(ranking), _DEEPER * size))
    drawn = sorted(random.Random(seed).sample(deeper, min(explore, size, len(deeper))))
    return list(ranking[: size - len(drawn)]), [ranking[rank] for rank in drawn]
