"""What people changed in a run's bundle, and what becomes of it when the run makes another.

Labels that came, went or were renamed are found by comparing a bundle with the catalog it was made for; the
next bundle gets them too. A decision is people's always; a calibrator is, unless it is the one a run fitted
(the manifest's `origin` tells) and no decision rests on it. Either goes on where the scores are what they
were, and is kept beside the run, and reported, where they are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ezxmc.bundle.bundle import Bundle, add_calibrator, add_decision, add_student_files, load_bundle
from ezxmc.bundle.labels import add_labels, remove_labels
from ezxmc.bundle.manifest import (
    CALIBRATOR,
    DECISION,
    HEAD,
    OFFSETS,
    STATIC,
    STUDENT,
    Manifest,
    guarantee_of,
    labels_of,
    made_from,
    read_manifest,
)
from ezxmc.calibration import Calibrator
from ezxmc.calibration.decisions import Decision
from ezxmc.data.documents import SameLabels
from ezxmc.disk import temporary
from ezxmc.files import replacing
from ezxmc.pipeline.snapshot import Snapshot, label_content
from ezxmc.records import Label
from ezxmc.retrieval.label_offsets import LabelOffsets

FORMER = "former"
"""Where in a run directory calibrators and decisions lie that do not fit the bundle any more."""
_NAMED = 5
_COMPARED = 10_000  # label vectors
_NEAR = 0.02  # of a label vector's length: bfloat16 moves it far less, refining it far more


@dataclass(frozen=True, slots=True)
class LabelEdits:
    """What people did to the labels of a run's bundle.

    Attributes:
        added: Labels that no catalog of the run has.
        changed: Labels of the catalog with another title or description than there.
        removed: Uids of labels of the catalog that the bundle shall not answer.
        superseded: Of these edits, those that the catalog has overtaken, in words.
    """

    added: list[Label] = field(default_factory=list)
    changed: list[Label] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)

    @classmethod
    def between(cls, there: Iterable[Label], former: Snapshot | None, catalog: Sequence[Label]) -> LabelEdits:
        """Find them.

        Args:
            there: Labels the bundle answers.
            former: The catalog the bundle was made for, if that is known.
            catalog: Labels of the present one.
        """
        held, now = {label.uid: label for label in there}, {label.uid: label for label in catalog}
        seen = former.labels if former else {}
        # What came to the catalog since was never there to be removed.
        gone = [uid for uid in now if uid in seen and uid not in held]
        found, same = cls(removed=gone), SameLabels(label for label in catalog if label.uid not in gone)
        for uid, label in held.items():
            mine, before = label_content(label), seen.get(uid)
            if mine == before or (uid in now and mine == label_content(now[uid])):
                continue
            if uid not in now and before is not None:
                continue
            if uid in now and before != label_content(now[uid]):
                found.superseded.append(f"{label.title!r} is {now[uid].title!r} in the catalog by now")
            elif (other := same.add(label)) is not None:
                found.superseded.append(f"{label.title!r} is label {other!r} of the catalog")
            else:
                (found.changed if uid in now else found.added).append(label)
        return found

    @property
    def others(self) -> set[str]:
        """Uids of labels of the catalog that are not in the bundle as they are there."""
        return {*self.removed, *(label.uid for label in self.changed)}

    def apply(self, bundle: Path) -> None:
        """Do the same to another bundle of the catalog, or again to the same one."""
        there = {label.uid for label in labels_of(bundle)}
        gone = [uid for uid in self.removed if uid in there]
        if len(gone) == len(there):  # no bundle is without a label
            gone = gone[1:]
        # First, since what was added may have the title of what was removed.
        if gone:
            remove_labels(bundle, gone)
        if given := [*self.added, *self.changed]:
            add_labels(bundle, given)

    def lines(self) -> Iterator[str]:
        """What a person must know of them."""
        titles = [label.title for label in self.added]
        if titles:
            yield (
                f"labels that people added to the bundle stay ({_named(titles)}), by their titles alone: no "
                "teacher was asked about them; put them into the labels' file and `ezxmc run --update` asks"
            )
        if self.changed:
            titles = [label.title for label in self.changed]
            yield f"labels that people changed in the bundle stay as they made them ({_named(titles)})"
        if self.removed:
            yield (
                f"labels that people removed from the bundle stay away ({_named(self.removed)}): "
                "`ezxmc labels add` puts them back"
            )
        if self.superseded:
            yield f"labels of which the catalog's row counts now: {'; '.join(self.superseded[:_NAMED])}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def peoples_calibrator(bundle: Path) -> str:
    """In words, why the calibrator of a run's bundle is not the run's to replace; empty if it is."""
    manifest = read_manifest(bundle)
    if manifest.file(CALIBRATOR) is None:
        return ""
    if not _fitted_by_run(bundle, manifest):
        return "people fitted it"
    return "a decision rests on it" if manifest.file(DECISION) else ""


def stays(bundle: Path, *, named: Path | None = None) -> Iterator[str]:
    """What of people's work a run left in its bundle, in words; `named`: where that will be."""
    if why := peoples_calibrator(bundle):
        place = named or bundle
        yield f"the bundle's calibrator stays, because {why}: `ezxmc calibrate {place}` fits another"
    if (guarantee := guarantee_of(bundle)) is not None:
        yield f"the bundle's decision stays: {guarantee}"


