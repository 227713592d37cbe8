"""The service as a process: what it listens on, and how it ends."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import replace

import uvicorn

from ezxmc.errors import ConfigError
from ezxmc.serve.app import create_app
from ezxmc.serve.limits import TOKEN_VARIABLE, is_loopback
from ezxmc.serve.service import LOCAL_NAMES, Settings

_CONNECTIONS = 512
_LAST_ANSWERS = 30  # seconds


def serve(settings: Settings, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; what was begun is answered first. SIGHUP reloads the bundle.

    Args:
        settings: What to serve, and how; its `hosts` follow from `host`.
        host: Address or name to listen on; beyond this machine only with a token.
        port: 0 takes a free one.
        announce: Called with the URL once requests are accepted.

    Raises:
        ConfigError: No token, though others can reach `host`; or the address cannot be had.
        BundleError: There is no intact bundle.
    """
    local = is_loopback(host)
    if not local and settings.token is None:
        raise ConfigError(
            f"{host} can be reached from other machines, and there is no token",
            f"set {TOKEN_VARIABLE}, give --token-file, or listen on 127.0.0.1",
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}", "choose another --port") from None
    with listener:
        app = create_app(replace(settings, hosts=LOCAL_NAMES | {host} if local else None))
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
        name = f"[{host}]" if family == socket.AF_INET6 else host
        announce(f"http://{name}:{listener.getsockname()[1]}")
        # uvicorn ends in order and then raises the signal once more.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
