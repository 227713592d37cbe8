"""Errors a user can act on: what is wrong, where, and the cure; checks of arguments; bad rows of inputs.

Rows are counted exactly, and bad ones named by file and line. Kinds of a dropped row (`bad`): `bad_utf8`,
`bad_json`, `not_an_object`, `bad_csv`, `field_count` (the file could not be split into rows); `no_uid`,
`no_title`, `empty_text`, `bad_type`, `bad_unicode`, `duplicate_uid` (a document or a label), `same_label` (a
label that is there already under another uid); `no_document`, `no_label` (gold); `unknown_document`,
`unknown_label` (gold, shortlists); `bad_shortlist`; `bad_prediction`, `prediction_error` (predictions);
`bad_entry`, `bad_pair`, `row_count`, `bad_uid` (files of the XMC repository). Kinds that cost no row
(`WARNINGS`): `equal_title`, `unknown_parent`, and `repeated_header`, a header line in mid-file. A command
tells of a report once (`RowReport.tell`): how many rows, notes, the first problems.
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any


class EzxmcError(Exception):
    """Base of every error ezxmc raises on purpose.

    Args:
        message: What went wrong, naming the file and row where there is one.
        cure: What the user can do about it; printed on its own line.
    """

    def __init__(self, message: str, cure: str = "") -> None:
        self.message = message
        self.cure = cure
        super().__init__(f"{message}\n  cure: {cure}" if cure else message)


class ConfigError(EzxmcError):
    """A configuration file or option that cannot be used."""


class ArgumentError(ConfigError, ValueError):
    """An argument of a Python function that is out of range."""


class DataError(EzxmcError):
    """An input that cannot be read or used, or bad rows under strict mode."""


class InputTypeError(DataError, TypeError):
    """A Python value of a type that no input can be made of."""


class ModelError(EzxmcError):
    """Model weights that cannot be fetched, verified, converted or loaded."""


class TeacherError(EzxmcError):
    """The LLM engine cannot be started, died, or cannot answer the prompt."""


class ClusterError(EzxmcError):
    """A Ray cluster that cannot be started or reached, or that lost the job."""


class StoreError(EzxmcError):
    """The feedback store cannot be opened, read or written."""


class TrainingError(EzxmcError):
    """There is nothing to train on, or training diverged."""


class BundleError(EzxmcError):
    """A bundle that is missing, tampered with, truncated or too new."""


def whole_number(value: Any, name: str, *, least: int = 1) -> int:
    """An argument that counts something, NumPy's integers too, as a plain int.

    Raises:
        ArgumentError: It is no whole number, or below `least`.
    """
    if type(value) is bool or not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{name} is {reprlib.repr(value)}", f"give a whole number, {least} or more")
    return int(value)


def number_between(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """An argument that measures something, NumPy's numbers too, as a plain float.

    Raises:
        ArgumentError: It is no finite number, or outside of `low` to `high`.
    """
    try:
        number = math.nan if type(value) is bool or not isinstance(value, Real) else float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not low <= number <= high or math.isinf(number):
        ends = f" from {low:g} to {high:g}" if math.isfinite(high) else f", {low:g} or more"
        raise ArgumentError(
            f"{name} is {reprlib.repr(value)}", f"give a finite number{ends if math.isfinite(low) else ''}"
        )
    return number


def instance_of(value: Any, kind: type | tuple[type, ...], name: str, cure: str) -> None:
    """Check an argument's type.

    Raises:
        InputTypeError: It is none of `kind`.
    """
    if not isinstance(value, kind):
        raise InputTypeError(f"{name} is {reprlib.repr(value)}, a {type(value).__name__}", cure)


WARNINGS = frozenset({"equal_title", "repeated_header", "unknown_parent"})
"""Kinds that are told but do not cost the row."""

PROBLEMS_KEPT = 1_000
"""So many problems are kept in full; beyond that they are only counted."""
_WARNINGS_KEPT = 100  # of these, so that remarks never hide what was lost
_TOLD = 20  # problems shown to people


class RowError(Exception):
    """A row that cannot be used; whoever reads the rows puts it into the report."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(f"{kind}: {detail}")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One problem of one row.

    Attributes:
        file: The source as the user named it (`<stdin>` for "-").
        line: 1-based line the row starts on; the row number in binary formats.
        kind: One of the kinds above.
        detail: What exactly, for a person.
    """

    file: str
    line: int
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}: {self.detail}"


@dataclass(slots=True)
class RowReport:
    """Account of the rows of one input.

    Attributes:
        strict: Whether the first bad row raises instead of being reported.
        kept: Rows that were used.
        problems: The first `PROBLEMS_KEPT` problems, in order of reading.
        counts: Exact number of problems of each kind.
        listener: Told of every dropped row as it is found.
        notes: What was done about rows that were not as expected, a sentence each.
        columns: The columns that serve as each field, in order of preference, and those `unread`.
        say: Told of every note as it is made.
        told: Whether a person was told of all this already.
    """

    strict: bool = False
    kept: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    listener: Callable[[RowProblem], None] | None = None
    notes: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    say: Callable[[str], None] | None = None
    told: bool = False

    @property
    def bad(self) -> int:
        """Rows that were dropped."""
        return sum(count for kind, count in self.counts.items() if kind not in WARNINGS)

    @property
    def warnings(self) -> int:
        """Remarks about rows that were kept."""
        return sum(count for kind, count in self.counts.items() if kind in WARNINGS)

    @property
    def rows(self) -> int:
        """Rows read; every one is either kept or bad. Blank lines are no rows."""
        return self.kept + self.bad

    def add(self, file: str, line: int, kind: str, detail: str) -> None:
        """Report a problem. A kind outside `WARNINGS` means the row is dropped.

        Raises:
            DataError: The report is strict and the row is dropped.
        """
        problem = RowProblem(file, line, kind, detail)
        self.counts[kind] += 1
        room = PROBLEMS_KEPT if kind not in WARNINGS or self.warnings <= _WARNINGS_KEPT else 0
        if len(self.problems) < room:
            self.problems.append(problem)
        if self.listener and kind not in WARNINGS:
            self.listener(problem)
        if self.strict and kind not in WARNINGS:
            raise DataError(str(problem), "mend the row, or read without strict to report and skip bad rows")

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)
            if self.say:
                self.say(text)

    def refuse_empty(self, source: str | Path, what: str, found: Sized) -> None:
        """Raise DataError if nothing of an input can be used."""
        if not found:
            source = "standard input" if str(source) == "-" else source
            raise DataError(
                f"{source} holds no usable {what}: {self.summary()}",
                "`ezxmc data inspect` shows what a file holds",
            )

    def summary(self) -> str:
        """One line for a person: how many rows, how many of each kind, the first bad one."""
        parts = [f"{self.rows:,} rows, {self.kept:,} kept"]
        if self.counts:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.most_common())
            parts.append(f"{self.bad:,} bad, {self.warnings:,} warnings ({kinds}); first: {self.problems[0]}")
        return "; ".join(parts)

    def tell(self, say: Callable[[str], None], name: str = "") -> None:
        """Tell a person, once: the summary, the notes, the first bad rows by file, line and reason.

        Args:
            say: Given one line at a time.
            name: What was read, to begin the first line with.
        """
        if self.told:
            return
        self.told = True
        say(f"{name}: {self.summary()}" if name else self.summary())
        for note in () if self.say else self.notes:
            say(f"  note: {note}")
        # The summary shows the first problem already.
        others = sorted(self.problems[1:], key=lambda problem: problem.kind in WARNINGS)[:_TOLD]
        for problem in others:
            say(f"  {problem}")
        shown = sum(problem.kind not in WARNINGS for problem in (*self.problems[:1], *others))
        if self.bad > shown:
            say(f"  and {self.bad - shown:,} more bad rows; --json gives the first {PROBLEMS_KEPT:,}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `problems` holds the first `PROBLEMS_KEPT` only."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "bad": self.bad,
            "warnings": self.warnings,
            "counts": dict(self.counts),
            "problems": [
                {"file": problem.file, "line": problem.line, "kind": problem.kind, "detail": problem.detail}
                for problem in self.problems
            ],
            "notes": list(self.notes),
            "columns": self.columns,
        }
