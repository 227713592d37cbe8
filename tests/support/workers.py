"""Test workers forked from the process that has imported everything, in place of fresh interpreters.

Fresh ones would import the same, ten seconds each, and start a process each that commands are forked from.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import execnet.gateway_io
from execnet.gateway_base import Popen2IO
from support.commands import forked


class _Forked(Popen2IO):  # type: ignore[misc]
    """What execnet starts a worker by, and speaks with it through."""

    def __init__(self, args: list[str], execmodel: Any) -> None:
        asked, asking = multiprocessing.Pipe(duplex=False)
        answered, answering = multiprocessing.Pipe(duplex=False)
        self.process = forked(_work, asked, answering)
        asked.close()
        answering.close()
        written, read = os.dup(asking.fileno()), os.dup(answered.fileno())
        super().__init__(os.fdopen(written, "wb"), os.fdopen(read, "rb"), execmodel)

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


def _work(asked: Connection, answering: Connection) -> None:
    assert "support.preload" in sys.modules, "it was not forked from what has imported everything"
    vars(multiprocessing.current_process())["_config"]["daemon"] = False  # it has children
    os.dup2(asked.fileno(), 0)
    os.dup2(answering.fileno(), 1)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    exec(eval(sys.stdin.readline()), {"__name__": "__main__"})


def fork_workers() -> None:
    """From now on, in this process."""
    execnet.gateway_io.Popen2IOMaster = _Forked
