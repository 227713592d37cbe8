"""Retrieval: from a document to the labels worth asking about."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ezxmc.retrieval.index import LabelIndex
from ezxmc.retrieval.shortlist import Candidates, LexicalIndex, candidate_row, shortlist

if TYPE_CHECKING:
    from ezxmc.retrieval.encoder import BiEncoder
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

# Loaded when first used: who only reads labels needs no torch.
_LATE = {"BiEncoder": "encoder", "SparseHead": "sparse_head"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
