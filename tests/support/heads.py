"""A bundle with a sparse head."""

from __future__ import annotations

from pathlib import Path

import torch

from ezxmc.bundle.bundle import (
    add_head,
    load_bundle,
)
from ezxmc.retrieval import SparseHead
from ezxmc.retrieval.sparse_head import Fusion


def with_head(bundle: Path) -> SparseHead:
    """A head that ranks in reverse of the bi-encoder, in the bundle."""
    opened = load_bundle(bundle)
    vectors = opened.index.vectors(opened.index.rows)
    columns = torch.arange(vectors.shape[1], dtype=torch.int16).repeat(len(vectors), 1)
    layer = torch.zeros((vectors.shape[1],) * 2)
    head = SparseHead(
        opened.index.rows, columns, -torch.from_numpy(vectors), torch.zeros(len(vectors)), layer, Fusion(1.0)
    )
    add_head(bundle, head)
    return head
