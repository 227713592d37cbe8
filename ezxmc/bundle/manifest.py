"""The plain files of a bundle: manifest and labels, how they change, and the checks before they are read.

A bundle may come from anywhere. Nothing in it is run: no pickle, no module of its own, no class but
sentence-transformers' own, no path that leaves the folder. Hashes find what was damaged; they do not say
who made it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend
from ezxmc.disk import is_temporary, sync_tree
from ezxmc.errors import BundleError, ModelError
from ezxmc.files import Inputs, check_folder, replacing
from ezxmc.hashing import file_hash, json_hash
from ezxmc.models.trust import check_encoder, read_json
from ezxmc.records import Label

FORMAT, HEAD_FORMAT, OFFSETS_FORMAT, PATHS_FORMAT = 2, 3, 4, 5
"""1: an exact index, all labels in use. 2: any kind of index, labels that came and went, a decision.
3: with a head, 4: with label offsets, 5: made of a hierarchy, scores raised along paths. Who does not know
of these would rank otherwise than the calibrator was fitted for."""
MANIFEST, STUDENT = "manifest.json", "student"
LABELS, INDEX, CHANGES = "labels.jsonl", "index.faiss", "index.npz"
CALIBRATOR, DECISION, HEAD = "calibrator.json", "decision.json", "head.safetensors"
OFFSETS = "offsets.safetensors"
STATIC, MADE_FROM = "static", "made.json"

_CONVERTED = f"{STUDENT}/onnx/"
_PARTS = (LABELS, INDEX, "index.json", CHANGES, CALIBRATOR, DECISION, HEAD, OFFSETS)
_SUFFIXES = frozenset(
    ".json .jsonl .txt .md .model .safetensors .faiss .npz .onnx .jinja".split()  # noqa: SIM905
)
_PATIENCE = 60.0  # seconds another writer may take
_CHANGE_A_COPY = "change a copy of it, writable and on a disk with room"
_COPY_AGAIN = "copy the bundle again, whole"


class Manifest(BaseModel):
    """What a bundle says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    created: str
    versions: dict[str, str]
    labels: int
    """How many can be answered."""
    dimension: int
    max_length: int
    k: int
    origin: dict[str, str]
    """Where it comes from, in words: teacher, initial encoder; `calibrator.json`: the SHA-256 of the
    one a run fitted as a matter of course, or `people`."""
    files: dict[str, str]
    """SHA-256 by file name, relative to the bundle, parts separated by `/`."""
    index: str | None = None
    """Kind of the label index, the reason, its recall: in words; None in format 1."""

    def file(self, part: str) -> str | None:
        """The file that holds a part now: `labels.jsonl` at first, `labels.r1.jsonl` after a change."""
        found = [name for name in self.files if _revision(name, part) is not None]
        return found[0] if len(found) == 1 else None

    def places(self, path: Path) -> dict[str, Path]:
        """The files of the parts there are, in a bundle at `path`."""
        return {part: path / name for part in _PARTS if (name := self.file(part))}

    def holding(self, parts: Iterable[str]) -> list[str]:
        """The files that hold these parts, where there are any."""
        return [name for part in parts if (name := self.file(part))]

    def new_name(self, part: str) -> str:
        """A name for a changed part, not in use."""
        used = [_revision(name, part) or 0 for name in self.files for part in _PARTS]
        stem, _, suffix = part.partition(".")
        return f"{stem}.r{1 + max(used, default=0)}.{suffix}"


def _revision(name: str, part: str) -> int | None:
    stem, _, suffix = part.partition(".")
    found = re.fullmatch(rf"{stem}(?:\.r(\d+))?\.{suffix}", name)
    return int(found[1] or 0) if found else None


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        BundleError: There is none, it is damaged, or of a newer format.
    """
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > PATHS_FORMAT:
            raise BundleError(
                f"bundle {path}: {MANIFEST} has format {raw['format']}, this ezxmc reads up to "
                f"{PATHS_FORMAT}",
                "upgrade ezxmc",
            )
        return Manifest.model_validate(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}", "make one with `ezxmc run`") from None
    except (ValueError, RecursionError, ValidationError) as error:
        raise BundleError(f"bundle {path}: {MANIFEST} is damaged: {error}", _COPY_AGAIN) from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest in one step: a reader sees the old one or the new one."""
    with replacing(path / MANIFEST) as fresh:
        fresh.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def own_files(path: Path) -> list[str] | None:
    """The files of a bundle that ezxmc made; `None` if there is no readable manifest of a bundle."""
    try:
        manifest = read_manifest(path)
    except BundleError:
        return None
    left = [file.relative_to(path).as_posix() for file in _leftovers(path, manifest)]
    return [MANIFEST, ".lock", *manifest.files, *left]


def check_bundle_place(path: str | Path, inputs: Inputs = ()) -> None:
    """Whether a bundle may be written to a folder, before the work for it.

    Raises:
        ConfigError: As for `ezxmc.files.check_folder`.
    """
    check_folder(path, "bundle", own_files, inputs=inputs)


