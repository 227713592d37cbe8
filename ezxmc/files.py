"""Files and folders that are whole or not there, and never in the place of what is somebody else's.

Whoever writes checks the place first, before any work:

- an existing file is replaced only if it is empty, or its *content* is what the same writer makes (`made`);
- an existing folder is replaced only if its own manifest is in it and lists every file (`own`);
- an input is never replaced, whatever it is called: a link, another spelling, a folder around it.

Then all is written beside the place, under a name nobody else can have, synced to the
disk, and moved there in one step: a failing command, or a power cut, leaves what was there before.

`package_files` are those that come with the package: in the wheel, or beside it in a source checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import glob
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from filelock import FileLock, Timeout

from ezxmc.disk import exchange, is_temporary, make_folder, sync, sync_tree, temporary
from ezxmc.errors import ConfigError, DataError, EzxmcError
from ezxmc.hashing import file_hash, text_hash


def package_files(folder: str, pattern: str) -> dict[str, Path]:
    """Files by name without its ending, in order.

    Args:
        folder: Its name in the checkout; in the wheel it is inside the package, with `_` before the name.
        pattern: Of the files, such as `*.md`.
    """
    package = Path(str(files("ezxmc")))
    for place in (package / f"_{folder}", package.parent / folder):
        if place.is_dir():
            return {path.stem: path for path in sorted(place.glob(pattern))}
    return {}


Made = Callable[[Path], bool]
"""Whether an existing file is one that its writer may replace, by its content."""
Own = Callable[[Path], Collection[str] | None]
"""Files of an existing folder that ezxmc made, relative to it; `None`: the folder is not ezxmc's."""
Inputs = Iterable[str | Path | None]

MANIFEST = "ezxmc.json"
"""In a folder that ezxmc made and that has no manifest of another form: of what kind, and its files."""
_UNFINISHED = "unfinished"
_OTHER = "choose another name, or remove it yourself"


def check_file(out: str | Path, what: str, *, made: Made | None = None, inputs: Inputs = ()) -> None:
    """Whether a file may be written, before the work that fills it.

    Args:
        out: The file. What is no plain file (a pipe, a device) is written to as it is.
        what: What will be in it, as in "a report".
        made: Tells its writer's own files; without it, no existing file is replaced.
        inputs: Files and folders that are read; "-", `None` and what is not there are passed over.

    Raises:
        ConfigError: A folder, an input or something else is in the place, or no file can be made there.
    """
    place = place_of(out)
    if place.is_dir():
        refuse(f"{out} is a folder, and {what} is a file", f"name a file, such as {Path(out) / 'out'}")
    for source in present(inputs):
        if place.exists() and source.samefile(place):
            refuse(f"{out} is one of the inputs", "choose another name for the output")
        if source.is_dir() and place.is_relative_to(source.resolve()):
            refuse(f"{out} would be written into the input {source}", "choose another place for the output")
    if is_stream(place):
        return
    _check_parent(out, place)
    if place.exists() and place.stat().st_size and not (made and made(place)):
        refuse(f"{out} exists and is not {what} that ezxmc wrote", _OTHER)


def check_folder(out: str | Path, what: str, own: Own, *, inputs: Inputs = ()) -> None:
    """Whether a folder may be written, before the work that fills it.

    Args:
        out: The folder.
        what: What it will be, as in "bundle".
        own: Tells an existing one.
        inputs: As for `check_file`.

    Raises:
        ConfigError: A file, the present folder, an input, or something that ezxmc
            did not make would be replaced, or no folder can be made there.
    """
    place = place_of(out)
    if Path.cwd().is_relative_to(place):
        refuse(
            f"{out} is the folder you are in, or one above it, and would be replaced",
            f"name a new folder for the {what}",
        )
    if place.exists() and not place.is_dir():
        refuse(f"{out} is a file, and a {what} is a folder", "name a new folder")
    if place.is_mount():
        refuse(f"{out} is where a disk is mounted: it cannot be replaced", "name a new folder in it")
    for source in present(inputs):
        if source.resolve().is_relative_to(place):
            refuse(f"the input {source} is in {out}, which would be replaced", "name a new folder")
    _check_parent(out, place)
    if not place.is_dir() or not any(place.iterdir()):
        return
    names = own(place)
    if names is None:
        refuse(
            f"{out} exists and is no {what} that ezxmc made", "name a new folder, or remove this one yourself"
        )
    known = set(names)
    if foreign := [name for name in _entries(place) if name not in known and not is_temporary(name)]:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        refuse(
            f"{out} holds what ezxmc did not make, or what was changed since: {', '.join(foreign[:3])}{more}",
            "move it out, or name a new folder",
        )


