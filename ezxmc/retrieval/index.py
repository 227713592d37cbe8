"""Inner-product search over label vectors that may come and go (FAISS)."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import psutil
from numpy.typing import ArrayLike, NDArray

from ezxmc.errors import ArgumentError, BundleError, ModelError, instance_of, whole_number
from ezxmc.files import check_file, loads, whole_file, write_file
from ezxmc.retrieval import ann
from ezxmc.retrieval.ann import Kind

_TUNED_ON = 512  # queries, half to choose the setting and half to measure
_CURE = "build the index again with `ezxmc index`, or restore the bundle from a copy"
# Shares of the built index beyond which what came or went since slows a search down.
_LATE, _GONE = 0.1, 0.3
_FEW = 2_000
# Compared one by one in the time that lists over a million labels take to build.
_COMPARISONS = 10**9


@dataclass(frozen=True, slots=True)
class _Card:
    """What an index says of itself, kept beside it."""

    kind: Kind
    reason: str
    recall: float
    recall_at: int


class LabelIndex:
    """The labels' vectors, ranked by inner product. `LabelIndex(vectors)` is exact at any k.

    A label keeps its row for good. Labels added later are searched exhaustively beside the structure built
    once, and removed ones are passed over in it: both take effect at once and rebuild nothing.

    Args:
        vectors: (L, D) float32, one row a label, of unit length for cosines.

    Raises:
        ModelError: `vectors` is no non-empty finite matrix.

    Example:
        >>> index = LabelIndex(np.eye(3, dtype=np.float32))
        >>> scores, rows = index.search(np.array([[0.6, 0.8, 0.0]], dtype=np.float32), 2)
        >>> rows.tolist()
        [[1, 0]]
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        vectors = _checked(vectors)
        card = _Card("exact", "exact search was asked for", 1.0, min(ann.DEPTH, len(vectors)))
        self._begin(ann.flat(vectors), card)

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        *,
        queries: NDArray[np.float32] | None = None,
        kind: Kind | None = None,
        memory: int | None = None,
    ) -> LabelIndex:
        """Choose, build and tune the index that fits so many labels.

        Args:
            vectors: (L, D) float32, one row a label.
            queries: (N, D) document vectors the search is tuned and its recall
                measured on; stand-ins made from the labels if None.
            kind: `exact`, `hnsw` or `ivf`; chosen by L and memory if None.
            memory: Bytes the index may take; half of what is free now if None.

        Raises:
            ModelError: `vectors` is no non-empty finite matrix.
        """
        vectors = _checked(vectors)
        if kind is not None and kind not in get_args(Kind):
            raise ArgumentError(f"the kind of index is {kind!r}", f"choose of {', '.join(get_args(Kind))}")
        if memory is None:
            memory = psutil.virtual_memory().available // 2
        reason = f"{kind} was asked for"
        if kind is None:
            kind, reason = ann.choose(len(vectors), vectors.shape[1], memory)
        base = ann.build(vectors, kind, memory)
        recall = 1.0
        if kind != "exact":
            recall = ann.tune(base, ann.document_like(vectors, _TUNED_ON) if queries is None else queries)
        return cls._of(base, _Card(kind, reason, recall, min(ann.DEPTH, len(vectors))))

    @classmethod
    def for_once(cls, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> LabelIndex:
        """An index that is searched once, for these queries: built in less time than it saves.

        Exact up to 20,000 labels and 10^9 comparisons. Beyond, inverted lists, tuned on the
        queries: a graph would take longer to build than they take to answer.

        Args:
            vectors: (L, D) float32, one row a label.
            queries: (N, D) float32.

        Raises:
            ModelError: `vectors` is no non-empty finite matrix.
        """
        few = len(vectors) <= ann.EXACT_UP_TO or len(vectors) * len(queries) <= _COMPARISONS
        if few:
            return cls(vectors)
        return cls.build(vectors, queries=queries[:: len(queries) // _TUNED_ON or 1][:_TUNED_ON], kind="ivf")

    @classmethod
    def _of(cls, base: Any, card: _Card) -> LabelIndex:
        index = cls.__new__(cls)
        index._begin(base, card)
        return index

    def _begin(self, base: Any, card: _Card) -> None:
        self._base, self._card = base, card
        self._added = np.empty((0, base.d), dtype=np.float32)
        self._live = np.ones(base.ntotal, dtype=bool)
        self._refresh()

    @property
    def size(self) -> int:
        """Number of labels L that can be found."""
        return int(self._live.sum())

    @property
    def rows(self) -> NDArray[np.int64]:
        """(L,) rows of the labels that can be found, ascending."""
        return np.flatnonzero(self._live)

    @property
    def total(self) -> int:
        """Number of rows ever used: every row is below it."""
        return len(self._live)

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        return int(self._base.d)

    @property
    def kind(self) -> Kind:
        """`exact`, `hnsw` or `ivf`."""
        return self._card.kind

    @property
    def reason(self) -> str:
        """Why this kind, in words."""
        return self._card.reason

    @property
    def recall(self) -> float:
        """Share of the exact best `recall_at` labels found, measured when the index was built."""
        return self._card.recall

    @property
    def recall_at(self) -> int:
        """Ranks `recall` was measured on."""
        return self._card.recall_at

    @property
    def summary(self) -> str:
        """Kind, reason and recall in words."""
        card = self._card
        return f"{card.kind}: {card.reason}; recall@{card.recall_at} against exact search {card.recall:.3f}"

    @property
    def advice(self) -> str | None:
        """Why it is time to rebuild, in words; None while it is not."""
        built = int(self._base.ntotal)
        late, gone = self.total - built, self.total - self.size
        if late > max(_FEW, _LATE * built):
            return f"{late:,} labels were added to {built:,} and are searched one by one"
        if gone > max(_FEW, _GONE * built):
            return f"{gone:,} of {self.total:,} labels were removed and are still passed over"
        return None

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best labels of each query.

        Args:
            queries: (N, D) float32.
            k: How many, at least 1; clipped to `size`.

        Returns:
            Scores (N, k) float32, best first, and the labels' rows (N, k) int64.
            Scores are inner products with the vectors themselves, whatever the kind
            (kept in half precision by an `ivf` index that exceeded its memory).

        Raises:
            ArgumentError: k is no whole number, or below 1.
            ModelError: `queries` is no finite matrix of this dimension.
        """
        k = min(whole_number(k, "k"), self.size)
        queries = _matrix(queries, "queries")
        if len(queries) and queries.shape[1] != self.dimension:
            raise ModelError(
                f"queries of {queries.shape[1]} numbers do not fit an index of {self.dimension}",
                "encode them with the student the index was made with",
            )
        if len(queries) == 0 or k == 0:
            return np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        late = len(self._late_rows)
        if late == self.size:
            scores, found = self._late.search(queries, k)
            return scores, self._late_rows[found]
        scores, rows = ann.search(self._base, queries, min(k, self.size - late), self._selector)
        if late:
            late_scores, found = self._late.search(queries, min(k, late))
            scores = np.hstack([scores, late_scores])
            rows = np.hstack([rows, self._late_rows[found]])
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        return scores, rows

    def add(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """Add labels.

        Args:
            vectors: (n, D) float32.

        Returns:
            (n,) int64: their rows, following those in use.

        Raises:
            ModelError: `vectors` is no finite matrix of this dimension.
        """
        vectors = _checked(vectors)
        if vectors.shape[1] != self.dimension:
            raise ModelError(
                f"vectors of {vectors.shape[1]} numbers do not fit an index of {self.dimension}",
                "encode them with the student the index was made with",
            )
        rows = self.total + np.arange(len(vectors))
        self._added = np.vstack([self._added, vectors])
        self._live = np.append(self._live, np.ones(len(vectors), dtype=bool))
        self._refresh()
        return rows

    def remove(self, rows: ArrayLike) -> None:
        """Remove labels; their rows are never used again.

        Args:
            rows: (n,) int64.

        Raises:
            ModelError: A row that holds no label.
        """
        gone = _rows(rows)
        inside = (gone >= 0) & (gone < self.total)
        if not inside.all() or not self._live[gone].all() or len(np.unique(gone)) < len(gone):
            raise ModelError("a row to remove holds no label", "give rows of `LabelIndex.rows`, each once")
        self._live[gone] = False
        self._refresh()

    def vectors(self, rows: ArrayLike) -> NDArray[np.float32]:
        """The vectors (n, D) of rows (n,); raises ModelError for rows never used."""
        wanted = _rows(rows)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.total):
            raise ModelError(f"rows {wanted.min()} to {wanted.max()} of {self.total}", "give rows in use")
        built = self._base.ntotal
        found = np.empty((len(wanted), self.dimension), dtype=np.float32)
        early = wanted < built
        if early.any():
            found[early] = ann.stored(self._base).reconstruct_batch(wanted[early])
        found[~early] = self._added[wanted[~early] - built]
        return found

    def _refresh(self) -> None:
        built = self._base.ntotal
        self._selector: Any | None = None
        if not self._live[:built].all():
            self._selector = ann.selector(self._live[:built])
        late = np.flatnonzero(self._live[built:])
        self._late_rows = built + late
        self._late = ann.flat(self._added[late])

    def save(self, path: str | Path) -> None:
        """Write the index in FAISS's own format, with its card (.json) and changes (.npz) beside it.

        Raises:
            ConfigError: Something is in the place of one of the files that is no part of a former index.
            DataError: A file cannot be written.
        """
        path = Path(path)
        former = loads(LabelIndex.load)(path)

        def made(_: Path) -> bool:
            return former

        for suffix in (".json", ".npz"):
            check_file(path.with_suffix(suffix), "a part of a label index", made=made)
        with whole_file(path, "a label index", made=made) as fresh:
            try:
                faiss.write_index(self._base, str(fresh))
            except RuntimeError as error:
                raise OSError(str(error)) from error
        card = json.dumps(asdict(self._card), indent=1) + "\n"
        write_file(path.with_suffix(".json"), card.encode(), "a label index's card", made=made)
        self.save_changes(path.with_suffix(".npz"))

    def save_changes(self, path: Path) -> None:
        """Write only what came and went since the index was built: seconds at any number of labels."""
        with whole_file(path, "an index's changes", made=_is_changes) as fresh, fresh.open("wb") as handle:
            np.savez(handle, added=self._added, removed=np.flatnonzero(~self._live))

    @classmethod
    def load(cls, path: str | Path, *, changes: Path | None = None, mmap: bool = True) -> LabelIndex:
        """Read an index written by `save`.

        Args:
            path: The file.
            changes: Where `save_changes` wrote; beside `path` if None.
            mmap: Leave vectors and graph on disk, read as they are needed; the
                file must not be written to meanwhile (`save` elsewhere and replace it).

        Raises:
            BundleError: A file is missing, damaged, or another kind of index.
        """
        instance_of(path, (str, PathLike), "path", "give the path of an index.faiss")
        path = Path(path)
        try:
            base = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        except RuntimeError as error:
            raise BundleError(f"label index {path} cannot be read: {error}", _CURE) from error
        kind = ann.kind_of(base)
        if kind is None or base.ntotal == 0:
            raise BundleError(f"label index {path} holds no inner-product index of a known kind", _CURE)
        index = cls._of(base, _card(path.with_suffix(".json"), kind))
        changes = changes or path.with_suffix(".npz")
        if changes.exists():
            index._apply(changes)
        return index

    def _apply(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                added, removed = arrays["added"], arrays["removed"]
            if len(added):
                self.add(added)
            self.remove(removed)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, ModelError) as error:
            raise BundleError(f"changes of the label index {path} cannot be used: {error}", _CURE) from error


def _card(path: Path, kind: Kind) -> _Card:
    try:
        card = _Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", _CURE) from error
    if card.kind not in get_args(Kind) or card.kind != kind:
        raise BundleError(f"{path} describes an index of kind {card.kind}, but there is {kind}", _CURE)
    return card


def _checked(vectors: ArrayLike) -> NDArray[np.float32]:
    matrix = _matrix(vectors, "label vectors")
    if 0 in matrix.shape:
        raise ModelError(
            f"label vectors {matrix.shape} cannot be indexed: they are empty or not finite", _VECTORS_CURE
        )
    return matrix


def _matrix(vectors: ArrayLike, what: str) -> NDArray[np.float32]:
    try:
        matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what} are no matrix of numbers: {error}", _VECTORS_CURE) from None
    # An empty list of queries has no second dimension.
    if (np.ndim(vectors) != 2 and matrix.size) or not np.isfinite(matrix).all():
        raise ModelError(
            f"{what} {np.shape(vectors)} cannot be used: they are no matrix or not finite", _VECTORS_CURE
        )
    return matrix


def _rows(rows: ArrayLike) -> NDArray[np.int64]:
    try:
        found = np.asarray(rows).reshape(-1)
    except ValueError:
        found = np.array(["ragged"])
    # -1 holds no label.
    return found.astype(np.int64) if found.dtype.kind in "iu" or not found.size else np.array([-1])


_VECTORS_CURE = "check the label list and the encoder's weights; `BiEncoder` gives one row a text"


def _is_changes(path: Path) -> bool:
    """Whether a file is one that `save_changes` wrote."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return set(found.files) == {"added", "removed"}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        return False
