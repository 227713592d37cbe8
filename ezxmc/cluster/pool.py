"""Tasks through worker processes: one Ray Data stream, open from the first task to `close`.

    board's numbers ──► read (one task) ──► map_batches (an actor per worker) ──► what became of each

Only numbers pass through Ray Data. A worker fetches its task from the board
and writes what it makes to a file, so a result that is there is there for good.
Ray Data keeps the workers: it gives each a shard at a time, starts one that
died again, and gives it the shard that it had in hand.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import pyarrow

from ezxmc.cluster import RayConfig
from ezxmc.cluster.board import Board, Task, WorkerRate, line
from ezxmc.cluster.connection import connect, disconnect
from ezxmc.errors import ClusterError, EzxmcError

Tell = Callable[[int], None]
Work = Callable[[Task, Tell], None]
Say = Callable[[str], None]

_TELL_SECONDS = 0.5
_SAY_SECONDS = 30.0
_POLL = 1.0
_APPEARS = 30.0  # seconds in which a file must be seen on a network file system
_REASON = 300  # characters of a line
_SHARED = "put the store (the run directory) on a file system that all nodes share"  # cure
_SCHEMA = pyarrow.schema(
    [("number", pyarrow.int64()), ("error", pyarrow.string()), ("cure", pyarrow.string())]
)


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
        self._depth = 2 * config.workers
        self._say, self._said = say, time.monotonic()
        self._ray = connect(config)
        try:
            gpus = gpus if self._ray.cluster_resources().get("GPU", 0) >= 1 else 0
            self._board = _board_actor(self._ray)
            stream = _stream(self._ray, self._board, job, config.workers, gpus)
        except BaseException:
            disconnect()
            raise
        self._offered = 0
        self._open: dict[int, Task] = {}
        self._failure = "it ended early"
        self._finished: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(stream,), name="ezxmc-ray", daemon=True)
        self._reader.start()

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
        return len(self._open) >= self._depth

    def offer(self, task: Task) -> None:
        """Give the workers one more task."""
        self._open[self._offered] = task
        self._ray.get(self._board.offer.remote(task))
        self._offered += 1

    def done(self) -> Task:
        """Wait for any of the tasks to be done. Raises as `map`."""
        while True:
            row = self._next()
            number = row["number"]
            # Ray may do a step again whose result is long taken.
            if (task := self._open.pop(number, None)) is None:
                continue
            self._board.drop.remote(number)
            if row["error"]:
                raise ClusterError(row["error"], row["cure"])
            _seen(Path(task.path))
            return task

    def rates(self) -> list[WorkerRate]:
        """How fast each worker is."""
        rates: list[WorkerRate] = self._ray.get(self._board.rates.remote())
        return rates

    def close(self) -> None:
        """End the workers, whatever they do."""
        with suppress(self._ray.exceptions.RayError):  # the cluster may be gone by now
            workers = self._ray.get(self._board.handles.remote())
            self._ray.kill(self._board)  # the stream fails on it, and so does a worker that is just starting
            for worker in workers:
                self._ray.kill(worker)
        self._reader.join()
        disconnect()

    def _read(self, stream: Iterator[pyarrow.Table]) -> None:
        try:
            for table in stream:
                for row in table.to_pylist():
                    self._finished.put(row)
        except BaseException as error:
            # Kept as text: the error itself would keep the workers, by way of its traceback.
            self._failure = _reason(error)
        self._finished.put(None)

    def _next(self) -> dict[str, Any]:
        while True:
            if self._say and time.monotonic() - self._said > _SAY_SECONDS:
                self._said = time.monotonic()
                self._say(line(self.rates()))
            try:
                row = self._finished.get(timeout=_POLL)
            except Empty:
                continue
            if row is None:
                raise ClusterError(
                    f"the Ray job failed: {self._failure}",
                    "see Ray's logs (/tmp/ray/session_latest/logs); what is finished is kept, and the same "
                    "command goes on",
                )
            return row


def _reason(failure: BaseException) -> str:
    """What happened is in the first or in the last line of Ray's errors; between are pages."""
    lines = [line.strip()[:_REASON] for line in str(failure).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else type(failure).__name__


def _board_actor(ray: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


def _stream(ray: Any, board: Any, job: Job, workers: int, gpus: int) -> Iterator[Any]:
    import ray.data as data
    from ray.data.block import BlockMetadata

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say comes as an exception

    def numbers() -> Iterator[pyarrow.Table]:
        for number in count():
            ray.get(board.wait.remote(number))
            yield pyarrow.table({"number": [number]})

    class Numbers(data.Datasource):  # type: ignore[misc]
        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [data.ReadTask(numbers, unknown)]

        def estimate_inmemory_data_size(self) -> None:
            return None

    context = data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block, a number: none waits for others to fill one up
    with data.DataContext.current(context):
        found = data.read_datasource(Numbers(), override_num_blocks=1, num_cpus=0).map_batches(
            _Worker,
            fn_constructor_args=(board, job),
            batch_size=None,
            batch_format="pyarrow",
            # One at a time: a slow worker must not sit on shards that others could do.
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus,
        )
        return iter(found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


class _Worker:
    """One worker's process; a new one begins here after a death."""

    def __init__(self, board: Any, job: Job) -> None:
        import ray

        self._ray, self._board, self._job = ray, board, job
        context = ray.get_runtime_context()
        self._actor, me = context.get_actor_id(), f"{socket.gethostname()}:{os.getpid()}"
        self._slot = ray.get(board.join.remote(self._actor, me, context.current_actor))
        self._work: Work | None = None

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        rows = [{"number": number, **self._do(number)} for number in batch["number"].to_pylist()]
        return pyarrow.Table.from_pylist(rows, schema=_SCHEMA)

    def _do(self, number: int) -> dict[str, str]:
        task = self._ray.get(self._board.task.remote(number))
        # A worker may have died between its last step and the word that it is done.
        if task is None or Path(task.path).exists():
            return {}
        self._board.began.remote(self._actor)
        tell = _Throttle(lambda items: self._board.did.remote(self._actor, items))
        try:
            if not Path(task.path).parent.is_dir():
                raise ClusterError(
                    f"{socket.gethostname()} does not see {Path(task.path).parent}",
                    _SHARED,
                )
            self._work = self._work or self._job.open(self._slot)
            self._work(task, tell)
        except EzxmcError as error:
            return {"error": error.message, "cure": error.cure}
        finally:
            tell.rest()
            self._board.ended.remote(self._actor)
        return {}


class _Throttle:
    """Passes counts on, some at a time."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._items, self._told = tell, 0, 0.0

    def __call__(self, items: int) -> None:
        self._items += items
        if time.monotonic() - self._told > _TELL_SECONDS:
            self.rest()

    def rest(self) -> None:
        """Pass on what is left."""
        if self._items:
            self._tell(self._items)
        self._items, self._told = 0, time.monotonic()


def _seen(path: Path) -> None:
    deadline = time.monotonic() + _APPEARS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"a worker wrote {path}, which is not seen here",
                _SHARED,
            )
        time.sleep(0.1)
