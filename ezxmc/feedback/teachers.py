"""Which other teachers' judgments a store holds, and in what they differ from the one asked now.

Keys hold the teacher's fingerprint, so judgments of two teachers never mix.
But whoever edits a prompt should see that the old answers no longer count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ezxmc.feedback.store import FeedbackStore
from ezxmc.teacher import Teacher

# Enough of a hash to tell it from another.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class OtherTeacher:
    """A teacher whose judgments are in the store but are not those of the one asked now.

    Attributes:
        fingerprint: Its fingerprint.
        judgments: How many judgments of it the store holds.
        differences: What sets it apart, each "field: its value, now the other".
    """

    fingerprint: str
    judgments: int
    differences: tuple[str, ...]


def other_teachers(
    store: FeedbackStore, fingerprint: str, description: Mapping[str, Any]
) -> list[OtherTeacher]:
    """Teachers other than the one asked now of whom the store holds judgments, the latest first.

    Args:
        store: The store; only counters are read, however many judgments it holds.
        fingerprint: `Teacher.fingerprint` of the one asked now.
        description: Its `Teacher.description`.
    """
    return [
        OtherTeacher(other, judgments, differences(known, description))
        for other, known in reversed(store.teachers().items())
        if other != fingerprint and (judgments := store.totals(other).judgments)
    ]


def unused_judgments(store: FeedbackStore, teacher: Teacher) -> str | None:
    """One line about other teachers' judgments in a store; `None` where there are none.

    Args:
        store: The store.
        teacher: The one asked now.
    """
    others = other_teachers(store, teacher.fingerprint, teacher.description)
    if not others:
        return None
    whose = "another teacher" if len(others) == 1 else f"{len(others)} other teachers, the latest"
    return (
        f"the store holds {sum(one.judgments for one in others):,} judgments of {whose} "
        f"({'; '.join(others[0].differences)}): they are kept and not used"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """In what two teachers' descriptions differ, in words; of what only one of them tells, nothing."""
    found = [
        _change(name.replace("_", " "), old[name], new[name])
        for name in old
        if name in new and name != "prompt_hash" and old[name] != new[name]
    ]
    if old.get("prompt") == new.get("prompt") and old.get("prompt_hash") != new.get("prompt_hash"):
        # The version stayed, so the names alone would not tell.
        found.insert(0, f"prompt {old.get('prompt')} before its text was changed")
    return tuple(found) or ("described in other terms",)


def _change(name: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) or isinstance(new, dict):
        return f"other {name}"
    return f"{name} {str(old)[:_SHOWN]}, now {str(new)[:_SHOWN]}"