@contextmanager
def replacing(out: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `out` in one step at the end; nothing is asked.

    For files of a folder that is ezxmc's own; everywhere else, use `whole_file`.
    Several writers may write one path at once: the last counts.

    Args:
        out: The file; its folder is made if absent.

    Raises:
        DataError: The file cannot be written.
    """
    place = place_of(out)
    fresh = place.with_name(temporary())
    try:
        make_folder(place.parent)
        yield fresh
        with suppress(OSError):
            shutil.copymode(place, fresh)
        sync(fresh)
        fresh.replace(place)
        sync(place.parent)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            cure = "is the folder writable, the disk full?"
            raise DataError(f"{out} cannot be written: {error}", cure) from error
        raise


@contextmanager
def whole_file(
    out: str | Path, what: str, *, made: Made | None = None, inputs: Inputs = ()
) -> Iterator[Path]:
    """`check_file`, then `replacing`; what came to the place meanwhile is looked at again.

    Raises:
        ConfigError: As for `check_file`.
        DataError: The file cannot be written.
    """
    check_file(out, what, made=made, inputs=inputs)
    place = place_of(out)
    if is_stream(place):
        yield place
        return
    before = state_of(place)
    with replacing(out) as fresh:
        yield fresh
        if state_of(place) != before:
            check_file(out, what, made=made)


@contextmanager
def sole_writer(out: str | Path) -> Iterator[None]:
    """Keep another process from long work on the same file or folder; the lock goes with the process.

    Raises:
        ConfigError: Another process has it in hand, or no file can be made there.
    """
    place = place_of(out)
    if is_stream(place):
        yield
        return
    path = place.with_name(f".ezxmc-{text_hash(place.name)[:32]}")
    lock = FileLock(path, blocking=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        refuse(f"another process is writing {out}", "wait for it, or choose another name")
    except OSError as error:
        refuse(f"{out} cannot be written: {error}", "choose another place")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is given back: nobody may lock it again
        lock.release()


def loads(load: Callable[[Path], object]) -> Made:
    """Tells files that a function reads without an `EzxmcError`."""

    def made(path: Path) -> bool:
        try:
            load(path)
        except (EzxmcError, OSError):
            return False
        return True

    return made


def write_file(out: str | Path, data: bytes, what: str, *, made: Made | None = None) -> None:
    """Write a whole file; raises as `whole_file`."""
    with whole_file(out, what, made=made) as fresh:
        fresh.write_bytes(data)


@contextmanager
def whole_folder(out: str | Path, what: str, own: Own, *, inputs: Inputs = ()) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `out` in one step at the end.

    Raises:
        ConfigError: As for `check_folder`, now or at the end.
        OSError: The folder cannot be written.
    """
    check_folder(out, what, own, inputs=inputs)
    place = place_of(out)
    make_folder(place.parent)
    _sweep(place.parent)
    work = place.with_name(temporary())
    work.mkdir()
    try:
        told = {"ezxmc": _UNFINISHED, "host": socket.gethostname(), "process": os.getpid()}
        (work / MANIFEST).write_text(json.dumps(told), encoding="utf-8")
        fresh = work / place.name
        fresh.mkdir()
        yield fresh
        try:
            check_folder(out, what, own)
        except ConfigError as error:
            saved = place.with_name(f"{place.name}-{uuid4().hex[:8]}")
            fresh.rename(saved)
            raise ConfigError(f"{error.message}; the new {what} is in {saved}", error.cure) from None
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
        sync_tree(fresh)
        exchange(fresh, place)
    finally:
        # What is there now is the former folder, or what could not be finished.
        shutil.rmtree(work, ignore_errors=True)


def sign(folder: Path, kind: str, files: Mapping[str, str] | None = None) -> None:
    """Put a manifest into a folder.

    Args:
        folder: The folder.
        kind: What it is.
        files: SHA-256 by name of what ezxmc makes in it; by default, of every file.
    """
    if files is None:
        files = {name: file_hash(folder / name) for name in _entries(folder) if name != MANIFEST}
    with replacing(folder / MANIFEST) as fresh:
        fresh.write_text(json.dumps({"ezxmc": kind, "files": files}, indent=1) + "\n", encoding="utf-8")


def signed(folder: Path, kind: str) -> dict[str, str] | None:
    """SHA-256 by name of the files that `sign` found in a folder; `None` if it is not of this kind."""
    told = json_object(folder / MANIFEST)
    files = told.get("files")
    if told.get("ezxmc") != kind or not isinstance(files, dict):
        return None
    return {str(name): str(digest) for name, digest in files.items()}


def unchanged(folder: Path, kind: str) -> list[str] | None:
    """Of a signed folder (else `None`): the manifest, and the files that are as they were signed."""
    files = signed(folder, kind)
    if files is None:
        return None
    kept = (name for name, digest in files.items() if (folder / name).is_file())
    return [MANIFEST, *(name for name in kept if file_hash(folder / name) == files[name])]


def remove_own(folder: Path, own: Callable[[str], bool]) -> None:
    """Delete the files of a folder that are ezxmc's, and the folders that are empty then; all else stays."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for name in _entries(folder):
        if own(name) or is_temporary(Path(name).name):
            with suppress(OSError):
                (folder / name).unlink()
    below = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in (*sorted(below, reverse=True), folder):
        with suppress(OSError):
            path.rmdir()


def remove_shards(folder: Path) -> None:
    """Remove what workers left for their driver, named by its content's hash."""
    remove_own(folder, lambda name: re.fullmatch(r"[0-9a-f]{64}\.(json|npy)", name) is not None)


def json_line(row: dict[str, Any]) -> bytes:
    """A row as one line of UTF-8."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def refuse(message: str, cure: str) -> NoReturn:
    """Raise ConfigError: nothing may be written there."""
    raise ConfigError(message, cure)


def place_of(out: str | Path) -> Path:
    """Where a file will be: behind links, so that a link stays one."""
    try:
        path = Path(out)
        # A pipe behind /dev/fd has no other name.
        return path.absolute() if is_stream(path) else path.resolve()
    except (OSError, RuntimeError) as error:
        refuse(f"{out} cannot be written: {error}", "choose another place")


def present(inputs: Inputs) -> Iterator[Path]:
    """The inputs that are files or folders here."""
    for source in inputs:
        if source is None or str(source) == "-":
            continue
        with suppress(OSError, ValueError):
            if (path := Path(source).expanduser()).exists():
                yield path
            else:
                yield from map(Path, glob(str(path)))  # noqa: PTH207 (absolute patterns, too)


def is_stream(place: Path) -> bool:
    """Whether a path is something to write into, not a file to replace."""
    return place.exists() and not place.is_file() and not place.is_dir()


def _check_parent(out: str | Path, place: Path) -> None:
    above = place.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        refuse(f"{out} cannot be written: {above} is a file", "choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        refuse(f"{out} cannot be written: the folder {above} is not writable", "choose another place")


def state_of(place: Path) -> tuple[int, ...] | None:
    """What changes when a file is written, or is another file; `None` where there is none."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _entries(folder: Path) -> list[str]:
    """Files and links below a folder, by name relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def json_object(file: Path) -> dict[str, Any]:
    """What a file of JSON holds; nothing where it is missing, damaged, or no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sweep(parent: Path) -> None:
    """Take away what a killed writer of this machine left unfinished."""
    for folder in parent.glob(".ezxmc-*"):
        told = json_object(folder / MANIFEST) if folder.is_dir() else {}
        process = told.get("process")
        if told.get("ezxmc") == _UNFINISHED and told.get("host") == socket.gethostname():
            try:
                os.kill(int(str(process)), 0)
            except (ProcessLookupError, ValueError):
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                continue  # alive, and somebody else's
