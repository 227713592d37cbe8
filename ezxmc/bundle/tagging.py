"""Tagging whole files: one line out for every row in, in order, in bounded memory, resumable.

The rows of an input, bad ones included, fall into windows of `WINDOW` by their
number alone. A killed job goes on at a window's first row, so every document
meets the same neighbours in a batch as in a job that was never killed: the
scores, and with them the file, come out the same to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile, copymode
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow
import pyarrow.parquet

from ezxmc.bundle.manifest import read_manifest
from ezxmc.bundle.predict import WINDOW, Predictor, prediction_row
from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend, Precision
from ezxmc.data import RowProblem, RowReport, iter_documents
from ezxmc.data.predictions import TAGS, is_tags
from ezxmc.data.sources import is_packed, locate
from ezxmc.data.writers import RowSink, row_format
from ezxmc.disk import sync, temporary
from ezxmc.errors import ConfigError, DataError
from ezxmc.files import Inputs, check_file, is_stream, json_line, place_of, state_of
from ezxmc.hashing import json_hash
from ezxmc.records import Document

Row = dict[str, Any]
Window = list[Document | RowProblem]
_WHAT = "a file of tags"
_CHUNK = 1 << 20
_SAME = 1e-3  # scores of one document, whatever machine computed them


class Tagging(Protocol):
    """What turns windows of rows into windows of answers, in their order."""

    def put(self, window: Window) -> Iterable[list[Row]]:
        """Take one more window; gives those that are answered by now."""
        ...

    def end(self) -> Iterable[list[Row]]:
        """There are no more windows; gives the answers still due."""
        ...


@dataclass(frozen=True)
class Tagger:
    """Tags in this process; arguments as for `Predictor.predict`.

    Raises:
        ConfigError: As for `Predictor.predict`.
    """

    predictor: Predictor
    k: int | None = None
    threshold: float | None = None
    decision: Decision | None = None

    def __post_init__(self) -> None:
        self.predictor.check(k=self.k, threshold=self.threshold, decision=self.decision)

    def put(self, window: Window) -> list[list[Row]]:
        """See `Tagging`."""
        documents = [item for item in window if isinstance(item, Document)]
        predicted = self.predictor.predict(
            documents, k=self.k, threshold=self.threshold, decision=self.decision
        )
        found = iter(predicted)
        return [
            [prediction_row(next(found)) if isinstance(item, Document) else _refusal(item) for item in window]
        ]

    def end(self) -> list[list[Row]]:
        """See `Tagging`."""
        return []


@dataclass(frozen=True, slots=True)
class Rule:
    """How documents are tagged, in words that can travel.

    Attributes:
        bundle: Its folder.
        backend: As for `Predictor.load`.
        precision: As for `Predictor.load`.
        k: As for `Predictor.predict`.
        threshold: As for `Predictor.predict`.
        decide: Whether to keep what the bundle's decision keeps.
    """

    bundle: str
    backend: Backend = "torch"
    precision: Precision = "auto"
    k: int | None = None
    threshold: float | None = None
    decide: bool = False

    def tagger(self) -> Tagger:
        """Open the bundle.

        Raises:
            BundleError, ConfigError, ModelError: As of `Predictor.load` and `Predictor.predict`,
                or a decision is asked for that the bundle does not have.
        """
        predictor = Predictor.load(self.bundle, backend=self.backend, precision=self.precision)
        decision = predictor.bundle.decision if self.decide else None
        if self.decide and decision is None:
            raise ConfigError(f"bundle {self.bundle} has no decision", "make one with `ezxmc decide`")
        return Tagger(predictor, self.k, self.threshold, decision)

    @property
    def state(self) -> str:
        """Hash of what answers depend on beside the documents."""
        return json_hash([asdict(self), read_manifest(Path(self.bundle)).model_dump()])


def tag_rows(
    tagging: Tagging,
    source: str | Path,
    report: RowReport,
    write: Callable[[list[Row]], None],
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
        write: Called with a window of rows at a time: a prediction each
            (`prediction_row`), or "error", "file" and "line" of a bad row.
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

    def tell(answers: Iterable[list[Row]]) -> None:
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


def check_tags(path: Path, *, resume: bool = False, inputs: Inputs = ()) -> None:
    """Whether tags may be written to a file, before anything is opened.

    Args:
        path: The file, `.jsonl`, `.csv` (each also `.gz`) or `.parquet`.
        resume: Whether it shall be continued.
        inputs: What is read, the bundle among it.

    Raises:
        ConfigError: Its suffix is of no format (or not `.jsonl`, with `resume`), it is one
            of the inputs, or what is there are no tags.
    """
    if row_format(path) != ".jsonl" and resume:
        raise ConfigError(f"{path} cannot be continued: only .jsonl can", "name a .jsonl file")
    check_file(path, _WHAT, made=is_tags, inputs=inputs)
    check_file(part_of(path), _WHAT, made=is_tags, inputs=inputs)


class RowFile:
    """A file that windows of rows are written to.

    JSON lines grow in a `.part` beside it, which takes its place when all are
    there; if something fails, the `.part` stays, and can be continued. Other
    forms are there when they are whole.

    Args:
        path: The file.
        resume: Keep the whole windows that the `.part`, or else the file, holds; what
            follows them is written again. The last of them and what follows it is
            computed again and compared, so that a file made from other documents, with
            another bundle or with other options is refused, and left as it is.
        inputs: As for `check_tags`.

    Attributes:
        skip: Rows that need not be tagged again.
        part: Where the rows are until all are there.

    Raises:
        ConfigError: As for `check_tags`.
    """

    def __init__(self, path: Path, *, resume: bool = False, inputs: Inputs = ()) -> None:
        check_tags(path, resume=resume, inputs=inputs)
        self._path, self._place, self._form = path, place_of(path), row_format(path)
        self._inputs, self._state = inputs, state_of(self._place)
        self._stream = is_stream(self._place)
        self.part = part_of(path)
        if self._form != ".jsonl":
            self.part = self.part.with_name(temporary())
        self._source = self.part if self.part.is_file() else self._place
        self._due: list[tuple[list[Row], bool]] = []
        """What is computed again: the last whole window, which is kept then, and what follows it."""
        self._cut = b""
        self._end = self.skip = 0
        self._sink: RowSink | None = None
        if resume and self._source.is_file():
            self._scan()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._due:
            raise self._mismatch("it has more lines than there are documents")
        try:
            if kind is None:
                self._begun()
        finally:
            if self._sink:
                self._sink.__exit__(kind, error, trace)
        if self._stream or not self._sink:
            return
        if kind is None:
            if state_of(self._place) != self._state:
                check_file(self._path, _WHAT, made=is_tags, inputs=self._inputs)
            with suppress(OSError):
                copymode(self._place, self.part)
            sync(self.part)
            self.part.replace(self._place)
            sync(self._place.parent)
        elif self._form != ".jsonl" or not self.part.stat().st_size:
            self.part.unlink()

    def write(self, rows: list[Row]) -> None:
        """Append rows, or compare them with the last that are there.

        Raises:
            DataError: The file does not go with these rows.
            OSError: The disk is full, say.
        """
        if self._due:
            before, kept = self._due.pop(0)
            for old, new in zip(before, rows, strict=False):
                if not _agree(old, new):
                    raise self._mismatch(f"it has {_shown(old)} where {_shown(new)} should be")
            # Where whole lines agree, a disk that died may have left anything after them.
            cut = b"" if before else self._cut
            if len(rows) < len(before) + bool(cut):
                raise self._mismatch("it has more lines than there are documents")
            if kept:
                return
            if cut and not self._end and not _begins(cut, rows[0]):
                raise self._mismatch(f"it has {cut[:80]!r} where {_shown(rows[0])} should be")
        self._begun().write(rows)

    def _begun(self) -> RowSink:
        if self._sink is None:
            if not self._stream:
                self.part.parent.mkdir(parents=True, exist_ok=True)
                if self._end and self._source != self.part:
                    copyfile(self._source, self.part)
                # What is left of a former job that shall not be continued goes, too.
                with self.part.open("ab") as handle:
                    handle.truncate(self._end)
            self._sink = RowSink(self.part if not self._stream else self._place, self._form, TAGS)
        return self._sink

    def _scan(self) -> None:
        lines: list[bytes] = []
        whole: list[bytes] = []
        with self._source.open("rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    self._cut = line
                    break
                lines.append(line)
                if len(lines) == WINDOW:
                    whole, lines = lines, []
                    self.skip += WINDOW
                    self._end += sum(map(len, whole))
        # The last whole window is tagged once more, to be compared.
        self.skip = max(self.skip - WINDOW, 0)
        for window, kept in ((whole, True), (lines, False)):
            if window or (self._cut and not kept):
                try:
                    self._due.append(([dict(json.loads(line)) for line in window], kept))
                except (ValueError, TypeError):
                    raise self._mismatch("it holds lines that are not JSON objects") from None

    def _mismatch(self, why: str) -> DataError:
        return DataError(
            f"{self._source} cannot be continued: {why}",
            "give the documents, bundle and options it was begun with, or start again without --resume",
        )


def part_of(path: Path) -> Path:
    """Where the rows of a file are until all are there."""
    place = place_of(path)
    return place.with_name(f"{place.name}.part")


def _begins(cut: bytes, row: Row) -> bool:
    """Whether a line that was cut may have become this row: as far as its uid goes."""
    start = json_line({"uid": row["uid"]} if "uid" in row else {"error": ""})[: -2 if "uid" in row else 10]
    return start.startswith(cut[: len(start)])


def _refusal(problem: RowProblem) -> Row:
    return {"error": f"{problem.kind}: {problem.detail}", "file": problem.file, "line": problem.line}


def _agree(old: Row, new: Row) -> bool:
    """Whether two rows tell of one input row and one way to tag it, rounding aside."""
    if [old.get(name) for name in ("uid", "error", "line")] != [
        new.get(name) for name in ("uid", "error", "line")
    ]:
        return False
    try:
        pairs = zip(old.get("tags", ()), new.get("tags", ()), strict=True)
        return all(abs(mine["score"] - other["score"]) <= _SAME for mine, other in pairs)
    except (ValueError, TypeError, KeyError):
        return False


def _shown(row: Row) -> str:
    if "error" in row:
        return f"a bad row at line {row.get('line')}"
    tags = row.get("tags")
    return f"document {row.get('uid')!r} with {len(tags) if isinstance(tags, list) else 'no'} tags"
