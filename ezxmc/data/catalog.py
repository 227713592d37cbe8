"""A run's inputs, read once: documents, labels, gold, and which document serves what.

The split does not move when documents are added, and keeps equal texts together.
"""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ezxmc.config import DataConfig
from ezxmc.data.columns import KINDS, columns_for
from ezxmc.data.documents import read_documents, read_labels
from ezxmc.data.gold import read_gold
from ezxmc.data.validate import RowReport
from ezxmc.errors import InputTypeError, instance_of, number_between
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label

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


@dataclass(frozen=True, slots=True)
class Catalog:
    """Documents and labels, with positions in these lists as their names below.

    Attributes:
        documents: N usable documents.
        labels: L usable labels.
        gold: Gold label uids by document uid, for evaluation only; may be empty.
        to_train: Positions of the documents the student learns from.
        to_select: Positions of those that choose between epochs and cycles.
        to_calibrate: Positions of those the calibrator is fitted on.
        document_rows: How reading went.
        label_rows: How reading went.
        gold_rows: How reading went, if there is gold.
        placed_by: By uid of a document that another one of its text places, the other's uid.
        repeats: Documents whose text is another's, but for case, spacing and punctuation.
        divided: Documents of a text that serves several parts: a run that was begun so keeps them.
    """

    documents: list[Document]
    labels: list[Label]
    gold: dict[str, set[str]]
    to_train: list[int]
    to_select: list[int]
    to_calibrate: list[int]
    document_rows: RowReport
    label_rows: RowReport
    gold_rows: RowReport | None
    placed_by: dict[str, str] = field(default_factory=dict)
    repeats: int = 0
    divided: int = 0

    @classmethod
    def load(
        cls,
        config: DataConfig,
        held_out: float,
        seed: int,
        say: Callable[[str], None] = lambda text: None,
        *,
        former: Places = MappingProxyType({}),
    ) -> Catalog:
        """Read the inputs and split the documents.

        Args:
            config: Where they are.
            held_out: Share of documents not trained on: half select, half calibrate.
            seed: Of the split.
            say: Told how reading each file went.
            former: What an earlier run has seen: its documents stay in their parts.

        Raises:
            DataError: A file cannot be read, holds nothing usable, has a bad
                row under `strict`, or hardly any gold is of these documents and labels.
        """
        named = {kind: columns_for(kind, config.columns) for kind in KINDS}
        documents, document_rows = read_documents(
            config.documents, strict=config.strict, columns=named["documents"]
        )
        labels, label_rows = read_labels(config.labels, strict=config.strict, columns=named["labels"])
        for kind, file, rows in (
            ("document", config.documents, document_rows),
            ("label", config.labels, label_rows),
        ):
            rows.tell(say, f"{kind}s")
            rows.refuse_empty(file, kind, range(rows.kept))
        gold: dict[str, set[str]] = {}
        gold_rows = None
        if config.gold is not None:
            gold, gold_rows = read_gold(
                config.gold,
                documents={document.uid for document in documents},
                labels={label.uid: label.title for label in labels},
                strict=config.strict,
            )
            gold_rows.tell(say, "gold")
        texts = [same_text(document) for document in documents]
        placing = placing_uids(documents, texts, former)
        part_of = parts(placing, held_out, seed)
        served: dict[str, set[int]] = {}
        positions: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i, (text, uid) in enumerate(zip(texts, placing, strict=True)):
            positions[part_of[uid]].append(i)
            served.setdefault(text, set()).add(part_of[uid])
        repeats = len(documents) - len(served)
        divided = sum(len(served[text]) > 1 for text in texts)
        if repeats:
            say(repeated(repeats, divided))
        return cls(
            documents,
            labels,
            gold,
            *positions,
            document_rows,
            label_rows,
            gold_rows,
            {d.uid: uid for d, uid in zip(documents, placing, strict=True) if d.uid != uid},
            repeats,
            divided,
        )

    @property
    def rows(self) -> dict[str, RowReport | None]:
        """How reading each input went, by name."""
        return {"documents": self.document_rows, "labels": self.label_rows, "gold": self.gold_rows}

    @property
    def hash(self) -> str:
        """SHA-256 of all that documents and labels can change in a later stage."""
        return text_hash(
            *(part for d in self.documents for part in (d.uid, d.shown)),
            *(part for label in self.labels for part in (label.uid, label.title, label.text, *label.aliases)),
            *(part for placed in sorted(self.placed_by.items()) for part in placed),
        )


def repeated(repeats: int, divided: int = 0) -> str:
    """What equal texts in a catalog mean, in words."""
    told = f"{repeats:,} documents repeat another's text, but for case, spacing and punctuation: "
    if not divided:
        return f"{told}a text trains, selects or calibrates with all of its documents"
    return (
        f"{told}{divided:,} have theirs both in training and kept apart, as this run was begun, and what is "
        "measured on them is too good; a run in a new run_dir keeps equal texts together"
    )


def calibration_part(documents: Sequence[Document], held_out: float, seed: int) -> list[str]:
    """The uids of those `documents` that a run on them with this share and seed calibrates on."""
    instance_of(seed, int, "seed", "give a whole number")
    placing = placing_uids(documents, [same_text(document) for document in documents])
    part_of = parts(placing, held_out, seed)
    return [d.uid for d, uid in zip(documents, placing, strict=True) if part_of[uid] == CALIBRATING]


TRAINING, SELECTING, CALIBRATING = range(3)
"""The parts that documents serve."""


def parts(uids: Iterable[str], held_out: float, seed: int) -> dict[str, int]:
    """Which part the hash of each uid stands for."""
    rest, apart = split_documents(list(dict.fromkeys(uids)), held_out, seed)
    halves = split_documents(apart, 0.5, seed + 1)
    return {uid: part for part, some in enumerate((rest, *halves)) for uid in some}
