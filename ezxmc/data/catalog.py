"""A run's inputs, read once: documents, labels, gold, and which document serves what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ezxmc.config import DataConfig
from ezxmc.data.columns import KINDS, columns_for
from ezxmc.data.documents import read_documents, read_labels
from ezxmc.data.gold import read_gold
from ezxmc.data.split import Places, placing_uids, same_text, split_documents
from ezxmc.data.validate import RowReport
from ezxmc.errors import instance_of
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label


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
