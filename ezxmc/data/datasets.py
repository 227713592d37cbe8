"""A data set in a folder: a benchmark's published files, or this package's own.

Its statistics are computed in one pass over the documents.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ezxmc.data.documents import document_of, iter_records, read_labels
from ezxmc.data.gold import read_gold
from ezxmc.data.matching import some
from ezxmc.data.rows import iter_fields
from ezxmc.data.xmc import Example, XmcRepo
from ezxmc.data.xmc_files import first_file
from ezxmc.errors import DataError, RowReport, instance_of
from ezxmc.records import Label, Result

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


@dataclass(frozen=True, slots=True)
class Spread:
    """Some counts in short. The median of an even number of counts is the mean of the middle two."""

    mean: float
    median: float
    max: int

    @classmethod
    def of(cls, histogram: Mapping[int, int]) -> Spread | None:
        """Of how often each count occurs; `None` of nothing."""
        total = sum(histogram.values())
        if not total:
            return None
        counts = sorted(histogram)
        ends = np.cumsum([histogram[count] for count in counts])
        low, high = np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")
        mean = sum(count * times for count, times in histogram.items()) / total
        return cls(mean, (counts[low] + counts[high]) / 2, counts[-1])


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Of the documents of one split.

    Attributes:
        documents: Usable ones.
        with_gold: Those with at least one gold label.
        pairs: Gold pairs of document and label.
        filtered: Pairs to be left out of evaluation.
        labels_used: Labels of the list with at least one document here.
        labels_unknown: Different gold labels that are not in the list.
        labels_per_document: Over documents with gold.
        documents_per_label: Over all labels of the list, 0 included.
        characters: Of title and text, as models are shown them.
        duplicates: Documents whose text, but for case and spacing, occurred before.
    """

    documents: int
    with_gold: int
    pairs: int
    filtered: int
    labels_used: int
    labels_unknown: int
    labels_per_document: Spread | None
    documents_per_label: Spread | None
    characters: Spread | None
    duplicates: int


@dataclass(frozen=True, slots=True)
class Statistics(Result):
    """Of a whole data set.

    Attributes:
        labels: Usable ones.
        labels_unused: Labels of the list without a document in any split.
        equal_titles: Labels that repeat another's title, but for case and spacing.
        splits: By name.
        test_in_train: Test documents whose text is a training document's, but for case and spacing; `None`
            where there are not both.
    """

    labels: int
    labels_unused: int
    equal_titles: int
    splits: dict[str, SplitStatistics]
    test_in_train: int | None

    @property
    def documents(self) -> int:
        """Of all splits."""
        return sum(split.documents for split in self.splits.values())


def compute_statistics(data: DataFolder) -> Statistics:
    """Compute the figures of a data set.

    Documents are streamed; 8 bytes of each are kept, to find equal texts.

    Raises:
        DataError: A file cannot be read.
    """
    labels = data.labels()
    known = {label.uid for label in labels}
    splits: dict[str, SplitStatistics] = {}
    texts: dict[str, npt.NDArray[np.uint64]] = {}
    used: set[str] = set()
    for split in data.splits:
        splits[split], texts[split], here = _split(data, split, known)
        used |= here
    titles = {_plain(label.title) for label in labels}
    shared = None
    if {"train", "test"} <= texts.keys():
        shared = int(np.isin(texts["test"], texts["train"]).sum())
    return Statistics(len(labels), len(known - used), len(labels) - len(titles), splits, shared)


def _plain(text: str) -> str:
    """A text but for case and spacing, as the data cards' figures were counted."""
    return " ".join(text.casefold().split())


def _split(
    data: DataFolder, split: str, known: Iterable[str]
) -> tuple[SplitStatistics, npt.NDArray[np.uint64], set[str]]:
    per_label: Counter[str] = Counter(dict.fromkeys(known, 0))
    per_document: Counter[int] = Counter()
    characters: Counter[int] = Counter()
    unknown: set[str] = set()
    hashes = array("Q")
    pairs = filtered = 0
    for example in data.examples(split):
        shown = example.document.shown
        characters[len(shown)] += 1
        hashes.append(int.from_bytes(blake2b(_plain(shown).encode(), digest_size=8).digest()))
        per_document[len(example.labels or ())] += 1
        pairs += len(example.labels or ())
        filtered += len(example.filtered)
        for label in example.labels or ():
            if label in per_label:
                per_label[label] += 1
            else:
                unknown.add(label)
    texts = np.frombuffer(hashes, dtype=np.uint64)
    documents = per_document.total()
    without = per_document.pop(0, 0)
    used = {label for label, count in per_label.items() if count}
    found = SplitStatistics(
        documents=documents,
        with_gold=documents - without,
        pairs=pairs,
        filtered=filtered,
        labels_used=len(used),
        labels_unknown=len(unknown),
        labels_per_document=Spread.of(per_document),
        documents_per_label=Spread.of(Counter(per_label.values())),
        characters=Spread.of(characters),
        duplicates=documents - len(np.unique(texts)),
    )
    return found, texts, used
