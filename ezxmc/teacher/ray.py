"""A teacher spread over the workers of a Ray cluster.

Each worker has a teacher of its own, the configured one: an in-process vLLM on its GPU, or a client of one of
the server's replicas. `ray.data.llm` was weighed and not taken (Ray 2.60): it passes `logprob_token_ids`
through and gives log-probabilities back, so scores would be the same, but

- it does not tell how many prompt tokens the prefix cache supplied, on which
  `plan` and the report's costs rest;
- it gives a batch's rows one by one as they end, through the object store, so
  no worker holds a whole shard to write, and a driver that dies loses them;
- an engine that dies takes its batch along instead of being started again;
- its HTTP stage asks no server who it is, reads prompts as it is told to (an
  answer of other tokens would pass), and ends the job where we give a status.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ezxmc.cluster import RayConfig
from ezxmc.cluster.pool import Pool, Say, Task, Tell, table
from ezxmc.config.teacher import HttpTeacherConfig, TeacherConfig, VllmTeacherConfig
from ezxmc.errors import ClusterError, ConfigError, TeacherError
from ezxmc.records import Judgment, Pair
from ezxmc.teacher.base import Teacher, load_teacher, startup_seconds
from ezxmc.teacher.shards import Shard, ShardFolder, cut
from ezxmc.teacher.vllm import free_gpu

_SHARDS_EACH = 4  # of a short job, for each worker: the last ones end at about the same time


class RayTeacher:
    """Scores pairs with one teacher per worker of a Ray cluster.

    Fingerprint and keys are those of the inner teacher: its judgments and these are interchangeable.

    Pairs go out in shards, a document's candidates together. A worker writes each shard's judgments to a
    file; `keep` says where, `stored` when a file has served. Killed workers are started again and do the
    shard they had in hand again; a failing pair has a status and stops nothing.

    Args:
        config: The teacher of each worker.
        cluster: Where the workers are.
        progress: Called with (stage, done, total) while weights are fetched.
        say: Told every half minute how fast each worker is.

    Raises:
        ConfigError: Replicas of a server are named for a teacher without one.
        TeacherError, ModelError: As of the inner teacher.
    """

    def __init__(
        self,
        config: TeacherConfig,
        cluster: RayConfig,
        progress: Callable[[str, int, int], None] | None = None,
        say: Say | None = None,
    ) -> None:
        if cluster.servers and not isinstance(config, HttpTeacherConfig):
            raise ConfigError(
                "ray.servers names servers, and the teacher is no server", "set teacher.kind to openai"
            )
        self._configs = _replicas(config, cluster.servers)
        self._cluster, self._say = cluster, say
        # Never asked here: it gives the fingerprint, and renders prompts to count their tokens.
        self._inner = load_teacher(self._configs[0], progress=progress, say=say)
        self._pool: Pool | None = None
        self._parent: Path | None = None
        self._folder: ShardFolder | None = None
        self._rates: list[dict[str, object]] = []
        self.startup_seconds = 0.0
        """See `StartsEngine`: until the first worker is ready."""

    def __getattr__(self, name: str) -> Any:
        # `HasRenderer`, and what a replay says of its bad rows, are matters of the inner teacher.
        if name in ("renderer", "report"):
            return getattr(self._inner, name)
        raise AttributeError(name)

    @property
    def fingerprint(self) -> str:
        """See `Teacher`."""
        return self._inner.fingerprint

    @property
    def description(self) -> dict[str, Any]:
        """See `Teacher`."""
        return self._inner.description

    def key(self, pair: Pair) -> str:
        """See `Teacher`."""
        return self._inner.key(pair)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`. The workers stay for the next call, unless this one ends early.

        Raises:
            TeacherError: The cluster lost the job, or a worker's teacher cannot judge.
        """
        shards = cut(pairs, self._size(expected))
        if (first := next(shards, None)) is None:
            return
        ended = False
        try:
            asked, fresh = time.monotonic(), self._pool is None
            pool, folder = self._start()
            tasks = (Task(str(folder.next()), shard) for shard in chain((first,), shards))
            for task in pool.map(tasks):
                waited = time.monotonic() - asked
                shard = folder.take(Path(task.path))
                if fresh:
                    # What the first shard took to judge its worker has measured.
                    self.startup_seconds += max(0.0, waited - shard.seconds)
                    fresh = False
                yield from shard.judgments
            self._rates = table(pool.rates())
            ended = True
        except ClusterError as error:
            raise TeacherError(error.message, error.cure) from error
        finally:
            if not ended:
                # The caller may have judgments in hand that it has yet to store: the folder stays.
                self._dismiss()

    def keep(self, folder: Path) -> None:
        """See `ShardedTeacher`."""
        self._parent = folder

    def stored(self, count: int) -> None:
        """See `ShardedTeacher`."""
        if self._folder:
            self._folder.stored(count)

    def workers(self) -> list[dict[str, object]]:
        """See `ShardedTeacher`."""
        return self._rates

    def close(self) -> None:
        """See `Teacher`: the workers end, and with them the cluster if it was started for them."""
        self._dismiss()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()
        self._inner.close()

    def _dismiss(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _start(self) -> tuple[Pool, ShardFolder]:
        if self._folder is None:
            self._folder = ShardFolder(self._parent)
        if self._pool is None:
            job = _Judging(self._configs, self.fingerprint, self.description)
            first = self._configs[0]
            gpus = first.tensor_parallel if isinstance(first, VllmTeacherConfig) else 0
            free_gpu()
            self._pool = Pool(self._cluster, job, gpus=gpus, say=self._say)
        return self._pool, self._folder

    def _size(self, expected: int | None) -> int:
        most = self._cluster.shard_pairs
        return most if expected is None else min(most, expected // (_SHARDS_EACH * self._cluster.workers) + 1)


def _replicas(config: TeacherConfig, servers: Sequence[str]) -> list[TeacherConfig]:
    """The same teacher at each server."""
    given = config.model_dump()
    return [HttpTeacherConfig(**{**given, "base_url": url}) for url in servers] or [config]


@dataclass(frozen=True, slots=True)
class _Judging:
    """The workers' job: judge shards as this teacher would."""

    configs: list[TeacherConfig]
    fingerprint: str
    description: dict[str, Any]

    def open(self, slot: int) -> _Judge:
        """See `ezxmc.cluster.pool.Job`."""
        first = slot % len(self.configs)
        return _Judge(self, self.configs[first:] + self.configs[:first])


class _Judge:
    """One worker's teacher. Where its server is gone, it goes on with the next replica."""

    def __init__(self, job: _Judging, configs: list[TeacherConfig]) -> None:
        self._job, self._configs = job, configs
        self._teacher: Teacher | None = None

    def __call__(self, task: Task, tell: Tell) -> None:
        started, starting = time.monotonic(), 0.0
        judgments: list[Judgment] = []
        left = list(task.items)
        for remaining in reversed(range(len(self._configs))):
            try:
                before = time.monotonic()
                told = startup_seconds(self._teacher) if self._teacher else 0.0
                self._teacher = self._teacher or self._open(self._configs[0])
                starting += time.monotonic() - before
                for judgment in self._teacher.score(left, expected=len(left)):
                    judgments.append(judgment)
                    tell(1)
                starting += startup_seconds(self._teacher) - told
                break
            except TeacherError:
                if not remaining:
                    raise
                self._configs.append(self._configs.pop(0))
                self._teacher = None
                left = _unanswered(task.items, judgments)
        seconds = max(0.0, time.monotonic() - started - starting)
        Shard(self._job.fingerprint, self._job.description, seconds, judgments).write(Path(task.path))

    def _open(self, config: TeacherConfig) -> Teacher:
        teacher = load_teacher(config)
        if teacher.fingerprint != self._job.fingerprint:
            here, wanted = teacher.description, self._job.description
            differing = [
                f"{name} {here.get(name)!r}, not {value!r}"
                for name, value in wanted.items()
                if here.get(name) != value
            ]
            where = config.base_url if isinstance(config, HttpTeacherConfig) else socket.gethostname()
            raise ConfigError(
                f"{where} has another teacher than the driver: {'; '.join(differing)}",
                "give all replicas and nodes the same model, engine version and options",
            )
        return teacher


def _unanswered(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> list[Pair]:
    answered = Counter((j.doc_uid, j.label_uid) for j in judgments)
    left = []
    for pair in pairs:
        if answered[pair.doc.uid, pair.label.uid]:
            answered[pair.doc.uid, pair.label.uid] -= 1
        else:
            left.append(pair)
    return left
