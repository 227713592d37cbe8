"""Tagging whole files: one line out for every row in, in order, in bounded memory, resumable.

The rows of an input, bad ones included, fall into windows of `WINDOW` by their
number alone. A killed job goes on at a window's first row, so every document
meets the same neighbours in a batch as in a job that was never killed: the
scores, and with them the file, come out the same to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import pyarrow.parquet

from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend, Precision
from ezxmc.data import RowProblem, RowReport, iter_documents
from ezxmc.data.sources import is_packed, locate
from ezxmc.errors import ConfigError, DataError
from ezxmc.hashing import json_hash
from ezxmc.manifest import read_manifest
from ezxmc.predict import WINDOW, Predictor, prediction_row
from ezxmc.records import Document

Row = dict[str, Any]
Window = list[Document | RowProblem]
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


class RowFile:
    """A JSON Lines file that windows of rows are written to.

    Args:
        path: The file.
        resume: Keep the whole windows it holds; what follows them is cut off.
            The last of them is computed again and compared, so that a file made
            from other documents, with another bundle or with other options is
            refused, and left as it is.

    Attributes:
        skip: Rows that need not be tagged again.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self._path = path
        self._expected: list[Row] = []
        self._end = 0
        self.skip = 0
        if resume and path.is_file():
            self._scan()
        self._handle: IO[bytes] = path.open("r+b" if self._expected else "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()
        if self._expected and kind is None:
            raise self._mismatch("it has more lines than there are documents")

    def write(self, rows: list[Row]) -> None:
        """Append rows, or compare them with the last that are there.

        Raises:
            DataError: The file does not go with these rows.
        """
        if self._expected:
            for old, new in zip(self._expected, rows, strict=False):
                if not _agree(old, new):
                    raise self._mismatch(f"it has {_shown(old)} where {_shown(new)} should be")
            if len(rows) < len(self._expected):
                raise self._mismatch("it has more lines than there are documents")
            self._expected = []
            self._handle.seek(self._end)
            self._handle.truncate()
            return
        self._handle.write(b"".join(json_line(row) for row in rows))
        self._handle.flush()

    def _scan(self) -> None:
        lines: list[bytes] = []
        whole: list[bytes] = []
        with self._path.open("rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                lines.append(line)
                if len(lines) == WINDOW:
                    whole, lines = lines, []
                    self.skip += WINDOW
                    self._end += sum(map(len, whole))
        # The last whole window is tagged once more, to be compared.
        self.skip = max(self.skip - WINDOW, 0)
        try:
            self._expected = [dict(json.loads(line)) for line in whole]
        except (ValueError, TypeError):
            raise self._mismatch("it holds lines that are not JSON objects") from None

    def _mismatch(self, why: str) -> DataError:
        return DataError(
            f"{self._path} cannot be continued: {why}",
            "give the documents, bundle and options it was begun with, or start again without --resume",
        )


def json_line(row: Row) -> bytes:
    """A row as one line of UTF-8."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


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
