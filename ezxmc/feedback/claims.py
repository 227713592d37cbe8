"""Which pairs a process has in hand, told to other processes on the same store.

One byte of an empty file beside the store is locked for each pair a teacher is
being asked about. The operating system gives a dead process's locks back, so
no claim outlives its owner and no clock is needed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ezxmc.errors import StoreError


class Claims:
    """The pairs this process is asking about.

    Locks belong to a process: they part processes, not the threads of one.

    Args:
        store: The feedback store's file.

    Raises:
        StoreError: The file of claims cannot be made.
    """

    def __init__(self, store: Path) -> None:
        self.path = store.with_name(f"{store.name}-asking")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(f"{self.path}: {error}", "put the store into a writable folder") from error

    def take(self, key: str) -> bool:
        """Claim a pair; false if another process has it in hand."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreError(
                f"{self.path}: {error}", "put the store on a file system that has locks"
            ) from error
        return True

    def release(self, key: str) -> None:
        """Give a claimed pair back, once its judgment is stored or its turn has passed."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(key))

    def close(self) -> None:
        """Give everything back."""
        os.close(self._file)


def _place(key: str) -> int:
    """A file offset for a key; equal ones (2^-60) only make one process wait for the other."""
    return int(key[:15], 16)
