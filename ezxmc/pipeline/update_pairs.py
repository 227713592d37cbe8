"""Which pairs an update asks to learn from: those that tell of something nobody has judged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.feedback.budget import Budget, allocate, in_hash_order
from ezxmc.feedback.targets import context_of
from ezxmc.pipeline.snapshot import Changes
from ezxmc.records import Judgment
from ezxmc.retrieval import BiEncoder, LabelIndex, shortlist
from ezxmc.retrieval.shortlist import LexicalIndex, fuse

Rows = list[list[int]]
"""Label rows of every document of a catalog."""

PRIORS, NEW_LABELS, DRIFTING, NEW_DOCUMENTS = (
    "new labels on the documents of the label priors",
    "new labels",
    "drifting labels",
    "new documents",
)
# Of a limit, what these may take together; new documents get what they leave.
_MOST_PRIORS, _MOST_LABELS = 0.25, 0.5


@dataclass(frozen=True, slots=True)
class Selection:
    """Pairs to ask, by why.

    Attributes:
        parts: Of each reason, the label rows of every document; no pair stands twice.
        unasked: Pairs the limit left out.
    """

    parts: dict[str, Rows]
    unasked: int

    def counts(self) -> dict[str, int]:
        """Pairs by reason."""
        return {why: sum(map(len, rows)) for why, rows in self.parts.items()}


def select(
    config: RunConfig,
    catalog: Catalog,
    changes: Changes,
    encoder: BiEncoder,
    known: Collection[Judgment],
    drifting: Collection[int],
    limit: int | None,
) -> Selection:
    """Choose the pairs of an update; the calibration part is left to the calibration.

    Documents that select beyond `budget.calibration`'s cap are asked about by nobody, as in a run.

    New documents get a shortlist by the student. A new label is asked on the documents, old and new, whose
    shortlist it is in, and on at least `shortlist.size` documents nearest to it; and on those few that all
    labels were asked on, for its prior, as is a label that an earlier limit left out there. A drifting label
    is asked on further documents whose first tags it is among, new ones first. `drifting` are rows of labels,
    `limit` is of pairs.
    """
    apart = Budget.of(config, catalog).idle.union(catalog.to_calibrate)
    learnt = sorted({*catalog.to_train, *catalog.to_select} - apart)
    unseen, fresh = set(changes.unseen), set(changes.unseen_labels)
    asked = _by_position(catalog, known)
    new_documents = _empty(catalog)
    size = config.shortlist.size
    # A student was trained on titles, and knows which labels are near everything.
    plain = config.shortlist.model_copy(update={"descriptions": 0.0, "centre": 0.0})
    chosen = [i for i in changes.unseen if i not in apart]
    once = _LabelsOnce(encoder)
    listed = shortlist(
        [catalog.documents[i] for i in chosen],
        catalog.labels,
        once,
        plain,
        background=catalog.documents,
        seed=config.seed,
    )
    for i, candidates in zip(chosen, listed, strict=True):
        new_documents[i] = list(candidates.labels)
    new_labels, drifted = _empty(catalog), _empty(catalog)
    if (fresh or drifting) and learnt:
        texts = [catalog.documents[i].shown for i in learnt]
        vectors = encoder.encode_documents(texts)
        titles = once.encode_labels([label.title for label in catalog.labels])
        depth = min(len(catalog.labels), max(size, config.inference.calibration_depth))
        _, dense = LabelIndex.for_once(titles, vectors).search(vectors, depth)
        lexical: Sequence[Sequence[int]] = [[]] * len(learnt)
        if config.shortlist.lexical:
            lexical = LexicalIndex(catalog.labels).search(texts, depth)
        wishes: dict[int, list[int]] = defaultdict(list)
        for i, near, worded in zip(learnt, dense.tolist(), lexical, strict=True):
            ranking = fuse(near, list(worded), config.shortlist.lexical_weight)
            if i not in unseen:
                new_labels[i] = [row for row in ranking[:size] if row in fresh and row not in asked[i]]
            for row in near:
                if row in drifting and row not in asked[i] and row not in new_documents[i]:
                    wishes[row].append(i)
        if fresh:
            rows = sorted(fresh)
            _, nearest = LabelIndex.for_once(vectors, titles[rows]).search(
                titles[rows], min(size, len(learnt))
            )
            for row, places in zip(rows, nearest.tolist(), strict=True):
                for i in (learnt[place] for place in places):
                    if row not in asked[i] and row not in new_labels[i] and row not in new_documents[i]:
                        new_labels[i].append(row)
        _deal(catalog, wishes, unseen, config.update.probe, drifted)
    priors = _priors(catalog, known, asked, fresh, (new_labels, drifted))
    parts = {PRIORS: priors, NEW_LABELS: new_labels, DRIFTING: drifted, NEW_DOCUMENTS: new_documents}
    explored = min(plain.explore, size) / size
    return Selection(parts, 0) if limit is None else _within_limit(catalog, parts, limit, explored)


class _LabelsOnce:
    """An encoder that keeps the vectors of the label list it encoded last: there may be a million."""

    def __init__(self, encoder: BiEncoder) -> None:
        self.encode_documents = encoder.encode_documents
        self._encoder = encoder
        self._held: tuple[Sequence[str], NDArray[np.float32]] | None = None

    def encode_labels(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `BiEncoder`."""
        if self._held is None or self._held[0] != texts:
            self._held = texts, self._encoder.encode_labels(texts)
        return self._held[1]


