"""The deliverable: a plain folder with everything inference needs, checked when it is opened.

bundle/student/         a SentenceTransformer folder
bundle/labels.jsonl     uid, title, text, aliases, parent; row i is vector i
bundle/index.faiss      label vectors
bundle/calibrator.json  scores to probabilities (absent until calibrated)
bundle/manifest.json    versions, settings, the SHA-256 of every other file
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ezxmc.calibration import Calibrator
from ezxmc.errors import BundleError
from ezxmc.hashing import file_hash
from ezxmc.records import Label
from ezxmc.retrieval import BiEncoder, LabelIndex

FORMAT = 1
Refine = Callable[[BiEncoder, NDArray[np.float32]], NDArray[np.float32]]
"""From an encoder and its (L, D) vectors of the titles to better ones."""
_STUDENT, _LABELS, _INDEX, _CALIBRATOR = "student", "labels.jsonl", "index.faiss", "calibrator.json"
_MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What a bundle says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    created: str
    versions: dict[str, str]
    labels: int
    dimension: int
    max_length: int
    k: int
    origin: dict[str, str]
    """Where it comes from, in words: teacher, initial encoder."""
    files: dict[str, str]
    """SHA-256 by file name, relative to the bundle."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle."""

    path: Path
    manifest: Manifest
    encoder: BiEncoder
    index: LabelIndex
    labels: list[Label]
    calibrator: Calibrator | None


def save_bundle(
    path: Path,
    student: Path | str,
    labels: Sequence[Label],
    *,
    max_length: int,
    k: int,
    calibrator: Calibrator | None = None,
    origin: dict[str, str] | None = None,
    refine: Refine | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Encode the labels, index them and write a whole bundle in one step.

    It is built beside `path` and moved into place when complete: a killed
    writer leaves the former bundle, if any, or none.

    Args:
        path: The bundle's folder; an older bundle there is replaced.
        student: A SentenceTransformer folder or hub id.
        labels: L labels, in index order.
        max_length: Tokens of a document the student reads.
        k: Labels per document answered by default.
        calibrator: Scores to probabilities, if fitted already.
        origin: What the bundle was made from, for its manifest.
        refine: Applied before the vectors are indexed.
        progress: Called with (labels encoded, L).

    Raises:
        BundleError: `path` is taken by something that is no bundle.
    """
    if path.exists() and not (path / _MANIFEST).exists() and (path.is_file() or any(path.iterdir())):
        raise BundleError(f"{path} exists and is no bundle", "choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    encoder = BiEncoder(student, max_length=max_length)
    fresh.mkdir()
    encoder.save(fresh / _STUDENT)
    vectors = encoder.encode_labels([label.title for label in labels], progress=progress)
    index = LabelIndex(refine(encoder, vectors) if refine else vectors)
    index.save(fresh / _INDEX)
    with (fresh / _LABELS).open("w", encoding="utf-8") as handle:
        for label in labels:
            handle.write(json.dumps(asdict(label), ensure_ascii=False) + "\n")
    if calibrator is not None:
        calibrator.save(fresh / _CALIBRATOR)
    manifest = Manifest(
        format=FORMAT,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("ezxmc", "sentence-transformers", "torch", "faiss-cpu")},
        labels=len(labels),
        dimension=index.dimension,
        max_length=max_length,
        k=k,
        origin=origin or {},
        files=_hashes(fresh),
    )
    (fresh / _MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    former = path.with_name(f".{path.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if path.exists():
        path.rename(former)
    fresh.rename(path)
    shutil.rmtree(former, ignore_errors=True)
    return manifest


def add_calibrator(path: Path, calibrator: Calibrator) -> None:
    """Put a calibrator into a bundle, or replace the one it has.

    Killed halfway, it leaves a bundle with the former calibrator, none, or the new one.

    Raises:
        BundleError: `path` holds no readable bundle.
    """
    manifest = _manifest(path)
    fresh = path / f".{_CALIBRATOR}.new"
    calibrator.save(fresh)
    others = {name: hashed for name, hashed in manifest.files.items() if name != _CALIBRATOR}
    if others != manifest.files:
        # The manifest must never describe another calibrator than the one beside it.
        _rewrite(path, manifest, others)
    hashes = {**others, _CALIBRATOR: file_hash(fresh)}
    fresh.replace(path / _CALIBRATOR)
    _rewrite(path, manifest, hashes)


def _rewrite(path: Path, manifest: Manifest, hashes: dict[str, str]) -> None:
    fresh = path / f".{_MANIFEST}.new"
    fresh.write_text(manifest.model_copy(update={"files": hashes}).model_dump_json(indent=2) + "\n", "utf-8")
    fresh.replace(path / _MANIFEST)


def load_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open a bundle.

    Args:
        path: The folder.
        verify: Compare every file with its hash first (about a second per 500 MB).

    Raises:
        BundleError: Not a bundle, a file missing, changed or unreadable, or
            written by a newer version.
    """
    path = Path(path)
    manifest = _manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"bundle {path}: {name} is missing", "copy the bundle again, whole")
        if verify and file_hash(file) != expected:
            raise BundleError(
                f"bundle {path}: {name} is not the file the manifest describes",
                "copy the bundle again, or make a new one with `ezxmc index`",
            )
    labels = [
        Label(**{**row, "aliases": tuple(row["aliases"])})
        for row in map(json.loads, (path / _LABELS).read_text(encoding="utf-8").splitlines())
    ]
    index = LabelIndex.load(path / _INDEX)
    if not len(labels) == index.size == manifest.labels:
        raise BundleError(f"bundle {path}: {len(labels)} labels but {index.size} vectors", "make it again")
    return Bundle(
        path,
        manifest,
        BiEncoder(path / _STUDENT, max_length=manifest.max_length),
        index,
        labels,
        Calibrator.load(path / _CALIBRATOR) if _CALIBRATOR in manifest.files else None,
    )


def _manifest(path: Path) -> Manifest:
    try:
        raw = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise BundleError(
                f"bundle {path} has format {raw['format']}, this ezxmc reads {FORMAT}", "upgrade"
            )
        return Manifest.model_validate(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{path} is no bundle: it has no {_MANIFEST}", "make one with `ezxmc run`"
        ) from None
    except (ValueError, ValidationError) as error:
        raise BundleError(
            f"bundle {path}: {_MANIFEST} is damaged: {error}", "copy the bundle again"
        ) from None


def _hashes(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): file_hash(file) for file in sorted(root.rglob("*")) if file.is_file()
    }
