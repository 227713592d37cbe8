"""Judgments that workers had finished when their driver died: put into the store, each exactly once."""

from __future__ import annotations

from pathlib import Path

from ezxmc.feedback.store import FeedbackStore
from ezxmc.teacher.shards import Shard, left_behind


def shard_folder(store: Path) -> Path:
    """Where the shards on their way to a store lie: beside it."""
    return store.with_name(f"{store.name}-shards")


def merge_shards(store: FeedbackStore) -> int:
    """Store what interrupted jobs left behind; their teachers need not be there.

    A shard is deleted after its commit. Killed in between, its judgments are
    known the next time, and nothing is stored or counted twice. Shards of a
    job at work, in another process, are left to it.

    Returns:
        Judgments that were new.

    Raises:
        StoreError: A shard is damaged, or the store cannot be written.
    """
    merged = 0
    for job in left_behind(shard_folder(store.path)):
        sessions: dict[str, int] = {}
        for path in job:
            shard = Shard.read(path)
            known = store.known([judgment.key for judgment in shard.judgments])
            fresh = [judgment for judgment in shard.judgments if judgment.key not in known]
            if fresh:
                if shard.teacher not in sessions:
                    sessions[shard.teacher] = store.open_session(shard.teacher, shard.description)
                answered = sum(judgment.status.final for judgment in fresh)
                seconds = shard.seconds * answered / len(shard.judgments)
                merged += len(store.append(sessions[shard.teacher], fresh, seconds))
            path.unlink()
    return merged
