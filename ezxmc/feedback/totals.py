"""What a store tells of one teacher."""

from __future__ import annotations

from dataclasses import dataclass

from ezxmc.records import Status


@dataclass(frozen=True, slots=True)
class StoreTotals:
    """What the judgments of one teacher cost, over all sessions.

    Attributes:
        judgments: Rows stored.
        statuses: Rows by status.
        failures: Pairs whose last attempt failed, not answered since; asked again by the next job.
        failures_by_kind: These by status.
        prompt_tokens: Sum of prompt lengths.
        cached_tokens: Of these, tokens the prefix cache supplied.
        seconds: Time spent judging, from the first question on; engine start-up excluded.
        judged: Judgments given in that time; the others were imported.
        sessions: How many times annotation was started.
    """

    judgments: int
    statuses: dict[str, int]
    failures: int
    failures_by_kind: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    judged: int
    sessions: int

    @property
    def computed_per_pair(self) -> float | None:
        """Mean tokens the engine computed for one pair."""
        return (self.prompt_tokens - self.cached_tokens) / self.judgments if self.judgments else None

    @property
    def cache_share(self) -> float | None:
        """Share of prompt tokens the prefix cache supplied, in [0, 1]."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def pairs_per_second(self) -> float | None:
        """Judgments per second over all sessions."""
        return self.judged / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True)
class Failure:
    """A pair whose last attempt gave no judgment.

    Attributes:
        doc_uid: The document's uid.
        label_uid: The label's uid.
        status: What came of the last attempt.
        attempts: Failed attempts in the last session that asked.
        at: Time of the last, seconds since 1970.
    """

    doc_uid: str
    label_uid: str
    status: Status
    attempts: int
    at: float
