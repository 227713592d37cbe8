"""Tagging whole files: one line out for every row in, in order, in bounded memory, resumable.

In one process, or over a Ray cluster: each worker has the bundle, the driver puts answers in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, Self, Unpack

import pyarrow
import pyarrow.parquet

from ezxmc.bundle.manifest import read_manifest
from ezxmc.bundle.predict import How, Predictor, prediction_row
from ezxmc.cluster import RayConfig
from ezxmc.cluster.pool import Pool, Say, Task, Tell
from ezxmc.config import Backend, Precision
from ezxmc.data import RowProblem, RowReport, columns_for, iter_documents
from ezxmc.data.predictions import WINDOW, RowFile, check_tags, part_of
from ezxmc.data.rows import Cells
from ezxmc.data.sources import is_packed, locate
from ezxmc.errors import ConfigError, DataError
from ezxmc.files import remove_shards, replacing, sole_writer
from ezxmc.hashing import json_hash, text_hash
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document

Window = list[Document | RowProblem]
_CHUNK = 1 << 20
SHARD = 8  # windows; so many documents take a worker some seconds


class Tagging(Protocol):
    """What turns windows of rows into windows of answers, in their order."""

    def put(self, window: Window) -> Iterable[list[Cells]]:
        """Take one more window; gives those that are answered by now."""
        ...

    def end(self) -> Iterable[list[Cells]]:
        """There are no more windows; gives the answers still due."""
        ...


class Tagger:
    """Tags in this process; arguments as for `Predictor.predict`.

    Raises:
        ConfigError: As for `Predictor.predict`.
    """

    def __init__(self, predictor: Predictor, **how: Unpack[How]) -> None:
        predictor.check(**how)
        self.predictor, self.how = predictor, how

    def put(self, window: Window) -> list[list[Cells]]:
        """See `Tagging`."""
        documents = [item for item in window if isinstance(item, Document)]
        found = iter(self.predictor.predict(documents, **self.how))
        return [
            [prediction_row(next(found)) if isinstance(item, Document) else _refusal(item) for item in window]
        ]

    def end(self) -> list[list[Cells]]:
        """See `Tagging`."""
        return []


@dataclass(frozen=True, slots=True)
class TaggingOptions:
    """How documents are tagged, in words that can travel.

    By the folder of the bundle, by what `Predictor.load` and `Predictor.predict` take, and by `decide`:
    whether to keep what the bundle's decision keeps.
    """

    bundle: str
    backend: Backend = "torch"
    precision: Precision = "auto"
    k: int | None = None
    threshold: float | None = None
    decide: bool = False
    leaves: bool = False
    with_ancestors: bool = False

    def tagger(self) -> Tagger:
        """Open the bundle.

        Raises:
            BundleError, ConfigError, ModelError: As of `Predictor.load` and `Predictor.predict`, or a
                decision is asked for that the bundle does not have.
        """
        predictor = Predictor.load(self.bundle, backend=self.backend, precision=self.precision)
        decision = predictor.bundle.decision if self.decide else None
        if self.decide and self.backend == "static":
            raise ConfigError(
                "what a decision promises was shown for the student, not for --backend static",
                "leave out --decide, or --backend static",
            )
        if self.decide and decision is None:
            raise ConfigError(f"bundle {self.bundle} has no decision", "make one with `ezxmc decide`")
        return Tagger(
            predictor,
            k=self.k,
            threshold=self.threshold,
            decision=decision,
            leaves=self.leaves,
            with_ancestors=self.with_ancestors,
        )

    @property
    def state(self) -> str:
        """Hash of what answers depend on beside the documents."""
        return json_hash([asdict(self), read_manifest(Path(self.bundle)).model_dump()])


def tag_rows(
    tagging: Tagging,
    source: str | Path,
    report: RowReport,
    write: Callable[[list[Cells]], None],
    *,
    skip: int = 0,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Tag the documents of a source.

    Args:
        tagging: Who tags.
        source: Anything `iter_documents` reads.
        report: Receives the bad rows; its listener is replaced.
        write: Called with a window of rows at a time: a prediction each (`prediction_row`), or "error",
            "file" and "line" of a bad row.
        skip: So many rows are read but not tagged; a multiple of `WINDOW`.
        columns: As for `iter_documents`.
        progress: Called with (rows done, rows in all or 0).

    Raises:
        ConfigError: As for `Predictor.predict`.
        DataError: As for `iter_documents`.
    """
    total = row_count(source)
    window: Window = []
    read, done = 0, skip

    def take(item: Document | RowProblem) -> None:
        nonlocal read, window
        read += 1
        if read > skip:
            window.append(item)
        if len(window) == WINDOW:
            full, window = window, []
            tell(tagging.put(full))

    def tell(answers: Iterable[list[Cells]]) -> None:
        nonlocal done
        for rows in answers:
            write(rows)
            done += len(rows)
            show()

    def show() -> None:
        if progress:
            progress(done, max(total, done) if total else 0)

    def finish() -> None:
        before = done
        if window:
            tell(tagging.put(window))
        tell(tagging.end())
        if done == before:
            show()  # the total is known only now

    report.listener = take
    try:
        for document in iter_documents(source, report, columns=columns):
            take(document)
    except DataError:
        finish()
        raise
    total = read
    finish()


