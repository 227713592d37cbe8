"""The service as a process: its page in a real browser, its end, its death under load, its load test."""

from __future__ import annotations

import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.browser import Browser
from support.commands import until
from support.serving import DOCUMENTS, EVIL, PATIENCE, ServeProcess, served, write_bundle
from support.tinyworld import write_rows

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from ezxmc.bench.tagging import bench_serving
from ezxmc.bundle.predict import Predictor
from ezxmc.models import resolve_model
from ezxmc.progress import NoProgress
from ezxmc.serve.app import create_app
from ezxmc.serve.service import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    return write_bundle(tmp_path_factory.mktemp("process") / "bundle", tiny_encoder)


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_the_page_in_a_browser(made: Path, browser: Browser, tmp_path: Path) -> None:
    token = "0123456789abcdef"
    with served(create_app(Settings(made, token=token))) as client:
        url = str(client.base_url).rstrip("/")
        browser.open(f"{url}/")
        until(lambda: "token" in browser.run("return document.getElementById('about').textContent"))
        browser.type("#text", "guitar <b>melody</b>")
        browser.click("#go")
        until(lambda: "no valid token" in browser.run("return document.getElementById('error').innerText"))

        browser.type("#token", token)
        browser.type("#k", "26")
        browser.click("#go")
        until(lambda: browser.run("return document.querySelectorAll('#found li').length") == 26)
        shown = browser.run(
            "return [...document.querySelectorAll('#found li')].map(item =>"
            "[item.querySelector('bdi').textContent, item.textContent.match(/score (-?[.0-9]+)/)[1]])"
        )
        client.headers["Authorization"] = f"Bearer {token}"
        body = {"documents": ["guitar <b>melody</b>"], "k": 26}
        tags = client.post("/predict", json=body).json()["predictions"][0]["tags"]
        assert [title for title, _ in shown] == [tag["title"] for tag in tags]
        assert all(
            abs(float(score) - tag["score"]) < 2e-3 for (_, score), tag in zip(shown, tags, strict=True)
        )
        assert [title for title, _ in shown if "<" in title] == [EVIL]
        assert browser.run("return [window.hacked ?? null, document.images.length]") == [None, 0]
        assert "26 labels" in browser.run("return document.getElementById('about').textContent")

        papers = []
        for dark in (False, True):
            browser.dark(dark)
            papers.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
            browser.screenshot(tmp_path / f"page-{'dark' if dark else 'light'}.png")
        assert papers == ["rgb(255, 255, 255)", "rgb(20, 24, 31)"]
        # The one refused request is told on the console; a breach of the policy would be told there as well.
        assert [text for text in browser.complaints() if "401" not in text] == []

        browser.open(f"{url}/docs")
        assert "POST /predict" in browser.run("return document.body.innerText")
        browser.screenshot(tmp_path / "docs.png")
        assert browser.complaints() == []
        asked = browser.requested()
        assert asked and all(one.startswith((url, "data:", "chrome:", "about:")) for one in asked), asked


