"""Requests that arrive together are computed together, by one worker thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

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

    A batch begins with the oldest waiting request, and takes in the ones after
    it until it is full, or the oldest has waited for `wait` seconds. While the
    worker is busy requests pile up, so under load batches are full and nobody
    waits for company.

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