def row_count(source: str | Path) -> int:
    """Rows of a source, blank lines and headers counted with them; 0 where only reading it all would tell.

    Raises:
        DataError: There is no such source.
    """
    kind, files = locate(source)
    counts = [_rows_of(Path(file), kind) for file in files]
    return sum(counts) if all(counts) else 0


def _rows_of(path: Path, kind: str) -> int:
    if kind == ".parquet":
        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pyarrow.ArrowException, OSError):
            return 0  # whoever reads it says what is wrong with it
    if not path.is_file() or kind == ".xlsx" or is_packed(path):
        return 0
    lines, last = 0, b"\n"
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")


def _refusal(problem: RowProblem) -> Cells:
    return {"error": f"{problem.kind}: {problem.detail}", "file": problem.file, "line": problem.line}


class RayTagger:
    """Tags with the workers of a Ray cluster; see `Tagging`.

    Answers are those of one process, up to rounding: a worker may compute on fewer threads. Shards are
    files named by what is in them: those that were finished when a job was killed are not tagged again.

    Args:
        options: How; the bundle lies on a file system that all nodes share.
        cluster: Where the workers are.
        folder: Of the shards, on a shared file system; deleted with the context's end, unless by an error.
        start: Number of the first window, so that a job that goes on cuts its shards as before.
        say: Told every half minute how fast each worker is.

    Raises:
        ClusterError: Ray is not installed, there is no such cluster, or it lost the job.
    """

    def __init__(
        self,
        options: TaggingOptions,
        cluster: RayConfig,
        folder: Path,
        *,
        start: int = 0,
        say: Say | None = None,
    ) -> None:
        # Workers on other nodes have working directories of their own.
        options = replace(options, bundle=str(Path(options.bundle).absolute()))
        self._state, self._folder, self._number = options.state, folder.absolute(), start
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pool = Pool(cluster, _Tagging(options, self._state), gpus=True, say=say)
        self._shard: Window = []
        self._due: list[Path] = []
        """Shards not yet given out, in order."""
        self._there: set[Path] = set()

    def put(self, window: Window) -> Iterator[list[Cells]]:
        """See `Tagging`; waits while the workers have enough to do."""
        self._shard.extend(window)
        self._number += 1
        if self._number % SHARD == 0:
            self._offer()
            while self._pool.full:
                yield from self._take()

    def end(self) -> Iterator[list[Cells]]:
        """See `Tagging`."""
        if self._shard:
            self._offer()
        while self._due:
            yield from self._take()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *why: object) -> None:
        self._pool.close()
        if kind is None:
            remove_shards(self._folder)

    def _offer(self) -> None:
        shard, self._shard = self._shard, []
        # Its place is in the name, too: the same rows twice are two shards.
        path = self._folder / f"{text_hash(self._state, str(self._number), *map(repr, shard))}.json"
        self._due.append(path)
        self._pool.offer(Task(str(path), shard))

    def _take(self) -> Iterator[list[Cells]]:
        self._there.add(Path(self._pool.done().path))
        while self._due and self._due[0] in self._there:
            path = self._due.pop(0)
            self._there.remove(path)
            rows: list[Cells] = json.loads(path.read_bytes())
            for start in range(0, len(rows), WINDOW):
                yield rows[start : start + WINDOW]
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Tagging:
    """The workers' job: tag shards as these options say."""

    options: TaggingOptions
    state: str

    def open(self, slot: int) -> _Tag:
        """See `ezxmc.cluster.pool.Job`."""
        tagger = self.options.tagger()
        if self.options.state != self.state:
            raise ConfigError(
                f"bundle {self.options.bundle} was changed while it tagged",
                "start again, without --resume: half a file would be tagged with the old labels",
            )
        return _Tag(tagger)


