"""Labels found by what a person types."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np

from ezxmc.records import Label
from ezxmc.text import fold

_MOST_PLACES = 5_000
"""Looked at for each way to fit: "a" is in most of a million labels."""
_MOST_LETTERS = 500
_EXACT, _BEGINS, _WORD, _INSIDE, _ALL_WORDS = range(5)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> bytes:
    """A text without case and accents; of nothing but accents, with them.

    Bytes, for one emoji would make each letter of a long `str` four bytes wide.
    """
    return (_plain(fold(text)) or _plain(text)).encode("utf-8", "replace")


class LabelSearch:
    """Labels whose title or an alias holds what somebody types.

    All names lie in one text, a line each: 30 megabytes for a million labels, in which a substring is found
    in milliseconds.

    Args:
        labels: N labels.

    Example:
        >>> found = LabelSearch([Label("g", "Guitar"), Label("m", "Café music", aliases=("songs",))])
        >>> [label.uid for label in found("cafe")], [label.uid for label in found("SONG")]
        (['m'], ['m'])
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        names = [[_folded(name) for name in (label.title, *label.aliases)] for label in labels]
        flat = list(chain.from_iterable(names))
        self._text = b"\n" + b"\n".join([*flat, b""])
        # Where each of M names begins in it, and the end, (M + 1,); whose name it is, (M,).
        self._begins = np.cumsum([1, *(len(name) + 1 for name in flat)], dtype=np.int64)
        self._owners = np.repeat(np.arange(len(names)), [len(of_one) for of_one in names])

    def __call__(self, typed: str, most: int = 20) -> list[Label]:
        """The labels that fit, the best first.

        A label of this very title is the first; then come those with such a name but for case and accents,
        a name or a word that begins so, a name that holds it, a name that holds all its words in any order.
        Among equals, titles come before aliases and short names before long ones; of more than 5,000 places
        that fit in one of these ways, the first are looked at.

        Args:
            typed: Any text; what is beyond 500 letters is not looked at.
            most: Labels at most.
        """
        given = _plain(typed[:_MOST_LETTERS])
        if not (wanted := _folded(given)):
            return []
        begins, owners = self._begins, self._owners
        found: dict[int, tuple[bool, int, bool, int]] = {}
        for how, row in self._fitting(wanted, most):
            owner = int(owners[row])
            alias = row > 0 and owners[row - 1] == owner
            other = how != _EXACT or _plain(self._labels[owner].title) != given
            rank = other, how, bool(alias), int(begins[row + 1] - begins[row])
            found[owner] = min(rank, found.get(owner, rank))
        return [self._labels[one] for one in heapq.nsmallest(most, found, key=lambda one: (found[one], one))]

    def _fitting(self, wanted: bytes, most: int) -> Iterator[tuple[int, int]]:
        """How names fit, and which; no weaker way is tried once enough labels fit."""
        text, begins, owners = self._text, self._begins, self._owners
        enough: set[int] = set()
        for how, needle, ahead in ((_EXACT, b"\n%b\n", 1), (_BEGINS, b"\n%b", 1), (_INSIDE, b"%b", 0)):
            places, rows = self._places(needle % wanted, ahead)
            for place, row in zip(places, rows, strict=True):
                # A letter of several bytes is taken for one of a word.
                inside = text[place - 1] >= 128 or text[place - 1 : place].isalnum()
                yield _WORD if how == _INSIDE and not inside else how, row
            enough.update(owners[rows].tolist())
            if len(enough) >= most:
                return
        if len(words := set(wanted.split())) > 1:
            for row in self._places(max(words, key=len), 0)[1]:
                name = text[begins[row] : begins[row + 1]]
                if all(word in name for word in words):
                    yield _ALL_WORDS, row

    def _places(self, needle: bytes, ahead: int) -> tuple[list[int], list[int]]:
        """Where a needle is, `ahead` bytes on, and in which names."""

        def places() -> Iterator[int]:
            place = self._text.find(needle)
            while place >= 0:
                yield place + ahead
                place = self._text.find(needle, place + 1)

        found = list(islice(places(), _MOST_PLACES))
        rows: list[int] = (np.searchsorted(self._begins, found, side="right") - 1).tolist()
        return found, rows
