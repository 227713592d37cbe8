"""What the service is on the web: its port, its pages for people, what it tells Prometheus.

All that the pages need is in them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import signal
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import HTMLResponse
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


_HERE = Path(__file__).parent
_NOTHING = "'none'"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def try_page() -> HTMLResponse:
    """A form that tags a text."""
    return html_response((_HERE / "page.html").read_text(encoding="utf-8"))


def docs_page(schema: dict[str, Any]) -> HTMLResponse:
    """An OpenAPI schema as plain HTML."""
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return html_response(environment.get_template("docs.html.j2").render(schema=schema, style=style()))


@cache
def style() -> str:
    """The style sheet all pages begin with."""
    found = _INLINE.search((_HERE / "page.html").read_text(encoding="utf-8"))
    return found[2] if found else ""


def html_response(html: str) -> HTMLResponse:
    """A page that may run its own inline script and style, and ask this server, and nothing else."""
    return HTMLResponse(html, headers={"Content-Security-Policy": _policy(html)})


@cache
def _policy(html: str) -> str:
    """Nothing is allowed but the page's own inline script and style, by hash, and requests to this server."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    sources = "; ".join(f"{kind}-src {' '.join(found) or _NOTHING}" for kind, found in hashes.items())
    return (
        f"default-src {_NOTHING}; {sources}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "ezxmc_requests", "Requests answered.", ["path", "method", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "ezxmc_request_seconds",
            "From a request's headers to its answer's end.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.documents = Counter("ezxmc_documents", "Documents tagged.", registry=self._registry)
        self.batches = Histogram(
            "ezxmc_batch_documents", "Documents computed together.", buckets=_SIZES, registry=self._registry
        )
        self.reloads = Counter(
            "ezxmc_reloads", "Bundles loaded (ok) or refused.", ["outcome"], registry=self._registry
        )

    def watch(self, waiting: Callable[[], float], labels: Callable[[], float]) -> None:
        """Read these whenever Prometheus asks: documents that wait, labels in the bundle."""
        Gauge("ezxmc_queue_documents", "Documents that wait.", registry=self._registry).set_function(waiting)
        Gauge("ezxmc_labels", "Labels that can be answered.", registry=self._registry).set_function(labels)

    def text(self) -> bytes:
        """All of it in Prometheus's text format, version 0.0.4."""
        return generate_latest(self._registry)