def _fitted_by_run(bundle: Path, manifest: Manifest) -> bool:
    file, made = _part(manifest, CALIBRATOR), manifest.origin.get(CALIBRATOR)
    if made is None:  # by a release that did not tell: what no run fits is people's
        return Calibrator.load(bundle / file).target == "teacher"
    return made == manifest.files[file]


def carry_over(former: Path, fresh: Path, aside: Path) -> None:
    """Give the bundle that takes another's place what people made for that one, or put it aside.

    Args:
        former: The one that is replaced.
        fresh: The one that replaces it, with all its labels.
        aside: A folder for what does not fit; `outdated` tells of it.
    """
    if not peoples_calibrator(former):
        return
    one, other = load_bundle(former, verify=False), load_bundle(fresh, verify=False)
    by_run, files = _fitted_by_run(former, one.manifest), one.manifest.places(former)
    assert one.calibrator is not None
    if _same_scores(one, other):
        offsets = LabelOffsets.load(files[OFFSETS]) if OFFSETS in files else None
        add_calibrator(fresh, one.calibrator, offsets=offsets, by_run=by_run)
        if DECISION in files:
            before, now = one.titles(), other.titles()
            changed = sum(before.get(uid) != now.get(uid) for uid in before | now)
            add_decision(fresh, Decision.load(files[DECISION]).after(changed))
        return
    for part in (*(() if by_run else (CALIBRATOR, OFFSETS)), DECISION):
        if part in files:
            # Named by its content: twice is once.
            stem, _, suffix = part.partition(".")
            place = aside / f"{stem}-{one.manifest.files[_part(one.manifest, part)][:8]}.{suffix}"
            with replacing(place) as file:
                file.write_bytes(files[part].read_bytes())


def carry_exports(former: Path, fresh: Path) -> bool:
    """Copy the exported forms of a bundle's student to another bundle of the same student.

    Returns:
        Whether none is lost.
    """
    manifest, other = read_manifest(former), read_manifest(fresh)
    kept = True
    # A static student has its own calibrator, which hangs on the bundle's.
    for folder, prefix, of in ((STUDENT, f"{STUDENT}/onnx/", _weights), (STATIC, f"{STATIC}/", made_from)):
        names = [name for name in manifest.files if name.startswith(prefix)]
        if not names or of(manifest) != of(other):
            kept = kept and not names
            continue
        copies = {name.removeprefix(f"{folder}/"): fresh.with_name(temporary()) for name in names}
        try:
            for name, copied in copies.items():
                shutil.copyfile(former / folder / name, copied)
            add_student_files(fresh, copies, folder=folder)
        finally:
            for copied in copies.values():
                copied.unlink(missing_ok=True)
    return kept


def outdated(bundle: Path, aside: Path, *, named: Path | None = None) -> Iterator[str]:
    """What people made for former bundles of a run, and nobody has made for this one, in words.

    Args:
        bundle: The one there is.
        aside: Where `carry_over` put what did not fit.
        named: Where the bundle will be.
    """
    manifest, place = read_manifest(bundle), named or bundle
    peoples = manifest.file(CALIBRATOR) is not None and not _fitted_by_run(bundle, manifest)
    if not peoples and (kept := _newest(aside, CALIBRATOR)):
        yield (
            "the calibrator that people made does not fit the scores of the new student: it is kept in "
            f"{kept}, and probabilities are the run's own until "
            f"`ezxmc calibrate {place} DOCUMENTS --gold TAGS` makes another"
        )
    if manifest.file(DECISION) is None and (kept := _newest(aside, DECISION)):
        yield (
            "the decision that people made, on a former student's probabilities, holds no more: it is kept "
            f"in {kept}; `ezxmc decide {place} DOCUMENTS TAGS` makes another"
        )


def _newest(folder: Path, part: str) -> Path | None:
    stem, _, suffix = part.partition(".")
    kept = list(folder.glob(f"{stem}-*.{suffix}"))
    return max(kept, key=lambda file: file.stat().st_mtime_ns, default=None)


def _same_scores(former: Bundle, fresh: Bundle) -> bool:
    """Whether two bundles give a document and a label they share the same score."""
    if former.manifest.max_length != fresh.manifest.max_length or bool(former.paths) != bool(fresh.paths):
        return False
    heads = [
        bundle.manifest.files[name] if (name := bundle.manifest.file(HEAD)) else ""
        for bundle in (former, fresh)
    ]
    if _weights(former.manifest) != _weights(fresh.manifest) or heads[0] != heads[1]:
        return False
    rows, others = former.rows(), fresh.rows()
    now = fresh.titles()
    shared = [uid for uid, title in former.titles().items() if now.get(uid) == title]
    shared = shared[:: 1 + len(shared) // _COMPARED]
    was = former.index.vectors([rows[uid] for uid in shared])
    moved = np.linalg.norm(fresh.index.vectors([others[uid] for uid in shared]) - was, axis=1)
    return bool(shared) and bool(moved.mean() <= _NEAR * np.linalg.norm(was, axis=1).mean())


def _weights(manifest: Manifest) -> set[str]:
    return {
        hashed
        for name, hashed in manifest.files.items()
        if name.startswith(f"{STUDENT}/") and name.endswith(".safetensors")
    }


def _part(manifest: Manifest, part: str) -> str:
    name = manifest.file(part)
    assert name is not None
    return name
