"""The service's parts without a model: batches, limits, tokens, the guard, the pages."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import served

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from ezxmc.config.teacher import is_loopback
from ezxmc.errors import ConfigError
from ezxmc.serve import web as listen
from ezxmc.serve import web as page
from ezxmc.serve.guard import Guard, Limits, TokenBuckets, authorized, read_token
from ezxmc.serve.service import Batcher, QueueFullError
from ezxmc.serve.web import Metrics

# --- token buckets


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
    st.floats(0.5, 20),
    st.integers(1, 8),
)
def test_a_bucket_never_lets_more_through_than_burst_and_rate(
    gaps: list[float], rate: float, burst: int
) -> None:
    now = 0.0
    buckets = TokenBuckets(rate, burst, clock=lambda: now)
    passed: list[float] = []
    for gap in gaps:
        now += gap
        wait = buckets.take("a")
        if wait == 0:
            passed.append(now)
        else:
            assert 0 < wait <= 1 / rate + 1e-9
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            allowed = burst + rate * (passed[last] - passed[first])
            assert last - first + 1 <= allowed + 1e-6


def test_the_wait_told_is_the_wait_needed_and_clients_do_not_share() -> None:
    now = 0.0
    buckets = TokenBuckets(2.0, 3, clock=lambda: now)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    wait = buckets.take("a")
    assert wait == pytest.approx(0.5) and buckets.take("b") == 0
    now += wait - 0.01
    assert buckets.take("a") == pytest.approx(0.01)
    now += 0.011
    assert buckets.take("a") == 0


def test_clients_without_end_do_not_fill_the_memory() -> None:
    buckets = TokenBuckets(0.001, 1)
    for number in range(20_000):
        buckets.take(str(number))
    assert len(buckets._buckets) == 10_000
    assert buckets.take("19999") > 0 and buckets.take("0") == 0


# --- token and address


def test_only_the_token_opens() -> None:
    token = "0123456789abcdef"
    assert authorized(b"Bearer 0123456789abcdef", token)
    for wrong in (None, b"", b"Bearer ", b"Bearer 0123456789abcdeF", b"0123456789abcdef", b"Bearer \xff"):
        assert not authorized(wrong, token)


def test_where_a_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    assert read_token(file, "elsewhere-elsewhere") == "0123456789abcdef"
    assert read_token(None, "0123456789abcdef") == "0123456789abcdef" and read_token(None, None) is None
    for bad in ("", "short", "with a space in the middle", "0123456789abcdeé", "0123456789\nabcdef"):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="token") as caught:
            read_token(file, None)
        assert not bad or bad not in str(caught.value), "a token must not be shown"
        with pytest.raises(ConfigError, match="EZXMC_SERVE_TOKEN"):
            read_token(None, bad)
    with pytest.raises(ConfigError, match="nowhere"):
        read_token(tmp_path / "nowhere", None)


def test_what_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))


def test_a_server_others_can_reach_needs_a_token(tmp_path: Path) -> None:
    from ezxmc.serve.app import serve
    from ezxmc.serve.service import Settings

    with pytest.raises(ConfigError, match="no token"):
        serve(Settings(tmp_path), "0.0.0.0", 0, lambda url: None)


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    import socket

    from ezxmc.serve.app import serve
    from ezxmc.serve.service import Settings

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        serve(Settings(tmp_path), "127.0.0.1", taken.getsockname()[1], lambda url: None)


# --- batching


class Model:
    """Doubles numbers, remembers its batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.threads: set[str] = set()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.go.wait(30)
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(numbers))
        if any(number < 0 for number in numbers):
            raise ValueError("negative")
        return [2 * number for number in numbers]


def batching(
    scenario: Callable[[Batcher[int, int], Model], Awaitable[None]], **options: Any
) -> tuple[Model, list[int]]:
    model, sizes = Model(), list[int]()

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(
            model, **{"documents": 4, "wait": 0.01, "queue": 100, "observe": sizes.append, **options}
        )
        batcher.start()
        await scenario(batcher, model)
        await batcher.close()
        assert batcher.waiting == 0

    asyncio.run(run())
    return model, sizes


def test_requests_that_come_together_are_computed_together() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        found = await asyncio.gather(*(batcher.submit(number, 1) for number in range(10)))
        assert found == [2 * number for number in range(10)]

    model, sizes = batching(scenario)
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and sizes == [4, 4, 2]
    assert len(model.threads) == 1 and "model" in model.threads.pop()


