"""The labels of a bundle, which come and go without training; its index, built again; labels above labels.

Where labels form a hierarchy, answers are consistent along every path, and as deep as asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Bundle, load_bundle, renumber_head
from ezxmc.bundle.manifest import (
    CHANGES,
    DECISION,
    HEAD,
    INDEX,
    LABELS,
    Manifest,
    commit,
    write_labels,
    writing,
)
from ezxmc.calibration.decisions import Decision
from ezxmc.data.documents import refuse_same_labels
from ezxmc.data.forest import Forest, ancestors, with_parents
from ezxmc.errors import BundleError, DataError
from ezxmc.records import Label, Result
from ezxmc.retrieval import LabelIndex


@dataclass(frozen=True, slots=True)
class Change(Result):
    """What became of the labels of a bundle: how many of each."""

    added: int = 0
    changed: int = 0
    removed: int = 0


def add_labels(
    path: Path, labels: Sequence[Label], *, progress: Callable[[int, int], None] | None = None
) -> Change:
    """Let a bundle answer with more labels, from their titles alone.

    The bundle's own student encodes them; nothing is trained, and what is indexed stays as it is. A label
    whose uid is there already replaces it; with the same title it keeps its vector, and the title's own
    vector is used otherwise.

    Args:
        path: The bundle.
        labels: New or changed ones.
        progress: Called with (labels encoded, how many must be).

    Raises:
        BundleError: `path` holds no readable bundle, or cannot be written.
        DataError: Two of `labels` are one tag, or one of them is in the bundle under another uid: both
            would be answered, in two ranks; or labels would be above one another in a circle.
    """
    with writing(path) as manifest:
        bundle = load_bundle(path)
        # A label that is changed by its uid may leave its title to another.
        given = {label.uid for label in labels}
        there = [bundle.labels[row] for row in bundle.index.rows.tolist()]
        labels = with_parents(labels, there).labels
        refuse_same_labels(labels, [label for label in there if label.uid not in given])
        rows, known = bundle.rows(), list(bundle.labels)
        fresh = []
        for label in labels:
            row = rows.get(label.uid)
            if row is None or known[row].title != label.title:
                fresh.append(label)
            else:
                known[row] = label
        replaced = [rows[label.uid] for label in fresh if label.uid in rows]
        if fresh:
            titles = [label.title for label in fresh]
            bundle.index.remove(replaced)
            bundle.index.add(bundle.encoder.encode_labels(titles, progress=progress))
        _commit_labels(path, manifest, bundle.index, [*known, *fresh], len(fresh))
    return Change(len(fresh) - len(replaced), len(labels) - len(fresh) + len(replaced))


def remove_labels(path: Path, uids: Iterable[str]) -> Change:
    """Let a bundle answer without some labels.

    Raises:
        BundleError: `path` holds no readable bundle, cannot be written, or no label would be left.
        DataError: The bundle has no label of such a uid.
    """
    with writing(path) as manifest:
        bundle = load_bundle(path)
        rows, gone = bundle.rows(), dict.fromkeys(uids)
        if unknown := [uid for uid in gone if uid not in rows]:
            raise DataError(
                f"bundle {path} has no label {', '.join(map(repr, unknown[:5]))}",
                f"`ezxmc labels list {path}` shows what it has",
            )
        if len(gone) == len(rows):
            raise BundleError(f"bundle {path} would have no label left", "delete the folder instead")
        bundle.index.remove([rows[uid] for uid in gone])
        _commit_labels(path, manifest, bundle.index, bundle.labels, len(gone))
    return Change(removed=len(gone))


def rebuild_index(path: Path) -> LabelIndex:
    """Build a bundle's index anew from its vectors: same labels, new rows; raises as `add_calibrator`."""
    with writing(path) as manifest:
        bundle = load_bundle(path)
        rows = bundle.index.rows
        index = LabelIndex.build(bundle.index.vectors(rows))
        base = Path(manifest.new_name(INDEX))
        index.save(path / base)
        labels = manifest.new_name(LABELS)
        write_labels(path / labels, [bundle.labels[row] for row in rows.tolist()])
        written = [str(base), *(str(base.with_suffix(suffix)) for suffix in (".json", ".npz")), labels]
        written += renumber_head(path, manifest, bundle.head, rows)
        former = manifest.holding([INDEX, "index.json", CHANGES, LABELS, HEAD])
        commit(path, manifest.model_copy(update={"index": index.summary}), written, former)
    return index


