"""A classifier on top of document vectors with few weights per label, and its fusion with the label index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ezxmc.disk import disk_errors
from ezxmc.errors import BundleError
from ezxmc.files import loads, whole_file
from ezxmc.retrieval.index import LabelIndex

CANDIDATES = 100
"""Labels the bi-encoder proposes for the fused ranking; as many as are asked for where that is more."""
OWN = 50
"""Labels the head proposes beside them."""
SEARCHED_UP_TO = 200_000
"""Labels of a head that are all scored to find its own proposals; a larger one judges the bi-encoder's."""

_BLOCK_BYTES = 1 << 22  # 2 to 8 MiB were equally fast, less and more slower
_DOCUMENTS = 256  # whose candidates are scored together
_FORMAT = "1"


def blocks(labels: int, batch: int, width: int) -> Iterator[slice]:
    """Slices of so many labels, small enough for a (block, width) and a (batch, block) matrix in cache."""
    size = max(64, _BLOCK_BYTES // (4 * max(batch, width)))
    for start in range(0, labels, size):
        yield slice(start, min(start + size, labels))


def dense_block(columns: Tensor, weights: Tensor, width: int) -> Tensor:
    """(l, F) int64 columns and their weights written out as (l, width)."""
    return weights.new_zeros((len(columns), width)).scatter_(1, columns, weights)


@dataclass(frozen=True, slots=True)
class Fusion:
    """(1 − weight) s + weight (scale z + shift) + bonus: s of the bi-encoder, z of the head.

    Attributes:
        weight: In [0, 1].
        scale: Puts z on the scale of s.
        shift: Likewise.
        bonus: Of labels the head knows over those of which s alone is told; rare labels are mostly not known.
    """

    weight: float = 1.0
    scale: float = 1.0
    shift: float = 0.0
    bonus: float = 0.0

    def __call__(self, s: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fused scores; s where there is no z (NaN)."""
        known = ~np.isnan(z)
        fused = s.copy()
        fused[known] += np.float32(self.weight) * (
            np.float32(self.scale) * z[known] + np.float32(self.shift) - s[known]
        )
        fused[known] += np.float32(self.bonus)
        return fused


@dataclass(frozen=True, slots=True)
class SparseHead:
    """Logits z_l = w_l · h[columns_l] + b_l, h = x + x A, x a document's vector; all labels have fan-in F.

    Only labels it was taught have a row; of any other, an added one say, the bi-encoder alone decides.

    Attributes:
        rows: (M,) int64, ascending: the index rows of its labels.
        columns: (M, F) int16, distinct in a row.
        weights: (M, F) float32, aligned with `columns`.
        bias: (M,) float32.
        layer: (D, D) float32, A.
        fusion: With the bi-encoder's scores.
    """

    rows: NDArray[np.int64]
    columns: Tensor
    weights: Tensor
    bias: Tensor
    layer: Tensor
    fusion: Fusion = Fusion()

    @property
    def dimension(self) -> int:
        """Length D of a document vector."""
        return len(self.layer)

    def keeping(self, rows: NDArray[np.int64]) -> SparseHead:
        """Without the labels that are not among these index rows."""
        kept = np.isin(self.rows, rows)
        return self if kept.all() else self._of(np.flatnonzero(kept), self.rows[kept])

    def renumbered(self, rows: NDArray[np.int64]) -> SparseHead:
        """For an index built anew, whose row i holds what `rows[i]` (ascending) held before."""
        head = self.keeping(rows)
        return replace(head, rows=np.searchsorted(rows, head.rows))

    def _of(self, places: NDArray[np.int64], rows: NDArray[np.int64]) -> SparseHead:
        taken = torch.from_numpy(places)
        return replace(
            self, rows=rows, columns=self.columns[taken], weights=self.weights[taken], bias=self.bias[taken]
        )

    def features(self, vectors: NDArray[np.float32]) -> Tensor:
        """The h (N, D) of document vectors (N, D), on the head's device."""
        x = torch.from_numpy(np.ascontiguousarray(vectors)).to(self.layer.device)
        return torch.addmm(x, x, self.layer)

    def scores(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The z of given labels.

        Args:
            vectors: (N, D) float32.
            rows: (N, K) index rows.

        Returns:
            (N, K) float32; NaN for a label the head does not know.
        """
        found = np.full(rows.shape, np.nan, dtype=np.float32)
        if not len(self.rows) or not rows.size:
            return found
        places = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        for start in range(0, len(rows), _DOCUMENTS):
            some = slice(start, start + _DOCUMENTS)
            picked = torch.from_numpy(places[some]).to(self.layer.device)
            h = self.features(vectors[some])[:, None, :].expand(-1, rows.shape[1], -1)
            z = (h.gather(2, self.columns[picked].long()) * self.weights[picked]).sum(dim=2)
            found[some] = (z + self.bias[picked]).cpu().numpy()
        found[self.rows[places] != rows] = np.nan
        return found

    def best(self, vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The index rows (N, k) of the head's best labels, k at most M; a block of labels at a time."""
        h = self.features(vectors)
        k = min(k, len(self.rows))
        z, places = h.new_empty((len(h), 0)), torch.empty((len(h), 0), dtype=torch.int64, device=h.device)
        for part in blocks(len(self.rows), *h.shape):
            block = dense_block(self.columns[part].long(), self.weights[part], h.shape[1])
            here = torch.addmm(self.bias[part], h, block.T)
            top, at = here.topk(min(k, here.shape[1]), dim=1)
            z, places = torch.cat([z, top], 1), torch.cat([places, at + part.start], 1)
            if z.shape[1] > k:
                z, at = z.topk(k, dim=1)
                places = places.gather(1, at)
        found: NDArray[np.int64] = self.rows[places.cpu().numpy()]
        return found

    def search(
        self, index: LabelIndex, vectors: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`LabelIndex.search` by fused scores.

        Candidates are the bi-encoder's best `CANDIDATES` and, up to `SEARCHED_UP_TO`
        labels, the head's best `OWN`. A score depends on document and label alone.

        Args:
            index: What the head was trained beside.
            vectors: (N, D) float32.
            k: How many, at least 1; clipped to the index's size.

        Returns:
            Scores (N, k) float32, best first, and the labels' rows (N, k) int64.
        """
        s, rows = index.search(vectors, max(k, CANDIDATES))
        k = min(k, rows.shape[1])
        if not rows.size:
            return s[:, :k], rows[:, :k]
        twice = np.zeros(rows.shape, dtype=np.bool_)
        if self.fusion.weight and 0 < len(self.rows) <= SEARCHED_UP_TO:
            own = self.best(vectors, OWN)
            wanted, place = np.unique(own, return_inverse=True)
            between = index.vectors(wanted)[place.reshape(own.shape)]
            told = np.einsum("nd,nkd->nk", vectors, between)
            again = (own[:, :, None] == rows[:, None, :]).any(axis=2)
            twice = np.hstack([np.zeros(rows.shape, dtype=np.bool_), again])
            s, rows = np.hstack([s, told]), np.hstack([rows, own])
        fused = self.fusion(s, self.scores(vectors, rows))
        fused[twice] = -np.inf
        order = np.argsort(-fused, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(fused, order, 1), np.take_along_axis(rows, order, 1)

    def to(self, device: torch.device | str) -> SparseHead:
        """The same head on a device."""
        columns, weights, bias, layer = (
            part.to(device) for part in (self.columns, self.weights, self.bias, self.layer)
        )
        return replace(self, columns=columns, weights=weights, bias=bias, layer=layer)

    def save(self, path: Path) -> None:
        """Write it as safetensors, the fusion as JSON in its header.

        Raises:
            ConfigError: Something that is no head is in the file's place.
            DataError: The file cannot be written.
        """
        tensors = {
            "rows": torch.from_numpy(self.rows),
            "columns": self.columns,
            "weights": self.weights,
            "bias": self.bias,
            "layer": self.layer,
        }
        with whole_file(path, "a head", made=loads(SparseHead.load)) as fresh, disk_errors():
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                fresh,
                metadata={"format": _FORMAT, "fusion": json.dumps(asdict(self.fusion))},
            )

    @classmethod
    def load(cls, path: Path) -> SparseHead:
        """Read what `save` wrote.

        Raises:
            BundleError: The file is damaged, of a newer format, or its parts do not fit together.
        """
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                # Copies: what is mapped changes with the file, or ends the process.
                parts = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
            fusion = Fusion(**{name: float(value) for name, value in json.loads(told["fusion"]).items()})
            head = cls(parts.pop("rows").numpy(), fusion=fusion, **parts)
            fault = None if told["format"] == _FORMAT else f"its format is {told['format']}, not {_FORMAT}"
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"head {path} cannot be read: {error}", _CURE) from None
        if fault := fault or head._fault():
            raise BundleError(f"head {path} cannot be used: {fault}", _CURE)
        return head

    def _fault(self) -> str | None:
        m, (d, *_) = len(self.rows), self.layer.shape
        wanted = {
            "rows": ((m,), torch.int64),
            "columns": (tuple(self.weights.shape), torch.int16),
            "weights": ((m, *self.weights.shape[1:2]), torch.float32),
            "bias": ((m,), torch.float32),
            "layer": ((d, d), torch.float32),
        }
        for name, (shape, dtype) in wanted.items():
            part = torch.as_tensor(getattr(self, name))
            if tuple(part.shape) != shape or part.dtype != dtype:
                return f"{name} is {tuple(part.shape)} {part.dtype}, not {shape} {dtype}"
            if not torch.isfinite(part).all():
                return f"{name} holds numbers that are not finite"
        if (np.diff(self.rows) <= 0).any() or (m and self.rows[0] < 0):
            return "its rows do not ascend"
        if m and (int(self.columns.min()) < 0 or int(self.columns.max()) >= d):
            return f"its columns leave the {d} of a vector"
        if not np.isfinite(astuple(self.fusion)).all():
            return "its fusion is not finite"
        return None


_CURE = "restore the bundle from a copy, or make it again with `ezxmc run`"
