"""The deliverable: a plain folder with everything inference needs, checked when it is opened.

    student/               a SentenceTransformer folder
    labels.jsonl           uid, title, text, aliases, parent; line i is row i of the index
    index.faiss            label vectors; index.json: which kind and why; index.npz: what came and went since
    calibrator.json        scores to probabilities (absent until calibrated)
    decision.json          which tags to keep (absent until decided)
    head.safetensors       a sparse classifier head (absent unless trained)
    offsets.safetensors    what people's decisions add to scores; comes and goes with their calibrator
    static/                the student without a transformer, and its own calibrator (absent unless exported)
    manifest.json          versions, settings, the SHA-256 of every other file

A change writes new files (`labels.r1.jsonl`), then the manifest in one step, then takes the old files away:
whoever is killed, a whole bundle is there.

The rows of the sparse head are those of the index. A label added later, or changed (that gives it a new
row), has none: the bi-encoder alone ranks it. One removed is passed over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.ancestry import Ancestry
from ezxmc.bundle.manifest import (
    CALIBRATOR,
    CHANGES,
    DECISION,
    FORMAT,
    HEAD,
    INDEX,
    LABELS,
    MANIFEST,
    OFFSETS,
    PATHS_FORMAT,
    STATIC,
    STUDENT,
    Manifest,
    check_bundle_place,
    check_files,
    check_names,
    check_static,
    commit,
    hashes,
    holding,
    own_files,
    read_labels,
    read_manifest,
    write_labels,
    write_manifest,
    writing,
)
from ezxmc.calibration import Calibrator
from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend, Precision
from ezxmc.data.documents import refuse_same_labels
from ezxmc.data.forest import with_parents
from ezxmc.data.in_memory import as_labels
from ezxmc.disk import make_folder
from ezxmc.errors import BundleError
from ezxmc.files import Inputs, whole_folder
from ezxmc.hashing import file_hash
from ezxmc.records import Label
from ezxmc.retrieval import LabelIndex

if TYPE_CHECKING:
    from ezxmc.retrieval import BiEncoder, SparseHead
    from ezxmc.retrieval.label_offsets import IndexOffsets, LabelOffsets


def add_head(path: Path, head: SparseHead) -> None:
    """Put a head into a bundle, or replace the one it has.

    A calibrator, offsets and a decision in it go: they were made on the former scores.

    Args:
        path: The bundle.
        head: Trained on the rows of the bundle's index, and weighed.

    Raises:
        BundleError: `path` holds no readable bundle, or cannot be written.
    """
    with writing(path) as manifest:
        name = manifest.new_name(HEAD) if manifest.file(HEAD) else HEAD
        head.save(path / name)
        commit(path, manifest, [name], manifest.holding([HEAD, OFFSETS, CALIBRATOR, DECISION]))


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


_Read = TypeVar("_Read")
Refine = Callable[["BiEncoder", NDArray[np.float32]], NDArray[np.float32]]
"""From an encoder and its (L, D) vectors of the titles to better ones."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: Its folder.
        manifest: What it says of itself.
        encoder: The student.
        index: Label vectors.
        labels: The label of each row of the index, removed ones included.
        calibrator: Scores to probabilities, if fitted.
        decision: Which tags to keep, if decided.
        head: Ranks beside the index, if trained.
        offsets: What people's decisions add to scores, if any.
        paths: Which label is above which, where scores are raised along paths.
        strays: Files in the folder that are not part of it; nothing reads them.
    """

    path: Path
    manifest: Manifest
    encoder: BiEncoder
    index: LabelIndex
    labels: list[Label]
    calibrator: Calibrator | None
    decision: Decision | None = None
    head: SparseHead | None = None
    offsets: IndexOffsets | None = None
    paths: Ancestry | None = None
    strays: tuple[str, ...] = ()

    def rows(self) -> dict[str, int]:
        """The row of each label that can be answered, by uid."""
        return {self.labels[row].uid: row for row in self.index.rows.tolist()}

    def titles(self) -> dict[str, str]:
        """The title of each label that can be answered, by uid."""
        return {self.labels[row].uid: self.labels[row].title for row in self.index.rows.tolist()}

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`LabelIndex.search`, fused with the head, moved by the offsets, raised along paths, if any."""
        if self.paths is not None:
            flat = replace(self, paths=None)
            return self.paths.search(flat.search, flat.scores, vectors, k)
        if self.offsets is not None:
            plain = replace(self, offsets=None)
            return self.offsets.search(plain.search, plain.scores, vectors, k)
        return self.head.search(self.index, vectors, k) if self.head else self.index.search(vectors, k)

    def scores(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores (N, K) that `search` gives these K index rows, of N documents."""
        if self.paths is not None:
            flat = replace(self, paths=None)
            return self.paths.scores(flat.search, flat.scores, vectors, rows)
        found: NDArray[np.float32] = vectors @ self.index.vectors(rows).T
        every = np.broadcast_to(rows, found.shape)
        if self.head is not None:
            found = self.head.fusion(found, self.head.scores(vectors, every))
        return found if self.offsets is None else found + self.offsets.of(vectors, every)


def save_bundle(
    path: str | Path,
    student: Path | str | BiEncoder,
    labels: Iterable[Any],
    *,
    max_length: int,
    k: int,
    calibrator: Calibrator | None = None,
    origin: dict[str, str] | None = None,
    refine: Refine | None = None,
    progress: Callable[[int, int], None] | None = None,
    inputs: Inputs = (),
) -> Manifest:
    """Encode the labels, index them and write a whole bundle in one step.

    It is built beside `path` and moved into place when complete: a killed writer leaves the former bundle,
    if any, or none.

    Args:
        path: The bundle's folder; an older bundle there is replaced, if nothing else is in the folder.
        student: A SentenceTransformer folder or hub id, or the encoder opened from it.
        labels: L labels, or their titles, in index order.
        max_length: Tokens of a document the student reads.
        k: Labels per document answered by default.
        calibrator: Scores to probabilities, if fitted already.
        origin: What the bundle was made from, for its manifest.
        refine: Applied before the vectors are indexed.
        progress: Called with (labels encoded, L).
        inputs: Files that `labels` were read from: none of them is replaced.

    Raises:
        ConfigError: `path` is taken by something that is no bundle, or holds more than a bundle.
        BundleError: The student holds files that no bundle may.
        DataError: Two labels are one tag, see `ezxmc.data.read_labels`, or labels lie in a circle.

    Example:
        >>> save_bundle("bundle", "student", ["music", "food"], max_length=256, k=1).labels
        2
    """
    from ezxmc.retrieval import BiEncoder

    path, related = Path(path), with_parents(as_labels(labels))
    refuse_same_labels(labels := related.labels)
    check_bundle_place(path, inputs)
    encoder = student if isinstance(student, BiEncoder) else BiEncoder(student, max_length=max_length)
    vectors = encoder.faster().encode_labels([label.title for label in labels], progress=progress)
    index = LabelIndex.build(refine(encoder, vectors) if refine else vectors)
    with holding(path), whole_folder(path, "bundle", own_files, inputs=inputs) as fresh:
        encoder.write(fresh / STUDENT)
        index.save(fresh / INDEX)
        write_labels(fresh / LABELS, labels)
        if calibrator is not None:
            calibrator.save(fresh / CALIBRATOR)
        manifest = Manifest(
            format=PATHS_FORMAT if related.forest else FORMAT,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={
                name: version(name) for name in ("ezxmc", "sentence-transformers", "torch", "faiss-cpu")
            },
            labels=len(labels),
            dimension=index.dimension,
            max_length=max_length,
            k=k,
            origin=origin or {},
            files=hashes(fresh),
            index=index.summary,
        )
        write_manifest(fresh, manifest)
        check_files(fresh, manifest, contents=False)
    return manifest


def load_bundle(
    path: str | Path, *, verify: bool = True, backend: Backend = "torch", precision: Precision = "float32"
) -> Bundle:
    """Open a bundle, for reading only; the folder may be read-only.

    All of it is read into memory: whatever is done to the folder later, it answers as it did.

    Args:
        path: The folder.
        verify: Compare every file with its hash first (about a second per 500 MB).
        backend: What runs the student, see `BiEncoder`.
        precision: Of its arithmetic, see `BiEncoder`.

    Raises:
        BundleError: Not a bundle, a file missing, changed, unreadable or able to run code, or written by a
            newer version.
    """
    path = Path(path)
    return _whole(path, lambda manifest: _open(path, manifest, verify, backend, precision))


def open_labels(path: Path) -> tuple[list[Label], LabelIndex, Decision | None]:
    """What a bundle answers with, its index and its decision, without opening its student.

    Every file is compared with its hash; raises as `load_bundle`.
    """

    def read(manifest: Manifest) -> tuple[list[Label], LabelIndex, Decision | None]:
        _warn_of(path, check_files(path, manifest, contents=True))
        files, (labels, index) = manifest.places(path), _labels(path, manifest)
        decision = Decision.load(files[DECISION]).among(index.size) if DECISION in files else None
        return [labels[row] for row in index.rows.tolist()], index, decision

    return _whole(path, read)


def _whole(path: Path, read: Callable[[Manifest], _Read]) -> _Read:
    """What is read from a bundle that others may change: all of it from one and the same."""
    while True:
        manifest = read_manifest(path)
        try:
            found = read(manifest)
        except (BundleError, OSError) as error:
            # Its files may have been replaced by another process while they were read.
            if read_manifest(path) != manifest:
                continue
            if isinstance(error, OSError):
                raise BundleError(f"bundle {path} cannot be read: {error}", "copy it again, whole") from None
            raise
        # Else it may hold files of two bundles.
        if read_manifest(path) == manifest:
            return found


def _open(path: Path, manifest: Manifest, contents: bool, backend: Backend, precision: Precision) -> Bundle:
    strays = check_files(path, manifest, contents=contents, backend=backend)
    _warn_of(path, strays)
    files, (labels, index) = manifest.places(path), _labels(path, manifest)
    encoder: BiEncoder
    if backend == "static":
        from ezxmc.retrieval.static import StaticEncoder

        check_static(path, manifest)
        encoder = StaticEncoder(path / STATIC, max_length=manifest.max_length, precision=precision)
        # Probabilities are of its own scores, and nobody has proven a promise of them.
        files.pop(DECISION, None)
        if CALIBRATOR in files:
            files[CALIBRATOR] = path / STATIC / CALIBRATOR
    else:
        from ezxmc.retrieval import BiEncoder

        encoder = BiEncoder(
            path / STUDENT, max_length=manifest.max_length, backend=backend, precision=precision
        )
    if encoder.dimension != index.dimension:
        raise BundleError(
            f"bundle {path}: the index (of dimension {index.dimension}) does not fit the student "
            f"({encoder.dimension})",
            "make it again with `ezxmc index`",
        )
    calibrator = Calibrator.load(files[CALIBRATOR]) if CALIBRATOR in files else None
    decision = Decision.load(files[DECISION]).among(index.size) if DECISION in files else None
    head = open_head(files[HEAD], index, encoder) if HEAD in files else None
    offsets = None
    if OFFSETS in files:
        from ezxmc.retrieval.label_offsets import LabelOffsets

        offsets = LabelOffsets.load(files[OFFSETS]).on(labels, index)
    # Calibrators of former bundles were fitted to flat scores.
    paths = Ancestry.of(labels, index.rows) if manifest.format >= PATHS_FORMAT else None
    parts = calibrator, decision, head, offsets, paths, tuple(strays)
    return Bundle(path, manifest, encoder, index, labels, *parts)


def _warn_of(path: Path, strays: Sequence[str]) -> None:
    if strays:
        # Of whoever called `load_bundle` or `open_labels`.
        warnings.warn(f"bundle {path}: not part of it, and ignored: {', '.join(strays)}", stacklevel=6)


def _labels(path: Path, manifest: Manifest) -> tuple[list[Label], LabelIndex]:
    """The labels of a bundle, removed ones included, and their vectors."""
    files = manifest.places(path)
    labels = read_labels(files[LABELS])
    index = LabelIndex.load(files[INDEX], changes=files.get(CHANGES), mmap=False)
    told, found = (manifest.labels, manifest.dimension), (index.size, index.dimension)
    if len(labels) != index.total or told != found:
        raise BundleError(
            f"bundle {path}: {len(labels)} labels do not fit {index.total} vectors, or {MANIFEST} (labels, "
            f"dimension: {told}) the index {found}",
            "make it again with `ezxmc index`",
        )
    return labels, index


def add_calibrator(
    path: str | Path, calibrator: Calibrator, *, offsets: LabelOffsets | None = None, by_run: bool = False
) -> None:
    """Put a calibrator into a bundle, or replace the one it has, and with it the label offsets.

    A decision in it goes: it was made on the former probabilities.

    Args:
        path: The bundle.
        calibrator: Fitted to its scores, with the offsets.
        offsets: What people's decisions add to scores; former ones go where none are given.
        by_run: Whether a run fits it as a matter of course, and may do so again; what a person had fitted,
            it leaves alone.

    Raises:
        BundleError: `path` holds no readable bundle, or cannot be written.
    """
    saves = {CALIBRATOR: calibrator.save} | ({OFFSETS: offsets.save} if offsets else {})
    _put(Path(path), saves, voided=[DECISION, OFFSETS], by_run=by_run)


def add_decision(path: Path, decision: Decision) -> None:
    """Put a decision into a bundle, or replace the one it has; raises as `add_calibrator`."""
    _put(path, {DECISION: decision.save})


def _put(
    path: Path,
    saves: Mapping[str, Callable[[Path], None]],
    *,
    voided: Sequence[str] = (),
    by_run: bool | None = None,
) -> None:
    with writing(path) as manifest:
        names = {part: manifest.new_name(part) if manifest.file(part) else part for part in saves}
        for part, save in saves.items():
            save(path / names[part])
        if by_run is not None:
            # Its hash: what a release that knows nothing of this puts in is not taken for it.
            maker = {CALIBRATOR: file_hash(path / names[CALIBRATOR]) if by_run else "people"}
            manifest = manifest.model_copy(update={"origin": {**manifest.origin, **maker}})
        commit(path, manifest, names.values(), manifest.holding(dict.fromkeys([*saves, *voided])))


def add_student_files(path: Path, files: Mapping[str, Path], *, folder: str = STUDENT) -> None:
    """Move converted forms of the student into a bundle.

    Args:
        path: The bundle.
        files: Finished files on the same file system, by name below `folder`, such as
            `onnx/embedding_int8.onnx`. A file of that name is replaced.
        folder: `student`; or `static`, of which nothing else stays.

    Raises:
        BundleError: `path` holds no readable bundle, cannot be written, or a file may not be in one.
    """
    placed = {f"{folder}/{name}": file for name, file in files.items()}
    check_names(path, placed)
    with writing(path) as manifest:
        # The manifest must never describe another file than the one in place.
        whole = (f"{STATIC}/",) if folder == STATIC else ()
        if replaced := [name for name in manifest.files if name in placed or name.startswith(whole)]:
            manifest = commit(path, manifest, [], replaced)
        for name, file in placed.items():
            make_folder((path / name).parent)
            file.replace(path / name)
        commit(path, manifest, placed)
