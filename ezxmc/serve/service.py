"""A bundle at work: requests in batches, the folder and what is served of it in step.

Requests that arrive together are computed together, by one worker thread. The bundle can change to
another one while requests go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from anyio.to_thread import run_sync

from ezxmc.bundle.labels import Change
from ezxmc.bundle.manifest import MANIFEST
from ezxmc.bundle.predict import MOST_PARTS, Evidence, Predictor
from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend, Precision
from ezxmc.errors import BundleError, EzxmcError
from ezxmc.records import Document, Prediction
from ezxmc.serve.guard import LOCAL_NAMES, Limits, RefusedError
from ezxmc.serve.schemas import ChangeOut
from ezxmc.serve.web import Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A bundle in service.

    Attributes:
        predictor: Opened, verified, and tried on a text.
        version: First 16 hex digits of the manifest's SHA-256.
        since: When it was loaded.
    """

    predictor: Predictor
    version: str
    since: datetime


class BundleHolder:
    """Serves one bundle, and takes the next one only when it is verified.

    Args:
        load: Opens the bundle that lies at `path`.
        path: The bundle's folder; whatever lies there is served.
        observe: Told of every load whether it succeeded.

    Attributes:
        current: What is served now; read it once per use.
        refused: Why the bundle at `path` is not the one served, or `None`.

    Raises:
        BundleError: The folder is no intact bundle.
    """

    def __init__(
        self, load: Callable[[], Predictor], path: Path, observe: Callable[[bool], None] = lambda ok: None
    ) -> None:
        self._load, self._path, self._observe = load, path, observe
        self._lock = threading.Lock()
        self._wake, self._stopping = threading.Event(), False
        self._watcher: threading.Thread | None = None
        self._seen = _fingerprint(path)
        self.refused: str | None = None
        self.current = _tried(load())

    def reload(self) -> Served:
        """Load what lies at the path now; on failure the old bundle stays in service.

        Raises:
            BundleError: It cannot be served.
        """
        with self._lock:
            return self._reload()

    def change(self, act: Callable[[Path], Change]) -> tuple[Change, Served]:
        """Change the bundle's folder, then serve the result; one change at a time.

        Raises:
            EzxmcError: What `act` raised, or as for `reload`.
        """
        with self._lock:
            return act(self._path), self._reload()

    def watch(self, every: float) -> None:
        """Reload by itself, in a thread, whenever the folder has changed and then kept still.

        Args:
            every: Seconds between looks.
        """
        self._watcher = threading.Thread(target=self._look, args=(every,), name="reload", daemon=True)
        self._watcher.start()

    def ask(self) -> None:
        """Have the watching thread reload at once (on a signal, say)."""
        self._wake.set()

    def stop(self) -> None:
        """End the watching."""
        self._stopping = True
        self._wake.set()
        if self._watcher:
            self._watcher.join()

    def _look(self, every: float) -> None:
        before = self._seen
        while True:
            asked = self._wake.wait(every)
            self._wake.clear()
            if self._stopping:
                return
            now = _fingerprint(self._path)
            # A folder that is being copied changes from look to look: not yet.
            if asked or (now == before != self._seen):
                try:
                    self.reload()
                except EzxmcError as error:
                    _log.warning("the bundle was not reloaded: %s", error)
            before = now

    def _reload(self) -> Served:
        seen = _fingerprint(self._path)
        try:
            self.current = _tried(self._load())
        except Exception as error:  # a damaged model can raise anything
            self.refused = str(error)
            self._observe(False)
            if isinstance(error, EzxmcError):
                raise
            raise BundleError(f"bundle {self._path} cannot be served: {error}", "make it again") from error
        finally:
            self._seen = seen
        self.refused = None
        self._observe(True)
        return self.current


def _tried(predictor: Predictor) -> Served:
    predictor.predict(["A text to try it on."])
    manifest = predictor.bundle.manifest.model_dump_json().encode()
    return Served(predictor, hashlib.sha256(manifest).hexdigest()[:16], datetime.now(UTC))


