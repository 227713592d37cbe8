"""The records that travel through the pipeline.

Plain slotted dataclasses: millions of them pass through hot loops. Types are looked at here; what else input
must be is checked where it enters (`ezxmc.data`), configuration in `ezxmc.config`.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ezxmc.errors import ArgumentError, InputTypeError


class Result:
    """Base of dataclasses that tell what came of something."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to tag. `uid` is never shown to a model.

    Raises:
        InputTypeError: A part is no text.

    Example:
        >>> Document("d1", "", "  How to build a guitar").shown
        'How to build a guitar'
    """

    uid: str
    title: str
    text: str

    def __post_init__(self) -> None:
        if not (isinstance(self.uid, str) and isinstance(self.title, str) and isinstance(self.text, str)):
            raise _no_text("document", uid=self.uid, title=self.title, text=self.text)

    @property
    def shown(self) -> str:
        """Title and text as every model sees them, one line break between."""
        return f"{self.title}\n{self.text}".strip() if self.title else self.text.strip()


@dataclass(frozen=True, slots=True)
class Label:
    """One tag. The models see `title`; `text` is an optional description.

    Attributes:
        count: How often the tag was used elsewhere, or is expected to be, in any unit: what no text tells.

    Raises:
        InputTypeError: A part is no text, the aliases are no tuple of texts, or the count is no number from
            0 on.

    Example:
        >>> Label("music", "Music", aliases=("songs",)).title
        'Music'
    """

    uid: str
    title: str
    text: str = ""
    aliases: tuple[str, ...] = ()
    parent: str | None = None
    count: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.uid, str) and isinstance(self.title, str) and isinstance(self.text, str)):
            raise _no_text("label", uid=self.uid, title=self.title, text=self.text)
        if not (isinstance(self.parent, str) or self.parent is None):
            raise _no_text("label", parent=self.parent)
        if not isinstance(self.aliases, tuple) or not all(isinstance(alias, str) for alias in self.aliases):
            raise InputTypeError(f"a label's aliases are {self.aliases!r}", "give a tuple of texts")
        if self.count is not None and not (_is_number(self.count) and 0 <= self.count < math.inf):
            raise InputTypeError(f"a label's count is {self.count!r}", "give a number from 0 on, or None")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _no_text(record: str, **parts: object) -> InputTypeError:
    name, value = next((name, value) for name, value in parts.items() if not isinstance(value, str))
    return InputTypeError(
        f"a {record}'s {name} is {value!r}, a {type(value).__name__}", "give a text: str(...), or '' for none"
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """A document and a candidate label the teacher may be asked about.

    Example:
        >>> Pair(Document("d1", "", "A song for guitar"), Label("music", "music")).label.title
        'music'
    """

    doc: Document
    label: Label


class Status(StrEnum):
    """Outcome of one judgment. Only `OK` carries a `log_odds`."""

    OK = "ok"
    LOW_MASS = "low_mass"
    """The model put too little probability on the answer tokens."""
    TRUNCATED_TOO_FAR = "truncated_too_far"
    """The prompt does not fit the model even with an empty document."""
    NOT_RECORDED = "not_recorded"
    """A replay teacher holds no judgment of this pair."""
    NO_LOGPROBS = "no_logprobs"
    """The engine answered without the probabilities of the answer tokens."""
    NOT_FINITE = "not_finite"
    """The engine gave NaN, or numbers that are no probabilities."""
    ENGINE_ERROR = "engine_error"
    """The engine failed, refused or stayed silent."""

    @property
    def final(self) -> bool:
        """Whether the outcome is kept; any other is a failed attempt, and the pair is asked again."""
        return self not in _PASSING


_PASSING = frozenset((Status.NO_LOGPROBS, Status.NOT_FINITE, Status.ENGINE_ERROR))


@dataclass(frozen=True, slots=True)
class Judgment:
    """A teacher's answer about one pair.

    Attributes:
        key: Content key (`ezxmc.hashing.judgment_key`), 64 hex digits.
        doc_uid: The document's uid at the time of asking.
        label_uid: The label's uid at the time of asking.
        status: What came of it.
        log_odds: ln p(yes) − ln p(no) in nats, summed over spellings; `None`
            if and only if `status` is not `ok`.
        label_mass: p(yes) + p(no) in [0, 1]: how far the model answered the
            question at all; `None` where no answer was read.
        prompt_tokens: Length of the whole prompt in tokens.
        cached_tokens: How many of these the prefix cache supplied.

    Raises:
        ArgumentError: Status and log-odds do not fit, or a number is none or not finite.

    Example:
        >>> Judgment("0" * 64, "d1", "music", Status.OK, log_odds=2.5).log_odds
        2.5
    """

    key: str
    doc_uid: str
    label_uid: str
    status: Status
    log_odds: float | None = None
    label_mass: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        if (self.log_odds is None) != (self.status is not Status.OK):
            raise ArgumentError(
                f"log_odds={self.log_odds} does not fit status {self.status}",
                "give a number just where it is ok",
            )
        for value in (self.log_odds, self.label_mass):
            try:
                fit = value is None or math.isfinite(value)
            except (TypeError, ValueError, OverflowError):
                fit = False
            if not fit:
                raise ArgumentError(f"a judgment cannot hold {value!r}", "give finite numbers, or None")


@dataclass(frozen=True, slots=True)
class Tag(Result):
    """One label of a prediction.

    Attributes:
        label: The label's uid.
        title: Its title; the uid where a prediction holds no titles.
        score: As `Prediction.scores`; `None` where a prediction holds none.
        probability: In [0, 1]; `None` where the bundle has no calibrator.

    Example:
        >>> Tag("l1", "music", 0.8, 0.95).probability
        0.95
    """

    label: str
    title: str
    score: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Ranked labels of one document, best first; the four tuples align.

    Attributes:
        uid: The document's uid.
        labels: Label uids.
        titles: Their titles.
        scores: Inner products of the document's unit vector and the labels'
            vectors; cosines where the label vectors are plain titles'.
        probabilities: Calibrated probabilities in [0, 1]; empty when the bundle has no calibrator.

    Example:
        >>> found = Prediction("d1", ("l1", "l2"), ("music", "food"), (0.8, 0.1), (0.95, 0.02))
        >>> [tag.title for tag in found.tags if tag.probability > 0.5]
        ['music']
    """

    uid: str
    labels: tuple[str, ...]
    titles: tuple[str, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...] = ()

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The same label by label."""
        none = (None,) * len(self.labels)
        titles, scores = self.titles or self.labels, self.scores or none
        return tuple(map(Tag, self.labels, titles, scores, self.probabilities or none))

    def only(self, labels: Container[str], most: int | None = None) -> Prediction:
        """The same of some labels alone, the first `most` of them."""
        at = [i for i, label in enumerate(self.labels) if label in labels][:most]
        rows: tuple[tuple[Any, ...], ...] = self.labels, self.titles, self.scores, self.probabilities
        return Prediction(self.uid, *(tuple(row[i] for i in at if i < len(row)) for row in rows))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: `{"uid": ..., "tags": [{"label", "title", "score", "probability"}, ...]}`."""
        return {"uid": self.uid, "tags": [asdict(tag) for tag in self.tags]}
