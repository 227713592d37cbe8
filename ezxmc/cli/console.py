"""What the command line shows: progress bars on a terminal, plain lines in a pipe, JSON for programs.

Data goes to standard output, everything for the eye to standard error.
Here are also the options that put a command's work on a Ray cluster.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ezxmc.cluster import RayConfig
from ezxmc.config import BudgetConfig, RunConfig
from ezxmc.errors import DataError
from ezxmc.progress import NoProgress, printable, rank_and_size
from ezxmc.text import cut

if TYPE_CHECKING:
    from ezxmc.data import RowReport

stderr = Console(stderr=True)
BAD_ROWS = 3  # exit code
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="A column and what it serves as, such as text=message; of labels, labels.title=tag.",
    ),
]


WithoutGold = Literal["none", "unreviewed"]
Untagged = Annotated[
    WithoutGold | None,
    typer.Option(
        "--without-gold",
        help="What documents without a label in gold are: reviewed, and `none` fits, or `unreviewed`.",
    ),
]
Documents = Annotated[str, typer.Argument(help="Documents: JSONL, CSV, Parquet, `datasets` folder, hub id.")]
Labels = Annotated[str, typer.Argument(help="Labels: the same formats, or a .txt with a title per line.")]
Strict = Annotated[bool, typer.Option(help="Stop at the first bad row.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of splits, exploration and training.")]
MaxPairs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Judgments in the store at most; other commands at work may add theirs in hand."
    ),
]
MaxHours = Annotated[float | None, typer.Option(help="Hours of judging at most, all sessions together.")]
_NO_WIDTH = 1_000_000  # columns
_WIDEST = 160  # columns of a line that is only looked at
_STREAMS = 2  # standard input, output and error are the files 0 to 2
_QUIET_EVERY = 30.0  # seconds between progress lines in a pipe


class Progress:
    """Shows the stages of a job: a bar each on a terminal, a line now and then in a pipe."""

    def __init__(self, progress: Bars | None) -> None:
        self._progress = progress

    def stage(self, title: str) -> Callable[[int, int], None]:
        """Begin a stage; call the result with (done, total) as it goes on; total 0 is not known."""
        if self._progress is None:
            return _plain_stage(title)
        bars = self._progress
        task = bars.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        return update

    def say(self, text: str) -> None:
        """A line that stays."""
        say(text)

    def show(self, text: str) -> None:
        """A line no wider than the screen; wide characters count as what they take of it."""
        stderr.print(Text(f"  {text}"), no_wrap=True, overflow="ellipsis", width=min(stderr.width, _WIDEST))


class _Rate(ProgressColumn):
    """How many a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed and not task.finished else "")


@contextmanager
def show_progress() -> Iterator[Progress | NoProgress]:
    """A `Progress` fitting where standard error goes; of a job's processes only the first shows anything."""
    if rank_and_size()[0] > 0:
        yield NoProgress()
        return
    if not stderr.is_terminal:
        yield Progress(None)
        return
    with Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
    ) as progress:
        yield Progress(progress)


def _plain_stage(title: str) -> Callable[[int, int], None]:
    say(title)
    started = last = time.monotonic()
    known: int | None = None
    first: tuple[float, int] | None = None

    def update(done: int, total: int) -> None:
        nonlocal last, first, known
        now = time.monotonic()
        known = done if known is None else known
        if first is None and done > known:
            # Starting up (an engine, say) is no part of the speed.
            first = (now, done)
        if now - last < _QUIET_EVERY and (done < total or not total):
            return
        last = now
        rate = (done - first[1]) / (now - first[0]) if first and now > first[0] else 0.0
        left = f", {rate:,.1f}/s" if rate > 0 else ""
        left += f", about {clock((total - done) / rate)} left" if rate > 0 and done < total else ""
        say(f"  {title}: {done:,}{f'/{total:,}' if total else ''} after {clock(now - started)}{left}")

    return update


def clock(seconds: float) -> str:
    """Seconds as minutes and hours: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def columns_of(given: list[str] | None, *, labels_only: bool = False) -> dict[str, str]:
    """The columns given as `--column FIELD=NAME`, by field.

    Args:
        given: The options.
        labels_only: Whether the command reads labels and no documents, so that `title` is theirs.
    """
    found = {}
    for one in given or ():
        name, equals, column = one.partition("=")
        if not equals or not name.strip() or not column.strip():
            raise typer.BadParameter(f"{one!r} is not of the form text=message", param_hint="--column")
        name = name.strip()
        found[f"labels.{name}" if labels_only and "." not in name else name] = column.strip()
    return found


def standard_output() -> TextIO:
    """Where data goes that has no file.

    Raises:
        DataError: It is closed.
    """
    if sys.stdout is None:
        raise DataError("standard output is closed, and the answer goes there", "redirect it to a file")
    return sys.stdout


def utf8_output() -> None:
    """Let standard output take any text as UTF-8, whatever the locale says.

    Of streams that are closed, the numbers are taken: a file opened under one
    of them would get whatever a library prints.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STREAMS:
        pass
    os.close(number)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for the process's life)


