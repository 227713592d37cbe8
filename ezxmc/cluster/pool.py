"""Tasks through worker processes: plain Ray actors, at work from the first task to `close`.

A worker has one task at a time and writes what it makes to a file, so a result that is there is there for
good. Ray starts a worker that died again and gives it the task that it had in hand. What workers tell of
their progress comes together in one more actor, the board, which knows who is slow. No other module touches
Ray's settings.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any, NamedTuple, Protocol

from ezxmc.cluster import RayConfig
from ezxmc.errors import ClusterError, EzxmcError

_OBJECT_STORE = 256 << 20  # bytes; shards go through files, so little lies in it
_lock = threading.Lock()
_users = 0
_ours = False


def connect(config: RayConfig) -> Any:
    """Join the cluster, or start one; each call wants a `disconnect`.

    A cluster started here listens on the loopback interface alone, reports
    nothing to anybody, and ends with this process, however that ends. Where
    the caller has called `ray.init` before, that cluster is used, and stays.

    Returns:
        The module `ray`.

    Raises:
        ClusterError: Ray is not installed, or there is no such cluster.
    """
    global _users, _ours
    if find_spec("ray") is None:
        raise ClusterError("Ray is not installed, and the engine is ray", "pip install 'ezxmc[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Notices nobody can act on would bury the progress; set this to see them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # On a machine of our own Ray would kill workers, again and again, because other programs fill its memory.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    # Ray's own switch between the machine's address and 127.0.0.1, for the processes it starts ...
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = str(int(config.address is not None))
    import ray
    from ray._private import ray_constants

    # ... and for this one, where vLLM or others may have imported ray before.
    ray_constants.ENABLE_RAY_CLUSTER = config.address is not None
    with _lock:
        if not _users:
            _ours = not ray.is_initialized()
            if _ours:
                # Ray would have SIGTERM end us at once; the caller may have work in hand.
                ended = signal.getsignal(signal.SIGTERM)
                _init(ray, config)
                if callable(ended) and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, ended)
        _users += 1
    return ray


def disconnect() -> None:
    """Leave the cluster with the last user; one that was started here ends."""
    global _users
    import ray

    with _lock:
        _users -= 1
        if not _users and _ours:
            ray.shutdown()


def _init(ray: Any, config: RayConfig) -> None:
    _keep_from_stdout()
    # Local, whatever RAY_ADDRESS says.
    own = {"num_cpus": config.workers, "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
    how = {"address": config.address} if config.address else {"address": "local", **own}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **how)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = config.address or "this machine"
        raise ClusterError(
            f"no Ray cluster on {where}: {error}",
            "start it (`ray start --head --port=6379`; examples/cluster) and name it in ray.address "
            "(--ray-address); without one, a cluster of this machine is started",
        ) from error


@cache  # wrapped once, however many clusters a process starts
def _keep_from_stdout() -> None:
    """Let Ray tell of workers that died on stderr: on stdout it would stand among answers and JSON."""
    from ray._private import worker

    tell = worker.print_to_stdstream

    def on_stderr(data: dict[str, Any], *args: Any, **options: Any) -> None:
        tell({**data, "is_err": True}, *args, **options)

    worker.print_to_stdstream = on_stderr


Tell = Callable[[int], None]
Say = Callable[[str], None]

_TELL_SECONDS = 0.5
_SAY_SECONDS = 30.0
_POLL = 1.0
_APPEARS = 30.0  # seconds in which a file must be seen on a network file system
_GRACE = 30.0  # seconds without a second item before a worker counts as slow
_SHOWN = 6  # workers told of in one line
_REASON = 300  # characters of a line
_SHARED = "put the store (the run directory) on a file system that all nodes share"  # cure


class Task(NamedTuple):
    """A shard of work.

    Attributes:
        path: The file the worker writes, complete once it is there; on a file
            system that driver and workers share.
        items: What to work on.
    """

    path: str
    items: Sequence[Any]


Work = Callable[[Task, Tell], None]


class Job(Protocol):
    """What workers do; travels to them."""

    def open(self, slot: int) -> Work:
        """Get ready, in a worker's process.

        Args:
            slot: The worker's number, from 0; the same after a restart.

        Returns:
            Called with a task and what to tell of items done; writes
            `task.path` in one step. An `EzxmcError` of either ends the job.
        """
        ...


class Pool:
    """Workers at one job.

    Args:
        config: The cluster.
        job: What they do.
        gpus: How many GPUs a worker wants, where the cluster has any.
        say: Told every half minute how fast each worker is.

    Raises:
        ClusterError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, config: RayConfig, job: Job, *, gpus: int, say: Say | None = None) -> None:
        self._say, self._said = say, time.monotonic()
        self._ray = ray = connect(config)
        try:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
            if ray.cluster_resources().get("GPU", 0) < 1:
                gpus = 0
            lasting = {"max_restarts": -1, "max_task_retries": -1}
            worker = ray.remote(_Worker).options(num_cpus=1, num_gpus=gpus, **lasting)
            self._workers = [worker.remote(self._board, job, slot) for slot in range(config.workers)]
        except BaseException:
            disconnect()
            raise
        self._open = 0
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._ended: SimpleQueue[Task | ClusterError] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._lead, args=(worker,), name="ezxmc-ray", daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def map(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Have tasks done; yields each as soon as its file is there.

        Tasks are read lazily, two a worker ahead. A caller that stops
        iterating must call `close`: work goes on until then.

        Raises:
            ClusterError: The cluster lost the job, a file is not seen here, or in
                a worker's words what it cannot do; what was yielded is not lost.
        """
        source = iter(tasks)
        while True:
            while not self.full and (task := next(source, None)) is not None:
                self.offer(task)
            if not self._open:
                return
            yield self.done()

    @property
    def full(self) -> bool:
        """Whether the workers have enough to do for now: two tasks each."""
        return self._open >= 2 * len(self._workers)

    def offer(self, task: Task) -> None:
        """Give the workers one more task."""
        self._open += 1
        self._tasks.put(task)

    def done(self) -> Task:
        """Wait for any of the tasks to be done. Raises as `map`."""
        while True:
            if self._say and time.monotonic() - self._said > _SAY_SECONDS:
                self._said = time.monotonic()
                self._say(line(self.rates()))
            with suppress(Empty):
                ended = self._ended.get(timeout=_POLL)
                break
        if isinstance(ended, ClusterError):
            raise ended
        self._open -= 1
        _seen(Path(ended.path))
        return ended

    def rates(self) -> list[WorkerRate]:
        """How fast each worker is."""
        return list(self._ray.get(self._board.rates.remote()))

    def close(self) -> None:
        """End the workers, whatever they do."""
        for actor in (*self._workers, self._board):
            with suppress(self._ray.exceptions.RayError):  # the cluster may be gone by now
                self._ray.kill(actor)
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        disconnect()

    def _lead(self, worker: Any) -> None:
        """Give one worker a task at a time: a slow one must not sit on shards that others could do."""
        try:
            # One that the cluster has no place for yet is given none.
            self._ray.get(worker.__ray_ready__.remote())
            while (task := self._tasks.get()) is not None:
                failure = self._ray.get(worker.do.remote(task))
                self._ended.put(ClusterError(*failure) if failure else task)
        except Exception as error:
            # Kept as text: the error itself would keep the worker, by way of its traceback.
            failed = ClusterError(
                f"the Ray job failed: {_reason(error)}",
                "see Ray's logs (/tmp/ray/session_latest/logs); what is finished is kept, and the same "
                "command goes on",
            )
            self._ended.put(failed)


def _reason(failure: BaseException) -> str:
    """What happened is in the first or in the last line of Ray's errors; between are pages."""
    lines = [line.strip()[:_REASON] for line in str(failure).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else type(failure).__name__


def _seen(path: Path) -> None:
    deadline = time.monotonic() + _APPEARS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(f"a worker wrote {path}, which is not seen here", _SHARED)
        time.sleep(0.1)


class _Worker:
    """One worker's process; a new one begins here after a death."""

    def __init__(self, board: Any, job: Job, slot: int) -> None:
        self._board, self._job, self._slot = board, job, slot
        self._work: Work | None = None

    def do(self, task: Task) -> tuple[str, str] | None:
        """Do a task; returns what ends the job and its cure, if anything does."""
        # A worker may have died between its last step and the word that it is done.
        if Path(task.path).exists():
            return None
        self._board.began.remote(self._slot, f"{socket.gethostname()}:{os.getpid()}")
        told, items = 0.0, 0

        def tell(more: int) -> None:
            """Pass counts on, some at a time."""
            nonlocal told, items
            items += more
            if time.monotonic() - told > _TELL_SECONDS:
                self._board.did.remote(self._slot, items)
                told, items = time.monotonic(), 0

        try:
            if not Path(task.path).parent.is_dir():
                raise ClusterError(f"{socket.gethostname()} does not see {Path(task.path).parent}", _SHARED)
            self._work = self._work or self._job.open(self._slot)
            self._work(task, tell)
        except EzxmcError as error:
            return error.message, error.cure
        finally:
            self._board.ended.remote(self._slot, items)
        return None


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


@dataclass(slots=True)
class _Record:
    worker: str
    restarts: int = 0
    items: int = 0
    timed: int = 0
    seconds: float = 0.0
    shards: int = 0
    began: float | None = None
    last: float | None = None
    """Since when the time counts; `None` until the first item of a process, so that start-up is left out."""


class Board:
    """What each worker has done. A plain class, which the pool makes an actor; all times are its process's.

    Args:
        clock: Seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[int, _Record] = {}

    def began(self, slot: int, worker: str) -> None:
        """A worker, by host and process id, took a shard in hand."""
        record = self._records.setdefault(slot, _Record(worker))
        if record.worker != worker:
            record.worker, record.last = worker, None
            record.restarts += 1
        record.began = self._clock()
        if record.last is not None:
            record.last = record.began

    def did(self, slot: int, items: int) -> None:
        """A worker finished some items of its shard."""
        record, now = self._records[slot], self._clock()
        record.items += items
        if record.last is not None:
            record.timed += items
            record.seconds += now - record.last
        if items:
            record.last = now

    def ended(self, slot: int, items: int) -> None:
        """A worker's shard is written, with these items the last."""
        self.did(slot, items)
        record = self._records[slot]
        record.began = None
        record.shards += 1

    def rates(self) -> list[WorkerRate]:
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


def stragglers(rates: Sequence[WorkerRate]) -> list[str]:
    """Workers slower than half the median of all that can be timed."""
    timed = {rate.worker: rate.per_second for rate in rates if rate.per_second is not None}
    slow = median(timed.values()) / 2 if timed else 0.0
    return [worker for worker, speed in timed.items() if speed < slow]


def table(rates: Sequence[WorkerRate]) -> list[dict[str, object]]:
    """A row a worker, JSON-ready."""
    slow = set(stragglers(rates))
    return [
        {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(rate).items()}
        | {"straggler": rate.worker in slow}
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
