"""A run's inputs, read once: documents, labels, gold, and which document serves what.

The split does not move when documents are added, and keeps equal texts together.
"""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ezxmc.config import DataConfig
from ezxmc.data.documents import read_documents, read_labels
from ezxmc.data.forest import with_parents
from ezxmc.data.gold import read_gold
from ezxmc.data.in_memory import as_documents, as_gold, as_labels
from ezxmc.data.matching import columns_for, some
from ezxmc.errors import ArgumentError, DataError, InputTypeError, RowReport, instance_of, number_between
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label

_WORD = re.compile(r"\w+")
Rows = dict[str, RowReport | None]
"""How reading each input went, by name."""
Places = Mapping[str, tuple[str, str]]
"""Of documents a run has seen, by uid: the hash of the text, and the uid whose hash placed it."""
Source = str | Path | Iterable[Any]
"""A file, or what else `iter_rows` reads; or the rows themselves, as `as_documents` takes them."""
Gold = str | Path | Mapping[Any, Iterable[Any]]
"""A file of `read_gold`, or the label uids of each document uid."""
WithoutGold = Literal["none", "unreviewed"]
"""What a document is that gold has no label for: reviewed, and nothing fits; or seen by nobody."""


def documents_in(
    source: Source, columns: Mapping[str, str] | None = None, *, strict: bool = False
) -> tuple[list[Document], RowReport]:
    """Documents of a file or out of a program, and how reading went.

    Args:
        source: Where they are; rows of a program must all be usable.
        columns: Columns of a file by the field they serve as, see `columns_for`.
        strict: Raise at a file's first bad row.

    Raises:
        DataError: As for `read_documents`, or as for `as_documents`.
    """
    if isinstance(source, str | Path):
        return read_documents(source, strict=strict, columns=columns_for("documents", columns))
    documents = as_documents(source)
    return documents, RowReport(kept=len(documents))


def labels_in(
    source: Source, columns: Mapping[str, str] | None = None, *, strict: bool = False
) -> tuple[list[Label], RowReport]:
    """Labels of a file or out of a program; arguments and errors as of `documents_in`."""
    if isinstance(source, str | Path):
        return read_labels(source, strict=strict, columns=columns_for("labels", columns))
    found = with_parents(as_labels(source))
    return found.labels, RowReport(kept=len(found.labels), notes=list(found.notes))


def read_inputs(
    documents: Source,
    labels: Source,
    columns: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
    say: Callable[[str], None] | None = None,
) -> tuple[tuple[list[Document], RowReport], tuple[list[Label], RowReport]]:
    """Documents and labels, and how reading them went.

    Args:
        documents: Where documents are.
        labels: Where labels are.
        columns: As for `documents_in`.
        strict: As there.
        say: Told how reading each went.

    Raises:
        DataError: As for `documents_in`, or one of the two holds nothing usable.
    """
    found = documents_in(documents, columns, strict=strict), labels_in(labels, columns, strict=strict)
    for source, (_, rows), what in zip((documents, labels), found, ("document", "label"), strict=True):
        if say:
            rows.tell(say, f"{what}s")
        name = source if isinstance(source, str | Path) else f"the list of {what}s"
        rows.refuse_empty(name, what, range(rows.kept))
    return found


def reviewed_gold(
    gold: Gold,
    documents: Iterable[Document],
    titles: Mapping[str, str],
    *,
    of: Iterable[Document],
    without_gold: WithoutGold | None,
    say: Callable[[str], None],
) -> tuple[dict[str, set[str]], RowReport | None]:
    """All right labels of documents that people reviewed, and how reading them went.

    Args:
        gold: Where they are.
        documents: All there are.
        titles: Of the labels there are, by uid.
        of: Those of the documents that must be settled.
        without_gold: As for `settle_untagged`.
        say: Told how reading went.

    Raises:
        DataError: As for `read_gold` and `settle_untagged`.
    """
    rows = None
    if isinstance(gold, Mapping):
        given = as_gold(gold)
        if strange := {label for labels in given.values() for label in labels} - titles.keys():
            say(f"gold: {len(strange):,} labels that nobody has are left out: {some(sorted(strange))}")
        # A document of which nothing is left was reviewed, but nobody knows whether anything fits.
        tags = {
            uid: labels & titles.keys()
            for uid, labels in given.items()
            if not labels or labels & titles.keys()
        }
    else:
        uids = [document.uid for document in documents]
        tags, rows = read_gold(gold, documents=uids, labels=titles, more_documents=True)
        rows.tell(say, "gold")
    name = "gold" if rows is None else str(gold)
    settle_untagged(tags, (document.uid for document in of), name, without_gold, say)
    return tags, rows


def settle_untagged(
    gold: dict[str, set[str]],
    documents: Iterable[str],
    source: str,
    meaning: WithoutGold | None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Add those of `documents` that gold lacks to it, if people saw them and no label fits.

    Left out by that outcome, they would make tags and probabilities look better than they are.

    Raises:
        ArgumentError: `meaning` is something else.
        DataError: There are some, and nobody says what they are.
    """
    if meaning not in (None, "none", "unreviewed"):
        raise ArgumentError(f"without_gold is {meaning!r}", 'give "none" or "unreviewed"')
    uids = list(documents)
    missing = [uid for uid in uids if uid not in gold]
    if not missing:
        return
    found = f"{len(missing):,} of {len(uids):,} documents have no label in {source} ({some(missing)})"
    if meaning is None:
        raise DataError(
            f"{found}: were they reviewed?",
            "if nothing fits them, they count: --without-gold none; if nobody reviewed them: --without-gold "
            'unreviewed (in Python without_gold="none" or "unreviewed"); an empty label cell ("labels": [] '
            "in JSON, an empty set) says of one document that nothing fits",
        )
    if meaning == "none":
        gold.update((uid, set()) for uid in missing)
    say(f"{found}: {'reviewed, and nothing fits' if meaning == 'none' else 'unreviewed, left out'}")


def split_documents(uids: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split document uids into `(rest, held_out)`, both in the given order.

    Each uid is held out if the hash of `(seed, uid)`, read as a number in [0, 1), lies below `share`. So
    the parts' sizes vary as a coin's do, and a document stays where it is whatever comes or goes beside it;
    a larger share only adds to `held_out`.

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

    What a run has seen stays where it was, whatever has come or gone since; other documents join a text
    that is known. Of new ones alike the smallest uid decides.

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
            DataError: A file cannot be read, holds nothing usable, has a bad row under `strict`, or hardly
                any gold is of these documents and labels.
        """
        (documents, document_rows), (labels, label_rows) = read_inputs(
            config.documents, config.labels, config.columns, strict=config.strict, say=say
        )
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
    def rows(self) -> Rows:
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
