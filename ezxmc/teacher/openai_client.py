"""Requests to an OpenAI-compatible server: many at once, tried again, cut off when the caller stops.

Below are the words of its protocol: requests for judgments, and how answers are read.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import sys
import threading
import time
import zlib
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal

import httpx

from ezxmc.config.teacher import is_loopback
from ezxmc.errors import TeacherError
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
        wanted = {"logprobs": 1, "logprob_token_ids": list(answers.ids), "return_tokens_as_token_ids": True}
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
    for name, value in top(choice).items():
        token = int(match[1]) if (match := _TOKEN.fullmatch(name)) else names.get(name)
        if token is not None and isinstance(value, int | float):
            found[token] = -math.inf if value <= _FLOOR else value
    return found


def top(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice says of tokens' log-probabilities, by their names; nothing where it does not."""
    try:
        found = choice["logprobs"]["top_logprobs"][0]
    except (KeyError, IndexError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


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

    From `usage.prompt_tokens_details.cached_tokens`, which vLLM gives with `--enable-prompt-tokens-details`.
    Of a request with several prompts vLLM (0.32) tells the last one's number only: the others are taken to
    share as much of their common prefix, and the first, which may have filled the cache, nothing. So the sum
    is a lower bound. Other servers' numbers are taken as the whole request's.

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


# Of one request: how often the server may take it and fail on it.
_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_CONNECT = 10.0
_TRY_AGAIN = frozenset((408, 409, 425, 429))
_NEVER = 501  # "not implemented" will not change
# "Not now" says nothing against the request: only patience ends it.
_BUSY = frozenset((429, 503))
# Some hundred times what 64 prompts' answers take; a list of all models of a large provider fits, too.
_MOST_BYTES = 8 * 2**20


class RefusedError(Exception):
    """The server said no, and would say it again.

    Attributes:
        status: HTTP status.
        message: The server's words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class GaveUpError(Exception):
    """One request failed again and again while the server answered others."""


class _FailedTry(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, reason: str, *, taken: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.taken, self.wait = taken, wait


class HttpClient:
    """A context in which requests run; leaving it cancels what is under way.

    Requests run on an event loop in a thread of their own, so that they go on while the caller works, and so
    that a caller inside another event loop (a notebook) can use it. A cancelled request closes its
    connection, by which the server learns that nobody waits for it.

    Tried again, with exponential back-off and full jitter and not before the server's Retry-After: no
    connection, no answer within `timeout`, a broken answer (one of more than 8 MiB, unpacked, is not read to
    its end), 408, 409, 425, 429 and 5xx but 501.

    Args:
        base_url: Such as `http://127.0.0.1:8000/v1`.
        key: Sent as bearer token; never part of a message.
        timeout: Seconds one try may take.
        patience: Seconds after which silence of the whole server ends the job.
    """

    def __init__(self, base_url: str, key: str | None, *, timeout: float, patience: float) -> None:
        self._base, self._key = base_url, key
        self._timeout, self._patience = timeout, patience
        self._answered = 0.0

    def __enter__(self) -> HttpClient:
        # A proxy of the environment cannot reach our own machine's loopback.
        proxied = not is_loopback(httpx.URL(self._base).host)
        self._http = httpx.AsyncClient(
            # Answers are small; a server that packs them all the same is understood.
            headers={"Accept-Encoding": "identity"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            # The whole try is timed below: httpx times each read, which a
            # server that trickles bytes never exceeds.
            timeout=httpx.Timeout(None, connect=_CONNECT),
            limits=httpx.Limits(max_connections=None),
            trust_env=proxied,
        )
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ezxmc-http", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if sys.is_finalizing():
            return  # the thread stands still by now, and would be waited for without end
        self._run(self._stop()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _stop(self) -> None:
        # anyio warns of a connection attempt that is cancelled before its first
        # step: none begins from here on, and those just begun take that step.
        self._closing = True
        await asyncio.sleep(0.01)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    def get(self, url: str) -> Future[dict[str, Any]]:
        """Begin a GET of an absolute URL; see `post`."""
        return self._run(self._request("GET", url, None))

    def post(self, path: str, body: dict[str, Any]) -> Future[dict[str, Any]]:
        """Begin a POST below the base URL.

        Returns:
            The JSON object of the answer. Its `result()` raises `RefusedError` or `GaveUpError`, or
            `TeacherError` when no request at all was answered for `patience` seconds.
        """
        return self._run(self._request("POST", f"{self._base}/{path}", body))

    async def _request(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        started = time.monotonic()
        failures = taken = 0
        while not self._closing:
            try:
                answer = await self._try(method, url, body)
                self._answered = time.monotonic()
                return answer
            except RefusedError:
                self._answered = time.monotonic()
                raise
            except _FailedTry as failure:
                failures += 1
                taken += failure.taken
                now = time.monotonic()
                if now - max(started, self._answered) >= self._patience:
                    raise TeacherError(
                        f"{self._base} has given no answer for {self._patience:g} s: {failure}",
                        "see that the server runs there (`vllm serve MODEL --port PORT`) and has loaded its "
                        "model; judgments so far are kept, the same command goes on",
                    ) from None
                if taken >= _TRIES or now - started >= self._patience:
                    raise GaveUpError(f"given up after {failures} tries: {failure}") from None
                ceiling = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(failures - 1, 16))
                await asyncio.sleep(min(failure.wait, self._patience) + random.uniform(0, ceiling))
        raise asyncio.CancelledError

    async def _try(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout):
                async with self._http.stream(method, url, json=body) as response:
                    content = await _content(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _FailedTry(f"cannot connect ({error})", taken=False) from None
        except TimeoutError:
            raise _FailedTry(f"nothing within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise _FailedTry(f"{type(error).__name__}: {error}") from None
        status, words = response.status_code, self._message(content) or response.reason_phrase
        if status in _TRY_AGAIN or (status >= 500 and status != _NEVER):
            raise _FailedTry(f"{status} {words}", taken=status not in _BUSY, wait=_retry_after(response))
        if status >= 300:
            raise RefusedError(status, words)
        answer = _json(content)
        if not isinstance(answer, dict):
            raise _FailedTry(f"{status} without a JSON object: {words}")
        return answer

    def _message(self, content: bytes) -> str:
        """The server's own words, short, and without our key should it repeat it."""
        body = _json(content)
        said = body.get("error", body) if isinstance(body, dict) else None
        words = said.get("message") or said.get("detail") or said if isinstance(said, dict) else said
        text = " ".join(str(words or content.decode("utf-8", "replace")).split())[:500]
        return text.replace(self._key, "***") if self._key else text


def _json(content: bytes) -> Any:
    """What the JSON says; `None` if it is none, or nested too deeply to be read."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


async def _content(response: httpx.Response) -> bytes:
    """The body, unpacked, never more of it than `_MOST_BYTES`."""
    packing = response.headers.get("Content-Encoding", "identity").lower()
    if packing not in ("identity", "gzip", "deflate"):
        raise _FailedTry(f"the answer is packed ({packing}), which was not asked for")
    unpacker = None if packing == "identity" else zlib.decompressobj(wbits=47)  # either format
    parts, room = list[bytes](), _MOST_BYTES
    async for raw in response.aiter_raw():
        try:
            part = unpacker.decompress(raw, room + 1) if unpacker else raw
        except zlib.error as error:
            raise _FailedTry(f"the answer cannot be unpacked: {error}") from None
        parts.append(part)
        room -= len(part)
        if room < 0:
            raise _FailedTry(f"the answer is larger than {_MOST_BYTES >> 20} MiB")
    return b"".join(parts)


def _retry_after(response: httpx.Response) -> float:
    """Seconds the server asks us to wait; it may say so in seconds or as a date."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
