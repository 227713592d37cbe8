"""A command is a thin call: what it decides is in a library function that Python users call, too."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from ezxmc.cli.app import _register, app

_MOST = 24
"""Lines of a body, its docstring (the command's help) aside."""


def commands(of: typer.Typer) -> Iterator[Callable[..., Any]]:
    yield from (one.callback for one in of.registered_commands if one.callback)
    for group in of.registered_groups:
        assert group.typer_instance
        yield from commands(group.typer_instance)


def body_lines(function: Callable[..., Any]) -> int:
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(found, ast.FunctionDef)
    body = found.body[1:] if ast.get_docstring(found) else found.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


_register()


@pytest.mark.parametrize("command", [*commands(app)], ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_the_body_of_a_command_is_short(command: Callable[..., Any]) -> None:
    assert body_lines(command) <= _MOST, "put what it decides into a library function"


def test_lines_are_counted_without_signature_and_docstring() -> None:
    def example(one: int = 1) -> int:
        """Help."""
        two = one + 1

        return two

    assert body_lines(example) == 3
    assert len(list(commands(app))) > 30
