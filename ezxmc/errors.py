"""Errors a user can act on: what is wrong, where, and the cure; and the checks of plain arguments."""

from __future__ import annotations

import math
import reprlib
from numbers import Integral, Real
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
