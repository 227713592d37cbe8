"""Judgments belong to texts: a store's answers are found by content, and what is left out is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from support.fakes import FakeTeacher
from support.tinyworld import document, label_rows, topical, write_rows
from typer.testing import CliRunner

from ezxmc.cli import bundle, steps
from ezxmc.errors import DataError
from ezxmc.feedback import recall
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.recall import Recalled, judgments_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import judgment_key, judgment_keys
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.teacher.base import ReplayTeacher

ROWS = [document(number) for number in range(20)]
DOCUMENTS = [Document(**row) for row in ROWS]
LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]


def ask(store: Path, documents: list[Document], labels: list[Label], teacher: Any = None) -> None:
    with FeedbackStore(store) as feedback:
        every = [range(len(labels))] * len(documents)
        teacher = teacher or FakeTeacher(topical)
        annotate(lambda: pairs_of(documents, labels, every), teacher, feedback)


def found(store: Path, documents: list[Document], labels: list[Label]) -> Recalled:
    with FeedbackStore(store) as feedback:
        return judgments_of(documents, labels, feedback)


def answers(judgments: list[Judgment]) -> dict[tuple[str, str], float | None]:
    assert len({(j.doc_uid, j.label_uid) for j in judgments}) == len(judgments), "two answers on a pair"
    return {(j.doc_uid, j.label_uid): j.log_odds for j in judgments}


def truth(documents: list[Document], labels: list[Label]) -> dict[tuple[str, str], float]:
    return {(d.uid, label.uid): topical(Pair(d, label)) for d in documents for label in labels}


def shifted(documents: list[Document]) -> list[Document]:
    """Equal texts, each under the next one's id."""
    texts = [*documents[1:], documents[0]]
    return [Document(one.uid, two.title, two.text) for one, two in zip(documents, texts, strict=True)]


def cut(documents: list[Document]) -> list[Document]:
    return [Document(one.uid, one.title, one.text.split()[0]) for one in documents]


def test_edited_texts_under_the_same_ids_get_their_own_answer(tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    ask(store, cut(DOCUMENTS), LABELS)
    ask(store, DOCUMENTS, LABELS)
    recalled = found(store, DOCUMENTS, LABELS)
    assert answers(recalled.judgments) == truth(DOCUMENTS, LABELS)
    assert (recalled.edited, recalled.absent, recalled.moved) == (len(DOCUMENTS) * len(LABELS), 0, 0)
    assert "500 of 1,000" in recalled.of_these_texts("s").lines()[0]


@pytest.mark.parametrize("tried", [recall._TRIED, 0], ids=["all pairs tried", "one label tried"])
@pytest.mark.parametrize("which", ["documents", "labels", "both"])
def test_ids_that_moved_are_found_by_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, tried: int
) -> None:
    """With ids that are row numbers, re-sorting the file gives every text another id."""
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS)
    documents = DOCUMENTS if which == "labels" else shifted(DOCUMENTS)
    labels = (
        LABELS
        if which == "documents"
        else [Label(one.uid, two.title) for one, two in zip(LABELS, reversed(LABELS), strict=True)]
    )
    monkeypatch.setattr(recall, "_TRIED", tried)
    recalled = found(tmp_path / "s.sqlite", documents, labels)
    true, got = truth(documents, labels), answers(recalled.judgments)
    assert all(true[pair] == value for pair, value in got.items())
    if tried or which == "documents":
        assert got == true and recalled.moved and not recalled.unused
        assert "under other ids" in recalled.lines()[0]
    else:
        assert recalled.unused == len(true) - len(got) > 0


def test_texts_that_read_the_same_share_an_answer(tmp_path: Path) -> None:
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS)
    more = [*DOCUMENTS, Document("twin", DOCUMENTS[0].title, DOCUMENTS[0].text)]
    assert answers(found(tmp_path / "s.sqlite", more, LABELS).judgments) == truth(more, LABELS)


