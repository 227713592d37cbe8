"""A data set in a folder: a benchmark's published files, or this package's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Protocol

from ezxmc.data.documents import document_of, iter_records, read_labels
from ezxmc.data.gold import read_gold
from ezxmc.data.matching import some
from ezxmc.data.readers import iter_fields
from ezxmc.data.validate import RowReport
from ezxmc.data.xmc_repo import Example, XmcRepo
from ezxmc.data.xmc_text import first_file
from ezxmc.errors import DataError, instance_of
from ezxmc.records import Label

_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".txt")
_GOLD = ("gold", "qrels")


class DataFolder(Protocol):
    """What any of the layouts can tell.

    Attributes:
        rows: How reading went, by file; complete once all is read.
    """

    rows: dict[str, RowReport]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the parts; ("all",) where there is one."""
        ...

    def labels(self) -> list[Label]:
        """All usable labels."""
        ...

    def examples(self, split: str) -> Iterator[Example]:
        """Stream a split's documents with their gold labels."""
        ...


@dataclass(slots=True)
class OwnFolder:
    """`labels.*`, `documents.*` and `gold.*` or `qrels.*`; or `train.*`, `train_gold.*` and so for test.

    A `split.tsv`, document uid TAB split, parts `documents.*`. Gold is held in memory.

    Attributes:
        folder: Where it is.
        texts: The documents' file of each split.
        split_file: Names the split of each document, if there is such a file.
        rows: How reading went, by file.
    """

    folder: Path
    texts: dict[str, Path]
    split_file: Path | None
    rows: dict[str, RowReport] = field(default_factory=dict)
    _split_of: dict[str, str] | None = None
    _titles: dict[str, str] | None = None

    @classmethod
    def find(cls, folder: Path) -> OwnFolder | None:
        """The data set in a folder; `None` if it holds no documents by these names."""
        if whole := _table(folder, "documents"):
            return cls(folder, {"all": whole}, first_file(folder, ["split.tsv"]))
        found = {split: _table(folder, split) for split in ("train", "test")}
        texts = {split: file for split, file in found.items() if file}
        return cls(folder, texts, None) if texts else None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the parts."""
        if self.split_file is None:
            return tuple(self.texts)
        return tuple(sorted(set(self._splits().values()), key=lambda split: (split != "train", split)))

    def labels(self) -> list[Label]:
        """All usable labels.

        Raises:
            DataError: There are none, or they cannot be read.
        """
        file = _table(self.folder, "labels")
        if file is None:
            raise DataError(f"{self.folder} holds no labels", "add labels.jsonl")
        labels, self.rows[file.name] = read_labels(file)
        self._titles = {label.uid: label.title for label in labels}
        return labels

    def examples(self, split: str) -> Iterator[Example]:
        """Stream a split's documents; filtered pairs are not read.

        Raises:
            DataError: A file cannot be read.
        """
        texts = self.texts.get(split) or self.texts["all"]
        prefix = "" if split not in self.texts or split == "all" else f"{split}_"
        file = next((one for name in _GOLD if (one := _table(self.folder, prefix + name))), None)
        gold: dict[str, set[str]] = {}
        if file:
            gold, self.rows[file.name] = read_gold(file, labels=self._titles, more_labels=True, refuse=False)
        wanted = self._splits() if self.split_file else None
        self.rows[texts.name] = report = RowReport()
        unread = dict.fromkeys(gold)
        for _, line, _, document in iter_records(texts, report, document_of):
            unread.pop(document.uid, None)
            if wanted is None or wanted.get(document.uid) == split:
                labels = gold.get(document.uid)
                yield Example(line, document, None if labels is None else tuple(sorted(labels)))
        if unread and file and not any("documents that are not" in n for n in self.rows[file.name].notes):
            self.rows[file.name].note(
                f"{len(unread):,} documents that are not in {texts.name}: {some(unread)}"
            )

    def _splits(self) -> dict[str, str]:
        if self._split_of is None:
            assert self.split_file
            self.rows[self.split_file.name] = report = RowReport()
            self._split_of = {}
            for file, line, fields in iter_fields(self.split_file, report):
                if len(fields) == 2:
                    self._split_of[fields[0]] = fields[1]
                    report.kept += 1
                else:
                    report.add(file, line, "field_count", f"{len(fields)} fields, not 2")
        return self._split_of


def open_folder(folder: str | Path) -> DataFolder:
    """The data set in a folder.

    Raises:
        DataError: The folder follows none of the known layouts.
    """
    instance_of(folder, (str, PathLike), "folder", "give a folder's path")
    base = Path(folder)
    found = OwnFolder.find(base) or XmcRepo.find(base)
    if found is None:
        raise DataError(
            f"{folder} holds no data set: neither documents.jsonl, train.jsonl nor a benchmark's files",
            "`ezxmc data convert --help` names the layouts",
        )
    return found


def _table(folder: Path, name: str) -> Path | None:
    return first_file(folder, [name + suffix for suffix in _SUFFIXES])
