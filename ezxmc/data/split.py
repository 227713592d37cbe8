"""A split of documents that does not move when documents are added."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from ezxmc.errors import InputTypeError, instance_of, number_between
from ezxmc.hashing import text_hash


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
