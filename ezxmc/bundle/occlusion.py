"""Which part of a text speaks for a label: the one without which the label's score falls most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MOST_PARTS = 15
"""Parts of a text at most: each is one more text to encode."""
_LEAST = 0.005  # of the score: an encoder in bfloat16 answers the same text that much apart
_LEVELS = (
    # Sentences and paragraphs; else clauses; else words.
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n\s*\n\s*"),
    re.compile(r"(?<=[,;:–—])\s+|(?<=[，；：、])"),
    re.compile(r"\s+"),
)


@dataclass(frozen=True, slots=True)
class Occluded:
    """A part of a text, and the text without it."""

    part: str
    rest: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What in a document speaks for a label.

    Attributes:
        text: The sentence; of a single sentence the clause or the words.
        drop: How much lower the label's score is without it.
    """

    text: str
    drop: float


def occlusions(text: str, heading: str = "") -> list[Occluded]:
    """A text taken apart into sentences, or clauses, or words, and without each of them.

    Args:
        text: Any text.
        heading: What it begins with that is a part by itself, such as a title.

    Returns:
        At most `MOST_PARTS`, neighbours taken together where there were more; none where the text is
        one word.
    """
    begin = len(heading) if text.startswith(heading) and text[len(heading) :].strip() else 0
    spans: list[tuple[int, int]] = []
    for level in _LEVELS:
        cuts = [
            (begin, begin),
            *(found.span() for found in level.finditer(text, begin)),
            (len(text), len(text)),
        ]
        spans = [(0, begin), *((end, start) for (_, end), (start, _) in pairwise(cuts))]
        spans = [(start, end) for start, end in spans if text[start:end].strip()]
        if len(spans) > 1:
            break
    size = -(-len(spans) // MOST_PARTS)
    together = [spans[first : first + size] for first in range(0, len(spans), size or 1)]
    found = [
        Occluded(text[some[0][0] : some[-1][1]].strip(), text[: some[0][0]] + text[some[-1][1] :])
        for some in together
    ]
    return [one for one in found if one.rest.strip()]


def strongest(
    scores: NDArray[np.floating], without: NDArray[np.floating], parts: Sequence[Occluded]
) -> list[Evidence | None]:
    """The strongest part for each label; `None` where no part alone matters.

    Args:
        scores: (K,) of the labels with the whole text.
        without: (N, K) with each part left out.
        parts: The N parts.
    """
    if not len(parts):
        return [None] * len(scores)
    drops = scores - without
    return [
        Evidence(parts[best].part, float(drop)) if (drop := drops[best, label]) >= _LEAST else None
        for label, best in enumerate(drops.argmax(axis=0).tolist())
    ]
