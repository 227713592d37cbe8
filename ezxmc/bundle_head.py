"""The sparse head among a bundle's files: put in, opened, kept in step with the labels.

Its rows are those of the index. A label added later, or changed (that gives it
a new row), has none: the bi-encoder alone ranks it. One removed is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ezxmc.errors import BundleError
from ezxmc.manifest import CALIBRATOR, DECISION, HEAD, Manifest, commit, writing
from ezxmc.retrieval import LabelIndex

if TYPE_CHECKING:
    from ezxmc.retrieval import BiEncoder, SparseHead


def add_head(path: Path, head: SparseHead) -> None:
    """Put a head into a bundle, or replace the one it has.

    A calibrator and a decision in it go: they were made on the former scores.

    Args:
        path: The bundle.
        head: Trained on the rows of the bundle's index, and weighed.

    Raises:
        BundleError: `path` holds no readable bundle, or cannot be written.
    """
    with writing(path) as manifest:
        name = manifest.new_name(HEAD) if manifest.file(HEAD) else HEAD
        head.save(path / name)
        commit(path, manifest, [name], manifest.holding([HEAD, CALIBRATOR, DECISION]))


def open_head(file: Path, index: LabelIndex, encoder: BiEncoder) -> SparseHead:
    """A bundle's head, for the labels that can be answered, on the encoder's device.

    Raises:
        BundleError: The file is damaged, or does not fit the index.
    """
    from ezxmc.retrieval import SparseHead

    head = SparseHead.load(file)
    if head.dimension != index.dimension or (len(head.rows) and head.rows[-1] >= index.total):
        raise BundleError(
            f"head {file} is for {head.dimension} dimensions and labels up to row {head.rows[-1:]}, "
            f"the index has {index.dimension} and {index.total} rows",
            "make the bundle again with `ezxmc run`",
        )
    return head.keeping(index.rows).to(encoder.runner.device)


def renumber_head(
    path: Path, manifest: Manifest, head: SparseHead | None, rows: NDArray[np.int64]
) -> list[str]:
    """Write the head for an index built anew from these rows; gives the files written."""
    if head is None:
        return []
    name = manifest.new_name(HEAD)
    head.renumbered(rows).save(path / name)
    return [name]
