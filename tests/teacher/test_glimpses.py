"""What is shown meanwhile: the share of "yes" and a document with its surest tags, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.fakes import Clock, FakeTeacher
from support.spying import Messages

from ezxmc.cli import console
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.annotator import Glimpses
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Label

DOCUMENTS = [
    Document("a", "Draws\x1b[2J\nmaps\u202e of \u2028towns", "text"),
    Document("b", "", "Plays chess"),
    Document("c", "Counts sheep", ""),
]
LABELS = [Label(uid, f"Tag {uid}\x07") for uid in "vwxyz"]
ODDS = {"v": 3.0, "w": 2.0, "x": 1.0, "y": 0.5, "z": -4.0}


def test_now_and_then_the_surest_answers_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Messages()
    monkeypatch.setattr("ezxmc.feedback.annotator.time", clock)
    glimpses = Glimpses(DOCUMENTS, LABELS, watch.show)
    shift = {"a": 0.0, "b": -9.0, "c": -1.2}
    teacher = FakeTeacher(lambda pair: ODDS[pair.label.uid] + shift[pair.doc.uid], delay=8.0)
    with FeedbackStore(tmp_path / "store.sqlite") as store:
        rows = [range(5)] * 3
        done = annotate(lambda: pairs_of(DOCUMENTS, LABELS, rows), teacher, store, seen=glimpses.see)
    assert done.asked == 15
    # 120 seconds, a line in 30 at most; nothing of the terminal's is left in it.
    assert watch.shown == [
        "100% yes; Tag v, Tag w, Tag x <- Draws [2J maps of towns",
        "50% yes; Tag v, Tag w, Tag x <- Draws [2J maps of towns",
        "50% yes; Tag v, Tag w, Tag x <- Draws [2J maps of towns",
    ]


def test_a_document_that_nothing_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, watch = Clock(monkeypatch), Messages()
    monkeypatch.setattr("ezxmc.feedback.annotator.time", clock)
    teacher = FakeTeacher(lambda pair: -1.0, delay=31.0)
    glimpses = Glimpses(DOCUMENTS, LABELS, watch.show)
    with FeedbackStore(tmp_path / "store.sqlite") as store:
        annotate(lambda: pairs_of(DOCUMENTS[1:2], LABELS, [[0]]), teacher, store, seen=glimpses.see)
    assert watch.shown == ["0% yes; nothing asked so far fits <- Plays chess"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_to_look_at_is_cut_to_the_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(console, "stderr", Console(stderr=True, force_terminal=terminal, width=40))
    for text in ("表" * 80, "[bold]short[/bold]"):
        console.Progress(None).show(text)
    wide, short = capsys.readouterr().err.splitlines()
    assert wide.endswith("…") and 38 <= cell_len(wide) <= 40
    assert short.rstrip() == "  [bold]short[/bold]"