def test_the_page_says_why_and_its_slider_asks_nothing(made: Path, browser: Browser) -> None:
    with served(create_app(Settings(made))) as client:
        url = str(client.base_url).rstrip("/")
        browser.open(f"{url}/")
        parts = ["Guitar melody!", "Soup of the oven.", "<img src=x> star."]
        browser.type("#text", " ".join(parts))
        browser.click("#go")
        until(lambda: browser.run("return document.querySelectorAll('#found li').length") == 10)
        quoted = browser.run("return [...document.querySelectorAll('#found q')].map(q => q.textContent)")
        assert quoted and set(quoted) <= set(parts)
        assert browser.run("return [window.hacked ?? null, document.images.length]") == [None, 0]
        browser.requested()
        body = {"documents": [" ".join(parts)], "k": 10}
        found = client.post("/predict", json=body).json()["predictions"][0]["tags"]
        middle = (found[4]["probability"] + found[5]["probability"]) / 2
        slide = "const s = document.getElementById('threshold'); s.step = 'any'; s.value = arguments[0];"
        browser.run(f"{slide} s.dispatchEvent(new Event('input'))", 100 * middle)
        left = "return [...document.querySelectorAll('#found li')].filter(item => item.offsetHeight).length"
        assert browser.run(left) == 5 and browser.requested() == []
        for width in (1280, 390):
            browser.resize(width)
            shown = browser.run("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert shown[0] <= shown[1], width
        # Of one word there is nothing to leave out; without the question there is no answer to it.
        browser.run("document.getElementById('text').value = 'guitar'")
        browser.click("#go")
        until(lambda: browser.run("return document.querySelectorAll('#found q').length") == 0)
        assert browser.complaints() == []


def test_it_ends_after_the_requests_in_hand(bundle: Path) -> None:
    service = ServeProcess(bundle, "--rate", "1e6", "--burst", "1000000")
    with (
        httpx.Client(base_url=service.url, timeout=PATIENCE, trust_env=False) as client,
        ThreadPoolExecutor() as pool,
    ):
        assert client.get("/healthz").json()["status"] == "ok"
        service.send_signal(signal.SIGHUP)
        until(lambda: 'ezxmc_reloads_total{outcome="ok"} 1.0' in client.get("/metrics").text)
        waiting = pool.submit(client.post, "/predict", json={"documents": ["guitar melody " * 2_000] * 250})
        until(lambda: "ezxmc_batch_documents_count 1.0" in client.get("/metrics").text)
        code = service.end(signal.SIGTERM)
        assert waiting.result().status_code == 200 and code == 0, service.stderr


def test_a_bundle_that_is_written_over_is_served_on(bundle: Path) -> None:
    service = ServeProcess(bundle)
    body = {"documents": [one.text for one in DOCUMENTS[:8]], "k": 20}
    with httpx.Client(base_url=service.url, timeout=PATIENCE, trust_env=False) as client:
        before = client.post("/predict", json=body).json()
        for file in (file for file in bundle.rglob("*") if file.is_file() and file.suffix != ".lock"):
            size = file.stat().st_size
            for content in (bytes(size // 2), b"\xff" * size):  # the first half of a copy, then all of it
                file.write_bytes(content)
                assert client.post("/predict", json=body).json() == before, file
        assert client.post("/reload").status_code == 409
        assert client.post("/predict", json=body).json() == before
    assert service.end(signal.SIGTERM) == 0, service.stderr


def test_killed_under_load_it_restarts_clean(bundle: Path) -> None:
    service = ServeProcess(bundle, "--rate", "1e6", "--burst", "1000000")
    port = int(service.url.rsplit(":", 1)[1])
    added: list[str] = []
    tagged = 0
    over = threading.Event()

    def add() -> None:
        with httpx.Client(base_url=service.url, timeout=PATIENCE, trust_env=False) as client:
            for number in range(10**6):
                uid = f"new-{number}"
                try:
                    if client.post("/labels", json={"labels": [{"title": uid}]}).status_code == 200:
                        added.append(uid)
                except httpx.TransportError:
                    return

    def tag() -> None:
        nonlocal tagged
        with httpx.Client(base_url=service.url, timeout=PATIENCE, trust_env=False) as client:
            while not over.is_set():
                try:
                    client.post("/predict", json={"documents": [one.text for one in DOCUMENTS[:8]]})
                    tagged += 1
                except httpx.TransportError:
                    return

    threads = [threading.Thread(target=add), *(threading.Thread(target=tag) for _ in range(3))]
    for thread in threads:
        thread.start()
    until(lambda: len(added) >= 2 and tagged >= 5)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    over.set()
    for thread in threads:
        thread.join()

    again = ServeProcess(bundle, port=port)
    with httpx.Client(base_url=again.url, timeout=PATIENCE, trust_env=False) as client:
        assert client.get("/healthz").json()["status"] == "ok" and again.url == service.url
        there = {label["uid"] for label in client.get("/labels", params={"limit": 1_000}).json()["labels"]}
        assert set(added) <= there, "a label that was acknowledged is lost"
        assert client.post("/labels", json={"labels": [{"title": "after"}]}).json()["total"] == len(there) + 1
        assert client.post("/predict", json={"documents": ["after"], "k": 1}).json()["predictions"][0]["tags"]
    assert again.end(signal.SIGINT) == 0
    assert "after" in Predictor.load(bundle).bundle.rows()


@pytest.mark.encoder
def test_the_load_test_measures_both_ways(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Path(resolve_model("all-MiniLM-L6-v2", kind="encoder")))
    documents = write_rows(tmp_path / "d.jsonl", [{"uid": one.uid, "text": one.text} for one in DOCUMENTS])
    found = bench_serving(bundle, documents, seconds=1, connections=(2,), watch=NoProgress())
    assert found["generator"] == ("wrk" if shutil.which("wrk") else "httpx")
    assert [(row["batching"], row["connections"]) for row in found["runs"]] == [(False, 2), (True, 2)]
    for row in found["runs"]:
        assert row["requests"] > 0 == row["errors"]
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["per_second"] > 0