def check_changeable(path: Path) -> None:
    """Whether a bundle can be changed, before the work for it.

    Raises:
        BundleError: There is no readable bundle, or its folder cannot be written.
    """
    read_manifest(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise BundleError(f"bundle {path} cannot be changed: its folder is not writable", _CHANGE_A_COPY)


def guarantee_of(path: Path) -> str | None:
    """What a bundle's decision guarantees, in words, without opening the bundle; `None` where it has none.

    Raises:
        BundleError: There is no readable bundle, or its decision is damaged.
    """
    name = read_manifest(path).file(DECISION)
    return Decision.load(path / name).guarantee if name else None


def hashes(path: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 by name of the named files, or of every file, below `path`."""
    if names is None:
        names = sorted(_files(path))
    return {name: file_hash(path / name) for name in names}


def _files(path: Path) -> list[str]:
    return [
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() or file.is_symlink()
    ]


def write_labels(file: Path, labels: Iterable[Label]) -> None:
    """Write labels as JSON lines."""
    with replacing(file) as fresh, fresh.open("w", encoding="utf-8", newline="\n") as handle:
        for label in labels:
            row: dict[str, Any] = {
                "uid": label.uid,
                "title": label.title,
                "text": label.text,
                "aliases": label.aliases,
                "parent": label.parent,
            }
            if label.count is not None:
                row["count"] = label.count
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_labels(file: Path) -> list[Label]:
    """Read what `write_labels` wrote.

    Raises:
        BundleError: The file is damaged.
    """
    try:
        with file.open(encoding="utf-8", newline="\n") as handle:
            rows = [json.loads(line) for line in handle]
        return [Label(**{**row, "aliases": tuple(row["aliases"])}) for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read: {error}", _COPY_AGAIN) from None


@contextmanager
def writing(path: Path) -> Iterator[Manifest]:
    """Hold a bundle for a change, after taking away what a killed writer left; gives its manifest.

    Raises:
        BundleError: There is no bundle, another process holds it, or it cannot be written.
    """
    read_manifest(path)
    try:
        with holding(path):
            manifest = read_manifest(path)
            for file in _leftovers(path, manifest):
                file.unlink()
            yield manifest
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be changed: {error}", _CHANGE_A_COPY) from None


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Keep other processes from changing or replacing a bundle; where there is none, nothing is held.

    Raises:
        BundleError: Another process holds it.
        OSError: It cannot be written.
    """
    lock = FileLock(path / ".lock", timeout=_PATIENCE)
    try:
        while (path / MANIFEST).is_file():
            folder = os.open(path, os.O_RDONLY)
            try:
                lock.acquire()
                # Who waited while the folder was replaced by another has the lock of the former one.
                if os.path.samestat(os.fstat(folder), path.stat()):
                    break
                lock.release()
            finally:
                os.close(folder)
    except Timeout:
        raise BundleError(f"another process is changing bundle {path}", "wait for it") from None
    try:
        yield
    finally:
        lock.release()


def commit(path: Path, manifest: Manifest, written: Iterable[str], former: Collection[str] = ()) -> Manifest:
    """Make written files part of the bundle, in one step.

    Args:
        path: The bundle.
        manifest: What it shall say, its `files` as they were.
        written: Names of files that are in the folder already.
        former: Names of files that go.

    Returns:
        The manifest now.

    Raises:
        BundleError: A written file may not be in a bundle.
    """
    kept = {name: hashed for name, hashed in manifest.files.items() if name not in former}
    written = list(written)
    for name in written:
        sync_tree(path / name)
    files = {**kept, **hashes(path, written)}
    manifest = manifest.model_copy(update={"files": files})
    grown = OFFSETS_FORMAT if manifest.file(OFFSETS) else HEAD_FORMAT if manifest.file(HEAD) else FORMAT
    if manifest.format < PATHS_FORMAT:
        manifest = manifest.model_copy(update={"format": grown})
    check_files(path, manifest, contents=False)
    write_manifest(path, manifest)
    for name in former:
        (path / name).unlink()
    return manifest


def _leftovers(path: Path, manifest: Manifest) -> list[Path]:
    """Files a killed writer left in a bundle."""
    return [
        path / name
        for name in set(_files(path)) - set(manifest.files)
        if name.startswith((_CONVERTED, f"{STATIC}/"))
        or is_temporary(name)
        or any(_revision(name, part) is not None for part in _PARTS)
    ]


def check_files(path: Path, manifest: Manifest, *, contents: bool, backend: Backend = "torch") -> list[str]:
    """Check a bundle's files against its manifest.

    Args:
        path: The bundle.
        manifest: Its manifest.
        contents: Compare the hashes too, which reads every byte.
        backend: What will be run: of a form of the student made for it nothing may lie there unlisted, as
            a killed writer leaves it.

    Returns:
        Names of files the manifest does not know. Nothing reads them.

    Raises:
        BundleError: A file is missing, changed, outside the bundle, or of a kind that could run code; or
            the student's folder holds more than is listed.
    """
    check_names(path, manifest.files)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"bundle {path}: {name} is missing", _COPY_AGAIN)
        if contents and file_hash(file) != expected:
            raise BundleError(
                f"bundle {path}: {name} is not the file the manifest describes",
                "copy the bundle again, or make a new one with `ezxmc index`",
            )
    for part in (LABELS, INDEX):
        if manifest.file(part) is None:
            raise BundleError(f"bundle {path}: {MANIFEST} does not list one {part}", _COPY_AGAIN)
    _check_student(path / STUDENT)
    strays = [name for name in _files(path) if name not in manifest.files and not name.startswith(".")]
    # Libraries read what they find in the student's folder, and the index what lies beside it.
    index = PurePosixPath(manifest.file(INDEX) or INDEX)
    beside = {str(index.with_suffix(".json"))}
    if manifest.file(CHANGES) is None:
        beside.add(str(index.with_suffix(".npz")))
    run = {"torch": (), "static": (f"{STATIC}/",)}.get(backend, (_CONVERTED,))
    for name in strays:
        in_student = name.startswith(f"{STUDENT}/") and not name.startswith(_CONVERTED)
        if in_student or name.startswith(run) or name in beside:
            raise BundleError(f"bundle {path}: {name} is not in the manifest", f"remove it, or {_COPY_AGAIN}")
    return sorted(set(strays) - {MANIFEST})


def made_from(manifest: Manifest) -> dict[str, str]:
    """What a static student depends on: hashes of the student, and of what makes scores probabilities."""
    student = {
        name: hashed
        for name, hashed in manifest.files.items()
        if name.startswith(f"{STUDENT}/") and not name.startswith(_CONVERTED)
    }
    scores = [manifest.files[name] for name in manifest.holding([CALIBRATOR, OFFSETS, HEAD])]
    return {"student": json_hash(student), "calibrator": json_hash(scores)}


def check_static(path: Path, manifest: Manifest) -> None:
    """Whether a bundle has a static student, made from the student and the calibrator there are.

    Raises:
        BundleError: It has none, or one of another student or calibrator.
    """
    again = f"`ezxmc export {path} --backend static --documents FILE` makes one"
    name = f"{STATIC}/{MADE_FROM}"
    if name not in manifest.files:
        raise BundleError(f"bundle {path} has no static student", again)
    try:
        told = json.loads((path / name).read_bytes())
    except (ValueError, RecursionError):
        told = None
    now = made_from(manifest)
    if not isinstance(told, dict) or (changed := [part for part in now if told.get(part) != now[part]]):
        what = " and ".join(changed) if isinstance(told, dict) else "student"
        raise BundleError(f"the static student of bundle {path} is of another {what}", again)


def check_names(path: Path, names: Iterable[str]) -> None:
    """Check that files of these names may be in a bundle.

    Raises:
        BundleError: A name leads out of the folder, or to a kind of file that could run code.
    """
    for name in names:
        plain = PurePosixPath(name)
        inside = str(plain) == name and not plain.is_absolute() and ".." not in plain.parts
        if not inside or re.search(r"[\\:\x00-\x1f]", name) or name == ".":
            raise BundleError(f"bundle {path}: {name!r} is no plain path inside the folder", _COPY_AGAIN)
        if not (path / name).resolve().is_relative_to(path.resolve()):
            raise BundleError(
                f"bundle {path}: {name} is a link that leaves the folder", "copy the file itself"
            )
        if plain.suffix not in _SUFFIXES:
            raise BundleError(
                f"bundle {path}: {name} is of a kind that may run code when it is read",
                "save the student's weights as safetensors and make the bundle again with `ezxmc index`",
            )


def _check_student(student: Path) -> None:
    if not (student / "modules.json").exists():
        raise BundleError(f"{student / 'modules.json'} cannot be read: it is missing", _COPY_AGAIN)
    try:
        check_encoder(student)
        documents = {file: read_json(file) for file in sorted(student.rglob("*config*.json"))}
    except ModelError as error:
        raise BundleError(error.message, error.cure) from None
    for file, settings in documents.items():
        if isinstance(settings, dict) and "auto_map" in settings:
            raise BundleError(
                f"{file} asks for code of its own (auto_map)", "make the bundle from a student without it"
            )


def labels_of(path: Path) -> list[Label]:
    """The labels a bundle answers with, without opening its student.

    Raises:
        BundleError: `path` holds no readable bundle.
    """
    from ezxmc.retrieval import LabelIndex

    manifest = read_manifest(path)
    check_files(path, manifest, contents=False)
    files = manifest.places(path)
    labels, index = read_labels(files[LABELS]), LabelIndex.load(files[INDEX], changes=files.get(CHANGES))
    # Whoever changes the bundle finds out whether the two fit.
    return [labels[row] for row in index.rows.tolist() if row < len(labels)]
