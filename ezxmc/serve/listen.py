"""An ASGI application on a port of this machine, until it is told to end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ezxmc.errors import ConfigError

_CONNECTIONS = 512
_OF_ONE_CLIENT = _CONNECTIONS // 2  # a proxy is one client; nobody alone shuts the others out
_HEADERS = 10.0  # seconds a request's headers may take, from the connection or their first byte
_LAST_ANSWERS = 30  # seconds


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: The address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}", "choose another --port") from None


class _Bounded(H11Protocol):
    """A connection that is closed when its client has too many, or lets a request's headers wait.

    uvicorn itself limits only how long a connection may be silent after an answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = None
        host = _host(self)
        if sum(_host(other) == host for other in self.connections) > _OF_ONE_CLIENT:
            transport.abort()
        else:
            self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun and self._waiting:
            self._waiting.cancel()
            self._waiting = None
        elif not begun and not self._waiting:
            self._waiting = self.loop.call_later(_HEADERS, self.transport.abort)


def _host(connection: object) -> str | None:
    client = getattr(connection, "client", None)
    return client[0] if client else None


def server(app: ASGIApp) -> uvicorn.Server:
    """A server of an application whose connections are bounded."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Bounded,
            ws="none",  # such a connection would be out of the bounds, and nothing here answers it
            log_level="warning",
            access_log=False,
            server_header=False,
            # A client must not choose the address its rate is counted under.
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_LAST_ANSWERS,
        )
    )


def answer_requests(
    app: ASGIApp, listening: socket.socket, host: str, announce: Callable[[str], None]
) -> None:
    """Answer until SIGINT or SIGTERM; what was begun is answered first.

    Args:
        app: The application.
        listening: From `listener`.
        host: The name it was made with.
        announce: Called with the URL once requests are accepted.
    """
    name = f"[{host}]" if listening.family == socket.AF_INET6 else host
    announce(f"http://{name}:{listening.getsockname()[1]}")
    # uvicorn ends in order and then raises the signal once more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server(app).run(sockets=[listening])
