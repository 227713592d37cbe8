"""Retrieval: from a document to the labels worth asking about."""

from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.retrieval.index import LabelIndex
from ezxmc.retrieval.lexical import LexicalIndex
from ezxmc.retrieval.shortlist import Candidates, candidate_row, shortlist
from ezxmc.retrieval.sparse_head import SparseHead

__all__ = [
    "BiEncoder",
    "Candidates",
    "LabelIndex",
    "LexicalIndex",
    "SparseHead",
    "candidate_row",
    "shortlist",
]
