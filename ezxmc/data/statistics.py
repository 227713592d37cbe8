"""What a data set looks like in figures, in one pass over its documents."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from ezxmc.data.folder import DataFolder


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
class Statistics:
    """Of a whole data set.

    Attributes:
        labels: Usable ones.
        labels_unused: Labels of the list without a document in any split.
        equal_titles: Labels that repeat another's title, but for case and spacing.
        splits: By name.
        test_in_train: Test documents whose text is a training document's, but
            for case and spacing; `None` where there are not both.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


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
