"""What outlives a power cut: files and names that are on the disk before anything counts on them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_TEMPORARY = re.compile(r"\.ezxmc-[0-9a-f]{32}")
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def sync(path: Path) -> None:
    """Let a file's content, or the names in a folder, outlive a power cut.

    Raises:
        OSError: The disk could not take it.
    """
    with suppress(FileNotFoundError, PermissionError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:
            # Network file systems and some others have no such call for folders.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
                raise
        finally:
            os.close(number)


def sync_tree(path: Path) -> None:
    """`sync` a file or all of a folder, with its name."""
    if path.is_dir():
        for part in path.rglob("*"):
            if not part.is_symlink():
                sync(part)
    sync(path)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, that outlive a power cut; one may be there already."""
    new = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync(place.parent)


def exchange(one: Path, other: Path) -> None:
    """Let two folders of one file system change places.

    On Linux in one step: neither name is ever missing. Elsewhere, or on a file
    system that cannot, `other` is missing for a moment.

    Args:
        one: A folder.
        other: A folder, or nothing: then `one` moves there.

    Raises:
        OSError: They cannot be moved.
    """
    try:
        if not other.exists():
            one.rename(other)
            return
        with suppress(AttributeError, OSError, TypeError):  # no such call here
            rename = ctypes.CDLL(None).renameat2
            if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
                return
        beside = one.with_name(temporary())
        other.rename(beside)
        one.rename(other)
        beside.rename(one)
    finally:
        # In this order: rather in both places than in none.
        sync(other.parent)
        sync(one.parent)


def temporary() -> str:
    """A file name that nobody has."""
    return f".ezxmc-{uuid4().hex}"


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `temporary`: a killed writer left it, or another is at work."""
    return _TEMPORARY.match(name) is not None


@contextmanager
def disk_errors() -> Iterator[None]:
    """Errors of the disk come out as `OSError`; safetensors and tokenizers raise classes of their own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or "(os error" not in str(error):
            raise
        raise OSError(str(error)) from error
