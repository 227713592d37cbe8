"""Requests to an OpenAI-compatible server: many at once, tried again, cut off when the caller stops."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from ezxmc.errors import TeacherError

# Of one request: how often the server may take it and fail on it.
_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_CONNECT = 10.0
_TRY_AGAIN = frozenset((408, 409, 425, 429))
_NEVER = 501  # "not implemented" will not change
# "Not now" says nothing against the request: only patience ends it.
_BUSY = frozenset((429, 503))
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


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

    Requests run on an event loop in a thread of their own, so that they go on
    while the caller works, and so that a caller inside another event loop (a
    notebook) can use it. A cancelled request closes its connection, by which
    the server learns that nobody waits for it.

    Tried again, with exponential back-off and full jitter and not before the
    server's Retry-After: no connection, no answer within `timeout`, a broken
    answer, 408, 409, 425, 429 and 5xx but 501.

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
        proxied = httpx.URL(self._base).host not in _LOOPBACK
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
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
            The JSON object of the answer. Its `result()` raises `RefusedError`
            or `GaveUpError`, or `TeacherError` when no request at all was
            answered for `patience` seconds.
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
                response = await self._http.request(method, url, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _FailedTry(f"cannot connect ({error})", taken=False) from None
        except TimeoutError:
            raise _FailedTry(f"nothing within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise _FailedTry(f"{type(error).__name__}: {error}") from None
        status = response.status_code
        if status in _TRY_AGAIN or (status >= 500 and status != _NEVER):
            raise _FailedTry(
                f"{status} {self._message(response)}", taken=status not in _BUSY, wait=_retry_after(response)
            )
        if status >= 300:
            raise RefusedError(status, self._message(response))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _FailedTry(f"{status} without a JSON object: {self._message(response)}")
        return answer

    def _message(self, response: httpx.Response) -> str:
        """The server's own words, short, and without our key should it repeat it."""
        try:
            body = response.json()
            said = body.get("error", body)
            words = said.get("message") or said.get("detail") or said if isinstance(said, dict) else said
        except (ValueError, AttributeError):
            words = response.text
        text = " ".join(str(words).split())[:500] or response.reason_phrase
        return text.replace(self._key, "***") if self._key else text


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
