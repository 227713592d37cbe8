"""How long jobs tell what they do; only the command line draws it, and of several processes the first."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """One line without control characters: neither the terminal's nor those that turn the writing round.

    What joins and parts letters stays: Persian words and emoji of several people are written with it.
    """
    return " ".join("".join(c if c.isprintable() or c in _JOINERS else " " for c in text).split())


def rank_and_size() -> tuple[int, int]:
    """Of this process in the job that torchrun started it into; (0, 1) if it is alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Progress(Protocol):
    """Whoever wants to see how far a job is."""

    def stage(self, title: str) -> Callable[[int, int], None]:
        """Begin a stage; the result is called with (done, total)."""

    def say(self, text: str) -> None:
        """A message that stays."""

    def show(self, text: str) -> None:
        """A line to look at while waiting, now and then; what does not fit the screen is cut off."""


class NoProgress:
    """A `Progress` that shows nothing."""

    def stage(self, title: str) -> Callable[[int, int], None]:
        """See `Progress`."""
        return lambda done, total: None

    def say(self, text: str) -> None:
        """See `Progress`."""

    def show(self, text: str) -> None:
        """See `Progress`."""


def pulling(watch: Progress, name: str) -> Callable[[str, int, int], None]:
    """Progress of fetching a model, each of its steps a stage of `watch`."""
    stages: dict[str, Callable[[int, int], None]] = {}

    def update(step: str, done: int, total: int) -> None:
        if step not in stages:
            stages[step] = watch.stage(f"{name}: {step}")
        stages[step](done, total)

    return update