def _empty(catalog: Catalog) -> Rows:
    return [[] for _ in catalog.documents]


def _by_position(catalog: Catalog, known: Iterable[Judgment]) -> list[set[int]]:
    documents = {document.uid: i for i, document in enumerate(catalog.documents)}
    labels = {label.uid: row for row, label in enumerate(catalog.labels)}
    found: list[set[int]] = [set() for _ in catalog.documents]
    for judgment in known:
        found[documents[judgment.doc_uid]].add(labels[judgment.label_uid])
    return found


def _deal(
    catalog: Catalog, wishes: Mapping[int, Sequence[int]], unseen: Collection[int], pairs: int, into: Rows
) -> None:
    """Give each drifting label as many documents, new ones first, at random among these."""
    uids = [document.uid for document in catalog.documents]
    for row, documents in sorted(wishes.items()):
        order = sorted(in_hash_order(uids, documents), key=lambda i: i not in unseen)
        for i in order[: max(1, pairs // len(wishes))]:
            into[i].append(row)


def _priors(
    catalog: Catalog,
    known: Iterable[Judgment],
    asked: Sequence[set[int]],
    fresh: Collection[int],
    others: Sequence[Rows],
) -> Rows:
    """On the documents that all other labels were asked on: new ones, and what a limit left out earlier."""
    new = {catalog.labels[row].uid for row in fresh}
    train = {catalog.documents[i].uid: i for i in catalog.to_train}
    old = [judgment for judgment in known if judgment.doc_uid in train and judgment.label_uid not in new]
    rows = _empty(catalog)
    for uid in {judgment.doc_uid for judgment in context_of(old, len(catalog.labels) - len(new))}:
        i = train[uid]
        rows[i] = [row for row in range(len(catalog.labels)) if row not in asked[i]]
        for other in others:
            other[i] = [row for row in other[i] if row not in rows[i]]
    return rows


def _within_limit(catalog: Catalog, parts: Mapping[str, Rows], limit: int, explored: float) -> Selection:
    uids = [document.uid for document in catalog.documents]
    left, found, unasked = limit, {}, 0
    for why, share in (
        (PRIORS, _MOST_PRIORS),
        (NEW_LABELS, _MOST_LABELS),
        (DRIFTING, _MOST_LABELS),
        (NEW_DOCUMENTS, 1.0),
    ):
        rows = parts[why]
        wanted, allowed = sum(map(len, rows)), int(left * share)
        if wanted > allowed:
            order = in_hash_order(uids, (i for i in range(len(uids)) if rows[i]))
            rows = (
                _whole_labels(rows, allowed)
                if why == PRIORS
                else allocate(rows, order, allowed, explored if why == NEW_DOCUMENTS else 0.0).rows
            )
        found[why] = rows
        taken = sum(map(len, rows))
        unasked += wanted - taken
        left -= taken
    return Selection(found, unasked)


def _whole_labels(rows: Rows, pairs: int) -> Rows:
    """As many labels as `pairs` pay for, each on all documents that want it: else it has no prior."""
    wanting = Counter(label for row in rows for label in row)
    kept = set()
    for label, count in sorted(wanting.items()):
        if count <= pairs:
            kept.add(label)
            pairs -= count
    return [[label for label in row if label in kept] for row in rows]


def pair_rows(catalog: Catalog, parts: Mapping[str, Rows]) -> Iterator[dict[str, Any]]:
    """A selection as JSON lines: `{"why", "doc", "labels"}`, by uid."""
    for why, rows in parts.items():
        for document, row in zip(catalog.documents, rows, strict=True):
            if row:
                yield {"why": why, "doc": document.uid, "labels": [catalog.labels[i].uid for i in row]}


def read_pairs(catalog: Catalog, lines: Iterable[Mapping[str, Any]]) -> dict[str, Rows]:
    """What `pair_rows` wrote."""
    documents = {document.uid: i for i, document in enumerate(catalog.documents)}
    labels = {label.uid: row for row, label in enumerate(catalog.labels)}
    parts: dict[str, Rows] = {}
    for line in lines:
        rows = parts.setdefault(line["why"], _empty(catalog))
        rows[documents[line["doc"]]] = [labels[uid] for uid in line["labels"]]
    return parts
