"""Everything the store knows of a catalog as it is now, whatever uids it was asked under."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from ezxmc.data import Catalog
from ezxmc.data.growth import Snapshot
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.teacher import Teacher

_Item = TypeVar("_Item", Document, Label)


def known_judgments(
    catalog: Catalog, now: Snapshot, teacher: Teacher, store: FeedbackStore
) -> Iterator[Judgment]:
    """Judgments that hold for texts and titles of the catalog, under their present uids.

    An edited document, a renamed or removed label takes its judgments out: the
    key tells. They stay in the store, and count again if the text comes back.

    Args:
        catalog: Documents and labels.
        now: Its snapshot, which knows what a text was called before.
        teacher: Whose judgments count.
        store: Where they are.
    """
    documents = _by_name({document.uid: document for document in catalog.documents}, now.also)
    labels = _by_name({label.uid: label for label in catalog.labels}, now.labels_also)
    for judgment in store.judgments(teacher.fingerprint):
        for document in documents.get(judgment.doc_uid, ()):
            for label in labels.get(judgment.label_uid, ()):
                if teacher.key(Pair(document, label)) == judgment.key:
                    yield replace(judgment, doc_uid=document.uid, label_uid=label.uid)


def _by_name(items: Mapping[str, _Item], also: Mapping[str, tuple[str, ...]]) -> dict[str, list[_Item]]:
    """By every uid an item was ever asked under."""
    found: dict[str, list[_Item]] = defaultdict(list)
    for uid, item in items.items():
        found[uid].append(item)
        for other in also.get(uid, ()):
            found[other].append(item)
    return found
