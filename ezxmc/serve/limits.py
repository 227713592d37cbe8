"""How much a client may ask for, how often, and who may ask at all."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ezxmc.errors import ConfigError

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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
