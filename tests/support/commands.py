"""Commands of `ezxmc` in processes of their own, forked from one that has imported everything.

An import of sentence-transformers takes some seconds, and nothing that is tested by killing, signalling or
asking a process needs it done anew each time. That a fresh interpreter runs the same commands is proven by
`test_layout` and by the whole runs with a real LLM.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["support.preload"])
_STALLED = 300.0  # seconds


def forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Call a function in a process of its own."""
    _start()
    # A test that fails leaves it: as a daemon it does not outlive the tests.
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@cache
def _start() -> None:
    """The process that others are forked from; it finds `support` where this one does."""
    places = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
        forkserver.ensure_running()


class Command:
    """`ezxmc ARGUMENTS` in a process; what it writes goes to files.

    Args:
        arguments: Of the command.
        cwd: Where it runs; here by default.
        environment: Set beside this process's own.
    """

    def __init__(
        self, *arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._out, self._err = (Path(self._folder.name, name) for name in ("out", "err"))
        for file in (self._out, self._err):
            file.touch()
        told = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **(environment or {}),
        }
        place = str(cwd or Path.cwd())
        files = (str(self._out), str(self._err))
        self.process = forked(_run, list(map(str, arguments)), place, told, *files)
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._err.read_text(encoding="utf-8")

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> int:
        """Wait for its end; the exit code, or minus the signal that killed it."""
        until(lambda: not self.running, self.pid)
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def said(self, words: str) -> str:
        """Wait for the first line on stderr with these words in it."""

        def found() -> Iterator[str]:
            return (line for line in self.stderr.splitlines(keepends=True) if words in line)

        until(lambda: not self.running or any(line.endswith("\n") for line in found()), self.pid)
        line = next(found(), None)
        assert line is not None, self.stderr
        return line.rstrip("\n")

    def end(self, number: int) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.send_signal(number)
        return self.wait()


def _run(arguments: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    assert "support.preload" in sys.modules, "it was not forked from what has imported everything"
    vars(multiprocessing.current_process())["_config"]["daemon"] = False  # it may have children
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = ["ezxmc", *arguments]
    from ezxmc.cli.app import main

    try:
        main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def until(true: Callable[[], object], *watched: int) -> None:
    """Wait until a call answers something true; what bounds the wait is progress, not the clock.

    Args:
        true: The call.
        watched: Processes that bring it about. As long as one of them or of its children uses the
            processor, they are waited for; without any, some minutes are.
    """
    used, since = 0.0, time.monotonic()
    while not true():
        now = sum(map(_used, watched))
        if now > used + 0.05:
            used, since = now, time.monotonic()
        assert time.monotonic() - since < _STALLED, "it did not come true"
        time.sleep(0.01)


def _used(pid: int) -> float:
    """Processor seconds of a process and its children."""
    total = 0.0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def gone(processes: list[psutil.Process]) -> None:
    """Wait until all of these have ended."""

    def alive(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    until(lambda: not any(map(alive, processes)))
