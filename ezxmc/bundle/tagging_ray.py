"""Tagging shared out over a Ray cluster: each worker has the bundle, the driver puts answers in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from ezxmc.bundle.predict import WINDOW
from ezxmc.bundle.tagging import Row, Rule, Tagger, Window
from ezxmc.cluster import RayConfig
from ezxmc.cluster.pool import Pool, Say, Task, Tell
from ezxmc.errors import ConfigError
from ezxmc.files import remove_shards, replacing
from ezxmc.hashing import text_hash

SHARD = 8  # windows; so many documents take a worker some seconds


class RayTagger:
    """Tags with the workers of a Ray cluster; see `ezxmc.bundle.tagging.Tagging`.

    Answers are those of one process, up to rounding: a worker may compute on
    fewer threads. Shards are files named by what is in them: those that were
    finished when a job was killed are not tagged again.

    Args:
        rule: How; the bundle lies on a file system that all nodes share.
        cluster: Where the workers are.
        folder: Of the shards, on a shared file system; deleted with the context's end, unless by an error.
        start: Number of the first window, so that a job that goes on cuts its shards as before.
        say: Told every half minute how fast each worker is.

    Raises:
        ClusterError: Ray is not installed, there is no such cluster, or it lost the job.
    """

    def __init__(
        self, rule: Rule, cluster: RayConfig, folder: Path, *, start: int = 0, say: Say | None = None
    ) -> None:
        # Workers on other nodes have working directories of their own.
        rule = replace(rule, bundle=str(Path(rule.bundle).absolute()))
        self._state, self._folder, self._number = rule.state, folder.absolute(), start
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pool = Pool(cluster, _Tagging(rule, self._state), gpus=True, say=say)
        self._shard: Window = []
        self._due: list[Path] = []
        """Shards not yet given out, in order."""
        self._there: set[Path] = set()

    def put(self, window: Window) -> Iterator[list[Row]]:
        """See `Tagging`; waits while the workers have enough to do."""
        self._shard.extend(window)
        self._number += 1
        if self._number % SHARD == 0:
            self._offer()
            while self._pool.full:
                yield from self._take()

    def end(self) -> Iterator[list[Row]]:
        """See `Tagging`."""
        if self._shard:
            self._offer()
        while self._due:
            yield from self._take()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        if kind is None:
            remove_shards(self._folder)

    def _offer(self) -> None:
        shard, self._shard = self._shard, []
        # Its place is in the name, too: the same rows twice are two shards.
        path = self._folder / f"{text_hash(self._state, str(self._number), *map(repr, shard))}.json"
        self._due.append(path)
        self._pool.offer(Task(str(path), shard))

    def _take(self) -> Iterator[list[Row]]:
        self._there.add(Path(self._pool.done().path))
        while self._due and self._due[0] in self._there:
            path = self._due.pop(0)
            self._there.remove(path)
            rows: list[Row] = json.loads(path.read_bytes())
            for start in range(0, len(rows), WINDOW):
                yield rows[start : start + WINDOW]
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Tagging:
    """The workers' job: tag shards as this rule says."""

    rule: Rule
    state: str

    def open(self, slot: int) -> _Tag:
        """See `ezxmc.cluster.pool.Job`."""
        tagger = self.rule.tagger()
        if self.rule.state != self.state:
            raise ConfigError(
                f"bundle {self.rule.bundle} was changed while it tagged",
                "start again, without --resume: half a file would be tagged with the old labels",
            )
        return _Tag(tagger)


@dataclass(frozen=True, slots=True)
class _Tag:
    tagger: Tagger

    def __call__(self, task: Task, tell: Tell) -> None:
        rows: list[Row] = []
        for start in range(0, len(task.items), WINDOW):
            for answered in self.tagger.put(list(task.items[start : start + WINDOW])):
                rows += answered
                tell(len(answered))
        with replacing(task.path) as fresh:
            fresh.write_bytes(json.dumps(rows).encode())
