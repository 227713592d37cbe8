"""What the teacher answers, to look at while it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ezxmc.progress import printable
from ezxmc.records import Document, Judgment, Label

_EVERY = 30.0  # seconds
_TAGS = 3
_KEPT = 64  # documents; the engine answers those it has in hand in any order


class Glimpses:
    """Shows the share of "yes" so far and a document with its surest tags, now and then.

    Args:
        documents: Of the catalog. Their titles are untrusted text: what is not printable is left out.
        labels: Of the catalog.
        show: Gets a line.
    """

    def __init__(
        self, documents: Sequence[Document], labels: Sequence[Label], show: Callable[[str], None]
    ) -> None:
        # Searched when something is shown: a table of all would cost memory for a line in half a minute.
        self._documents, self._labels = documents, labels
        self._show, self._last = show, time.monotonic()
        self._yes = self._scored = 0
        self._recent: dict[str, list[tuple[float, str]]] = {}

    def see(self, judgments: Sequence[Judgment]) -> None:
        """Count new judgments; show something if it is time."""
        for judgment in judgments:
            if judgment.log_odds is not None:
                self._scored += 1
                self._yes += judgment.log_odds > 0
                # To the end: what is kept is what was asked about last.
                tags = self._recent.pop(judgment.doc_uid, [])
                self._recent[judgment.doc_uid] = [*tags, (judgment.log_odds, judgment.label_uid)]
        while len(self._recent) > _KEPT:
            del self._recent[next(iter(self._recent))]
        if self._recent and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self._show(self._line())

    def _line(self) -> str:
        uid, tags = max(self._recent.items(), key=lambda item: max(item[1]))
        document = next(document for document in self._documents if document.uid == uid)
        surest = [label for odds, label in sorted(tags, reverse=True)[:_TAGS] if odds > 0]
        titles = {label.uid: label.title for label in self._labels if label.uid in surest}
        told = ", ".join(printable(titles[label]) for label in surest) or "nothing asked so far fits"
        return f"{self._yes / self._scored:.0%} yes; {told} <- {printable(document.title or document.text)}"
