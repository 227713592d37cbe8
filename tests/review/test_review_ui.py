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
from ezxmc.serve.guard import RefusedError

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


def held(store: Path, *, extra: bool = False) -> dict[str, str | None]:
    names = {
        (r.doc_hash, r.label_hash): pick.id
        for pick in PICKS
        if (r := Review.of(pick.document, pick.label, None))
    }
    with Reviews(store) as reviews:
        found = reviews.latest()
        assert extra or found.keys() <= names.keys()
        return {names[pair]: r.answer and r.answer.value for pair, r in found.items() if pair in names}


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
    assert state["counts"] == {"yes": 4, "no": 4, "skip": 4, "added": 0} and state["done"] == 12
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
            "total": 0, "done": 0, "undo": False, "counts": {"yes": 0, "no": 0, "skip": 0, "added": 0},
            "pair": None,
        }  # fmt: skip


MORE = [
    *LABELS,
    Label("g", "Guitare élégante", "of six strings", ("guitar",)),
    Label("m", EVIL + " more", aliases=(EVIL,)),
    *(Label(f"many{number}", f"one of many {number}") for number in range(50)),
]


@pytest.fixture
def adding(store: Path) -> Iterator[httpx.Client]:
    with served(create_app(PICKS, store, TOKEN, reviewer="ann", labels=MORE)) as found:
        found.headers["Authorization"] = f"Bearer {TOKEN}"
        yield found


def last(store: Path) -> list[tuple[str, str, Answer | None]]:
    with Reviews(store) as reviews:
        return [(one.doc_uid, one.label_uid, one.answer) for one in reviews.latest().values()]


def test_labels_are_found_by_what_is_typed(adding: httpx.Client) -> None:
    def found(typed: str) -> list[str]:
        return [one["uid"] for one in adding.post("/labels", json={"typed": typed}).json()["labels"]]

    assert found("ELEGANTE gui") == found("guitar") == ["g"] and found(" ") == found("unheard of") == []
    assert len(found("many")) == 20 and found("one of many 49") == ["many49"]
    assert adding.post("/labels", json={"typed": "guitar"}).json() == {
        "labels": [{"uid": "g", "title": "Guitare élégante", "about": "guitar · of six strings"}]
    }


def test_a_label_that_is_missing_is_stored_as_added(adding: httpx.Client, store: Path) -> None:
    body = {"id": PICKS[0].id, "label": "g"}
    state = adding.post("/add", json=body).json()
    assert last(store) == [("evil", "g", Answer.ADDED)] and state["note"] == ""
    assert (state["done"], state["counts"]["added"], state["pair"]["id"]) == (0, 1, PICKS[0].id)
    assert [one["title"] for one in state["pair"]["added"]] == ["Guitare élégante"]
    twice = adding.post("/add", json=body)
    assert twice.status_code == 409 and "already" in twice.json()["detail"]
    # Unless it is to be decided on: then it is a yes like any other.
    state = adding.post("/add", json={"id": PICKS[0].id, "label": LABELS[1].uid}).json()
    assert held(store, extra=True)[PICKS[1].id] == "yes" and "a yes now" in state["note"]
    assert state["done"] == 1 and len(state["pair"]["added"]) == 1
    adding.post("/add", json={"id": PICKS[0].id, "label": "m"})
    with Reviews(store) as reviews:
        assert {one.reviewer for one in reviews.history()} == {"ann"}
    with served(create_app(PICKS, store, TOKEN, labels=MORE)) as again:
        again.headers["Authorization"] = f"Bearer {TOKEN}"
        state = again.get("/pair").json()
        assert [one["title"] for one in state["pair"]["added"]] == ["Guitare élégante", EVIL + " more"]
        # The last is taken back, then one by name, then nothing of that name is left.
        assert "more” on “" in again.post("/undo").json()["note"]
        first = {"id": state["pair"]["added"][0]["id"]}
        assert again.post("/undo", json=first).json()["pair"]["added"] == []
        assert again.post("/undo", json=first).status_code == 422
    assert dict(((d, n), a) for d, n, a in last(store)) == {
        ("evil", "g"): None,
        ("evil", "m"): None,
        ("evil", LABELS[1].uid): Answer.YES,
    }
    adding.get("/pair")
    state = adding.post("/decide", json={"id": PICKS[0].id, "answer": "no"}).json()
    assert state["pair"]["document"]["title"] == DOCS[0].title and state["pair"]["added"] == []


def test_what_was_decided_before_was_proposed(store: Path) -> None:
    with Reviews(store) as reviews:
        said = {"g": Answer.NO, "m": Answer.YES, "many1": Answer.SKIP, "many2": None}
        labels = {label.uid: label for label in MORE}
        reviews.add([Review.of(DOCS[1], labels[uid], answer) for uid, answer in said.items()])
        session = Session(PICKS, reviews, labels=MORE)
        here = next(pick.id for pick in PICKS if pick.document is DOCS[1])
        for uid in ("g", "many1", "many2", "many3"):
            session.add(here, uid)
        with pytest.raises(RefusedError, match="already"):
            session.add(here, "m")
        found = {one.label_uid: one.answer for one in reviews.latest().values()}
    assert found == {
        "g": Answer.YES, "m": Answer.YES, "many1": Answer.YES, "many2": Answer.ADDED, "many3": Answer.ADDED,
    }  # fmt: skip