@dataclass(frozen=True, slots=True)
class _Tag:
    tagger: Tagger

    def __call__(self, task: Task, tell: Tell) -> None:
        rows: list[Cells] = []
        for start in range(0, len(task.items), WINDOW):
            for answered in self.tagger.put(list(task.items[start : start + WINDOW])):
                rows += answered
                tell(len(answered))
        with replacing(task.path) as fresh:
            fresh.write_bytes(json.dumps(rows).encode())


def tag_file(
    options: TaggingOptions,
    documents: str | Path,
    out: Path | Callable[[list[Cells]], None],
    *,
    resume: bool = False,
    cluster: RayConfig | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    watch: Progress | None = None,
) -> RowReport:
    """Tag the documents of a source, a row each, in their order and in bounded memory.

    Args:
        options: How, and with which bundle.
        documents: Anything `iter_documents` reads.
        out: A file of `check_tags`; or a function that is given a window of rows at a time.
        resume: Go on after what the file holds already, of the same documents and options.
        cluster: Who tags, if not this process; for a file only.
        columns: Columns by the field they serve as.
        strict: Stop at the first bad row.
        watch: Sees the stage and messages.

    Returns:
        How reading went; a bad row has its answer too.

    Raises:
        BundleError, ConfigError, ModelError: As of `TaggingOptions.tagger` and `RowFile`.
        DataError: The source cannot be read, or holds nothing usable.
        ClusterError: As of `RayTagger`.

    Example:
        >>> tag_file(TaggingOptions("run/bundle", threshold=0.5), "documents.jsonl", Path("new.jsonl")).kept
        60
    """
    watch, rows = watch or NoProgress(), RowReport(strict=strict)
    rows.say = watch.say
    named = columns_for("documents", columns)
    inputs: list[str | Path] = [options.bundle, documents]
    with ExitStack() as stack:
        tagging: Tagging
        write: Callable[[list[Cells]], None]
        skip = 0
        if isinstance(out, Path):
            check_tags(out, resume=resume, inputs=inputs)
            stack.enter_context(sole_writer(out))
        tagging = tagger = options.tagger()
        if isinstance(out, Path):
            stack.callback(_tell_of_part, out, watch)
            file = stack.enter_context(RowFile(out, resume=resume, inputs=inputs))
            write, skip = file.write, file.skip
        else:
            write = out
        if (decision := tagger.how.get("decision")) and decision.changed:
            watch.say(f"decision: {decision.guarantee}")
        if skip:
            watch.say(f"{out}: going on after row {skip:,}")
        if cluster and isinstance(out, Path):
            shards = out.with_name(f"{out.name}-shards")
            ray = RayTagger(options, cluster, shards, start=skip // WINDOW, say=watch.say)
            tagging = stack.enter_context(ray)
        bar = watch.stage("tagging")
        tag_rows(tagging, documents, rows, write, skip=skip, columns=named, progress=bar)
        rows.tell(watch.say, "documents")
        # Bad rows have their answers; where there are none either, former tags stay.
        rows.refuse_empty(documents, "document", range(rows.rows))
    return rows


def _tell_of_part(out: Path, watch: Progress) -> None:
    """Where an interrupted job's tags are."""
    if (part := part_of(out)).is_file():
        watch.say(f"what was tagged so far is in {part}; --resume goes on from there")
