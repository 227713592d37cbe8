"""The service: its routes over a bundle, a batcher and a guard."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from ezxmc.bundle.labels import add_labels, remove_labels
from ezxmc.bundle.predict import MOST_PARTS, prediction_row
from ezxmc.config.teacher import is_loopback
from ezxmc.errors import ConfigError, DataError, EzxmcError
from ezxmc.records import Document
from ezxmc.serve import web as page
from ezxmc.serve.guard import LOCAL_NAMES, TOKEN_VARIABLE, Guard, Limits, RefusedError
from ezxmc.serve.schemas import (
    MOST_LABELS,
    BundleOut,
    ChangeOut,
    EvidenceOut,
    Health,
    LabelOut,
    LabelPage,
    LabelsIn,
    PredictIn,
    PredictOut,
    Problem,
    Tagged,
)
from ezxmc.serve.service import QueueFullError, Served, Service, Settings, Work, decision_of
from ezxmc.serve.web import answer_requests, listener

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "not readable",
        401: "no valid token",
        403: "sent by a page of another site",
        408: "the body took too long",
        409: "the bundle cannot do this",
        413: "too large",
        421: "wrong host name",
        422: "not valid",
        429: "too many requests",
        503: "overloaded",
    }.items()
}


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI application.

    Raises:
        BundleError: There is no intact bundle.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        service.bundle.watch(settings.watch_every)
        # Neither outside the main thread nor on every system.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.bundle.ask)
        yield
        await service.batcher.close()
        await run_sync(service.bundle.stop)

    app = FastAPI(
        title="ezxmc",
        description="Tags documents with the labels of a bundle.",
        version=version("ezxmc"),
        lifespan=lifespan,
        # The usual pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses=_PROBLEMS,
    )
    _add_predict(app, service)
    _add_labels(app, service)
    _add_operations(app, service)
    _add_pages(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(EzxmcError, _refused_by_bundle)
    app.add_middleware(
        Guard,
        limits=settings.limits,
        token=settings.token,
        hosts=settings.hosts,
        paths={path for route in app.routes if (path := getattr(route, "path", None))},
        metrics=service.metrics,
    )
    return app


def _add_predict(app: FastAPI, service: Service) -> None:
    limits = service.settings.limits

    # What was not asked for is not in the answer.
    @app.post("/predict", response_model_exclude_unset=True)
    async def predict(body: PredictIn) -> PredictOut:
        """Tag documents."""
        documents = _documents(body, limits)
        predictor = service.bundle.current.predictor
        predictor.check(
            k=body.k, threshold=body.threshold, decision=decision_of(predictor) if body.decision else None
        )
        work = Work(documents, body.k, body.threshold, body.decision, body.explain)
        if work.size > limits.documents:
            raise RefusedError(
                413,
                f"each explained document counts as {1 + MOST_PARTS}: {work.size:,} of {limits.documents:,}",
                "send them in several requests, or without `explain`",
            )
        try:
            answer = await service.batcher.submit(work, work.size)
        except QueueFullError:
            raise RefusedError(503, "too many documents wait", "try again", {"Retry-After": "1"}) from None
        rows = [Tagged.model_validate(prediction_row(prediction)) for prediction in answer.predictions]
        for row, found in zip(rows, answer.evidence, strict=False):
            for tag, one in zip(row.tags, found, strict=True):
                tag.evidence = EvidenceOut(text=one.text, drop=round(one.drop, 4)) if one else None
        return PredictOut(predictions=rows, bundle=answer.version)


def _documents(body: PredictIn, limits: Limits) -> list[Document]:
    if len(body.documents) > limits.documents:
        raise RefusedError(413, f"more than {limits.documents:,} documents", "send them in several requests")
    found = []
    for number, one in enumerate(body.documents):
        document = Document(str(number) if one.uid is None else one.uid, one.title, one.text)
        if len(document.title) + len(document.text) > limits.characters:
            raise RefusedError(
                413, f"document {number} has more than {limits.characters:,} characters", "send its beginning"
            )
        if not document.shown:
            raise RefusedError(422, f"document {number} has neither title nor text", "leave it out")
        found.append(document)
    return found


def _add_labels(app: FastAPI, service: Service) -> None:
    most = service.settings.limits.documents

    @app.get("/labels")
    def list_labels(
        query: Annotated[
            str, Query(max_length=1_000, description="In the title, the uid or an alias, whatever the case.")
        ] = "",
        offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_LABELS)] = 50,
    ) -> LabelPage:
        """Labels that can be answered, in the order they came."""
        bundle = service.bundle.current.predictor.bundle
        rows = bundle.index.rows.tolist()
        if wanted := query.strip().casefold():
            rows = [
                row
                for row in rows
                if any(
                    wanted in name.casefold()
                    for name in (
                        bundle.labels[row].title,
                        bundle.labels[row].uid,
                        *bundle.labels[row].aliases,
                    )
                )
            ]
        shown = [LabelOut.model_validate(bundle.labels[row]) for row in rows[offset : offset + limit]]
        return LabelPage(total=len(rows), offset=offset, labels=shown)

    @app.post("/labels")
    async def add(body: LabelsIn) -> ChangeOut:
        """Add labels, or change those whose uid is there; they are answered at once, nothing is trained."""
        if len(body.labels) > most:
            raise RefusedError(
                413, f"more than {most:,} labels", "send them in several requests, or `ezxmc labels add`"
            )
        labels = [one.label() for one in body.labels]
        if not all(label.title and label.uid.strip() for label in labels):
            raise RefusedError(422, "a label has an empty title or uid", "leave it out")
        return await service.change(lambda path: add_labels(path, labels))

    @app.delete("/labels", responses={404: {"model": Problem, "description": "no such label"}})
    async def remove(
        uid: Annotated[
            list[str],
            Query(min_length=1, max_length=MOST_LABELS, description="One or more; a URL takes 64 KiB."),
        ],
    ) -> ChangeOut:
        """Remove labels; they are answered no more."""
        known = service.bundle.current.predictor.bundle.rows()
        uids = [one if one in known else one.strip() for one in uid]
        try:
            return await service.change(lambda path: remove_labels(path, uids))
        except DataError as error:
            raise RefusedError(404, error.message, "GET /labels lists what there is") from None


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    def health(request: Request) -> Health:
        """Whether the service answers; to those who may use it, also what it serves."""
        known = request.scope["authorized"]
        refused = service.bundle.refused
        return Health(
            status="stale" if refused else "ok",
            bundle=_described(service.bundle.current) if known else None,
            refused=refused if known else None,
        )

    @app.post("/reload")
    async def reload() -> BundleOut:
        """Serve what lies in the bundle's folder now, once it is verified; else the old bundle stays."""
        return _described(await run_sync(service.bundle.reload))

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"}},
    )
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _described(served: Served) -> BundleOut:
    bundle = served.predictor.bundle
    return BundleOut(
        version=served.version,
        loaded=served.since.isoformat(timespec="seconds"),
        labels=bundle.index.size,
        k=bundle.manifest.k,
        calibrated=bundle.calibrator is not None,
        decision=bundle.decision.guarantee if bundle.decision else None,
    )


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def try_it() -> HTMLResponse:
        return page.try_page()

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return page.docs_page(app.openapi())


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    json = request.headers.get("content-type", "").partition(";")[0].strip().endswith("json")
    if not json and any(fault["loc"] == ("body",) and fault["type"] != "missing" for fault in faults):
        return _json(
            RefusedError(
                422, "the body is not declared as JSON", "send the header Content-Type: application/json"
            )
        )
    example = _EXAMPLES.get(request.url.path if request.method == "POST" else "")
    cure = f"send JSON such as {example}; " if example else ""
    return _json(RefusedError(422, "; ".join(map(_fault, faults[:5])), f"{cure}/docs shows what is expected"))


_EXAMPLES = {
    "/predict": '{"documents": ["a text", {"uid": 7, "title": "...", "text": "..."}], "k": 5}',
    "/labels": '{"labels": [{"title": "a tag"}, {"uid": 7, "title": "another"}]}',
}


def _fault(fault: dict[str, Any]) -> str:
    """A fault of pydantic's in plain words; what was sent is not sent back: it may be huge, or no text."""
    source, *path = fault["loc"]
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']} at character {path[0]}"
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    place = place.lstrip(".")[:200] or f"the {source}"
    words = {
        "missing": "is missing",
        "extra_forbidden": "is not known here",
        "model_attributes_type": "should be a JSON object",
        "dict_type": "should be a JSON object",
    }
    said = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{place}: {words.get(fault['type'], said)}"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(RefusedError(error.status_code, str(error.detail), "", dict(error.headers or {})))


async def _refused_by_bundle(request: Request, error: Exception) -> Response:
    assert isinstance(error, EzxmcError)
    return _json(RefusedError(422 if isinstance(error, DataError) else 409, error.message, error.cure))


def _json(refused: RefusedError) -> Response:
    return Response(refused.body, refused.status, refused.headers, "application/json")


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
