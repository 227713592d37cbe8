"""An ASGI application on a port of this machine, until it is told to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from ezxmc.errors import ConfigError

_CONNECTIONS = 512
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
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # A client must not choose the address its rate is counted under.
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_LAST_ANSWERS,
    )
    name = f"[{host}]" if listening.family == socket.AF_INET6 else host
    announce(f"http://{name}:{listening.getsockname()[1]}")
    # uvicorn ends in order and then raises the signal once more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])
