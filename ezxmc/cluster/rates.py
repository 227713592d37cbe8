"""Who of the workers is slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

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
