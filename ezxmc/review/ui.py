"""The review page: one pair at a time, yes, no or skip, each answer on disk before the next pair is shown.

Beside the pair a field takes labels that are missing on the document. They are searched here, for a page
cannot hold a million of them.

The page is open and shows nothing; pairs and answers need the token that is made anew at each start and
given in the URL's fragment, which no browser sends anywhere: other pages and other users of the machine do
not have it.
"""

from __future__ import annotations

import reprlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from ezxmc.errors import StoreError
from ezxmc.feedback.reviews import Answer, Review, Reviews, label_hash, pair_id
from ezxmc.records import Document, Label
from ezxmc.review.material import LabelSearch
from ezxmc.review.picks import Pick
from ezxmc.serve.guard import LOCAL_NAMES, Guard, Limits, RefusedError
from ezxmc.serve.web import Metrics, answer_requests, html_response, listener, style
from ezxmc.text import cut

HOST = "127.0.0.1"
_LIMITS = Limits(body_bytes=4_096, body_seconds=10.0)


_ABOUT = 160  # characters of a suggested label's aliases and description


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _DecisionIn(_In):
    id: str
    answer: Literal[Answer.YES, Answer.NO, Answer.SKIP]


class _AddedIn(_In):
    id: str
    label: str


class _TypedIn(_In):
    typed: str


class _UndoIn(_In):
    id: str | None = None


_Body = TypeVar("_Body", bound=_In)


