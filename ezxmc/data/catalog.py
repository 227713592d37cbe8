"""A run's inputs, read once: documents, labels, gold, and which document serves what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ezxmc.config import DataConfig
from ezxmc.data.columns import KINDS, columns_for
from ezxmc.data.documents import read_documents, read_labels
from ezxmc.data.gold import read_gold
from ezxmc.data.split import split_documents
from ezxmc.data.validate import RowReport
from ezxmc.errors import DataError, instance_of
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

    @classmethod
    def load(
        cls, config: DataConfig, held_out: float, seed: int, say: Callable[[str], None] = lambda text: None
    ) -> Catalog:
        """Read the inputs and split the documents.

        Args:
            config: Where they are.
            held_out: Share of documents not trained on: half select, half calibrate.
            seed: Of the split.
            say: Told how reading each file went.

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
            if not rows.kept:
                raise DataError(f"{file} holds no usable {kind}: {rows.summary()}", "see README, Input files")
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
        uids = [document.uid for document in documents]
        rest, select, calibrate = _parts(uids, held_out, seed)
        row = {uid: position for position, uid in enumerate(uids)}
        to_train, to_select, to_calibrate = ([row[uid] for uid in part] for part in (rest, select, calibrate))
        return cls(
            documents, labels, gold, to_train, to_select, to_calibrate, document_rows, label_rows, gold_rows
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
        )


def calibration_part(uids: Sequence[str], held_out: float, seed: int) -> list[str]:
    """The uids among `uids` that a run with this share and seed calibrates on."""
    instance_of(seed, int, "seed", "give a whole number")
    return _parts(uids, held_out, seed)[2]


def _parts(uids: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str], list[str]]:
    rest, apart = split_documents(uids, held_out, seed)
    select, calibrate = split_documents(apart, 0.5, seed + 1)
    return rest, select, calibrate
