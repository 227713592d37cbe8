"""The review page: one pair at a time, yes, no or skip, each answer on disk before the next pair is shown.

The page is open and shows nothing; pairs and answers need the token that is made anew at each start and
given in the URL's fragment, which no browser sends anywhere: other pages and other users of the machine do
not have it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from ezxmc.errors import StoreError
from ezxmc.feedback.reviews import Answer, Review, Reviews
from ezxmc.review.picks import Pick
from ezxmc.serve.guard import LOCAL_NAMES, Guard, Limits, RefusedError
from ezxmc.serve.web import Metrics, answer_requests, html_response, listener, style

HOST = "127.0.0.1"
_LIMITS = Limits(body_bytes=4_096, body_seconds=10.0)


class _DecisionIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    answer: Answer


class Session:
    """Pairs in their order and what is decided of them.

    Args:
        picks: The pairs.
        reviews: Where decisions go; those on these pairs count from the start.
        reviewer: Who decides, if told.
    """

    def __init__(self, picks: Sequence[Pick], reviews: Reviews, reviewer: str | None = None) -> None:
        self._reviews, self._reviewer = reviews, reviewer
        self._picks = {pick.id: pick for pick in picks}
        self._answers: dict[str, Answer] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take up what others decided meanwhile."""
        ids = {}
        for name, pick in self._picks.items():
            seen = Review.of(pick.document, pick.label, None)
            ids[seen.doc_hash, seen.label_hash] = name
        # In the order of the decisions: the last is the first to be undone.
        self._answers = {
            ids[pair]: review.answer
            for pair, review in self._reviews.latest().items()
            if pair in ids and review.answer is not None
        }

    def decide(self, name: str, answer: Answer) -> None:
        """Store an answer; when this returns it is on disk.

        Raises:
            KeyError: No such pair.
            StoreError: It could not be stored.
        """
        pick = self._picks[name]
        if self._answers.get(name) is not answer:
            self._add(pick, answer)
        self._answers.pop(name, None)
        self._answers[name] = answer

    def undo(self) -> None:
        """Take the last answer back, if there is one.

        Raises:
            StoreError: It could not be stored.
        """
        if self._answers:
            name = next(reversed(self._answers))
            self._add(self._picks[name], None)
            del self._answers[name]

    def _add(self, pick: Pick, answer: Answer | None) -> None:
        self._reviews.add([Review.of(pick.document, pick.label, answer, reviewer=self._reviewer)])

    def state(self) -> dict[str, Any]:
        """How far it is, and the first pair that is open, or `None`."""
        counts = Counter(self._answers.values())
        pick = next((pick for name, pick in self._picks.items() if name not in self._answers), None)
        return {
            "total": len(self._picks),
            "done": len(self._answers),
            "counts": {answer.value: counts[answer] for answer in Answer},
            "pair": pick
            and {
                "id": pick.id,
                "label": {"title": pick.label.title, "text": pick.label.text},
                "document": {"title": pick.document.title, "text": pick.document.text},
            },
        }


def create_app(picks: Sequence[Pick], store: Path, token: str, *, reviewer: str | None = None) -> Starlette:
    """The page as an ASGI application.

    Args:
        picks: The pairs to be shown.
        store: The feedback store.
        token: Must come with every request but the page's own.
        reviewer: Who decides, if told.
    """
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = template.get_template("page.html.j2").render(style=style())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Opened here: a connection belongs to its thread.
        with Reviews(store) as reviews:
            app.state.session = Session(picks, reviews, reviewer)
            yield

    async def show(request: Request) -> HTMLResponse:
        return html_response(page)

    async def pair(request: Request) -> JSONResponse:
        return _changed(request, Session.refresh)

    async def decide(request: Request) -> JSONResponse:
        try:
            said = _DecisionIn.model_validate_json(await request.body())
            return _changed(request, lambda session: session.decide(said.id, said.answer))
        except (ValidationError, KeyError):
            raise RefusedError(422, "no decision on a pair of this review", "load the page again") from None

    async def undo(request: Request) -> JSONResponse:
        return _changed(request, Session.undo)

    routes = [
        Route("/", show),
        Route("/pair", pair),
        Route("/decide", decide, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
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


def _changed(request: Request, change: Callable[[Session], None]) -> JSONResponse:
    session: Session = request.app.state.session
    try:
        change(session)
    except StoreError as error:
        raise RefusedError(503, error.message, error.cure) from None
    return JSONResponse(session.state())


def review(
    picks: Sequence[Pick],
    store: Path,
    port: int,
    announce: Callable[[str], None],
    *,
    reviewer: str | None = None,
) -> None:
    """Show the page to this machine until SIGINT or SIGTERM.

    Args:
        picks: The pairs to be shown.
        store: Where decisions go.
        port: 0 takes a free one.
        announce: Called with the URL, its token included.
        reviewer: Who decides, if told.

    Raises:
        ConfigError: The port cannot be had.
    """
    token = secrets.token_urlsafe(24)
    with listener(HOST, port) as listening:
        app = create_app(picks, store, token, reviewer=reviewer)
        answer_requests(app, listening, HOST, lambda url: announce(f"{url}/#{token}"))