def _fingerprint(path: Path) -> tuple[object, ...]:
    """Changes whenever a file of the bundle does, without reading more than the manifest."""
    try:
        manifest = (path / MANIFEST).read_bytes()
        stats = [(path / name).stat() for name in json.loads(manifest)["files"]]
        return (manifest, *((stat.st_size, stat.st_mtime_ns) for stat in stats))
    except (OSError, ValueError, TypeError, KeyError) as error:
        return (repr(error),)


RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")


class QueueFullError(Exception):
    """So much is waiting that another request would only wait in vain."""


@dataclass(slots=True)
class _Job(Generic[RequestT, AnswerT]):
    request: RequestT
    size: int
    since: float
    future: asyncio.Future[AnswerT]


class Batcher(Generic[RequestT, AnswerT]):
    """Dynamic micro-batching.

    A batch begins with the oldest waiting request, and takes in the ones after it until it is full, or the
    oldest has waited for `wait` seconds. While the worker is busy requests pile up, so under load batches are
    full and nobody waits for company.

    Args:
        answer: Answers a list of requests, in order; called in the worker thread.
        documents: A batch is full with so many. One greater request is a batch of its own.
        wait: Seconds the first request of a batch waits for others.
        queue: Documents that may wait.
        observe: Called with the documents of a batch as it begins.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[RequestT]], Sequence[AnswerT]],
        *,
        documents: int,
        wait: float,
        queue: int,
        observe: Callable[[int], None] = lambda documents: None,
    ) -> None:
        self._answer = answer
        self._documents, self._wait, self._queue = documents, wait, queue
        self._observe = observe
        self._jobs: deque[_Job[RequestT, AnswerT]] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._worker = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None
        self.waiting = 0
        """Documents that wait."""

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Answer what waits, then stop."""
        self._closing = True
        self._arrived.set()
        if self._task:
            await self._task
        self._worker.shutdown()

    async def submit(self, request: RequestT, size: int) -> AnswerT:
        """The answer to a request of `size` documents.

        Raises:
            QueueFullError: The queue is full, or closed.
            Exception: What `answer` raised for this request.
        """
        if self._closing or (self._jobs and self.waiting + size > self._queue):
            raise QueueFullError
        loop = asyncio.get_running_loop()
        job: _Job[RequestT, AnswerT] = _Job(request, size, loop.time(), loop.create_future())
        self._jobs.append(job)
        self.waiting += size
        self._arrived.set()
        return await job.future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._jobs and not self._closing:
                await self._more()
            if not self._jobs:
                return
            await self._gather(self._jobs[0].since + self._wait)
            if not (batch := self._take()):
                continue
            self._observe(sum(job.size for job in batch))
            answers = await loop.run_in_executor(self._worker, self._compute, [job.request for job in batch])
            for job, answer in zip(batch, answers, strict=True):
                if job.future.done():
                    continue
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)

    async def _more(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    async def _gather(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                while self.waiting < self._documents and not self._closing:
                    await self._more()
        except TimeoutError:
            pass

    def _take(self) -> list[_Job[RequestT, AnswerT]]:
        batch: list[_Job[RequestT, AnswerT]] = []
        size = 0
        while self._jobs and (not batch or size + self._jobs[0].size <= self._documents):
            job = self._jobs.popleft()
            self.waiting -= job.size
            if not job.future.cancelled():
                batch.append(job)
                size += job.size
        return batch

    def _compute(self, requests: list[RequestT]) -> list[AnswerT | Exception]:
        try:
            return list(self._answer(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            # One request must not cost its neighbours their answers.
            return [self._compute([request])[0] for request in requests]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a bundle is served.

    Attributes:
        bundle: Its folder.
        limits: What is taken.
        backend: What runs the encoder.
        precision: What it computes in.
        batch_documents: Documents computed together; 1 turns batching off.
        batch_wait: Seconds the first of a batch waits for others.
        token: Bearer token that is asked for.
        hosts: Names the server answers to; `None`: any.
        watch_every: Seconds between looks at the bundle's folder.
    """

    bundle: Path
    limits: Limits = field(default_factory=Limits)
    backend: Backend = "torch"
    precision: Precision = "auto"
    batch_documents: int = 32
    batch_wait: float = 0.002
    token: str | None = None
    hosts: frozenset[str] | None = LOCAL_NAMES
    watch_every: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """The documents of one request and its options."""

    documents: list[Document]
    k: int | None
    threshold: float | None
    decision: bool
    explain: bool = False

    @property
    def size(self) -> int:
        """Texts to encode at most: only the model's thread may take documents apart, by its tokenizer."""
        return len(self.documents) * (1 + MOST_PARTS if self.explain else 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: predictions, evidence for each label of each where asked for, the version."""

    predictions: list[Prediction]
    evidence: list[list[Evidence | None]]
    version: str


class Service:
    """What the routes share: the bundle, the batcher, the counters.

    Raises:
        BundleError: There is no intact bundle.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.bundle = BundleHolder(
            lambda: Predictor.load(settings.bundle, backend=settings.backend, precision=settings.precision),
            settings.bundle,
            lambda ok: self.metrics.reloads.labels("ok" if ok else "refused").inc(),
        )
        self.batcher: Batcher[Work, Answer] = Batcher(
            self._answer,
            documents=settings.batch_documents,
            wait=settings.batch_wait,
            queue=settings.limits.queue,
            observe=self.metrics.batches.observe,
        )
        self.metrics.watch(
            lambda: self.batcher.waiting, lambda: self.bundle.current.predictor.bundle.index.size
        )

    def _answer(self, works: Sequence[Work]) -> list[Answer]:
        served = self.bundle.current
        documents = [document for work in works for document in work.documents]
        explained = [document for work in works if work.explain for document in work.documents]
        parts = [served.predictor.occlusions(document) for document in explained]
        # In one call: what is left of documents is encoded beside them.
        rests = [Document("", "", part.rest) for some in parts for part in some]
        vectors = served.predictor.encode([*documents, *rests])
        found: dict[tuple[int | None, float | None, bool], list[int]] = {}
        spans: list[range] = []
        for work in works:
            first = spans[-1].stop if spans else 0
            spans.append(range(first, first + len(work.documents)))
            found.setdefault((work.k, work.threshold, work.decision), []).extend(spans[-1])
        predictions: dict[int, Prediction] = {}
        for (k, threshold, decision), places in found.items():
            tagged = served.predictor.tag(
                [documents[place] for place in places],
                vectors[places],
                k=k,
                threshold=threshold,
                decision=decision_of(served.predictor) if decision else None,
            )
            predictions.update(zip(places, tagged, strict=True))
        self.metrics.documents.inc(len(documents))
        answers, apart, after = [], iter(parts), len(documents)
        for work, span in zip(works, spans, strict=True):
            evidence = []
            for place in span if work.explain else ():
                some = next(apart)
                without, after = vectors[after : after + len(some)], after + len(some)
                evidence.append(served.predictor.evidence(predictions[place], some, without))
            answers.append(Answer([predictions[place] for place in span], evidence, served.version))
        return answers

    async def change(self, act: Callable[[Path], Change]) -> ChangeOut:
        """Change the bundle's folder and serve it; raises as `BundleHolder.change`."""
        change, served = await run_sync(self.bundle.change, act)
        bundle = served.predictor.bundle
        return ChangeOut(
            added=change.added,
            changed=change.changed,
            removed=change.removed,
            total=bundle.index.size,
            bundle=served.version,
            decision=bundle.decision.guarantee if bundle.decision else None,
        )


def decision_of(predictor: Predictor) -> Decision:
    """The bundle's own decision.

    Raises:
        RefusedError: It has none.
    """
    if predictor.bundle.decision is None:
        raise RefusedError(409, "the bundle has no decision", "make one with `ezxmc decide`, or leave it out")
    return predictor.bundle.decision
