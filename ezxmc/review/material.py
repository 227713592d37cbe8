"""What a run directory offers to people: its catalog, judgments, student, and labels found as they type."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ezxmc.calibration import JudgedRows, Platt
from ezxmc.config import RunConfig
from ezxmc.data import Catalog, RowReport
from ezxmc.data.catalog import labels_in
from ezxmc.errors import ConfigError, EzxmcError
from ezxmc.feedback.recall import newest_judgments
from ezxmc.feedback.reviews import FEWEST_REVIEWED, ReviewedPairs, Reviews
from ezxmc.feedback.targets import DocumentTargets, build_targets, context_of
from ezxmc.pipeline.snapshot import Snapshot
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document, Label
from ezxmc.review.exchange import ImportedReviews, import_reviews
from ezxmc.review.picks import (
    Floats,
    Ints,
    JudgedPairs,
    Pick,
    Reason,
    Suspects,
    choose,
    neighbour_votes,
    random_order,
    suspects,
)
from ezxmc.text import fold

if TYPE_CHECKING:
    from ezxmc.bundle.predict import Predictor


STORE, PAIRS = "feedback.sqlite", "review.jsonl"
"""In a run directory: the judgments and decisions, and the pairs to be decided on."""
_LEAST_SUPPORT = 1.0
"""Of likeness a vote must have; less says nothing."""
_BLOCK = 65_536
_WINDOW = 512  # documents encoded together

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Material:
    """A run, as far as review needs it.

    Attributes:
        config: Its configuration.
        catalog: Its documents and labels.
        path: Its directory.
        decided: What people decided so far.
    """

    config: RunConfig
    catalog: Catalog
    path: Path
    decided: ReviewedPairs

    @classmethod
    def load(cls, run_dir: Path, say: Callable[[str], None] = lambda text: None) -> Material:
        """Read a run directory.

        Args:
            run_dir: Made by `ezxmc run`; nothing in it is changed.
            say: Told how reading each file went.

        Raises:
            ConfigError: It is no run directory.
            DataError: Its inputs cannot be read.
        """
        store = run_dir / STORE
        if not store.exists():
            raise ConfigError(f"{run_dir} holds no {STORE}", "give the run_dir of an `ezxmc run`")
        config = RunConfig.load(run_dir / "config.yaml")
        places = Snapshot.places(run_dir)
        catalog = Catalog.load(config.data, config.training.held_out, config.seed, say, former=places)
        return cls(config, catalog, run_dir, ReviewedPairs.load(store, catalog.documents, catalog.labels))

    def take(self, source: Path, report: RowReport, *, reviewer: str | None = None) -> ImportedReviews:
        """`import_reviews` into the run's own store."""
        with Reviews(self.path / STORE) as reviews:
            documents, labels = self.catalog.documents, self.catalog.labels
            return import_reviews(reviews, source, report, documents, labels, reviewer=reviewer)

    def for_training(
        self,
        count: int,
        *,
        per_label: int,
        per_document: int,
        seed: int,
        progress: OnProgress = lambda done, total: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[Pick]:
        """Pairs of the training part that a decision is likely to change something about; as `choose`.

        Raises:
            BundleError: The run has no bundle yet.
            DataError: Hardly any judgment is about the documents as they are now.
            TrainingError: The teacher has judged too little.
        """
        # Only here is torch needed: who imports or shows pairs does not wait for it.
        from ezxmc.bundle.predict import Predictor

        predictor = Predictor.load(self.path / "bundle")
        rows = predictor.bundle.rows()
        documents = {document.uid: document for document in self._documents(self.catalog.to_train)}
        labels = {label.uid: label for label in self.catalog.labels if label.uid in rows}
        judged = [
            (documents[target.doc_uid], labels[uid], float(p))
            for target in self._targets(say)
            if target.doc_uid in documents
            for uid, p in zip(target.labels, target.probabilities, strict=True)
            if uid in labels
        ]
        number = {uid: i for i, uid in enumerate(dict.fromkeys(document.uid for document, _, _ in judged))}
        pairs = _scored(
            predictor,
            [documents[uid] for uid in number],
            np.array([number[document.uid] for document, _, _ in judged], dtype=np.int64),
            np.array([rows[label.uid] for _, label, _ in judged], dtype=np.int64),
            np.array([p for _, _, p in judged], dtype=np.float64),
            np.array(
                [(document.uid, label.uid) not in self.decided.answers for document, label, _ in judged]
            ),
            seed,
            progress,
        )
        found = choose(pairs, count, per_label=per_label, per_document=per_document, seed=seed)
        return [
            Pick(*judged[row][:2], reason, judged[row][2], float(pairs.student[row])) for row, reason in found
        ]

    def for_calibration(self, count: int, *, seed: int) -> list[Pick]:
        """What is undecided of the student's top labels, over random documents of the calibration part.

        Args:
            count: Documents, those decided on before included: a greater number continues a smaller one.
            seed: Of the order.

        Raises:
            BundleError: The run has no bundle yet.
        """
        from ezxmc.bundle.predict import Predictor, rank_among

        documents = random_order(self._documents(self.catalog.to_calibrate), seed)[:count]
        # As the calibrator will be fitted: in another precision, or with labels that people added, the
        # lists would differ in a label here and there.
        labels = {label.uid: label for label in self.catalog.labels}
        depth = self.config.inference.calibration_depth
        return [
            Pick(document, labels[uid], Reason.RANDOM)
            for document, found in zip(
                documents, rank_among(Predictor(self.path / "bundle"), documents, labels, depth), strict=True
            )
            for uid in found.labels
            if (document.uid, uid) not in self.decided.answers
        ]

    def missing(self, count: int) -> str:
        """In words, why `for_calibration` gives too few documents; empty if it gives enough."""
        apart = len(self.catalog.to_calibrate)
        if min(count, apart) >= FEWEST_REVIEWED:
            return ""
        cure = f"give --count {FEWEST_REVIEWED} or more"
        if apart < FEWEST_REVIEWED:
            cure = "raise training.held_out, or give `ezxmc calibrate --gold` documents that no run has seen"
        return (
            f"{min(count, apart):,} documents, of {apart:,} that no training sees: a run's probabilities "
            f"predict people's decisions from {FEWEST_REVIEWED} on; {cure}"
        )

    def _documents(self, positions: list[int]) -> list[Document]:
        return [self.catalog.documents[i] for i in positions]

    def _targets(self, say: Callable[[str], None]) -> list[DocumentTargets]:
        """What the newest teacher's judgments and people's decisions teach."""
        recalled = newest_judgments(self.path / STORE, self.catalog.documents, self.catalog.labels, say)
        apart = {document.uid for document in self._documents(self.catalog.to_calibrate)}
        judgments = [j for j in recalled.judgments if j.doc_uid not in apart]
        context = context_of(judgments, len(self.catalog.labels))
        verdicts = self.decided.verdicts_outside(apart)
        return build_targets(judgments, self.config.training, context, verdicts=verdicts).documents


def _scored(
    predictor: Predictor,
    documents: Sequence[Document],
    numbers: Ints,
    rows: Ints,
    teacher: Floats,
    undecided: NDArray[np.bool_],
    seed: int,
    progress: OnProgress,
) -> JudgedPairs:
    """What student and like documents say of P pairs.

    The student's scores are put on the teacher's scale by a logistic curve over all pairs: a bundle's own
    probabilities predict the raw share of "yes", whose zero point depends on the prompt's wording.

    Args:
        predictor: The student.
        documents: N documents.
        numbers: (P,) positions in `documents`.
        rows: (P,) rows of the bundle's index.
        teacher: (P,) probabilities.
        undecided: (P,) bool.
        seed: Of the voters drawn.
        progress: Called with (documents encoded, N).
    """
    parts = []
    for start in range(0, len(documents), _WINDOW):
        parts.append(predictor.encode(documents[start : start + _WINDOW]))
        progress(min(start + _WINDOW, len(documents)), len(documents))
    vectors = np.concatenate(parts)
    wanted, column = np.unique(rows, return_inverse=True)
    titles = predictor.bundle.index.vectors(wanted)
    scores = np.concatenate(
        [
            np.einsum(
                "pd,pd->p", vectors[numbers[start : start + _BLOCK]], titles[column[start : start + _BLOCK]]
            )
            for start in range(0, len(rows), _BLOCK)
        ]
    ).astype(np.float64)
    student = Platt.fit(JudgedRows.of(scores[:, None], teacher[:, None])).transform(scores)
    votes = neighbour_votes(numbers, rows, teacher, vectors, seed)
    wrong, margins = suspects(teacher >= 0.5, votes.shares)
    found = Suspects(wrong & (votes.support >= _LEAST_SUPPORT), margins)
    return JudgedPairs(numbers, rows, teacher, student, found, undecided)


def labels_to_add(run_dir: Path, say: Callable[[str], None]) -> list[Label] | None:
    """The labels of a run's catalog; `None` where the folder holds no run, or they cannot be read.

    Args:
        run_dir: The run's folder.
        say: Told why they cannot be read.
    """
    if not (run_dir / "config.yaml").exists():
        return None
    try:
        data = RunConfig.load(run_dir / "config.yaml").data
        return labels_in(data.labels, data.columns, strict=data.strict)[0]
    except EzxmcError as error:
        say(f"only labels of the pairs can be added: {error.message}")
        return None


def pick_pairs(
    run_dir: Path,
    purpose: Literal["training", "calibration"],
    count: int,
    *,
    per_label: int = 10,
    per_document: int = 3,
    seed: int = 0,
    watch: Progress | None = None,
) -> tuple[list[Pick], Material]:
    """Pairs of a run that are worth a person's minute; what is decided already is left out.

    Args:
        run_dir: The run's folder.
        purpose: Doubtful pairs to train on, whole random documents to calibrate on, or whole documents that
            teach ranks most.
        count: Pairs to train on, or documents.
        per_label: Pairs of one label at most, for training.
        per_document: Pairs of one document at most, for training.
        seed: Of the documents drawn, and between equal pairs.
        watch: Sees stages and messages.

    Raises:
        ConfigError, BundleError, DataError, TrainingError: As for `Material`.
    """
    watch = watch or NoProgress()
    material = Material.load(run_dir, watch.say)
    if purpose == "calibration":
        picks = material.for_calibration(count, seed=seed)
        if line := material.missing(count):
            watch.say(line)
        return picks, material
    bar = watch.stage("student reads the documents")
    limits = {"per_label": per_label, "per_document": per_document, "seed": seed}
    return material.for_training(count, **limits, progress=bar, say=watch.say), material


_MOST_PLACES = 5_000
"""Looked at for each way to fit: "a" is in most of a million labels."""
_MOST_LETTERS = 500
_EXACT, _BEGINS, _WORD, _INSIDE, _ALL_WORDS = range(5)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> bytes:
    """A text without case and accents; of nothing but accents, with them.

    Bytes, for one emoji would make each letter of a long `str` four bytes wide.
    """
    return (_plain(fold(text)) or _plain(text)).encode("utf-8", "replace")


class LabelSearch:
    """Labels whose title or an alias holds what somebody types.

    All names lie in one text, a line each: 30 megabytes for a million labels, in which a substring is found
    in milliseconds.

    Args:
        labels: N labels.

    Example:
        >>> found = LabelSearch([Label("g", "Guitar"), Label("m", "Café music", aliases=("songs",))])
        >>> [label.uid for label in found("cafe")], [label.uid for label in found("SONG")]
        (['m'], ['m'])
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        names = [[_folded(name) for name in (label.title, *label.aliases)] for label in labels]
        flat = list(chain.from_iterable(names))
        self._text = b"\n" + b"\n".join([*flat, b""])
        # Where each of M names begins in it, and the end, (M + 1,); whose name it is, (M,).
        self._begins = np.cumsum([1, *(len(name) + 1 for name in flat)], dtype=np.int64)
        self._owners = np.repeat(np.arange(len(names)), [len(of_one) for of_one in names])

    def __call__(self, typed: str, most: int = 20) -> list[Label]:
        """The labels that fit, the best first.

        A label of this very title is the first; then come those with such a name but for case and accents,
        a name or a word that begins so, a name that holds it, a name that holds all its words in any order.
        Among equals, titles come before aliases and short names before long ones; of more than 5,000 places
        that fit in one of these ways, the first are looked at.

        Args:
            typed: Any text; what is beyond 500 letters is not looked at.
            most: Labels at most.
        """
        given = _plain(typed[:_MOST_LETTERS])
        if not (wanted := _folded(given)):
            return []
        begins, owners = self._begins, self._owners
        found: dict[int, tuple[bool, int, bool, int]] = {}
        for how, row in self._fitting(wanted, most):
            owner = int(owners[row])
            alias = row > 0 and owners[row - 1] == owner
            other = how != _EXACT or _plain(self._labels[owner].title) != given
            rank = other, how, bool(alias), int(begins[row + 1] - begins[row])
            found[owner] = min(rank, found.get(owner, rank))
        return [self._labels[one] for one in heapq.nsmallest(most, found, key=lambda one: (found[one], one))]

    def _fitting(self, wanted: bytes, most: int) -> Iterator[tuple[int, int]]:
        """How names fit, and which; no weaker way is tried once enough labels fit."""
        text, begins, owners = self._text, self._begins, self._owners
        enough: set[int] = set()
        for how, needle, ahead in ((_EXACT, b"\n%b\n", 1), (_BEGINS, b"\n%b", 1), (_INSIDE, b"%b", 0)):
            places, rows = self._places(needle % wanted, ahead)
            for place, row in zip(places, rows, strict=True):
                # A letter of several bytes is taken for one of a word.
                inside = text[place - 1] >= 128 or text[place - 1 : place].isalnum()
                yield _WORD if how == _INSIDE and not inside else how, row
            enough.update(owners[rows].tolist())
            if len(enough) >= most:
                return
        if len(words := set(wanted.split())) > 1:
            for row in self._places(max(words, key=len), 0)[1]:
                name = text[begins[row] : begins[row + 1]]
                if all(word in name for word in words):
                    yield _ALL_WORDS, row

    def _places(self, needle: bytes, ahead: int) -> tuple[list[int], list[int]]:
        """Where a needle is, `ahead` bytes on, and in which names."""

        def places() -> Iterator[int]:
            place = self._text.find(needle)
            while place >= 0:
                yield place + ahead
                place = self._text.find(needle, place + 1)

        found = list(islice(places(), _MOST_PLACES))
        rows: list[int] = (np.searchsorted(self._begins, found, side="right") - 1).tolist()
        return found, rows