def _commit_labels(
    path: Path, manifest: Manifest, index: LabelIndex, labels: Sequence[Label], changed: int
) -> None:
    written = [manifest.new_name(part) for part in (LABELS, CHANGES)]
    write_labels(path / written[0], labels)
    index.save_changes(path / written[1])
    former = manifest.holding([LABELS, CHANGES])
    if changed and (decided := manifest.file(DECISION)):
        # In the same step: at no moment do its promise and other labels lie side by side.
        written.append(manifest.new_name(DECISION))
        Decision.load(path / decided).after(changed).save(path / written[-1])
        former.append(decided)
    commit(path, manifest.model_copy(update={"labels": index.size}), written, former)


@dataclass(frozen=True, slots=True)
class Ancestry:
    """Which label of a bundle is above which.

    Attributes:
        above: (R,) int64, by index row the row of the label above; −1 at roots.
    """

    above: NDArray[np.int64]

    @classmethod
    def of(cls, bundle: Bundle) -> Ancestry | None:
        """That of a bundle's labels; `None` where they are flat."""
        live = bundle.index.rows
        try:
            forest = Forest.of([bundle.labels[row] for row in live.tolist()])
        except DataError:
            return None  # of a bundle made before anybody looked for circles
        if forest is None:
            return None
        above = np.full(len(bundle.labels), -1, dtype=np.int64)
        above[live] = np.where(forest.parent >= 0, live[forest.parent], -1)
        return cls(above)

    def raised(self, rows: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, K) probabilities, a label's at least that of every label below it among the K.

        A sure child makes its parent sure; a doubtful parent takes nothing from its child, whose score was
        earned by a text more like it.

        Args:
            rows: (N, K) index rows; −1 is none.
            probabilities: (N, K).
        """
        found = probabilities.copy()
        for row, values, given in zip(rows.tolist(), found, probabilities.tolist(), strict=True):
            place = {label: i for i, label in enumerate(row) if label >= 0}
            for label, i in place.items():
                for up in ancestors(self.above, label):
                    if up in place:
                        values[place[up]] = max(values[place[up]], given[i])
        return found

    def leaves(self, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N, K): of the tags those below which there is no other tag."""
        found = kept.copy()
        for row, tags in zip(rows, found, strict=True):
            tags &= ~np.isin(row, [up for label in row[tags].tolist() for up in ancestors(self.above, label)])
        return found

    def brought(self, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> list[list[int]]:
        """Of each of N documents the rows of the labels above its tags that are no tags, each once."""
        found = []
        for row, tags in zip(rows, kept, strict=True):
            there = row[tags].tolist()
            ups = dict.fromkeys(up for label in there for up in ancestors(self.above, label))
            found.append([up for up in ups if up not in there])
        return found


def bring_ancestors(
    bundle: Bundle,
    ancestry: Ancestry,
    vectors: NDArray[np.float32],
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    kept: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64] | None, NDArray[np.bool_]]:
    """Scores, rows, probabilities and tags of N documents, each tag with all labels above it.

    Args:
        bundle: Whose labels these are.
        ancestry: Of the bundle.
        vectors: (N, D) of the documents.
        scores: (N, K), best first.
        rows: (N, K) index rows.
        kept: (N, K) which of them are tags.

    Returns:
        The same with as many columns more as a document lacks labels at most.
    """
    brought = ancestry.brought(rows, kept)
    kept = kept | np.array([np.isin(row, some) for row, some in zip(rows, brought, strict=True)])
    unseen = [[up for up in some if up not in row] for row, some in zip(rows, brought, strict=True)]
    shape = len(rows), max(map(len, unseen), default=0)
    # A calibrator wants rows that never rise; so much less may an index that is not exact have missed.
    more, ranked = (np.repeat(scores[:, -1:], shape[1], axis=1) for _ in range(2))
    places, tags = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for i, some in enumerate(unseen):
        if some:
            found = bundle.scores(vectors[i : i + 1], np.array(some, dtype=np.int64))[0]
            order = np.argsort(-found, kind="stable")
            span = slice(len(some))
            places[i, span], tags[i, span] = np.array(some)[order], True
            more[i, span] = found[order]
            ranked[i, span] = np.minimum(found[order], scores[i, -1])
            ranked[i, len(some) :] = ranked[i, len(some) - 1]
    rows, kept = np.hstack([rows, places]), np.hstack([kept, tags])
    probabilities = None
    if bundle.calibrator is not None:
        probabilities = bundle.calibrator.transform(np.hstack([scores, ranked]))
        probabilities = ancestry.raised(rows, probabilities)
    return np.hstack([scores, more]), rows, probabilities, kept
