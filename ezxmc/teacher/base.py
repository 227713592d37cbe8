"""What every teacher backend promises, and from configuration to a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, TeacherConfig, VllmTeacherConfig
from ezxmc.errors import instance_of
from ezxmc.records import Judgment, Pair


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
    # Imported here: a replay needs no vLLM, and neither does reading a config.
    if isinstance(config, ReplayTeacherConfig):
        from ezxmc.teacher.replay import ReplayTeacher

        teacher = ReplayTeacher(Path(config.judgments))
        if say is not None and teacher.report.counts:
            teacher.report.tell(say, str(config.judgments))
        return teacher
    if isinstance(config, HttpTeacherConfig):
        from ezxmc.teacher.openai import OpenAITeacher

        return OpenAITeacher(config, progress)
    from ezxmc.teacher.vllm import VllmTeacher

    return VllmTeacher(config, progress)
