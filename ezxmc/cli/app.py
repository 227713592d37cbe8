"""The `ezxmc` program: its commands, its exit codes, its way of reporting errors."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from ezxmc.errors import ConfigError, EzxmcError

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="ezxmc",
    help="Tag a brand-new catalog with no labelled data: an LLM judges, a small bi-encoder learns, "
    "FAISS and calibrated probabilities answer.\n\nExit codes: 0 done, 1 failed, 2 usage or "
    "configuration, 3 finished but rows were bad.",
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
    from ezxmc.cli import (
        bench,
        calibrate,
        data,
        decide,
        evaluate,
        export,
        inference,
        judgments,
        labels,
        pipeline,
        prompts,
        report,
        review,
        serve,
        setup,
        teacher,
    )

    told = (
        setup,
        pipeline,
        calibrate,
        decide,
        labels,
        export,
        inference,
        evaluate,
        report,
        serve,
        teacher,
        prompts,
        judgments,
        data,
        review,
        bench,
    )
    for module in told:
        module.register(app)


def main() -> None:
    """Entry point: run a command and turn errors into a message, a cure and an exit code."""
    # Hub libraries and engines otherwise write bars and notices over ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from ezxmc.cli.console import utf8_output

    utf8_output()
    _register()
    try:
        app()
    except EzxmcError as error:
        _fail(str(error), USAGE if isinstance(error, ConfigError) else FAILED)
    except ValidationError as error:
        faults = "; ".join(f"--{_option(fault['loc'])}: {fault['msg']}" for fault in error.errors())
        _fail(f"{faults}\n  cure: `ezxmc COMMAND --help` shows the options", USAGE)
    except OSError as error:
        _fail(f"{error}\n  cure: is the folder there, writable, and the disk not full?", FAILED)
    except SystemExit as left:
        # typer turns Ctrl-C into this code, and says nothing.
        if left.code == INTERRUPTED:
            sys.stderr.write("interrupted: what was computed is kept; the same command goes on from there\n")
        _flush()
        raise


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


def _option(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place)).replace("_", "-")


def _fail(text: str, code: int) -> NoReturn:
    """Leave with a message, or with the whole traceback under --debug."""
    if os.environ.get("EZXMC_DEBUG"):
        raise
    sys.stderr.write(f"error: {text}\n")
    sys.exit(code)
