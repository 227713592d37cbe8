"""How answers of an HTTP teacher's server are read, and which addresses it may have."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from ezxmc.config.teacher import HttpTeacherConfig
from ezxmc.teacher.openai_client import RefusedError, cached_tokens, choices, logprobs, seen_answers, too_long
from ezxmc.teacher.prompt import AnswerTokens


def test_cached_tokens_never_exceed_what_is_known() -> None:
    prompts = [[1] * 64 + [2] * 5, [1] * 64 + [3] * 9, [1] * 64 + [4]]
    said = lambda n: {"usage": {"prompt_tokens_details": {"cached_tokens": n}}}  # noqa: E731
    assert cached_tokens(said(64), prompts, vllm=True) == [0, 64, 64]
    assert cached_tokens(said(65), prompts, vllm=True) == [0, 64, 64]
    assert cached_tokens(said(60), prompts[:1], vllm=True) == [60]
    for told in (0, 1, 64, 150, 206):
        assert sum(cached_tokens(said(told), prompts, vllm=False)) == told
    for nothing in ({}, {"usage": None}, {"usage": {"prompt_tokens_details": None}}, said(None)):
        assert cached_tokens(nothing, prompts, vllm=True) == [0, 0, 0]


@pytest.mark.parametrize(
    "answer", [{}, {"choices": None}, {"choices": ["x", None]}, {"choices": [{"index": -1}]}]
)
def test_odd_answers_hold_no_choice(answer: dict[str, Any]) -> None:
    assert choices(answer, 2) == [{}, {}]


def test_odd_logprobs_hold_no_number() -> None:
    for odd in (None, {}, {"top_logprobs": None}, {"top_logprobs": [None]}, {"top_logprobs": [[1]]}):
        assert logprobs({"logprobs": odd}, {"Yes": 1}) == {}
    top = {"token_id:7": -1.0, "token_id:x": -1.0, "Yes": -2.0, "No": "no", "other": -3.0}
    assert logprobs({"logprobs": {"top_logprobs": [top]}}, {"Yes": 1, "No": 2}) == {7: -1.0, 1: -2.0}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("https://host/llm/v1/", "https://host/llm/v1"),
    ],
)
def test_the_address_may_leave_out_the_obvious(given: str, kept: str) -> None:
    assert HttpTeacherConfig(base_url=given, model="m").base_url == kept


@pytest.mark.parametrize(
    "given", ["host:8000", "ftp://host", "http://", "http://me:pass@host", "http://h/v1?k=1"]
)
def test_addresses_that_cannot_work_are_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="base_url") as caught:
        HttpTeacherConfig(base_url=given, model="m")
    assert re.search("must have the form|must hold no password", str(caught.value))


@pytest.mark.parametrize(
    ("status", "message", "is_length"),
    [
        (400, "This model's maximum context length is 640 tokens. However, your prompt contains 700", True),
        (400, "the request exceeds the available context size", True),
        (413, "Payload Too Large", True),
        (400, "prompt list length 2000 exceeds the maximum allowed count of 1024", False),
        (400, "logprobs must be at most 5", False),
        (404, "context length", False),
    ],
)
def test_refusals_for_length_are_told_from_others(status: int, message: str, is_length: bool) -> None:
    assert too_long(RefusedError(status, message)) is is_length


def test_of_the_most_probable_tokens_both_sides_must_be_seen() -> None:
    answers = AnswerTokens((1, 2, 3, 4), (0.0, 0.0, 1.0, 1.0))
    assert seen_answers({2: -1.0, 3: -1.0, 9: -1.0}, answers) == AnswerTokens((2, 3), (0.0, 1.0))
    assert seen_answers({1: -1.0, 2: -1.0}, answers) is None
    assert seen_answers({3: -1.0}, answers) is None
    assert seen_answers({2: -1.0}, AnswerTokens((1, 2, 3), (0.0, 0.5, 1.0))) is not None, (
        "a middle grade is both"
    )
