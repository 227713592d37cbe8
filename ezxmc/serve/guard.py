"""What every request passes before it reaches a route: host, rate, token, size.

Its limits say how much a client may ask for, how often, and who may ask at all.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ezxmc.errors import ConfigError
from ezxmc.serve.web import Metrics

TOKEN_VARIABLE = "EZXMC_SERVE_TOKEN"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SHORTEST_TOKEN = 16
_CLIENTS = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes.

    Attributes:
        body_bytes: Of a request's body.
        body_seconds: Until a body must have arrived.
        documents: In a request; labels as well.
        characters: Of a document's title and text together.
        rate: Requests a second of a client, in the long run.
        burst: Requests of a client at once.
        queue: Documents that may wait for the model.
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    documents: int = 256
    characters: int = 200_000
    rate: float = 100.0
    burst: int = 200
    queue: int = 1_024


class TokenBuckets:
    """A token bucket per client: `burst` tokens at first, `rate` more a second, one for each request.

    Memory is bounded: of more than 10,000 clients the one longest silent is
    forgotten, and begins with a full bucket again.

    Args:
        rate: Tokens a second.
        burst: Tokens a bucket holds.
        clock: Seconds that never go back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        now = self._clock()
        tokens, last = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return wait


def authorized(header: bytes | None, token: str) -> bool:
    """Whether an `Authorization` header carries the token; takes as long for a wrong one as for the right."""
    return hmac.compare_digest(header or b"", b"Bearer " + token.encode())


def read_token(file: Path | None, environment: str | None) -> str | None:
    """The bearer token out of a file, or else out of an environment variable's value.

    Raises:
        ConfigError: It cannot be read, is short, or cannot stand in a header.
    """
    if file is None and environment is None:
        return None
    where = str(file) if file else TOKEN_VARIABLE
    try:
        token = (file.read_text(encoding="ascii") if file else environment or "").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"no token can be read from {where}: {error}", "check the file") from None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token in {where} is not at least {_SHORTEST_TOKEN} ASCII characters without spaces",
            "make one with `openssl rand -hex 32`",
        )
    return token


OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz"})
"""Paths that need no token: they show nothing of the bundle."""
_UNLIMITED = frozenset({"/healthz"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _READING | {"POST", "PUT", "PATCH", "DELETE"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        detail: What was wrong.
        cure: What helps.
        headers: Of the answer.
    """

    def __init__(
        self, status: int, detail: str, cure: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.cure, self.headers = status, detail, cure, headers or {}

    @property
    def body(self) -> bytes:
        """As JSON; what no encoding can hold is escaped."""
        return json.dumps({"detail": self.detail, "cure": self.cure}).encode()


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        limits: As they say.
        token: Bearer token, or `None` for none.
        hosts: Names a browser may know this server by, or `None` for any. On loopback this keeps out pages
            whose own name was made to point here (DNS rebinding).
        paths: Counted by name; any other path counts as "other".
        metrics: Where to count.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        token: str | None,
        hosts: Collection[str] | None,
        paths: Collection[str],
        metrics: Metrics,
    ) -> None:
        self._app, self._limits, self._token = app, limits, token
        self._hosts, self._paths, self._metrics = hosts, paths, metrics
        self._buckets = TokenBuckets(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._admit(scope, headers)
            await self._app(scope, _replayed(await self._body(headers, receive)), answer)
        except RefusedError as refused:
            await answer(
                {
                    "type": "http.response.start",
                    "status": refused.status,
                    "headers": [
                        (b"content-type", b"application/json"),
                        (b"content-length", str(len(refused.body)).encode()),
                        *((name.lower().encode(), value.encode()) for name, value in refused.headers.items()),
                    ],
                }
            )
            await answer({"type": "http.response.body", "body": refused.body})
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            # A client may send any word for a method: each would be a counter for good.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(path, method if path != "other" else "", status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - began)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            raise RefusedError(
                421, "this server has another name", "use its address, such as http://127.0.0.1"
            )
        # A token is asked for in a header that no page of another site can send unasked.
        if self._token is None and scope["method"] not in _READING and _is_foreign(headers):
            raise RefusedError(403, "a page of another site sent this", "use this server's own page")
        client = scope["client"][0] if scope.get("client") else ""
        if scope["path"] not in _UNLIMITED and (wait := self._buckets.take(client)):
            seconds = str(math.ceil(wait))
            raise RefusedError(429, "too many requests", f"wait {seconds} s", {"Retry-After": seconds})
        given = headers.get("authorization")
        scope["authorized"] = self._token is None or authorized(
            given.encode("latin-1") if given else None, self._token
        )
        if not scope["authorized"] and scope["path"] not in OPEN:
            raise RefusedError(
                401, "no valid token", "send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self._limits.body_bytes
        too_large = RefusedError(
            413, f"the body is larger than {most:,} bytes", "send fewer documents", {"Connection": "close"}
        )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "the client left before its body ended")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RefusedError(408, "the body took too long", "", {"Connection": "close"}) from None


def _replayed(body: bytes) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    return receive


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser sent a request for a page of another origin; other clients name none."""
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