def test_a_full_batch_does_not_wait_and_a_lone_request_waits_no_longer_than_told() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        # Whoever waits here waits for ever.
        await asyncio.gather(*(batcher.submit(number, 1) for number in range(4)))
        await batcher.close()

    batching(scenario, wait=1e6)

    async def alone(batcher: Batcher[int, int], model: Model) -> None:
        began = time.monotonic()
        assert await batcher.submit(1, 1) == 2
        assert time.monotonic() - began >= 0.25

    batching(alone, wait=0.25)


def test_while_the_model_works_requests_pile_up_and_then_go_at_once() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(batcher.submit(number, 1)) for number in (1, 2, 3)]
        await asyncio.sleep(0.05)
        model.go.set()
        await asyncio.gather(first, *rest)

    model, _ = batching(scenario)
    assert model.batches == [[0], [1, 2, 3]]


def test_a_greater_request_is_a_batch_of_its_own() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        await asyncio.gather(
            batcher.submit(1, 3), batcher.submit(2, 9), batcher.submit(3, 1), batcher.submit(4, 1)
        )

    model, sizes = batching(scenario)
    assert model.batches == [[1], [2], [3, 4]] and sizes == [3, 9, 2]


def test_one_bad_request_does_not_cost_its_neighbours() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        found = await asyncio.gather(*(batcher.submit(n, 1) for n in (1, -1, 2)), return_exceptions=True)
        assert found[0] == 2 and found[2] == 4
        assert isinstance(found[1], ValueError)

    batching(scenario)


def test_a_full_queue_refuses_at_once_and_then_takes_again() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        model.go.clear()
        running = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.submit(number, 3)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(9, 3)
        assert batcher.waiting == 6
        model.go.set()
        await asyncio.gather(running, *waiting)
        assert await batcher.submit(5, 3) == 10

    batching(scenario, queue=8)


def test_who_left_is_not_computed_and_closing_answers_who_waits() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        model.go.clear()
        running = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.sleep(0.05)
        left, stays = (asyncio.create_task(batcher.submit(number, 1)) for number in (1, 2))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(3, 1)
        model.go.set()
        await closing
        assert await running == 0 and await stays == 4

    model, _ = batching(scenario)
    assert model.batches == [[0], [2]]


# --- connections


async def answering(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def until_closed(one: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    try:
        while part := one.recv(4_096):
            found += part
    except ConnectionError:
        pass
    return found


def answered(one: socket.socket) -> bool:
    """Whether a request on this connection is."""
    one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return one.recv(4_096).startswith(b"HTTP/1.1 200")


def test_silent_connections_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_CONNECTIONS", 4)
    monkeypatch.setattr(listen, "_HEADERS", 0.3)
    with served(answering) as client, ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port)
        silent = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(4)]
        silent[1].sendall(b"GET / HTTP/1.1\r\nX-A: ")
        assert [until_closed(one) for one in silent] == [b""] * 4
        half = stack.enter_context(socket.create_connection(address, timeout=60))
        assert answered(half)
        half.sendall(b"GET / HTTP")  # which ends uvicorn's own patience
        until_closed(half)
        assert client.get("/healthz").status_code == 200


def test_one_client_does_not_take_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_CONNECTIONS", 8)
    monkeypatch.setattr(listen, "_OF_ONE_CLIENT", 3)
    with served(answering) as client, ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port)
        mine = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(10)]
        assert all(until_closed(one) == b"" for one in mine[3:])
        assert answered(mine[0])
        other = stack.enter_context(
            socket.create_connection(address, timeout=60, source_address=("127.0.0.2", 0))
        )
        assert answered(other)


# --- the guard


def guarded(**options: Any) -> tuple[Guard, list[bytes]]:
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    limits = options.pop("limits", Limits(body_bytes=10))
    settings: dict[str, Any] = {"token": None, "hosts": None, "paths": {"/predict"}, "metrics": Metrics()}
    return Guard(app, limits=limits, **settings | options), bodies


def ask(
    guard: Guard,
    *parts: bytes,
    path: str = "/predict",
    headers: dict[str, str] | None = None,
    stall: bool = False,
    method: str = "POST",
) -> tuple[int, dict[str, str], bytes]:
    waiting = list(parts) or [b""]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": stall or bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }
    asyncio.run(guard(scope, receive, send))
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def test_a_body_is_taken_up_to_the_limit_however_it_comes() -> None:
    guard, bodies = guarded()
    assert ask(guard, b"12345", b"67890")[0] == 200 and bodies == [b"1234567890"]
    for parts, headers in (
        ((b"12345", b"678901"), {}),
        ((b"",), {"content-length": "11"}),
        ((b"",), {"content-length": "9" * 5_000}),
    ):
        status, sent, body = ask(guard, *parts, headers=headers)
        assert status == 413 and sent["connection"] == "close" and "10 bytes" in json.loads(body)["detail"]
    assert len(bodies) == 1


