"""A disk that fails, or a process that ends, at a chosen one of all touches of the disk below a folder."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Kind = Literal["full", "failing", "killed", "small"]
KINDS: tuple[Kind, ...] = ("full", "failing", "killed", "small")
KILLED = 137
_WRITING = os.O_WRONLY | os.O_RDWR
_TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Fault:
    """Waits in this process until its turn; it cannot be taken away again, so let the process be a child.

    Files opened for writing, moved, deleted, made and synced are counted, and commits of SQLite.

    Args:
        root: What is below it counts.
        kind: An error of the disk ("full": ENOSPC, "failing": EIO), the end of the process, or "small": no
            file may grow beyond `at` bytes, whoever writes it.
        at: Which touch, from 1; 0: none.
    """

    def __init__(self, root: Path, kind: Kind, at: int) -> None:
        self._root, self._kind, self._at, self.touches = str(root.resolve()), kind, at, 0
        if kind == "small" and at:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
            self._at = 0
        sys.addaudithook(self._audit)
        sync, fault = os.fsync, self

        def fsync(number: int) -> None:
            if self._below(Path(f"/proc/self/fd/{number}").readlink()):
                self._touch()
            sync(number)

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                if statement == "COMMIT":
                    fault._touch(sqlite3.OperationalError)
                return super().execute(statement, *values)

        connect: Callable[..., sqlite3.Connection] = sqlite3.connect
        os.fsync = fsync
        sqlite3.connect = lambda *values, **options: connect(*values, **options, factory=Connection)

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        written = event == "open" and isinstance(values[2], int) and values[2] & _WRITING
        if (written or event in _TOUCHES) and self._below(values[0]):
            self._touch()

    def _below(self, path: object) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(self._root)

    def _touch(self, error: type[Exception] | None = None) -> None:
        self.touches += 1
        if self.touches != self._at:
            return
        if self._kind == "killed":
            os._exit(KILLED)
        if error:
            raise error("disk I/O error")
        number = errno.ENOSPC if self._kind == "full" else errno.EIO
        raise OSError(number, os.strerror(number))
