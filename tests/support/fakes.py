"""A teacher without an LLM, for tests of what surrounds a teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ezxmc.hashing import judgment_key, text_hash
from ezxmc.records import Document, Judgment, Label, Pair, Status


class FakeTeacher:
    """Answers by a rule; writes every key it is asked to `log` before answering."""

    def __init__(
        self,
        log_odds: Callable[[Pair], float] | None = None,
        *,
        log: Path | None = None,
        delay: float = 0.0,
        fails: Callable[[Pair], bool] | None = None,
        name: str = "fake",
    ) -> None:
        self._log_odds = log_odds or (lambda pair: (int(text_hash(self.key(pair))[:4], 16) - 32768) / 8192)
        self._log = log
        self._delay = delay
        self._fails = fails or (lambda pair: False)
        self._name = name
        self.asked: list[str] = []
        self.closed = 0

    @property
    def fingerprint(self) -> str:
        return text_hash(self._name)

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": self._name}

    def key(self, pair: Pair) -> str:
        return judgment_key(self.fingerprint, pair.doc.shown, pair.label.title)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        for pair in pairs:
            key = self.key(pair)
            self.asked.append(key)
            if self._log:
                with self._log.open("a") as handle:
                    handle.write(key + "\n")
            if self._delay:
                time.sleep(self._delay)
            if self._fails(pair):
                yield Judgment(key, pair.doc.uid, pair.label.uid, Status.ENGINE_ERROR)
            else:
                yield Judgment(
                    key, pair.doc.uid, pair.label.uid, Status.OK, self._log_odds(pair), 0.9, 100, 64
                )

    def close(self) -> None:
        self.closed += 1


class Clock:
    """Time that passes only while a teacher thinks, so that a busy machine changes no count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.0
        monkeypatch.setattr("support.fakes.time", self)
        monkeypatch.setattr("ezxmc.feedback.annotate.time", self)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def catalog(documents: int, labels: int) -> tuple[list[Document], list[Label]]:
    """Distinct documents and labels."""
    return (
        [Document(f"d{i}", f"Title {i}", f"text of document {i}") for i in range(documents)],
        [Label(f"l{i}", f"Label {i}") for i in range(labels)],
    )