def test_a_body_that_never_ends_is_given_up() -> None:
    guard, bodies = guarded(limits=Limits(body_seconds=0.05))
    assert ask(guard, b"a", stall=True)[0] == 408 and not bodies


def test_too_many_requests_are_told_when_to_come_back() -> None:
    guard, _ = guarded(limits=Limits(rate=0.1, burst=2))
    assert [ask(guard)[0] for _ in range(3)] == [200, 200, 429]
    status, headers, _ = ask(guard)
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 10
    assert ask(guard, path="/healthz")[0] == 200


def test_without_the_token_only_open_paths_answer() -> None:
    guard, _ = guarded(token="0123456789abcdef")
    status, headers, body = ask(guard)
    assert status == 401 and headers["www-authenticate"] == "Bearer" and b"token" in body
    assert ask(guard, headers={"authorization": "Bearer wrong"})[0] == 401
    assert ask(guard, headers={"authorization": "Bearer é"})[0] == 401
    assert ask(guard, headers={"authorization": "Bearer 0123456789abcdef"})[0] == 200
    assert [ask(guard, path=path)[0] for path in ("/", "/docs", "/healthz", "/metrics", "/labels")] == [
        200, 200, 200, 401, 401,
    ]  # fmt: skip


def test_a_page_under_another_name_cannot_use_the_service() -> None:
    guard, _ = guarded(hosts={"localhost", "127.0.0.1", "::1"})
    for good in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
        assert ask(guard, headers={"host": good})[0] == 200
    for bad in ("evil.example", "localhost.evil.example:8000", "", "[::1"):
        assert ask(guard, headers={"host": bad})[0] == 421


def test_a_page_of_another_site_cannot_change_anything() -> None:
    guard, bodies = guarded(paths={"/reload"})
    here = {"host": "127.0.0.1:8000"}
    for origin in ("https://evil.example", "http://127.0.0.1:8001", "null", "", "http://127.0.0.1:8000.evil"):
        for path in ("/reload", "/labels", "/predict"):
            assert ask(guard, path=path, headers={**here, "origin": origin})[0] == 403
    assert not bodies
    assert ask(guard, path="/reload", headers={**here, "origin": "http://127.0.0.1:8000"})[0] == 200
    assert ask(guard, path="/reload", headers=here)[0] == 200
    assert ask(guard, method="GET", headers={**here, "origin": "https://evil.example"})[0] == 200
    # Behind a proxy of another name, with a token that no other page has.
    guard, _ = guarded(token="0123456789abcdef")
    sent = {**here, "origin": "https://tags.example", "authorization": "Bearer 0123456789abcdef"}
    assert ask(guard, headers=sent)[0] == 200


def test_every_answer_is_counted_and_none_is_kept_or_guessed_at() -> None:
    metrics = Metrics()
    guard, _ = guarded(metrics=metrics)
    _, headers, _ = ask(guard)
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    ask(guard, b"x" * 11)
    for number in range(50):
        ask(guard, path=f"/made-up-{number}")
        ask(guard, method=f"WORD{number}")
    text = metrics.text().decode()
    assert 'ezxmc_requests_total{method="POST",path="/predict",status="200"} 1.0' in text
    assert 'method="other",path="/predict",status="200"} 50.0' in text and "WORD" not in text
    assert 'ezxmc_requests_total{method="POST",path="/predict",status="413"} 1.0' in text
    assert 'path="other",status="200"} 50.0' in text and "made-up" not in text


# --- the pages


def test_the_pages_need_nothing_from_elsewhere() -> None:
    html = bytes(page.try_page().body).decode()
    for outside in ("http://", "https://", "@import", "url(", "innerHTML", '<link rel="stylesheet"', " src="):
        assert outside not in html
    assert "prefers-color-scheme: dark" in html


def test_the_docs_escape_what_a_schema_says() -> None:
    evil = "<script>alert(1)</script>"
    schema = {
        "info": {"title": evil, "description": evil},
        "paths": {"/x": {"get": {"summary": evil, "responses": {"200": {"description": evil}}}}},
        "components": {"schemas": {evil: {"description": evil}}},
    }
    response = page.docs_page(schema)
    assert b"<script>" not in response.body and response.body.count(b"&lt;script&gt;") >= 5
    assert "script-src 'none'" in response.headers["content-security-policy"]
