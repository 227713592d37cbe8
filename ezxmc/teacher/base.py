"""What every teacher backend promises, from configuration to a teacher, and the one made of recordings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, TeacherConfig, VllmTeacherConfig
from ezxmc.data import RowReport, iter_rows
from ezxmc.errors import DataError, instance_of
from ezxmc.hashing import file_hash, judgment_key
from ezxmc.records import Judgment, Pair, Status


@runtime_checkable
class Teacher(Protocol):
    """A judge of (document, label) pairs.

    Attributes:
        fingerprint: Hash of everything that can change an answer: model and revision, prompt, answer tokens,
            scoring rule, engine version. Part of every content key, so answers of two teachers never mix.
        description: The readable form of what `fingerprint` hashes.

    Example:
        >>> from ezxmc.config.teacher import ReplayTeacherConfig
        >>> from ezxmc.teacher import load_teacher
        >>> isinstance(load_teacher(ReplayTeacherConfig(judgments="judgments.jsonl")), Teacher)
        True
    """

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def description(self) -> dict[str, Any]: ...  # noqa: D102

    def key(self, pair: Pair) -> str:
        """Content key of the judgment this teacher would give; needs no engine."""
        ...

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """Judge pairs: exactly one judgment per pair, in any order.

        Pairs of one document should follow one another: they share a prompt prefix. Nothing is computed for a
        caller that stops iterating.

        Args:
            pairs: Read lazily; a long job is never held in memory.
            expected: About how many pairs will come, if known.

        Raises:
            TeacherError: The engine cannot start or died. Judgments already yielded stay valid.
        """
        ...

    def close(self) -> None:
        """Free the engine and its memory. The teacher may be used again."""
        ...


@runtime_checkable
class StartsEngine(Protocol):
    """A teacher that tells how long it takes to get ready; optional.

    Without it start-up counts as judging: only the teacher knows where one ends.
    """

    @property
    def startup_seconds(self) -> float:
        """Spent so far on starting engines, all starts together, before the first question of each."""
        ...


def startup_seconds(teacher: Teacher) -> float:
    """What a teacher has spent so far on starting; 0 where it does not tell."""
    return teacher.startup_seconds if isinstance(teacher, StartsEngine) else 0.0


@runtime_checkable
class Rests(Protocol):
    """A teacher that need not be closed between two parts of a job; optional."""

    def rest(self) -> None:
        """Free what others at work on this machine would lack; the next question comes later."""
        ...


def rest(teacher: Teacher) -> None:
    """Let a teacher rest until the next question; one that cannot is closed."""
    if isinstance(teacher, Rests):
        teacher.rest()
    else:
        teacher.close()


class Renderer(Protocol):
    """The two parts of a prompt, as token ids."""

    def prefix(self, document: str) -> Sequence[int]:
        """What all labels of a document share."""
        ...

    def suffix(self, label: str) -> Sequence[int]:
        """What follows it for one label."""
        ...


@runtime_checkable
class HasRenderer(Protocol):
    """A teacher that can count tokens without an engine; optional."""

    @property
    def renderer(self) -> Renderer: ...  # noqa: D102


@runtime_checkable
class ShardedTeacher(Protocol):
    """A teacher whose workers put answers on disk before they are yielded; optional."""

    def keep(self, folder: Path) -> None:
        """Where answers lie until they are stored; before `score`."""
        ...

    def stored(self, count: int) -> None:
        """The next `count` judgments, in the order they were yielded, are in the store."""
        ...

    def workers(self) -> list[dict[str, object]]:
        """What each worker did, JSON-ready rows."""
        ...


def load_teacher(
    config: TeacherConfig,
    *,
    cluster: RayConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Teacher:
    """Build the teacher a configuration asks for.

    No engine starts here: that waits for the first pair to be asked. A server
    is spoken to when its fingerprint is first wanted.

    Args:
        config: The `teacher` part of a run's configuration.
        cluster: Ask by the workers of this Ray cluster; `None`: by this process.
        progress: Called with (stage, done, total) while weights are fetched.
        say: Told now and then how fast each worker is.

    Raises:
        TeacherError: vLLM is missing, or the prompt does not fit the model.
        ModelError: The model cannot be resolved.
        DataError: Recorded judgments cannot be read.
        ConfigError: The environment variable with a server's key is not set.

    Example:
        >>> teacher = load_teacher(ReplayTeacherConfig(judgments="judgments.jsonl"))
        >>> pair = Pair(Document("d1", "", ""), Label("l-guitar", "guitar"))
        >>> [judgment.log_odds for judgment in teacher.score([pair])]
        [-2.7]
    """
    kinds = (VllmTeacherConfig, HttpTeacherConfig, ReplayTeacherConfig)
    instance_of(config, kinds, "config", "give the `teacher` part of a RunConfig")
    if cluster is not None:
        from ezxmc.teacher.ray import RayTeacher

        return RayTeacher(config, cluster, progress, say)
    if isinstance(config, ReplayTeacherConfig):
        teacher = ReplayTeacher(Path(config.judgments))
        if say is not None and teacher.report.counts:
            teacher.report.tell(say, str(config.judgments))
        return teacher
    # Imported here: neither a replay nor reading a config needs vLLM or a client.
    if isinstance(config, HttpTeacherConfig):
        from ezxmc.teacher.openai import OpenAITeacher

        return OpenAITeacher(config, progress)
    from ezxmc.teacher.vllm import VllmTeacher

    return VllmTeacher(config, progress)


class ReplayTeacher:
    """Answers from a JSONL, CSV or Parquet file of judgments.

    Columns: `doc` and `label` (uids), `log_odds` (nats); optional are `mass`, `status` (a pair that was
    recorded without a score has none here either) and `teacher`, as `ezxmc judgments export` writes them. A
    pair that was not recorded gets the status `not_recorded`, never a guess.

    Args:
        path: The recorded judgments.

    Raises:
        DataError: The file is missing, holds no usable judgment, or mixes the judgments of several teachers.
    """

    def __init__(self, path: Path) -> None:
        report = RowReport()
        self._recorded: dict[tuple[str, str], _Answer] = {}
        teacher: Any = None
        for file, line, row in iter_rows(path, report):
            answer = _answer(row)
            if answer is None:
                detail = "needs doc, label, and a finite log_odds where the status is ok"
                report.add(file, line, "bad_judgment", detail)
                continue
            teacher = teacher or row.get("teacher")
            if row.get("teacher") != teacher:
                raise DataError(
                    f"{file}:{line}: judgments of a second teacher, whose scores do not compare",
                    "export one of them: `ezxmc judgments export --teacher FINGERPRINT`",
                )
            self._recorded[str(row["doc"]), str(row["label"])] = answer
            report.kept += 1
        if not self._recorded:
            raise DataError(f"{path} holds no judgment", "columns are doc, label, log_odds and mass")
        self.report = report
        self.fingerprint = file_hash(path)
        self.description = {"backend": "replay", "judgments": len(self._recorded), "sha256": self.fingerprint}

    def key(self, pair: Pair) -> str:
        """See `Teacher`. Recordings are matched by uid, so uids are what is shown."""
        return judgment_key(self.fingerprint, pair.doc.uid, pair.label.uid)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`."""
        for pair in pairs:
            key, doc, label = self.key(pair), pair.doc.uid, pair.label.uid
            if (found := self._recorded.get((doc, label))) is None:
                yield Judgment(key, doc, label, Status.NOT_RECORDED)
            else:
                status, log_odds, mass = found
                yield Judgment(key, doc, label, status, log_odds=log_odds, label_mass=mass)

    def close(self) -> None:
        """See `Teacher`."""


_Answer = tuple[Status, float | None, float | None]


def _answer(row: dict[str, Any]) -> _Answer | None:
    """Status, log-odds and label mass of a row; `None` if it is no judgment."""
    if row.get("doc") in (None, "") or row.get("label") in (None, ""):
        return None
    try:
        status = Status(row.get("status") or Status.OK)
        log_odds = float(row["log_odds"]) if status is Status.OK else None
        mass = None if row.get("mass") in (None, "") else float(row["mass"])
    except (KeyError, TypeError, ValueError):
        return None
    if log_odds is not None and not math.isfinite(log_odds):
        return None
    if mass is not None and not 0 <= mass <= 1.001:
        return None
    return status, log_odds, mass if mass is None else min(mass, 1.0)
