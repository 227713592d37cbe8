"""The command reference and the README tell of the commands there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from reference import PLACE, reference
from support.pages import name_of, pages

from ezxmc.cli.app import app
from ezxmc.data import read_documents, read_labels

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


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


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_no_sentence_names_a_command_or_an_option_that_is_not_there(page: Path) -> None:
    # What stands in blocks is parsed, and most of it run, by test_pages.
    reference()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for line in re.findall(r"`ezxmc ([a-z][^`]*)`", text):
        name, *rest = line.split()
        assert name in commands, line
        command = commands[name]
        if rest and rest[0] in (groups := getattr(command, "commands", {})):
            command = groups[rest[0]]
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in rest:
            assert not word.startswith("-") or word in (*known, "--help", "-"), f"{line}: {word}"


def test_the_tutorials_files_are_what_it_says() -> None:
    folder = ROOT / "examples/tutorial"
    documents, rows = read_documents(folder / "tickets.csv")
    labels, label_rows = read_labels(folder / "tags.txt")
    assert (len(documents), len(labels), rows.bad, label_rows.bad) == (48, 20, 0, 0)
    assert len(read_documents(folder / "new.csv")[0]) == 3
