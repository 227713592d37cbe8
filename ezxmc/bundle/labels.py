"""The labels of a bundle, which come and go without training; its index, built again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ezxmc.bundle.bundle import load_bundle, renumber_head
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
from ezxmc.data.forest import with_parents
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
