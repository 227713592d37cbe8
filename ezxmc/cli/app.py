"""The `ezxmc` program: its commands, its exit codes, its way of reporting errors."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from functools import cache
from types import FrameType
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from ezxmc.errors import ConfigError, EzxmcError
from ezxmc.progress import rank_and_size

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 128 + signal.SIGTERM

app = typer.Typer(
    name="ezxmc",
    help="Tag a brand-new catalog with no labelled data: an LLM judges, a small bi-encoder learns, "
    "FAISS and calibrated probabilities answer.\n\nExit codes: 0 done, 1 failed, 2 usage or "
    "configuration, 3 finished but rows were bad, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the whole traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["EZXMC_DEBUG"] = "1"


@cache  # commands registered again would be built again, by every call
def _register() -> None:
    from ezxmc.cli import bench, bundle, data, predict, review, run, setup, steps, teacher

    # In the order of `ezxmc --help`.
    for module in (setup, run, steps, bundle, predict, teacher, data, review, bench):
        module.register(app)


def main() -> None:
    """Entry point: run a command and turn errors into a message, a cure and an exit code."""
    # Imports make millions of objects that live to the end: looked through 70 times less often.
    gc.set_threshold(50_000)
    # Hub libraries and engines otherwise write bars and notices over ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from ezxmc.cli.console import utf8_output

    utf8_output()
    told = _Termination()
    try:
        _register()
        app()
    except EzxmcError as error:
        _fail(str(error), USAGE if isinstance(error, ConfigError) else FAILED)
    except ValidationError as error:
        places = ((".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors())
        faults = "; ".join(f"--{place.replace('_', '-')}: {said}" for place, said in places)
        _fail(f"{faults}\n  cure: `ezxmc COMMAND --help` shows the options", USAGE)
    except OSError as error:
        cures = {
            FileNotFoundError: "check the name and its folder",
            PermissionError: "get the right to read or write it, or name another place",
            IsADirectoryError: "name a file in it",
            NotADirectoryError: "name a folder",
        }
        cure = cures.get(type(error), "is the folder there, writable, and the disk not full?")
        _fail(f"{error}\n  cure: {cure}", FAILED)
    except KeyboardInterrupt:
        _interrupted(told.came)
    except SystemExit as left:
        # typer turns Ctrl-C into this code, and says nothing.
        if left.code == INTERRUPTED or told.came:
            _interrupted(told.came)
        _flush()
        raise
    finally:
        told.forget()


class _Termination:
    """SIGTERM ends a command as Ctrl-C does: what is in hand is stored, workers are ended.

    Schedulers, containers and service managers send it. A job of torchrun is left to torchrun,
    a program that ignores the signal to whoever had it do so.

    Attributes:
        came: Whether it did.
    """

    def __init__(self) -> None:
        self.came = False
        self._process = os.getpid()
        alone = rank_and_size()[1] == 1 and threading.current_thread() is threading.main_thread()
        self._former = signal.getsignal(signal.SIGTERM)
        self._heard = alone and self._former is not signal.SIG_IGN
        if self._heard:
            signal.signal(signal.SIGTERM, self._end)

    def forget(self) -> None:
        """Leave the signal as it was, unless it came: until the program has ended, once is enough."""
        if self._heard and not self.came:
            signal.signal(signal.SIGTERM, self._former)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker has nothing to store, and is not to tell how to go on.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.came:
            # Only once: a second one must not break off the storing.
            self.came = True
            raise KeyboardInterrupt


def _interrupted(terminated: bool) -> NoReturn:
    word, code = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
    # Tags go to a file of the user's: only he can say whether it is to be kept.
    same = "the same command with --resume" if sys.argv[1:2] == ["predict"] else "the same command"
    sys.stderr.write(f"{word}: what was computed is kept; {same} goes on from there\n")
    sys.exit(code)


def _flush() -> None:
    """Write what is left of the answer: later, a full disk would end in a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _silence()  # who read it has enough
    except OSError as error:
        _silence()
        _fail(f"the answer cannot be written: {error}\n  cure: is the disk full?", FAILED)


def _silence() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _fail(text: str, code: int) -> NoReturn:
    """Leave with a message, or with the whole traceback under --debug."""
    if os.environ.get("EZXMC_DEBUG"):
        raise
    sys.stderr.write(f"error: {text}\n")
    sys.exit(code)
