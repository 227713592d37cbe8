"""Judgments found again by what they were given about: the text, whatever ids it has by now.

A key holds the texts, and a judgment's uids are only names of that time. Who
joins judgments to a catalog by uid takes the answer on an old text for one on
the new; so everything that uses a store's judgments gets them from here.

Keys hold the teacher's fingerprint, too, so judgments of two teachers never mix. But who edits a
prompt should see that the old answers no longer count: `unused_judgments`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ezxmc.errors import DataError, StoreError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import judgment_key, judgment_keys
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.teacher.base import Teacher

_CHUNK = 10_000  # pairs looked up at once
_TRIED = 30_000_000
"""Keys tried at most to find texts under other ids: half a minute."""
_HARDLY = 0.1
"""Of the documents that were judged, the least share that must have an answer on its present text."""
_SHOWN = 60  # of a teacher's value: enough of a hash to tell it from another
_Item = TypeVar("_Item", Document, Label)


def recall(pairs: Iterable[Pair], teacher: Teacher, store: FeedbackStore) -> Iterator[Judgment]:
    """What the store holds of these pairs, under the pairs' own uids.

    Judgments are kept by content: two documents of equal text share one, and
    a renamed document keeps its own.
    """
    stream = iter(pairs)
    while chunk := list(islice(stream, _CHUNK)):
        keys = [teacher.key(pair) for pair in chunk]
        found = store.get(keys)
        for key, pair in zip(keys, chunk, strict=True):
            if key in found:
                yield replace(found[key], doc_uid=pair.doc.uid, label_uid=pair.label.uid)


@dataclass(frozen=True, slots=True)
class Recalled:
    """One teacher's judgments that are about the texts at hand.

    Attributes:
        judgments: Under the present uids, by key; at most one a pair.
        stored: Judgments the store holds of this teacher.
        moved: Of these, found by text under other ids.
        by_uid: Of these, replayed ones that rest on ids alone.
        edited: Not used: the ids are here, with other texts.
        absent: Not used: the ids are not here, nor the texts.
        documents: Documents with a judgment.
        lost: Documents whose every judgment is on another text than their present one.
    """

    judgments: list[Judgment]
    stored: int = 0
    moved: int = 0
    by_uid: int = 0
    edited: int = 0
    absent: int = 0
    documents: int = 0
    lost: int = 0

    @property
    def unused(self) -> int:
        """Judgments that belong to no present text."""
        return self.edited + self.absent

    def lines(self) -> list[str]:
        """What a person must know about them; nothing where all is as it was asked."""
        found = []
        if self.unused:
            causes = {
                "on other texts under the same ids (texts edited, or ids shifted or re-sorted)": self.edited,
                "on documents or labels that are not here": self.absent,
            }
            why = ", ".join(f"{count:,} {cause}" for cause, count in causes.items() if count)
            found.append(
                f"judgments: {self.unused:,} of {self.stored:,} in the store belong to no present text "
                f"and are not used: {why}"
            )
        if self.moved:
            found.append(f"judgments: {self.moved:,} were found by their text under other ids")
        if self.by_uid:
            found.append(
                f"judgments: {self.by_uid:,} were replayed from a recording and rest on ids alone: "
                "were texts edited since, or ids shifted or re-sorted, they are wrong and nothing shows it"
            )
        return found

    def of_these_texts(self, store: str) -> Recalled:
        """Itself, unless hardly anything in the store is about the texts at hand.

        Raises:
            DataError: It is not; with the likely cause.
        """
        judged = self.documents + self.lost
        if self.stored and (not self.judgments or self.documents < _HARDLY * judged):
            cause = (
                "the documents' or labels' ids are there, but with other texts: they were edited, or ids "
                "shifted or re-sorted"
                if self.edited
                else "their ids are not there: these are other documents or labels"
            )
            raise DataError(
                f"only {self.stored - self.unused:,} of {self.stored:,} judgments in {store} are about these "
                f"texts; {cause}",
                "give the files that were annotated, or ask about these with `ezxmc annotate`: what was "
                "judged on the same text is not asked again",
            )
        return self


def judgments_of(
    documents: Sequence[Document],
    labels: Sequence[Label],
    store: FeedbackStore,
    fingerprint: str | None = None,
    *,
    key: Callable[[Pair], str] | None = None,
) -> Recalled:
    """All that one teacher said about these texts, whatever uids they had then.

    Texts under other ids than at the time of asking are looked for among all
    pairs, as long as these are not too many (some 10⁷).

    Args:
        documents: The catalog's.
        labels: The catalog's.
        store: Where judgments are.
        fingerprint: Whose; default: the newest teacher's.
        key: `Teacher.key`, for a teacher that makes its keys otherwise than ours do.

    Raises:
        StoreError: The store cannot be read.
    """
    fingerprint = fingerprint or store.newest_teacher()
    if fingerprint is None:
        return Recalled([])
    search = _Search(documents, labels, fingerprint, key)
    for judgment in store.judgments(fingerprint):
        search.take(judgment)
    search.look_further()
    return search.result()


def newest_judgments(
    store: str | Path,
    documents: Sequence[Document],
    labels: Sequence[Label],
    say: Callable[[str], None] = lambda text: None,
) -> Recalled:
    """What a store's newest teacher said about these texts; what it holds of others is told.

    Args:
        store: The store's file.
        documents: The catalog's.
        labels: The catalog's.
        say: Told in whole lines.

    Raises:
        DataError: Hardly anything in the store is about these texts.
        StoreError: The store is missing or cannot be read.
    """
    with existing_store(store) as feedback:
        found = judgments_of(documents, labels, feedback)
    for line in found.of_these_texts(str(store)).lines():
        say(line)
    return found


class _Search:
    def __init__(
        self,
        documents: Sequence[Document],
        labels: Sequence[Label],
        fingerprint: str,
        key: Callable[[Pair], str] | None,
    ) -> None:
        self.fingerprint, self.key = fingerprint, key
        self.docs = {document.uid: document for document in documents}
        self.labels = {label.uid: label for label in labels}
        self.shown = {document.uid: document.shown for document in documents}
        self.twins = alike(documents, lambda document: self.shown[document.uid])
        self.namesakes = alike(labels, lambda label: label.title)
        self.found: list[Judgment] = []
        self.left: dict[str, Judgment] = {}
        self.stored = self.moved = self.by_uid = self.strangers = 0

    def take(self, judgment: Judgment) -> None:
        """Find a judgment under its own uids, or keep it for `look_further`."""
        self.stored += 1
        doc, label = self.docs.get(judgment.doc_uid), self.labels.get(judgment.label_uid)
        if doc and label:
            if judgment.key == judgment_key(self.fingerprint, self.shown[doc.uid], label.title):
                self._add(judgment, doc, label)
                return
            if self.key and judgment.key == self.key(Pair(doc, label)):
                self.found.append(judgment)
                return
        if judgment.key == judgment_key(self.fingerprint, judgment.doc_uid, judgment.label_uid):
            if doc and label:
                self.by_uid += 1
                self.found.append(judgment)
            else:
                self.strangers += 1
            return
        self.left[judgment.key] = judgment

    def _add(self, judgment: Judgment, doc: Document, label: Label) -> None:
        """For all that reads the same."""
        for one in self.twins[self.shown[doc.uid]]:
            for other in self.namesakes[label.title]:
                self.found.append(replace(judgment, doc_uid=one.uid, label_uid=other.uid))

    def look_further(self) -> None:
        """Try all pairs for what is left, the labels first that most of it is about."""
        asked = Counter(judgment.label_uid for judgment in self.left.values())
        titles = dict.fromkeys(
            label.title for label in sorted(self.labels.values(), key=lambda label: -asked[label.uid])
        )
        of_document: dict[str, list[Judgment]] = defaultdict(list)
        for judgment in self.left.values():
            of_document[judgment.doc_uid].append(judgment)
        texts, tried = list(self.twins), 0
        for title in titles:
            if not self.left or tried > _TRIED:
                return
            tried += len(texts)
            for text, key in zip(texts, judgment_keys(self.fingerprint, texts, title), strict=True):
                if key in self.left:
                    judgment = self.left.pop(key)
                    self._move(judgment, text, title)
                    # What else was said about this document is likely to be of the same text.
                    for other in of_document[judgment.doc_uid]:
                        label = self.labels.get(other.label_uid)
                        if label is None or other.key not in self.left:
                            continue
                        if other.key == judgment_key(self.fingerprint, text, label.title):
                            self._move(self.left.pop(other.key), text, label.title)

    def _move(self, judgment: Judgment, text: str, title: str) -> None:
        self.moved += 1
        self._add(judgment, self.twins[text][0], self.namesakes[title][0])

    def result(self) -> Recalled:
        judged = {judgment.doc_uid for judgment in self.found}
        edited = [j for j in self.left.values() if j.doc_uid in self.docs and j.label_uid in self.labels]
        return Recalled(
            self.found,
            self.stored,
            moved=self.moved,
            by_uid=self.by_uid,
            edited=len(edited),
            absent=len(self.left) - len(edited) + self.strangers,
            documents=len(judged),
            lost=len({judgment.doc_uid for judgment in edited} - judged),
        )


def alike(items: Iterable[_Item], of: Callable[[_Item], str]) -> dict[str, list[_Item]]:
    """Documents or labels by what `of` says of them."""
    found: dict[str, list[_Item]] = defaultdict(list)
    for item in items:
        found[of(item)].append(item)
    return found


def unused_judgments(store: FeedbackStore, teacher: Teacher) -> str | None:
    """One line about judgments that a store holds of other teachers; `None` where there are none.

    Only counters are read, however many judgments there are.
    """
    others = [
        (known, judgments)
        for other, known in reversed(store.teachers().items())
        if other != teacher.fingerprint and (judgments := store.totals(other).judgments)
    ]
    if not others:
        return None
    whose = "another teacher" if len(others) == 1 else f"{len(others)} other teachers, the latest"
    return (
        f"the store holds {sum(count for _, count in others):,} judgments of {whose} "
        f"({'; '.join(differences(others[0][0], teacher.description))}): they are kept and not used"
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


def existing_store(path: str | Path) -> FeedbackStore:
    """A feedback store that is there already.

    Raises:
        StoreError: It is not, or as for `FeedbackStore`.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"no feedback store at {path}", "make one with `ezxmc annotate`")
    if path.is_file() and not path.stat().st_size:
        # SQLite would take it for a store to be filled, and fill it.
        raise StoreError(f"{path} is empty: no feedback store", "make one with `ezxmc annotate`")
    return FeedbackStore(path)
