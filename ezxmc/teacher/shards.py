"""Judgments in files on their way to a store: one Parquet file a shard, complete once it is there.

A job's shards lie in a folder of its own, which its driver holds locked:

    feedback.sqlite-shards/JOB/.lock
    feedback.sqlite-shards/JOB/000000.parquet    judged, not yet known to be stored
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow
import pyarrow.parquet
from filelock import FileLock, Timeout

from ezxmc.errors import StoreError
from ezxmc.files import remove_own, replacing
from ezxmc.records import Judgment, Pair, Status

COLUMNS = [
    *((name, pyarrow.string()) for name in ("doc", "label", "status")),
    *((name, pyarrow.float64()) for name in ("log_odds", "mass")),
    *((name, pyarrow.int64()) for name in ("prompt_tokens", "cached_tokens")),
    ("key", pyarrow.string()),
]
"""Of a judgment in a file: name and type."""
_SUFFIX = ".parquet"
_JOB = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard's file holds.

    Attributes:
        teacher: Fingerprint of who judged.
        description: Of the teacher.
        seconds: Time the worker took to judge, start-up excluded.
        judgments: In the order they were given.
    """

    teacher: str
    description: dict[str, Any]
    seconds: float
    judgments: list[Judgment]

    def write(self, path: Path) -> None:
        """Write the file in one step; once it returns, a crash cannot lose it."""
        judged = self.judgments
        values: list[list[Any]] = [
            [j.doc_uid for j in judged],
            [j.label_uid for j in judged],
            [j.status.value for j in judged],
            [j.log_odds for j in judged],
            [j.label_mass for j in judged],
            [j.prompt_tokens for j in judged],
            [j.cached_tokens for j in judged],
            [j.key for j in judged],
        ]
        about = {"teacher": self.teacher, "description": self.description, "seconds": self.seconds}
        schema = pyarrow.schema(COLUMNS, metadata={"ezxmc": json.dumps(about)})
        with replacing(path) as fresh:
            pyarrow.parquet.write_table(pyarrow.table(values, schema=schema), fresh)

    @classmethod
    def read(cls, path: Path) -> Shard:
        """Read a file.

        Raises:
            StoreError: It is damaged.
        """
        try:
            found = pyarrow.parquet.read_table(path)
            about = json.loads(found.schema.metadata[b"ezxmc"])
            columns = [found[name].to_pylist() for name, _ in COLUMNS]
            judgments = [
                Judgment(key, doc, label, Status(status), *rest)
                for doc, label, status, *rest, key in zip(*columns, strict=True)
            ]
            return cls(about["teacher"], about["description"], about["seconds"], judgments)
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} is no shard of judgments: {error}", "delete this file: its pairs are asked again"
            ) from error


def cut(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Pairs in shards of about `size`, those of a document together: they share a prompt prefix.

    A shard ends with a document. A document with more pairs than `size` is
    itself cut: its prefix is then read once a shard, which is little beside it.

    Args:
        pairs: Read lazily, document by document.
        size: A shard has at least so many pairs, but for the last, and less than twice as many.
    """
    parts: list[Pair] = []
    for _, group in groupby(pairs, key=lambda pair: pair.doc):
        while part := list(islice(group, size)):
            parts += part
            if len(parts) >= size:
                yield parts
                parts = []
    if parts:
        yield parts


class ShardFolder:
    """Where a job's finished shards lie until they are stored.

    Args:
        parent: Folder of all jobs' folders, made if absent; `None`: a
            temporary one on this machine, and nobody will store anything.
    """

    def __init__(self, parent: Path | None) -> None:
        self.lasting = parent is not None
        # Workers on other nodes have working directories of their own.
        self._parent = (parent or Path(tempfile.mkdtemp(prefix="ezxmc-shards-"))).absolute()
        self.path = self._parent / uuid4().hex
        try:
            self.path.mkdir(parents=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except OSError as error:
            raise StoreError(f"{self.path}: {error}", "put the store into a writable folder") from error
        self._number = 0
        self._unstored: deque[list[Any]] = deque()

    def next(self) -> Path:
        """The file of the next shard."""
        self._number += 1
        return self.path / f"{self._number - 1:06}{_SUFFIX}"

    def take(self, path: Path) -> Shard:
        """A finished shard; its judgments will be stored in this order."""
        shard = Shard.read(path)
        if self.lasting:
            self._unstored.append([path, len(shard.judgments)])
        else:
            path.unlink()
        return shard

    def stored(self, count: int) -> None:
        """The next `count` judgments taken are in the store: a shard all of which is there is deleted."""
        while count and self._unstored:
            first = self._unstored[0]
            done = min(count, first[1])
            first[1] -= done
            count -= done
            if not first[1]:
                first[0].unlink(missing_ok=True)
                self._unstored.popleft()

    def close(self) -> None:
        """Give the folder up; finished shards that are not stored stay for `left_behind`."""
        if not self.lasting or not any(self.path.glob(f"*{_SUFFIX}")):
            _remove(self.path)
        self._lock.release()


def left_behind(parent: Path) -> Iterator[Iterator[Path]]:
    """Finished shards of jobs that ended before these were stored, job by job.

    A job at work is passed over. When its shards have been taken, a job's
    folder is removed; delete each shard once its judgments are stored.
    """
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if not _JOB.fullmatch(folder.name):
            continue  # not a job's
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # at work; or another process has just removed it
            continue
        try:
            yield iter(sorted(folder.glob(f"*{_SUFFIX}")))
            if not any(folder.glob(f"*{_SUFFIX}")):
                _remove(folder)
        finally:
            lock.release()


def _remove(folder: Path) -> None:
    """Remove a job's folder and, with the last, its parent."""
    remove_own(folder, lambda name: name == ".lock" or re.fullmatch(rf"\d{{6,}}{_SUFFIX}", name) is not None)
    with suppress(OSError):
        folder.parent.rmdir()
