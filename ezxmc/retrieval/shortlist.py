"""Which labels the teacher is asked about, document by document."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ezxmc.config import ShortlistConfig
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label
from ezxmc.retrieval.index import LabelIndex
from ezxmc.retrieval.lexical import LexicalIndex

Source = Literal["dense", "lexical", "explore"]

_RANK_OFFSET = 60  # the usual constant of reciprocal rank fusion (Cormack et al., SIGIR 2009)
_DEEPER = 4  # exploration draws from ranks size .. 4 * size


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
        sources: What put the label here: its dense rank, BM25's lift over it,
            or exploration.
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
    documents: Sequence[Document],
    labels: Sequence[Label],
    encoder: Encoder,
    config: ShortlistConfig,
    *,
    judged: Mapping[str, set[str]] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidates]:
    """Choose `config.size` labels per document by fused dense and lexical rank.

    A label's score is Σ w / (60 + rank) over the rankings it occurs in (dense
    w = 1, BM25 w = `lexical_weight`). `config.explore` of the places go to
    labels drawn from the ranks right below the shortlist. Labels already
    judged for a document are left out: every cycle buys new information.

    Args:
        documents: N documents.
        labels: L labels; with L ≤ size each document gets all of them.
        encoder: The current student.
        config: Sizes and weights.
        judged: Label uids already judged, by document uid.
        seed: With the document's uid it decides what is explored.
        progress: Called with (done, total) documents.

    Returns:
        N shortlists in the documents' order.
    """
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
    depth = _DEEPER * config.size + max(map(len, known))
    _, dense = LabelIndex(label_vectors).search(vectors, depth)
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
