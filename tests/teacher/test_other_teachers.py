"""A changed prompt never shares answers with the old one, and whoever changed it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.fake_server import FakeServer, save_tokenizer
from support.fakes import FakeTeacher, catalog
from transformers import AutoTokenizer

from ezxmc.config.teacher import HttpTeacherConfig, VllmTeacherConfig
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.recall import differences, unused_judgments
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Label, Pair
from ezxmc.teacher import vllm as vllm_local
from ezxmc.teacher.openai import OpenAITeacher
from ezxmc.teacher.prompt import Graded, Prompt, YesNo
from ezxmc.teacher.vllm import VllmTeacher

PAIR = Pair(Document("d", "A title", "and a text"), Label("l", "A label"))

words = st.text("abcdefgh :.\n", max_size=30)
spellings = {w: st.just((w,)) | st.just((w, f" {w}")) for w in ("Yes", "No", "yes", "no", "0", "1", "2")}
answers = st.builds(YesNo, yes=spellings["Yes"] | spellings["yes"], no=spellings["No"] | spellings["no"]) | (
    st.builds(
        Graded,
        scheme=st.just("graded"),
        grades=st.tuples(spellings["0"], spellings["1"]) | st.permutations([("0",), ("1",), ("2",)]),
    )
)
user_turns = st.builds("{}{{document}}{}{{label}}{}".format, words, words, words)
fields: dict[str, st.SearchStrategy[Any]] = {
    "name": words,
    "version": st.integers(0, 10**6),
    "domain": words,
    "system": words,
    "user": user_turns,
    "assistant": words,
    "answer": answers,
}


@st.composite
def edits(draw: st.DrawFn) -> tuple[Prompt, Prompt, str]:
    """A prompt, the same with one field changed, and the field."""
    values = {name: draw(values) for name, values in fields.items()}
    field = draw(st.sampled_from([*fields]))
    before = Prompt(**values)
    after = Prompt(**values | {field: draw(fields[field])})
    assume(before != after)
    return before, after, field


def write(prompt: Prompt, folder: Path) -> str:
    """The prompt as a file."""
    path = folder / "mine.toml"
    answer = prompt.answer.model_dump()
    rows = [f"{name} = {json.dumps(value)}" for name, value in prompt.model_dump(exclude={"answer"}).items()]
    path.write_text("\n".join([*rows, "[answer]", *(f"{k} = {json.dumps(v)}" for k, v in answer.items())]))
    return str(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder without weights: vLLM is needed for scores only."""
    folder = save_tokenizer(tmp_path_factory.mktemp("toy"))
    loaded = AutoTokenizer.from_pretrained(str(folder))
    engine = SimpleNamespace(block=32, version="vllm 0", max_tokens=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_local, "VllmEngine", lambda *_: engine)
        patch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: loaded)
        yield folder


@given(edit=edits())
def test_any_change_of_a_prompt_changes_every_key(toy: Path, edit: tuple[Prompt, Prompt, str]) -> None:
    """Whatever is edited, with or without a new version: no old answer is taken for a new one."""
    before, after, field = edit
    keys, prints = [], []
    for prompt in (before, after, before):
        teacher = VllmTeacher(VllmTeacherConfig(model=str(toy), prompt=write(prompt, toy)))
        assert teacher.description["prompt_hash"] == prompt.hash
        prints.append(teacher.fingerprint)
        keys.append(teacher.key(PAIR))
    assert keys[0] != keys[1] and prints[0] != prints[1], field
    assert (keys[0], prints[0]) == (keys[2], prints[2])


@pytest.mark.parametrize("field", Prompt.model_fields)
def test_the_same_goes_for_a_server(toy: Path, field: str) -> None:
    prompt = Prompt.load("generic")
    changes = {
        "version": 2,
        "user": "Text: {document}\nTag: {label}",
        "answer": YesNo(yes=("yes",), no=("no",)),
    }
    edited = prompt.model_copy(update={field: changes.get(field, "other")})
    server = FakeServer(toy)
    try:
        keys = {
            OpenAITeacher(
                HttpTeacherConfig(
                    base_url=server.url, model="toy", tokenizer=str(toy), prompt=write(one, toy), timeout=5.0
                )
            ).key(PAIR)
            for one in (prompt, edited, prompt)
        }
    finally:
        server.kill()
    assert len(keys) == 2


# ------------------------------------------------------------- telling it


class Described(FakeTeacher):
    def __init__(self, **description: Any) -> None:
        super().__init__(name=json.dumps(description, sort_keys=True))
        self._description = description

    @property
    def description(self) -> dict[str, Any]:
        return self._description


OLD = {"backend": "vllm", "model": "m@1", "prompt": "software/1", "prompt_hash": "a", "scoring": 2}


def test_old_judgments_are_kept_not_used_and_named(tmp_path: Path) -> None:
    documents, labels = catalog(3, 4)
    rows = [range(4)] * 3
    pairs = lambda: pairs_of(documents, labels, rows)  # noqa: E731
    old, new = Described(**OLD), Described(**OLD | {"prompt": "software/2", "prompt_hash": "b"})
    with FeedbackStore(tmp_path / "store.sqlite") as store:
        assert unused_judgments(store, old) is None
        annotate(pairs, old, store)
        assert unused_judgments(store, old) is None
        assert unused_judgments(store, new) == (
            "the store holds 12 judgments of another teacher (prompt software/1, now software/2): "
            "they are kept and not used"
        )
        annotate(pairs, new, store)
        assert len(new.asked) == 12
        third = Described(**OLD | {"model": "m@2"})
        assert unused_judgments(store, third) == (
            "the store holds 24 judgments of 2 other teachers, the latest "
            "(model m@1, now m@2; prompt software/2, now software/1): they are kept and not used"
        )
        assert store.totals(old.fingerprint).judgments == 12


def test_a_teacher_that_gave_no_judgment_is_not_named(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "store.sqlite") as store:
        store.open_session("f" * 64, OLD)
        assert unused_judgments(store, Described(**OLD)) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt_hash": "b"}, ("prompt software/1 before its text was changed",)),
        ({"prompt_hash": "b", "prompt": "legal/1"}, ("prompt software/1, now legal/1",)),
        ({"model": "n@1", "scoring": 3}, ("model m@1, now n@1", "scoring 2, now 3")),
        ({"answer_tokens": {"7": 1.0}}, ("described in other terms",)),
    ],
)
def test_the_difference_is_said_in_words(change: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert differences(OLD, OLD | change) == expected


def test_long_values_are_not_printed_whole() -> None:
    (said,) = differences(OLD | {"answer_tokens": {"1": 0.0}}, OLD | {"answer_tokens": {"2": 0.0}})
    assert said == "other answer tokens"
    (said,) = differences(OLD, OLD | {"model": "x" * 500})
    assert len(said) < 100
