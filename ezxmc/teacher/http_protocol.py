"""The words of an OpenAI-compatible server: requests for judgments, and how answers are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ezxmc.teacher.http_client import RefusedError
from ezxmc.teacher.prompt import AnswerTokens

Mode = Literal["full", "top20"]

_TOKEN = re.compile(r"token_id:(\d+)")
# JSON knows no infinity: vLLM writes this for a probability of zero.
_FLOOR = -9999.0
# In the words of vLLM, OpenAI, SGLang and llama.cpp, as far as known.
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|max_model_len|(prompt|input).{0,40}too (long|large)", re.IGNORECASE
)


def too_long(refusal: RefusedError) -> bool:
    """Whether the server refused a prompt for its length."""
    return refusal.status == 413 or (refusal.status in (400, 422) and bool(_TOO_LONG.search(refusal.message)))


def body(model: str, prompts: Sequence[Sequence[int]], mode: Mode, answers: AnswerTokens) -> dict[str, Any]:
    """The request for one answer token to each prompt of token ids."""
    wanted: dict[str, Any] = {"logprobs": 20}
    if mode == "full":
        # vLLM's own parameters; beside the ids it wants `logprobs` to be set.
        wanted = {
            "logprobs": 1,
            "logprob_token_ids": list(answers.ids),
            "return_tokens_as_token_ids": True,
        }
    return {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0, **wanted}


def choices(answer: Mapping[str, Any], prompts: int) -> list[dict[str, Any]]:
    """The answers in the order of the prompts; an empty one where there is none."""
    found: list[dict[str, Any]] = [{} for _ in range(prompts)]
    given = answer.get("choices")
    for place, choice in enumerate(given if isinstance(given, list) else []):
        index = choice.get("index", place) if isinstance(choice, dict) else None
        if isinstance(index, int) and 0 <= index < prompts:
            found[index] = choice
    return found


def logprobs(choice: Mapping[str, Any], names: Mapping[str, int]) -> dict[int, float]:
    """Log-probabilities at the answer's position, by token id, as far as the server gave them.

    Args:
        choice: One of the answer's choices.
        names: Token ids of the answers by the text a server may write for them.
    """
    found: dict[int, float] = {}
    for name, value in _top(choice).items():
        token = int(match[1]) if (match := _TOKEN.fullmatch(name)) else names.get(name)
        if token is not None and isinstance(value, int | float):
            found[token] = -math.inf if value <= _FLOOR else value
    return found


def gives_logprobs(choice: Mapping[str, Any]) -> bool:
    """Whether a choice comes with log-probabilities of any token."""
    return bool(_top(choice))


def _top(choice: Mapping[str, Any]) -> dict[str, Any]:
    try:
        top = choice["logprobs"]["top_logprobs"][0]
    except (KeyError, IndexError, TypeError):
        return {}
    return top if isinstance(top, dict) else {}


def first_token(choice: Mapping[str, Any]) -> tuple[int | None, str]:
    """Id of the generated token, where the server writes ids, and its text without surrounding space."""
    try:
        match = _TOKEN.fullmatch(choice["logprobs"]["tokens"][0])
    except (KeyError, IndexError, TypeError):
        match = None
    return int(match[1]) if match else None, str(choice.get("text") or "").strip()


def prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    """Tokens the server read in all prompts of a request, where it says so."""
    usage = answer.get("usage")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return read if isinstance(read, int) else None


def seen_answers(found: Mapping[int, float], answers: AnswerTokens) -> AnswerTokens | None:
    """The answer tokens among a server's most probable ones; `None` if a side is missing wholly."""
    kept = [(i, w) for i, w in zip(answers.ids, answers.weights, strict=True) if i in found]
    if not any(w > 0 for _, w in kept) or not any(w < 1 for _, w in kept):
        return None
    return AnswerTokens(tuple(i for i, _ in kept), tuple(w for _, w in kept))


def cached_tokens(answer: Mapping[str, Any], prompts: Sequence[Sequence[int]], *, vllm: bool) -> list[int]:
    """How many tokens of each prompt the server's prefix cache supplied, as far as it says.

    From `usage.prompt_tokens_details.cached_tokens`, which vLLM gives with
    `--enable-prompt-tokens-details`. Of a request with several prompts vLLM
    (0.32) tells the last one's number only: the others are taken to share as
    much of their common prefix, and the first, which may have filled the
    cache, nothing. So the sum is a lower bound. Other servers' numbers are
    taken as the whole request's.

    Returns:
        A number per prompt; zeros where the server does not say.
    """
    try:
        told = int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    except (KeyError, TypeError, ValueError):
        return [0] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    if vllm and len(prompts) > 1 and told <= lengths[-1]:
        columns = enumerate(zip(*prompts, strict=False))
        common = next((place for place, tokens in columns if len(set(tokens)) > 1), min(lengths))
        shared = min(told, common)
        return [0, *[shared] * (len(prompts) - 1)]
    found = [0] * len(prompts)
    for place in reversed(range(len(prompts))):
        found[place] = min(told, lengths[place])
        told -= found[place]
    return found
