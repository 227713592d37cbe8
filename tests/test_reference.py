"""The command reference and the README tell of the commands there are."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from reference import PLACE, reference

from ezxmc.cli.app import app

README = Path(__file__).parents[1] / "README.md"


def test_the_reference_is_what_the_commands_say() -> None:
    assert PLACE.read_text(encoding="utf-8") == reference(), "run `python tests/reference.py`"


def test_every_command_has_an_example_and_stands_in_the_readme() -> None:
    reference()
    told = README.read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert f"`ezxmc {name}" in told, name
        for one in getattr(command, "commands", {name: command}).values():
            assert "Example: ezxmc" in (one.help or ""), f"{name} {one.name}"


def test_the_readme_names_no_command_that_is_not_there() -> None:
    reference()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, sub in re.findall(r"`ezxmc ([a-z]+)(?: ([a-z]+))?", README.read_text(encoding="utf-8")):
        assert name in commands, name
        group = getattr(commands[name], "commands", None)
        assert group is None or not sub or sub in group, f"{name} {sub}"