def emit(value: Any) -> None:
    """Write data as JSON to standard output."""
    standard_output().write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Write a table for people to standard output; only a terminal has a width it must fit into."""
    console = Console(file=standard_output())
    if not console.is_terminal:
        console = Console(file=standard_output(), width=_NO_WIDTH)
    if title:
        # By itself: a table's own title is as wide as its columns.
        console.print(title, soft_wrap=True, markup=False, highlight=False)
    drawn = Table()
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def answer(json: bool, values: dict[str, Any], rows: Mapping[str, RowReport | None] | None = None) -> None:
    """Answer a command with named values: as JSON, or as a table of two columns.

    Args:
        json: Whether a program reads it.
        values: The answer.
        rows: How reading each input went: where there is something to say, it is in the JSON;
            `bad_rows` tells people.
    """
    if json:
        odd = {name: one for name, one in (rows or {}).items() if one and (one.counts or one.notes)}
        emit({**values, **({"rows": accounts(odd)} if odd else {})})
    else:
        table("", ["", ""], [[name.replace("_", " "), shown(value)] for name, value in values.items()])


def shown(value: Any) -> str:
    """A number as people read it, of a dict every value so, anything else as it is."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def brief(text: str, width: int) -> str:
    """The beginning of a user's text on one line, without control characters: they would move the cursor."""
    return cut(printable(text[: 20 * width]), width)


def accounts(rows: Mapping[str, RowReport | None]) -> dict[str, Any]:
    """How reading each input went, JSON-ready."""
    return {name: report.to_dict() for name, report in rows.items() if report is not None}


def bad_rows(*counts: int, **rows: RowReport | None) -> None:
    """End every command that reads rows: tell of the bad ones, and leave with exit code 3 if there are any.

    The work is done, but the user should know what was left out: by file, line
    and reason the first some, the others by their number.

    Args:
        counts: Numbers of bad rows that were told before.
        rows: How reading went, by what was read; told here, unless that was done.
    """
    for name, report in rows.items():
        if report is not None and (report.counts or report.notes):
            report.tell(say, name)
    if any(counts) or any(report.bad for report in rows.values() if report is not None):
        raise typer.Exit(BAD_ROWS)


def say(text: str) -> None:
    """A line for people, on standard error; a long path stays one piece to copy."""
    stderr.print(text, soft_wrap=True, markup=False, highlight=False)


Name = Literal["local", "ray"]
Engine = Annotated[Name | None, typer.Option(help="Who works: this machine, or a Ray cluster.")]
Workers = Annotated[int | None, typer.Option(min=1, help="With --engine ray: processes at work.")]
Address = Annotated[
    str | None,
    typer.Option("--ray-address", help="With --engine ray: auto or HOST:6379; default: this machine alone."),
]


def with_budget(config: RunConfig, max_pairs: int | None, max_hours: float | None) -> RunConfig:
    """The configuration with the limits given on the command line."""
    given = {"max_pairs": max_pairs, "max_hours": max_hours}
    # What nobody set stays so: a run keeps the value it was begun with.
    limits = config.budget.model_dump(exclude_unset=True) | {
        name: value for name, value in given.items() if value is not None
    }
    return config.model_copy(update={"budget": BudgetConfig(**limits)})


def with_engine(
    config: RunConfig, engine: Name | None, workers: int | None, address: str | None
) -> RunConfig:
    """The configuration with the engine given on the command line."""
    engine = engine or config.engine
    return config.model_copy(update={"engine": engine, "ray": _ray(config.ray, engine, workers, address)})


def cluster(
    engine: Name | None, workers: int | None, address: str | None, servers: Sequence[str] = ()
) -> RayConfig | None:
    """The cluster of a command without a configuration; `None`: this process works.

    Args:
        engine: As given.
        workers: As given.
        address: As given.
        servers: Replicas of the teacher's server.
    """
    ray = _ray(RayConfig(servers=list(servers)), engine or "local", workers, address)
    return ray if engine == "ray" else None


def _ray(config: RayConfig, engine: Name, workers: int | None, address: str | None) -> RayConfig:
    if engine != "ray" and (workers or address):
        raise typer.BadParameter("--workers and --ray-address go with --engine ray")
    given = {"workers": workers, "address": address}
    return config.model_copy(update={name: value for name, value in given.items() if value is not None})