def test_what_may_not_be_added_is_told_by_name_and_not_stored(adding: httpx.Client, store: Path) -> None:
    body = {"id": PICKS[0].id, "label": "g"}
    unknown = adding.post("/add", json=body | {"label": "<b>never heard of</b>"})
    assert unknown.status_code == 422 and "'<b>never heard of</b>'" in unknown.json()["detail"]
    assert adding.post("/add", json=body | {"id": "p0"}).status_code == 422
    assert adding.post("/decide", json={"id": PICKS[0].id, "answer": "added"}).status_code == 422
    assert adding.post("/undo", json={"id": PICKS[0].id}).status_code == 422
    for path in ("/add", "/labels"):
        good = body if path == "/add" else {"typed": "guitar"}
        assert adding.post(path, content=b"x" * 5_000).status_code == 413
        for bad in (b"", b"[]", b"\xff", b'{"id": "x"}', b'{"typed": "\\ud800"}', b'{"typed": 1}'):
            assert adding.post(path, content=bad).status_code == 422
        assert adding.get(path).status_code == 405
        assert adding.post(path, json=good, headers={"Host": "evil.test"}).status_code == 421
        for wrong in ("", "Bearer wrong-token-000000", TOKEN):
            refused = adding.post(path, json=good, headers={"Authorization": wrong})
            assert refused.status_code == 401 and "Guitare" not in refused.text
    assert last(store) == []


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


def test_a_missing_label_is_added_by_typing(store: Path, browser: Browser, tmp_path: Path) -> None:
    pairs, catalog = tmp_path / "review.jsonl", tmp_path / "labels.jsonl"
    write_picks(pairs, PICKS)
    rows = [{"uid": one.uid, "title": one.title, "text": one.text, "aliases": one.aliases} for one in MORE]
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(
        f"data:\n  documents: {tmp_path / 'documents.jsonl'}\n  labels: {catalog}\n"
    )
    page = Page(pairs)

    def of(script: str) -> Any:
        return browser.run(f"const at = (id) => document.getElementById(id); return {script}")

    def texts(css: str) -> list[str]:
        found: list[str] = of(
            f"[...document.querySelectorAll('{css}')].map(one => one.firstChild.textContent)"
        )
        return found

    def suggests(*titles: str) -> None:
        until(lambda: texts("#offered li") == list(titles))

    browser.open(page.url)
    until(lambda: "0 of 12" in of("at('counts').textContent"))
    press(browser, "a")
    assert of("document.activeElement.id") == "missing" and of("at('missing').value") == ""
    # Keys that decide elsewhere are letters here.
    browser.type("#missing", "ynsua")
    assert of("at('missing').value") == "ynsua" and last(store) == []
    browser.type("#missing", "\ue007")
    until(lambda: "'ynsua'" in of("at('error').innerText"))
    assert last(store) == []
    browser.type("#missing", "\ue00c")
    assert of("[document.activeElement.id, at('missing').value]") == ["", ""]
    press(browser, "a")
    browser.type("#missing", "ELEGANTE")
    suggests("Guitare élégante")
    browser.type("#missing", "\ue007")
    until(lambda: texts("#added li") == ["Guitare élégante"])
    assert last(store) == [("evil", "g", Answer.ADDED)]
    assert of("[document.activeElement.id, at('missing').value, at('offered').hidden]") == [
        "missing",
        "",
        True,
    ]
    browser.type("#missing", "img")
    suggests(EVIL, EVIL + " more")
    for dark in (False, True):
        browser.dark(dark)
        for width in (400, 1400):
            browser.resize(width)
            look = of(
                "[document.documentElement.scrollWidth - innerWidth,"
                " at('missing').getBoundingClientRect().right <= innerWidth, at('offered').offsetHeight > 60]"
            )
            assert look[0] <= 0 and look[1:] == [True, True], look
            browser.screenshot(tmp_path / f"adding-{width}-{'dark' if dark else 'light'}.png")
    browser.type("#missing", "\ue015\ue007")
    until(lambda: texts("#added li") == ["Guitare élégante", EVIL + " more"])
    browser.type("#missing", "many 7")
    suggests("one of many 7", *(f"one of many {ten}7" for ten in range(1, 5)))
    browser.click("#offered li")
    until(lambda: len(texts("#added li")) == 3)
    assert browser.run("return [window.hacked ?? null, document.images.length]") == [None, 0]
    assert "0 of 12 decided: 0 yes, 0 no, 0 skipped; 3 added" in of("at('counts').textContent")
    browser.type("#missing", "\ue00c")
    press(browser, "u")
    until(lambda: len(texts("#added li")) == 2)
    assert "Taken back: “one of many 7”" in of("at('note').innerText")
    browser.click("#added button")
    until(lambda: texts("#added li") == [EVIL + " more"])
    press(browser, "y")
    until(lambda: "1 of 12 decided: 1 yes" in of("at('counts').textContent"))
    assert texts("#added li") == [EVIL + " more"], "the next pair is of the same document"
    kept = {(doc, label): answer for doc, label, answer in last(store)}
    assert kept == {
        ("evil", "g"): None,
        ("evil", "many7"): None,
        ("evil", "m"): Answer.ADDED,
        ("evil", "evil"): Answer.YES,
    }
    assert [text for text in browser.complaints() if "422" not in text] == []
    assert page.end(signal.SIGINT) == 0


def test_a_page_needs_its_store(tmp_path: Path) -> None:
    write_picks(tmp_path / "review.jsonl", PICKS)
    refused = Command("review", "ui", tmp_path / "review.jsonl")
    assert refused.wait() == 2 and "--store" in refused.stderr
    assert not (tmp_path / "feedback.sqlite").exists()
