"""A run directory: one process at a time, stages done once, files written whole."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ezxmc.errors import ConfigError, DataError
from ezxmc.hashing import json_hash

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


class RunDir:
    """The folder a run keeps everything in.

    Args:
        path: Made if absent.

    Raises:
        ConfigError: The folder cannot be made or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spent = 0.0  # seconds of the stages done by this process
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir {path} cannot be made: {error}", "choose a writable folder") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; the lock goes with the process, however it ends.

        Raises:
            ConfigError: Another process holds it, or it is not writable.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is working in {self.path}", "wait for it, or choose another run_dir"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run_dir {self.path} is not writable: {error}", "choose another run_dir"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def cycle(self, number: int) -> Path:
        """The folder of one cycle, counted from 1."""
        folder = self.path / "cycles" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, name: str, text: str) -> None:
        """Write a file in one step: a reader sees the old one or the new one."""
        self._write(self.path / name, [text])

    def write_lines(self, target: Path, rows: Iterable[Any]) -> None:
        """Write JSON lines in one step."""
        self._write(target, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    @staticmethod
    def _write(target: Path, parts: Iterable[str]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.new")
        with fresh.open("w", encoding="utf-8") as handle:
            handle.writelines(parts)
        fresh.replace(target)

    def stage(
        self, name: str, inputs: Any, outputs: Sequence[Path], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do a stage, or return what it gave when its inputs were the same.

        Args:
            name: The stage's file below `stages/`.
            inputs: JSON of everything the result depends on.
            outputs: Files or folders the stage makes; if one is gone it is done again.
            make: Does the work; its files must be complete when it returns.

        Returns:
            What `make` returned, with the `wall_seconds` it took.
        """
        wanted = json_hash(inputs)
        path = self.path / "stages" / f"{name}.json"
        if path.exists():
            try:
                recorded = json.loads(path.read_text(encoding="utf-8"))
                if recorded["inputs"] == wanted and all(output.exists() for output in outputs):
                    return dict(recorded["result"])
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{path} is damaged", "delete this file: the stage is then done again"
                ) from None
        # From here on the outputs may be half new: nothing may call them done.
        path.unlink(missing_ok=True)
        started = time.monotonic()
        result = make()
        result["wall_seconds"] = time.monotonic() - started
        self.spent += result["wall_seconds"]
        self.write(f"stages/{name}.json", json.dumps({"inputs": wanted, "result": result}, indent=1))
        return result


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
    if not other.exists():
        one.rename(other)
        return
    try:
        rename = ctypes.CDLL(None).renameat2
        if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
            return
    except (AttributeError, OSError, TypeError):
        pass  # no such call here
    beside = one.with_name(f".{one.name}.exchanged")
    other.rename(beside)
    one.rename(other)
    beside.rename(one)