class Session:
    """Pairs in their order and what is decided of them, and which labels were added to their documents.

    Args:
        picks: The pairs.
        reviews: Where decisions go; those on these pairs count from the start.
        reviewer: Who decides, if told.
        labels: Those that may be added; by default those of the pairs.
    """

    def __init__(
        self,
        picks: Sequence[Pick],
        reviews: Reviews,
        reviewer: str | None = None,
        labels: Sequence[Label] | None = None,
    ) -> None:
        self._reviews, self._reviewer = reviews, reviewer
        self._picks = {pick.id: pick for pick in picks}
        given = labels_of(picks) if labels is None else labels
        self._labels = {label.uid: label for label in given}
        # Of added pairs too; what is decided of these is in `_answers` as well.
        self._pairs = {name: (pick.document, pick.label) for name, pick in self._picks.items()}
        self._names: dict[tuple[str, str], str] = {}
        self._documents: dict[str, Document] = {}
        for name, (document, label) in self._pairs.items():
            seen = Review.of(document, label, None)
            self._names[seen.doc_hash, seen.label_hash] = name
            self._documents.setdefault(seen.doc_hash, document)
        self._answers: dict[str, Answer] = {}
        self._known: dict[str, Answer] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take up what others decided meanwhile."""
        # In the order of the decisions: the last is the first to be undone.
        self._answers, self._known = {}, {}
        for pair, review in self._reviews.latest().items():
            name = self._names.get(pair)
            if name is None and review.answer is not None:
                name = self._beside(review)
            if name is None or review.answer is None:
                continue
            if name in self._picks or review.answer is Answer.ADDED:
                self._answers[name] = review.answer
            else:
                self._known[name] = review.answer

    def _beside(self, review: Review) -> str | None:
        """The name of a pair that is not to be decided on, of a document that is shown."""
        document, label = self._documents.get(review.doc_hash), self._labels.get(review.label_uid)
        if document is None or label is None or label_hash(label) != review.label_hash:
            return None
        name = pair_id(document, label)
        self._pairs[name] = document, label
        return name

    def decide(self, name: str, answer: Answer) -> None:
        """Store an answer; when this returns it is on disk.

        Raises:
            KeyError: No such pair.
            StoreError: It could not be stored.
        """
        self._picks[name]
        self._put(name, answer)

    def add(self, name: str, uid: str) -> str:
        """Store that a label is missing on a pair's document; when this returns it is on disk.

        Args:
            name: The pair.
            uid: The label's.

        Returns:
            What a person should know of it, or nothing. A label that is to be decided on anyway gets a yes.

        Raises:
            KeyError: No such pair.
            RefusedError: No such label, or it is known to fit.
            StoreError: It could not be stored.
        """
        document, label = self._picks[name].document, self._labels.get(uid)
        if label is None:
            what = f"no label {reprlib.repr(uid)} in the catalog"
            raise RefusedError(422, what, "choose one that is offered")
        pair = pair_id(document, label)
        before = self._answers.get(pair) or self._known.get(pair)
        if before and before.verdict:
            raise RefusedError(409, f"{_short(label.title)} is a tag of this document already")
        self._pairs.setdefault(pair, (document, label))
        self._put(pair, Answer.YES if pair in self._picks else Answer.named(before))
        if pair in self._picks:
            return f"{_short(label.title)} is one of the labels to decide on: that is a yes now"
        return ""

    def undo(self, name: str | None = None) -> str:
        """Take an answer back, by default the last, if there is one.

        Returns:
            What was taken back, where that is an added label.

        Raises:
            KeyError: No such answer.
            StoreError: It could not be stored.
        """
        if name is None and not self._answers:
            return ""
        name = next(reversed(self._answers)) if name is None else name
        if name not in self._answers:
            raise KeyError(name)
        self._store(name, None)
        del self._answers[name]
        if name in self._picks:
            return ""
        document, label = self._pairs[name]
        return f"Taken back: {_short(label.title)} on {_short(document.title or document.text)}"

    def _put(self, name: str, answer: Answer) -> None:
        if self._answers.get(name) is not answer:
            self._store(name, answer)
        self._answers.pop(name, None)
        self._answers[name] = answer

    def _store(self, name: str, answer: Answer | None) -> None:
        self._reviews.add([Review.of(*self._pairs[name], answer, reviewer=self._reviewer)])

    def state(self) -> dict[str, Any]:
        """How far it is, and the first pair that is open, or `None`."""
        counts = Counter(
            answer if name in self._picks else Answer.ADDED for name, answer in self._answers.items()
        )
        pick = next((pick for name, pick in self._picks.items() if name not in self._answers), None)
        return {
            "total": len(self._picks),
            "done": sum(name in self._picks for name in self._answers),
            "undo": bool(self._answers),
            "counts": {answer.value: counts[answer] for answer in Answer},
            "pair": pick
            and {
                "id": pick.id,
                "label": {"title": pick.label.title, "text": pick.label.text},
                "document": {"title": pick.document.title, "text": pick.document.text},
                "added": [
                    {"id": name, "title": self._pairs[name][1].title}
                    for name in self._answers
                    if name not in self._picks and self._pairs[name][0].shown == pick.document.shown
                ],
            },
        }


def labels_of(picks: Sequence[Pick]) -> list[Label]:
    """The labels of pairs, each once."""
    return list({pick.label.uid: pick.label for pick in picks}.values())


def _short(title: str) -> str:
    return f"“{cut(' '.join(title.split()), _ABOUT)}”"


def create_app(
    picks: Sequence[Pick],
    store: Path,
    token: str,
    *,
    reviewer: str | None = None,
    labels: Sequence[Label] | None = None,
) -> Starlette:
    """The page as an ASGI application.

    Args:
        picks: The pairs to be shown.
        store: The feedback store.
        token: Must come with every request but the page's own.
        reviewer: Who decides, if told.
        labels: As for `Session`.
    """
    search = LabelSearch(labels_of(picks) if labels is None else labels)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = template.get_template("page.html.j2").render(style=style())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Opened here: a connection belongs to its thread.
        with Reviews(store) as reviews:
            app.state.session = Session(picks, reviews, reviewer, labels)
            yield

    async def show(request: Request) -> HTMLResponse:
        return html_response(page)

    async def pair(request: Request) -> JSONResponse:
        return _changed(request, Session.refresh)

    async def decide(request: Request) -> JSONResponse:
        said = _read(await request.body(), _DecisionIn)
        return _changed(request, lambda session: session.decide(said.id, said.answer))

    async def add(request: Request) -> JSONResponse:
        said = _read(await request.body(), _AddedIn)
        return _changed(request, lambda session: session.add(said.id, said.label))

    async def undo(request: Request) -> JSONResponse:
        said = _read(await request.body() or b"{}", _UndoIn)
        return _changed(request, lambda session: session.undo(said.id))

    async def suggest(request: Request) -> JSONResponse:
        found = search(_read(await request.body(), _TypedIn).typed)
        return JSONResponse({"labels": [_suggestion(label) for label in found]})

    routes = [
        Route("/", show),
        Route("/pair", pair),
        Route("/decide", decide, methods=["POST"]),
        Route("/add", add, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
        Route("/labels", suggest, methods=["POST"]),
    ]
    guard = Middleware(
        Guard,
        limits=_LIMITS,
        token=token,
        hosts=LOCAL_NAMES,
        paths={route.path for route in routes},
        metrics=Metrics(),
    )
    return Starlette(routes=routes, middleware=[guard], lifespan=lifespan)


def _read(body: bytes, kind: type[_Body]) -> _Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        raise _unreadable() from None


def _unreadable() -> RefusedError:
    return RefusedError(422, "no decision on a pair of this review", "load the page again")


def _suggestion(label: Label) -> dict[str, str]:
    about = " · ".join(filter(None, [*label.aliases, label.text]))
    return {"uid": label.uid, "title": label.title, "about": cut(about, _ABOUT, "")}


def _changed(request: Request, change: Callable[[Session], str | None]) -> JSONResponse:
    session: Session = request.app.state.session
    try:
        note = change(session)
    except KeyError:
        raise _unreadable() from None
    except StoreError as error:
        raise RefusedError(503, error.message, error.cure) from None
    return JSONResponse({**session.state(), "note": note or ""})


def review(
    picks: Sequence[Pick],
    store: Path,
    port: int,
    announce: Callable[[str], None],
    *,
    reviewer: str | None = None,
    labels: Sequence[Label] | None = None,
) -> None:
    """Show the page to this machine until SIGINT or SIGTERM.

    Args:
        picks: The pairs to be shown.
        store: Where decisions go.
        port: 0 takes a free one.
        announce: Called with the URL, its token included.
        reviewer: Who decides, if told.
        labels: As for `Session`.

    Raises:
        ConfigError: The port cannot be had.
    """
    token = secrets.token_urlsafe(24)
    with listener(HOST, port) as listening:
        app = create_app(picks, store, token, reviewer=reviewer, labels=labels)
        answer_requests(app, listening, HOST, lambda url: announce(f"{url}/#{token}"))
