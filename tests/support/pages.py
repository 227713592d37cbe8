"""The pages as data: their blocks and what stands before each; and a shell for commands in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ezxmc.cli import app as program
from ezxmc.serve.web import listener

ROOT = Path(__file__).parents[2]
# Made from the commands themselves and held against them by test_reference.
_GENERATED = ROOT / "examples/commands/README.md"
_SHELL = {"bash", "sh", "shell", "console"}
_STARTS = re.compile(r"^(\$ |ezxmc |python |bash |pip |curl )", re.M)


def pages() -> list[Path]:
    """Every page that a reader comes to."""
    found = [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob(".github/*.md")]
    found += [
        *ROOT.glob("examples/*/README.md"),
        *ROOT.glob("tests/*/README.md"),
        *ROOT.glob("data_cards/*.md"),
    ]
    return sorted(set(found) - {_GENERATED})


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """Commands or Python of a page; `mark` is the comment directly before it, if there is one."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def where(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """Command lines, those that go on behind a backslash joined; of a console its prompts' alone."""
        joined = self.text.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in joined):
            joined = [line[2:] for line in joined if line.startswith("$ ")]
        return [line for line in joined if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """A page's blocks of commands and of Python; one without a language counts if it looks like commands."""
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        language = lines[opened].strip().strip("`")
        text = "\n".join(lines[opened + 1 : number])
        if language == "python" or language in _SHELL or (not language and _STARTS.search(text)):
            before = lines[opened - 1].strip() if opened else ""
            mark = (
                before.removeprefix("<!--").removesuffix("-->").strip() if before.startswith("<!--") else ""
            )
            found.append(Block(page, opened + 1, language or "bash", text, mark))
        opened = None
    assert opened is None, f"{name_of(page)}: a block is never closed"
    return found


def simple_commands(line: str) -> list[tuple[str, list[str]]]:
    """What a line calls, each with the sign before it: "" or ";" alone, "|" or ">" after another."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;>&")
    lexer.whitespace_split = True
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in lexer:
        if word in ("|", ";", ">", "&&"):
            found.append((word, []))
        else:
            found[-1][1].append(word)
    return [(sign, words) for sign, words in found if words]


@dataclass
class Shell:
    """Runs command lines in a folder: `ezxmc` in this process, `curl` on the app that it serves.

    Attributes:
        folder: Where lines run; `cd` into the page's own folder stays here.
        before: By the beginning of a command what people do before it: write a setting, decide on pairs.
        asked: What `curl` got, parsed.
    """

    folder: Path
    before: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    _app: Any = None

    def run(self, line: str) -> None:
        out = b""
        for sign, words in simple_commands(line):
            if sign == ">":
                (self.folder / words[0]).write_bytes(out)
            else:
                out = self._call(words, out if sign == "|" else b"")

    def _call(self, words: list[str], stdin: bytes) -> bytes:
        if words[0] == "cd":
            assert (ROOT / words[1]).is_dir()
            return b""
        if words[0] == "echo":
            return " ".join(words[1:]).encode() + b"\n"
        if words[0] == "curl":
            return self._curl(words[1:])
        assert words[0] == "ezxmc", f"{words[0]}: mark its block, or run it in another test"
        for beginning, does in self.before.items():
            if " ".join(words).startswith(beginning):
                does(self.folder)
        return self._ezxmc(words, stdin)

    def _ezxmc(self, words: list[str], stdin: bytes) -> bytes:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setenv("EZXMC_HOME", str(self.folder / "home"))
            for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS", "EZXMC_DEBUG"):
                patch.setenv(name, "" if name == "EZXMC_DEBUG" else "1")
            for module in ("ezxmc.serve.app", "ezxmc.review.ui"):
                patch.setattr(f"{module}.listener", lambda host, port: listener(host, 0))
                patch.setattr(f"{module}.answer_requests", self._serves)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                program.main()
        said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert not left.value.code, f"{' '.join(words)}: {said}"
        assert "Traceback" not in said
        return out.buffer.getvalue()  # type: ignore[attr-defined,no-any-return]

    def _serves(self, app: Any, *rest: Any) -> None:
        self._app = app

    def _curl(self, words: list[str]) -> bytes:
        options = dict(pairwise(words))
        url = next(word for word in words if "localhost" in word or "127.0.0.1" in word)
        header, _, value = options.get("-H", "").partition(": ")
        method = options.get("-X", "POST" if "-d" in options else "GET")
        with TestClient(self._app, base_url="http://127.0.0.1:8000") as client:
            path = "/" + url.removeprefix("http://").partition("/")[2]
            answer = client.request(
                method, path, content=options.get("-d"), headers={header: value} if header else {}
            )
        assert answer.status_code == 200, answer.text
        self.asked.append(json.loads(answer.text))
        return answer.content


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """This process in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)|<img src=\"([^\"]+)\"", re.M)


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, those to other sites left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]+`", "", text)
    found = ["".join(ways) for ways in _LINK.findall(text)]
    return [link for link in found if not re.match(r"https?:|mailto:", link)]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}
