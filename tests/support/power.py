"""A disk that keeps only what was synced: what would be there after a power cut, at any moment of a test."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

_Node = tuple[int, int]


class Disk:
    """What of a folder outlives a power cut, if the file system keeps no more than it has to.

    A file's content is what it was when it was synced last, a folder's names what they were when the folder
    was. All that is there at the start is safe, and what SQLite writes, which syncs by itself, is left out.

    Args:
        root: The folder.
        look: Called after each sync.
    """

    def __init__(self, root: Path, look: Callable[[Disk], None] = lambda disk: None) -> None:
        self.root, self._look = root.resolve(), look
        self._files: dict[_Node, bytes] = {}
        self._folders: dict[_Node, dict[str, _Node]] = {}
        self._held: list[int] = []
        self.syncs = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, `os.fsync` is noted, and not done."""
        for path in (self.root, *self.root.rglob("*")):
            self._note(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", self._sync)
            try:
                yield
            finally:
                for number in self._held:
                    os.close(number)

    def _sync(self, number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        if path.is_relative_to(self.root):
            self._note(path)
            self.syncs += 1
            self._look(self)

    def _note(self, path: Path) -> None:
        # Held open, so that nothing else gets its number.
        self._held.append(os.open(path, os.O_RDONLY))
        about = os.fstat(self._held[-1])
        if stat.S_ISDIR(about.st_mode):
            self._folders[_node(about)] = {entry.name: _node(entry.stat()) for entry in os.scandir(path)}
        else:
            self._files[_node(about)] = path.read_bytes()

    def kept(self) -> dict[str, bytes | None]:
        """After a power cut: files by name with their content, folders with `None`."""
        return dict(self._below(_node(self.root.stat()), ""))

    def _below(self, folder: _Node, above: str) -> Iterator[tuple[str, bytes | None]]:
        for name, node in self._folders.get(folder, {}).items():
            if node in self._folders:
                yield f"{above}{name}", None
                yield from self._below(node, f"{above}{name}/")
            elif not _left_out(name):
                # Of one that was never synced, the name alone may be there.
                yield f"{above}{name}", self._files.get(node, b"")

    def live(self) -> dict[str, bytes | None]:
        """The same of what is there now."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
            if not _left_out(path.name)
        }


def whole_bundle(kept: Mapping[str, bytes | None], place: str) -> str | None:
    """Check that a bundle is whole if it is there; the hash of its manifest."""
    manifest = kept.get(f"{place}/manifest.json")
    if manifest is None:
        return None
    for name, digest in json.loads(manifest)["files"].items():
        data = kept.get(f"{place}/{name}")
        assert data is not None and sha256(data).hexdigest() == digest, f"{place}/{name} is not whole"
    return sha256(manifest).hexdigest()


def _left_out(name: str) -> bool:
    return name == ".lock" or ".sqlite" in name


def _node(about: os.stat_result) -> _Node:
    return about.st_dev, about.st_ino
