"""The service as a process: what it listens on, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ezxmc.errors import ConfigError
from ezxmc.serve.app import create_app
from ezxmc.serve.limits import LOCAL_NAMES, TOKEN_VARIABLE, is_loopback
from ezxmc.serve.listen import answer_requests, listener
from ezxmc.serve.service import Settings


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
    with listener(host, port) as listening:
        app = create_app(replace(settings, hosts=LOCAL_NAMES | {host} if local else None))
        answer_requests(app, listening, host, announce)
