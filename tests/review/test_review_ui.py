"""The review page: what it stores and when, whom it lets in, and the page itself in a real browser."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.browser import Browser
from support.commands import Command, until
from support.fakes import catalog
from support.serving import EVIL, served

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from ezxmc.errors import StoreError
from ezxmc.feedback.reviews import Answer, Review, Reviews
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Label
from ezxmc.review.exchange import write_picks
from ezxmc.review.picks import Pick, Reason
from ezxmc.review.ui import Session, create_app

TOKEN = "a-token-of-this-test"
DOCS, LABELS = catalog(3, 2)
DOCS = [Document("evil", EVIL, EVIL + "\n" + "A long text.\n" * 300), *DOCS]
LABELS = [Label("evil", EVIL, EVIL), *LABELS]
PICKS = [Pick(document, label, Reason.RANDOM) for document in DOCS for label in LABELS]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    FeedbackStore(tmp_path / "feedback.sqlite").close()
    return tmp_path / "feedback.sqlite"


@pytest.fixture
def client(store: Path) -> Iterator[httpx.Client]:
    with served(create_app(PICKS, store, TOKEN, reviewer="ann")) as found:
        found.headers["Authorization"] = f"Bearer {TOKEN}"
        yield found


def held(store: Path) -> dict[str, str | None]:
    names = {
        (r.doc_hash, r.label_hash): pick.id
        for pick in PICKS
        if (r := Review.of(pick.document, pick.label, None))
    }
    with Reviews(store) as reviews:
        return {names[pair]: one.answer and one.answer.value for pair, one in reviews.latest().items()}


def test_an_answer_is_stored_before_the_next_pair_is_told(client: httpx.Client, store: Path) -> None:
    state = client.get("/pair").json()
    assert (state["total"], state["done"], state["pair"]["id"]) == (12, 0, PICKS[0].id)
    assert state["pair"]["document"] == {"title": DOCS[0].title, "text": DOCS[0].text}
    assert not {"teacher", "student", "reason"} & set(state["pair"])
    given = ["yes", "no", "skip"] * 4
    for number, answer in enumerate(given):
        state = client.post("/decide", json={"id": PICKS[number].id, "answer": answer}).json()
        assert list(held(store).values()) == given[: number + 1]
        assert state["pair"] is None if number == 11 else state["pair"]["id"] == PICKS[number + 1].id
    assert state["counts"] == {"yes": 4, "no": 4, "skip": 4} and state["done"] == 12
    with Reviews(store) as reviews:
        assert {one.reviewer for one in reviews.history()} == {"ann"}


def test_undo_takes_back_in_order_and_the_next_start_goes_on(client: httpx.Client, store: Path) -> None:
    assert client.post("/undo").json()["done"] == 0
    for number in range(3):
        client.post("/decide", json={"id": PICKS[number].id, "answer": "yes"})
    state = client.post("/undo").json()
    assert state["pair"]["id"] == PICKS[2].id and held(store)[PICKS[2].id] is None
    state = client.post("/undo").json()
    assert (state["done"], state["pair"]["id"]) == (1, PICKS[1].id)
    client.post("/decide", json={"id": PICKS[1].id, "answer": "no"})
    with served(create_app(PICKS, store, TOKEN)) as again:
        again.headers["Authorization"] = f"Bearer {TOKEN}"
        state = again.get("/pair").json()
        assert (state["done"], state["pair"]["id"]) == (2, PICKS[2].id)
        # The last decision before the start can still be undone.
        assert again.post("/undo").json()["pair"]["id"] == PICKS[1].id
    assert client.get("/pair").json()["done"] == 1, "what the other page did is taken up"
    assert held(store) == {PICKS[0].id: "yes", PICKS[1].id: None, PICKS[2].id: None}


def test_the_same_answer_twice_is_one_decision(client: httpx.Client, store: Path) -> None:
    for answer in ("yes", "yes", "no"):
        assert client.post("/decide", json={"id": PICKS[5].id, "answer": answer}).json()["done"] == 1
    with Reviews(store) as reviews:
        assert [one.answer for one in reviews.history()] == [Answer.YES, Answer.NO]


def test_only_who_has_the_token_gets_in(client: httpx.Client, store: Path) -> None:
    body = {"id": PICKS[0].id, "answer": "yes"}
    url = str(client.base_url)
    for headers in ({}, {"Authorization": "Bearer wrong-token-000000"}, {"Authorization": TOKEN}):
        with httpx.Client(base_url=url, trust_env=False, headers=headers) as stranger:
            assert stranger.get("/pair").status_code == 401
            assert stranger.post("/decide", json=body).status_code == 401
            assert stranger.post("/undo").status_code == 401
            page = stranger.get("/")
            assert page.status_code == 200 and DOCS[1].text not in page.text and TOKEN not in page.text
    assert client.post("/decide", json=body, headers={"Host": "evil.test"}).status_code == 421
    assert client.post("/decide", content=b"x" * 5_000).status_code == 413
    for bad in (b"", b"[]", b"\xff", b'{"id": "x"}', json.dumps(body | {"answer": "maybe"}).encode()):
        assert client.post("/decide", content=bad).status_code == 422
    assert client.post("/decide", json=body | {"id": "p0"}).status_code == 422
    assert client.get("/decide").status_code == 405 and client.get("/other").status_code == 404
    assert held(store) == {}
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_what_cannot_be_stored_is_not_called_done(
    client: httpx.Client, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Reviews, reviews: Any) -> None:
        raise StoreError("the disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(Reviews, "add", full)
        found = client.post("/decide", json={"id": PICKS[0].id, "answer": "yes"})
        assert (found.status_code, found.json()["detail"]) == (503, "the disk is full")
    assert client.get("/pair").json()["done"] == 0 and held(store) == {}
    assert client.post("/decide", json={"id": PICKS[0].id, "answer": "yes"}).json()["done"] == 1


def test_a_session_counts_what_is_decided_elsewhere(store: Path) -> None:
    with Reviews(store) as reviews:
        other = Review.of(Document("else", "", "not here"), LABELS[0], Answer.YES)
        reviews.add([other, Review.of(DOCS[0], LABELS[0], Answer.NO)])
        session = Session(PICKS[:2], reviews)
        assert session.state()["done"] == 1
        session.undo()
        session.undo()
        assert session.state()["done"] == 0 and len(list(reviews.history())) == 3
        assert Session([], reviews).state() == {
            "total": 0, "done": 0, "counts": {"yes": 0, "no": 0, "skip": 0}, "pair": None,
        }  # fmt: skip


class Page(Command):
    """`ezxmc review ui` as a process; `url` holds its token."""

    def __init__(self, *arguments: object, port: int = 0) -> None:
        super().__init__("review", "ui", *arguments, "--port", port)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/#\S+", self.said("http://"))
        assert found
        self.url, self.port = found[0], int(found[1])


def press(browser: Browser, key: str) -> None:
    browser.type("body", key)


def test_decided_by_keyboard_in_a_browser(store: Path, browser: Browser, tmp_path: Path) -> None:
    pairs = tmp_path / "review.jsonl"
    write_picks(pairs, PICKS)
    page = Page(pairs, "--reviewer", "ann")

    def shown() -> list[str]:
        found: list[str] = browser.run(
            "return ['label', 'about', 'title', 'text', 'counts']"
            ".map(id => document.getElementById(id).textContent)"
        )
        return found

    browser.open(page.url)
    until(lambda: "0 of 12" in shown()[4])
    assert shown()[:4] == [EVIL, EVIL, EVIL, DOCS[0].text]
    assert browser.run("return [window.hacked ?? null, document.images.length]") == [None, 0]
    for number, (key, answer) in enumerate([("y", "yes"), ("n", "no"), ("S", "skip")], start=1):
        press(browser, key)
        until(lambda number=number: f"{number} of 12" in shown()[4])
        assert held(store)[PICKS[number - 1].id] == answer
    assert shown()[:3] == [LABELS[0].title, LABELS[0].text, DOCS[1].title]
    press(browser, "u")
    until(lambda: "2 of 12" in shown()[4])
    assert held(store)[PICKS[2].id] is None and shown()[0] == LABELS[2].title
    press(browser, "x")
    browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'y', repeat: true}))")
    browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'y', ctrlKey: true}))")
    browser.click("button[data-answer=no]")
    until(lambda: "3 of 12" in shown()[4])
    assert "1 yes, 2 no, 0 skipped" in shown()[4]

    papers = []
    for dark in (False, True):
        browser.dark(dark)
        papers.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        for width in (400, 1400):
            browser.resize(width)
            look = browser.run(
                "const box = (id) => document.getElementById(id).getBoundingClientRect();"
                "return [document.documentElement.scrollWidth - innerWidth,"
                " box('text').left > box('label').right, innerHeight - box('undo').bottom]"
            )
            assert look[0] <= 0 and look[1] == (width > 900) and 0 <= look[2] < 60, look
            browser.screenshot(tmp_path / f"review-{width}-{'dark' if dark else 'light'}.png")
    assert papers[0] != papers[1]

    # Killed in the middle: nothing is lost, and the page says that a key was not stored.
    before = held(store)
    assert page.end(signal.SIGKILL) == -signal.SIGKILL
    press(browser, "y")
    until(lambda: "Not stored" in browser.run("return document.getElementById('error').innerText"))
    assert held(store) == before
    again = Page(pairs, port=page.port)
    press(browser, "y")
    until(lambda: "earlier start" in browser.run("return document.getElementById('error').innerText"))
    assert held(store) == before and "3 of 12" in shown()[4]
    browser.open("about:blank")
    browser.open(again.url)
    until(lambda: "3 of 12" in shown()[4])
    assert shown()[2] == DOCS[1].title and shown()[0] == LABELS[0].title
    for number in range(4, 13):
        press(browser, "n")
        until(lambda number=number: f"{number} of 12" in shown()[4])
    assert "All pairs are decided" in browser.run("return document.body.innerText")
    assert browser.run("return document.querySelector('button[data-answer=yes]').disabled") is True
    assert again.end(signal.SIGINT) == 0
    assert list(held(store).values()).count("no") == 11 and len(held(store)) == 12
    refused = [text for text in browser.complaints() if "401" not in text and "ERR_CONNECTION" not in text]
    assert refused == []
    asked = [one for one in browser.requested() if not one.startswith(("data:", "chrome:", "about:"))]
    assert asked and all(one.startswith(f"http://127.0.0.1:{page.port}/") for one in asked)


def test_a_page_needs_its_store(tmp_path: Path) -> None:
    write_picks(tmp_path / "review.jsonl", PICKS)
    refused = Command("review", "ui", tmp_path / "review.jsonl")
    assert refused.wait() == 2 and "--store" in refused.stderr
    assert not (tmp_path / "feedback.sqlite").exists()
