"""The command reference, made from the commands themselves.

python tests/reference.py      writes examples/commands/README.md
"""

from __future__ import annotations

from pathlib import Path

import typer
from click import Context
from typer.cli import get_docs_for_click

from ezxmc.cli.app import _register, app

PLACE = Path(__file__).parents[1] / "examples/commands/README.md"
_HEAD = "<!-- Made by `python tests/reference.py`; a test compares it with the commands. -->\n\n"


def reference() -> str:
    """Every command with its arguments and options, in Markdown."""
    _register()
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command, info_name="ezxmc"), name="ezxmc")
    return _HEAD + "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


if __name__ == "__main__":
    PLACE.write_text(reference(), encoding="utf-8")
