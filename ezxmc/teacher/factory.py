"""From configuration to a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, TeacherConfig, VllmTeacherConfig
from ezxmc.errors import instance_of
from ezxmc.teacher.base import Teacher


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