@pytest.mark.parametrize(
    ("documents", "labels", "cause"),
    [
        (cut(DOCUMENTS), LABELS, "edited"),
        ([*cut(DOCUMENTS[1:]), DOCUMENTS[0]], LABELS, "edited"),
        (DOCUMENTS, [Label(one.uid, one.title.upper()) for one in LABELS], "edited"),
        ([Document("other", "", "another text")], LABELS, "these are other"),
    ],
)
def test_where_hardly_anything_belongs_it_stops_with_the_cure(
    tmp_path: Path, documents: list[Document], labels: list[Label], cause: str
) -> None:
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS)
    with pytest.raises(DataError, match=cause) as stopped:
        found(tmp_path / "s.sqlite", documents, labels).of_these_texts("s.sqlite")
    assert "ezxmc annotate" in stopped.value.cure


def test_a_part_of_what_was_judged_is_no_reason_to_stop(tmp_path: Path) -> None:
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS)
    part = found(tmp_path / "s.sqlite", DOCUMENTS[:1], LABELS).of_these_texts("s.sqlite")
    assert (part.documents, part.absent, part.edited) == (1, 19 * len(LABELS), 0)
    assert "not here" in part.lines()[0]
    assert found(tmp_path / "empty.sqlite", DOCUMENTS, LABELS).of_these_texts("").judgments == []


def test_what_was_replayed_says_on_what_it_rests(tmp_path: Path) -> None:
    rows = [{"doc": d.uid, "label": LABELS[0].uid, "log_odds": 1.0} for d in DOCUMENTS]
    replay = ReplayTeacher(write_rows(tmp_path / "r.jsonl", rows))
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS[:1], replay)
    recalled = found(tmp_path / "s.sqlite", shifted(DOCUMENTS), LABELS).of_these_texts("s")
    assert (recalled.by_uid, recalled.unused, len(recalled.judgments)) == (20, 0, 20)
    assert "rest on ids alone" in recalled.lines()[0]
    assert found(tmp_path / "s.sqlite", DOCUMENTS[:5], LABELS).absent == 15


def test_a_teacher_with_keys_of_its_own(tmp_path: Path) -> None:
    class Upper(FakeTeacher):
        def key(self, pair: Pair) -> str:
            return judgment_key(self.fingerprint, pair.doc.shown.upper(), pair.label.title)

    teacher = Upper(topical)
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS, teacher)
    with FeedbackStore(tmp_path / "s.sqlite") as feedback:
        recalled = judgments_of(DOCUMENTS, LABELS, feedback, teacher.fingerprint, key=teacher.key)
    assert answers(recalled.judgments) == truth(DOCUMENTS, LABELS)


def test_many_keys_at_once_are_the_same_keys() -> None:
    texts = ["", "a text", "ümlaut \ud800"]
    assert list(judgment_keys("f", texts, "ü")) == [judgment_key("f", text, "ü") for text in texts]


def test_train_and_calibrate_use_the_answers_on_present_texts(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """The whole way on a store that also holds what was said of former texts under the same ids."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", ROWS)
    write_rows(tmp_path / "l.jsonl", label_rows())
    ask(tmp_path / "s.sqlite", cut(DOCUMENTS), LABELS, FakeTeacher(lambda pair: -9.0))
    ask(tmp_path / "s.sqlite", DOCUMENTS, LABELS, FakeTeacher(topical))
    app = typer.Typer()
    steps.register(app)
    bundle.register(app)

    def call(*args: object) -> tuple[dict[str, Any], str]:
        done = CliRunner().invoke(app, [*map(str, args), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), done.stderr

    options = ["--encoder", tiny_encoder, "--epochs", 1, "--held-out", 0.4]
    trained, told = call("train", "d.jsonl", "l.jsonl", "s.sqlite", "-o", "st", *options)
    assert trained["unused_judgments"] == 500 and "belong to no present text" in told
    call("index", "st", "l.jsonl", "-o", "b", "--max-length", 32)
    fitted, told = call("calibrate", "b", "d.jsonl", "--store", "s.sqlite", "--kind", "platt")
    assert fitted["pairs"] == 200 and "500 of 1,000" in told
    write_rows(tmp_path / "d.jsonl", [{**row, "text": f"new {row['text']}"} for row in ROWS])
    with pytest.raises(DataError, match="only 0 of 1,000"):
        call("train", "d.jsonl", "l.jsonl", "s.sqlite", "-o", "st2", *options)
    with pytest.raises(DataError, match="edited"):
        call("calibrate", "b", "d.jsonl", "--store", "s.sqlite")
