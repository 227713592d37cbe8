"""A split of documents that does not move when documents are added, and keeps equal texts together."""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ezxmc.errors import InputTypeError, instance_of, number_between
from ezxmc.hashing import text_hash
from ezxmc.records import Document

_WORD = re.compile(r"\w+")
Places = Mapping[str, tuple[str, str]]
"""Of documents a run has seen, by uid: the hash of the text, and the uid whose hash placed it."""


def split_documents(uids: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split document uids into `(rest, held_out)`, both in the given order.

    Each uid is held out if the hash of `(seed, uid)`, read as a number in
    [0, 1), lies below `share`. So the parts' sizes vary as a coin's do, and a
    document stays where it is whatever comes or goes beside it; a larger
    share only adds to `held_out`.

    Args:
        uids: Document uids.
        share: Expected share of `held_out`, in [0, 1].
        seed: Another seed gives an independent split.

    Raises:
        ArgumentError: `share` is outside [0, 1].
        InputTypeError: `uids` is no list of texts.
    """
    if isinstance(uids, str) or not isinstance(uids, Sequence):
        raise InputTypeError(f"uids are {reprlib.repr(uids)}", "give a list of document uids")
    share = number_between(share, "the share held out", 0, 1)
    rest: list[str] = []
    held_out: list[str] = []
    for uid in uids:
        instance_of(uid, str, "a uid", "give texts: str(...)")
        # 13 hex digits are 52 bits: exact in a float.
        place = int(text_hash(str(seed), uid)[:13], 16) / 16**13
        (held_out if place < share else rest).append(uid)
    return rest, held_out


def same_text(document: Document) -> str:
    """A hash that documents share whose texts differ in case, spacing and punctuation at most."""
    shown = document.shown
    return text_hash(" ".join(_WORD.findall(shown.casefold())) or shown)


def placing_uids(
    documents: Sequence[Document], texts: Sequence[str], former: Places = MappingProxyType({})
) -> list[str]:
    """The uid whose hash decides which part each document serves: one for all of the same text.

    What a run has seen stays where it was, whatever has come or gone since; other
    documents join a text that is known. Of new ones alike the smallest uid decides.

    Args:
        documents: All of a catalog.
        texts: `same_text` of each.
        former: What an earlier run on it has seen.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        alike[text].append(i)
    by_text: dict[str, str] = {}
    for shown, placed in former.values():
        by_text.setdefault(shown, placed)
    found = [document.uid for document in documents]
    for members in alike.values():
        known: dict[int, str] = {}
        for i in members if former else ():
            shown, uid = text_hash(documents[i].shown), documents[i].uid
            if (seen := former.get(uid)) and seen[0] == shown:
                known[i] = seen[1]
            elif shown in by_text:
                known[i] = by_text[shown]
        default = next(iter(known.values()), min(found[i] for i in members))
        for i in members:
            found[i] = known.get(i, default)
    return found
