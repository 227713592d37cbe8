"""Exact inner-product search over label vectors (FAISS)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ezxmc.errors import BundleError, ModelError


class LabelIndex:
    """The labels' vectors, searched exhaustively: exact at any k.

    Args:
        vectors: (L, D) float32, one row a label, of unit length for cosines.

    Raises:
        ModelError: `vectors` is no non-empty finite matrix.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        if vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():
            raise ModelError(
                f"label vectors {vectors.shape} cannot be indexed: they are empty or not finite",
                "check the label list and the encoder's weights",
            )
        self._index: Any = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    @property
    def size(self) -> int:
        """Number of labels L."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        return int(self._index.d)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best labels of each query.

        Args:
            queries: (N, D) float32.
            k: How many, at least 1; clipped to `size`.

        Returns:
            Scores (N, k) float32, best first, and the labels' rows (N, k) int64.
        """
        k = min(k, self.size)
        if len(queries) == 0:
            return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64)
        scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return scores, rows

    def save(self, path: str | Path) -> None:
        """Write the index in FAISS's own format."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: str | Path) -> LabelIndex:
        """Read an index written by `save`.

        Raises:
            BundleError: The file is missing, damaged, or another kind of index.
        """
        cure = "build the index again with `ezxmc run`, or restore the bundle from a copy"
        try:
            found = faiss.read_index(str(path))
        except RuntimeError as error:
            raise BundleError(f"label index {path} cannot be read: {error}", cure) from error
        if not isinstance(found, faiss.IndexFlatIP) or found.ntotal == 0:
            raise BundleError(f"label index {path} holds no exact inner-product index", cure)
        index = cls.__new__(cls)
        index._index = found
        return index
