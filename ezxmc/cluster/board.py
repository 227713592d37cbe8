"""Where driver and workers meet: tasks, and who is doing what. A plain class; the pool makes it an actor.

The rates tell who of the workers is slow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

_SHOWN = 6  # workers told of in one line


@dataclass(frozen=True, slots=True)
class WorkerRate:
    """What one worker has done so far.

    Attributes:
        worker: Host and process id.
        items: Pairs or texts done, those of a shard done twice included.
        per_second: Of them, its start-up left out; `None` before they can be timed.
        shards: Shards finished.
        shard_seconds: Age of the shard in its hands; `None` while it waits.
        restarts: How often it died and was started again.
    """

    worker: str
    items: int = 0
    per_second: float | None = None
    shards: int = 0
    shard_seconds: float | None = None
    restarts: int = 0


def stragglers(rates: Sequence[WorkerRate]) -> list[str]:
    """Workers slower than half the median of all that can be timed."""
    timed = {rate.worker: rate.per_second for rate in rates if rate.per_second is not None}
    if not timed:
        return []
    slow = median(timed.values()) / 2
    return [worker for worker, speed in timed.items() if speed < slow]


def table(rates: Sequence[WorkerRate]) -> list[dict[str, object]]:
    """A row a worker, JSON-ready."""
    slow = set(stragglers(rates))
    return [
        {
            "worker": rate.worker,
            "items": rate.items,
            "per_second": None if rate.per_second is None else round(rate.per_second, 2),
            "shards": rate.shards,
            "shard_seconds": None if rate.shard_seconds is None else round(rate.shard_seconds, 1),
            "restarts": rate.restarts,
            "straggler": rate.worker in slow,
        }
        for rate in rates
    ]


def line(rates: Sequence[WorkerRate]) -> str:
    """All of them in one line, the slowest first, stragglers named."""
    slow = set(stragglers(rates))
    order = sorted(rates, key=lambda rate: (rate.per_second is None, rate.per_second))
    told = [_told(rate, rate.worker in slow) for rate in order[:_SHOWN]]
    if len(order) > _SHOWN:
        told.append(f"{len(order) - _SHOWN} faster ones")
    total = sum(rate.per_second or 0.0 for rate in rates)
    return f"{len(rates)} workers, {total:,.1f}/s: {'; '.join(told)}"


def _told(rate: WorkerRate, slow: bool) -> str:
    speed = "starting" if rate.per_second is None else f"{rate.per_second:,.1f}/s"
    age = "waits" if rate.shard_seconds is None else f"shard {rate.shard_seconds:,.0f} s"
    again = f", restarted {rate.restarts} times" if rate.restarts else ""
    return f"{'STRAGGLER ' if slow else ''}{rate.worker} {rate.items:,} {speed} {age}{again}"


_GRACE = 30.0  # seconds without a second item before a worker counts as slow


class Task(NamedTuple):
    """A shard of work.

    Attributes:
        path: The file the worker writes, complete once it is there; on a file
            system that driver and workers share.
        items: What to work on.
    """

    path: str
    items: Sequence[Any]


@dataclass(slots=True)
class _Record:
    slot: int
    worker: str
    handle: Any
    restarts: int = 0
    items: int = 0
    timed: int = 0
    seconds: float = 0.0
    shards: int = 0
    began: float | None = None
    last: float | None = None
    """Since when the time counts; `None` until the first item of a process, so that start-up is left out."""


class Board:
    """Tasks by number, and a record of each worker. All times are this process's.

    Args:
        clock: Seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tasks: dict[int, Task] = {}
        self._offered = 0
        self._changed = asyncio.Event()
        self._records: dict[str, _Record] = {}

    async def offer(self, task: Task) -> None:
        """Add the next task."""
        self._tasks[self._offered] = task
        self._offered += 1
        self._changed.set()

    async def wait(self, number: int) -> None:
        """Return once task `number` has been offered.

        Numbers are handed out by count and not from a queue: Ray may do a
        lost step again, and it must then find the same.
        """
        while self._offered <= number:
            self._changed.clear()
            await self._changed.wait()

    async def task(self, number: int) -> Task | None:
        """A task; `None` if its result was taken already."""
        return self._tasks.get(number)

    async def drop(self, number: int) -> None:
        """Forget a task whose result was taken."""
        self._tasks.pop(number, None)

    async def join(self, actor: str, worker: str, handle: Any) -> int:
        """A worker process has started.

        Args:
            actor: Id of the actor; the same after a restart.
            worker: Host and process id.
            handle: What Ray knows the actor by.

        Returns:
            The worker's slot, from 0; the same after a restart.
        """
        record = self._records.setdefault(actor, _Record(len(self._records), worker, handle))
        if record.worker != worker:
            record.worker, record.began, record.last = worker, None, None
            record.restarts += 1
        return record.slot

    async def began(self, actor: str) -> None:
        """A worker took a shard in hand."""
        record = self._records[actor]
        record.began = self._clock()
        if record.last is not None:
            record.last = record.began

    async def did(self, actor: str, items: int) -> None:
        """A worker finished some items of its shard."""
        record, now = self._records[actor], self._clock()
        record.items += items
        if record.last is not None:
            record.timed += items
            record.seconds += now - record.last
        record.last = now

    async def ended(self, actor: str) -> None:
        """A worker's shard is written."""
        record, now = self._records[actor], self._clock()
        if record.last is not None:
            record.seconds += now - record.last
            record.last = now
        record.began = None
        record.shards += 1

    async def handles(self) -> list[Any]:
        """What Ray knows the workers by."""
        return [record.handle for record in self._records.values()]

    async def rates(self) -> list[WorkerRate]:
        """What each worker has done so far."""
        now = self._clock()
        return [self._rate(record, now) for record in self._records.values()]

    @staticmethod
    def _rate(record: _Record, now: float) -> WorkerRate:
        # One that hangs grows slower by the second.
        hanging = now - record.last if record.began is not None and record.last is not None else 0.0
        seconds = record.seconds + hanging
        timed = seconds > 0 and (record.timed > 0 or seconds > _GRACE)
        return WorkerRate(
            record.worker,
            record.items,
            record.timed / seconds if timed else None,
            record.shards,
            None if record.began is None else now - record.began,
            record.restarts,
        )
