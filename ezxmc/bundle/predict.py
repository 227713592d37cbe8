"""Tagging without the LLM: text → student → label index → calibrator → decision → tags.

And why: the part of a text that speaks for a label is the one without which the label's score falls most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.ancestry import Ancestry, bring_ancestors
from ezxmc.bundle.bundle import Bundle, load_bundle
from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend, Precision
from ezxmc.data.in_memory import as_documents, iter_as_documents
from ezxmc.data.predictions import WINDOW
from ezxmc.errors import ConfigError, DataError, instance_of, number_between, whole_number
from ezxmc.records import Document, Prediction

MOST_PARTS = 15
"""Parts of a text at most: each is one more text to encode."""
_LEAST = 0.005  # of the score: an encoder in bfloat16 answers the same text that much apart
_LEVELS = (
    # Sentences and paragraphs; else clauses; else words.
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n\s*\n\s*"),
    re.compile(r"(?<=[,;:–—])\s+|(?<=[，；：、])"),
    re.compile(r"\s+"),
)


@dataclass(frozen=True, slots=True)
class Occluded:
    """A part of a text, and the text without it."""

    part: str
    rest: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What in a document speaks for a label.

    Attributes:
        text: The sentence; of a single sentence the clause or the words.
        drop: How much lower the label's score is without it.
    """

    text: str
    drop: float


class How(TypedDict, total=False):
    """Which tags a document gets: see `Predictor.predict`."""

    k: int | None
    threshold: float | None
    decision: Decision | None
    leaves: bool
    with_ancestors: bool


class Predictor:
    """Tags documents with a bundle.

    Args:
        bundle: An opened bundle, or its folder: then the encoder computes in float32, as it did when its
            calibrator was fitted.

    Raises:
        BundleError: The folder is no intact bundle.

    Example:
        >>> predictor = Predictor.load("run/bundle")
        >>> (found,) = predictor.predict(["A song for guitar"], k=3)
        >>> len(found.tags)
        3
    """

    def __init__(self, bundle: Bundle | str | Path) -> None:
        cure = "give a bundle's folder, such as 'runs/default/bundle'"
        instance_of(bundle, (Bundle, str, PathLike), "bundle", cure)
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.ancestry = self.bundle.paths or Ancestry.of(self.bundle.labels, self.bundle.index.rows)
        """Which label is above which; `None` where labels are flat, or shall be taken so."""
        self._row_of: dict[str, int] = {}

    @classmethod
    def load(
        cls, path: str | Path, *, backend: Backend = "torch", precision: Precision = "auto"
    ) -> Predictor:
        """Open a bundle folder, with the encoder as fast as this machine allows.

        Args:
            path: The folder.
            backend: What runs the encoder.
            precision: What it computes in; scores differ a little from one to another.

        Raises:
            BundleError: The folder is no intact bundle.
            ConfigError: Backend and precision do not go together.
            ModelError: The backend is not installed, or the bundle has nothing exported for it.
        """
        instance_of(path, (str, PathLike), "path", "give a bundle's folder, such as 'runs/default/bundle'")
        return cls(load_bundle(path, backend=backend, precision=precision))

    def predict(
        self,
        documents: Iterable[Any],
        *,
        k: int | None = None,
        threshold: float | None = None,
        decision: Decision | None = None,
        leaves: bool = False,
        with_ancestors: bool = False,
    ) -> list[Prediction]:
        """Rank labels for each document.

        Args:
            documents: N documents: texts, dicts with the columns of a file, `Document`s, a column or a table
                of pandas, polars, Arrow or `datasets`. What has no uid gets its position, "0" the first.
            k: At most this many labels each, 1 or more; the bundle's own default if None.
            threshold: Leave out labels less probable than this, in [0, 1]: a document whose every label is
                left out gets none (abstention).
            decision: Keep what this rule keeps, instead of `k` and `threshold`: they would void what it
                guarantees. The bundle's own, where it has one, is `self.bundle.decision`.
            leaves: Of labels in a hierarchy keep the most specific: those below which none is kept.
            with_ancestors: Let a label that is kept bring all labels above it, with their probabilities.
                Neither does anything where labels are flat.

        Where labels form a hierarchy, none is less probable than one below it that is shown, too: it is
        raised to that. A decision looks at the calibrator's own probabilities, which it was proved on.

        Returns:
            N predictions in the order of `documents`, best label first.

        Raises:
            ConfigError: Probabilities are needed but the bundle has no calibrator, the decision looks at
                more labels than there are, a decision was given together with one of the other choices, or
                these contradict each other or are out of range.
            InputTypeError: `documents` is one text, or holds what is no document (None and NaN, say).
            DataError: A document has neither title nor text, or half characters or NUL.
        """
        how: How = {"k": k, "threshold": threshold, "decision": decision}
        how |= {"leaves": leaves, "with_ancestors": with_ancestors}
        self.check(**how)
        return list(self.stream(as_documents(documents), **how))

    def stream(self, documents: Iterable[Any], **how: Unpack[How]) -> Iterator[Prediction]:
        """`predict` over any number of documents, in their order, in the memory of `WINDOW` of them.

        Raises as `predict`, once it comes to the document at fault.
        """
        self.check(**how)
        waiting = iter_as_documents(documents)
        while window := list(islice(waiting, WINDOW)):
            yield from self.tag(window, self.encode(window), **how)

    def check(self, **how: Unpack[How]) -> None:
        """Raise where `predict` would, whatever the documents."""
        k, threshold, decision = how.get("k"), how.get("threshold"), how.get("decision")
        leaves, with_ancestors = how.get("leaves"), how.get("with_ancestors")
        if k is not None:
            whole_number(k, "k")
        if threshold is not None:
            number_between(threshold, "threshold", 0, 1)
        if decision is not None:
            cure = "give an ezxmc.calibration.decisions.Decision, such as predictor.bundle.decision"
            instance_of(decision, Decision, "decision", cure)
        if decision is not None and (k is not None or threshold is not None or leaves or with_ancestors):
            raise ConfigError(
                "a decision chooses how many tags a document gets",
                "drop k and the threshold (leaves and ancestors, too), or the decision",
            )
        if leaves and with_ancestors:
            raise ConfigError(
                "tags are kept without the labels above them, or with them", "give one of the two"
            )
        if self.bundle.calibrator is None and (threshold is not None or decision is not None):
            raise ConfigError(
                f"a {'threshold' if decision is None else 'decision'} needs probabilities, "
                f"and bundle {self.bundle.path} has no calibrator",
                "run `ezxmc calibrate` on it, or ask for the k best",
            )

    def encode(self, documents: Iterable[Any]) -> NDArray[np.float32]:
        """Embed N documents: (N, D) float32 of unit length, in their order."""
        return self.bundle.encoder.encode_documents([document.shown for document in as_documents(documents)])

    def tag(
        self, documents: Iterable[Any], vectors: NDArray[np.float32], **how: Unpack[How]
    ) -> list[Prediction]:
        """`predict` for documents that are encoded: N of them and their (N, D) vectors."""
        self.check(**how)
        k, threshold, decision = how.get("k"), how.get("threshold"), how.get("decision")
        documents = as_documents(documents)
        if len(vectors) != len(documents):
            raise DataError(f"{len(documents)} documents have {len(vectors)} vectors", "encode just these")
        depth = decision.depth if decision else self.bundle.manifest.k if k is None else int(k)
        # Labels above others would only take the places of leaves.
        bundle = replace(self.bundle, paths=None) if how.get("leaves") else self.bundle
        scores, rows = bundle.search(vectors, depth)
        kept, probabilities = None, None
        if self.bundle.calibrator is not None:
            probabilities = self.bundle.calibrator.transform(scores)
            if decision is not None:
                kept = decision.keep(probabilities)
            if self.ancestry:
                probabilities = self.ancestry.raised(rows, probabilities)
            if threshold is not None:
                kept = probabilities >= threshold
        if self.ancestry and (how.get("leaves") or how.get("with_ancestors")):
            kept = np.ones(rows.shape, dtype=np.bool_) if kept is None else kept
            if how.get("leaves"):
                kept = self.ancestry.leaves(rows, kept)
            else:
                found = self.bundle, self.ancestry, vectors, scores, rows, kept
                scores, rows, probabilities, kept = bring_ancestors(*found)
        return predictions_of(self.bundle, documents, scores, rows, probabilities, kept)

    def explain(self, document: Any, *, k: int | None = None) -> tuple[Prediction, list[Evidence | None]]:
        """Tag one document, and say what in it speaks for each tag.

        That is the sentence without which the tag's score falls most; in a single sentence, the clause or
        the words. It tells what the student looked at, not whether the tag is right.

        Args:
            document: As one of those `predict` takes.
            k: As there.

        Returns:
            The prediction, and the evidence for each of its labels, in their order; `None` where no part
            alone matters.

        Raises:
            As `predict`.

        Example:
            >>> found, why = Predictor.load("run/bundle").explain("A fast parser. It reads JSON.", k=1)
            >>> len(why)
            1
        """
        self.check(k=k)
        (whole,) = as_documents([document])
        parts = self.occlusions(whole)
        vectors = self.encode([whole, *(Document(whole.uid, "", part.rest) for part in parts)])
        (prediction,) = self.tag([whole], vectors[:1], k=k)
        return prediction, self.evidence(prediction, parts, vectors[1:])

    def occlusions(self, document: Document) -> list[Occluded]:
        """What the encoder reads of a document, without one of its parts each; the title is a part."""
        return occlusions(self.bundle.encoder.read_of(document.shown), document.title.strip())

    def evidence(
        self, prediction: Prediction, parts: Sequence[Occluded], vectors: NDArray[np.float32]
    ) -> list[Evidence | None]:
        """What speaks for each label of a prediction: `explain` for a document that is taken apart.

        Args:
            prediction: Of the whole document.
            parts: N of it, see `occlusions`.
            vectors: (N, D): of the document without each of them.
        """
        self._row_of = self._row_of or self.bundle.rows()
        rows = np.array([self._row_of[uid] for uid in prediction.labels], dtype=np.int64)
        return strongest(np.array(prediction.scores), self.bundle.scores(vectors, rows), parts)


def predictions_of(
    bundle: Bundle,
    documents: Sequence[Document],
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    probabilities: NDArray[np.float64] | None = None,
    kept: NDArray[np.bool_] | None = None,
) -> list[Prediction]:
    """What was found for N documents, as predictions.

    Args:
        bundle: Whose labels these are.
        documents: The documents.
        scores: (N, K), best first.
        rows: (N, K) index rows.
        probabilities: (N, K), if there are any.
        kept: (N, K), which of them count; all by default.
    """
    kept = np.ones(rows.shape, dtype=np.bool_) if kept is None else kept
    predictions = []
    for position, document in enumerate(documents):
        chosen = kept[position].nonzero()[0]
        labels = [bundle.labels[row] for row in rows[position, chosen]]
        predictions.append(
            Prediction(
                document.uid,
                tuple(label.uid for label in labels),
                tuple(label.title for label in labels),
                tuple(map(float, scores[position, chosen])),
                tuple(map(float, probabilities[position, chosen])) if probabilities is not None else (),
            )
        )
    return predictions


def rounded(probability: float) -> float:
    """To four digits of what is rarer, the event or its absence: never to a certainty that is not there.

    Example:
        >>> rounded(0.734159), rounded(0.99999213), rounded(0.0000214983)
        (0.7342, 0.99999213, 2.15e-05)
    """
    rarer = min(probability, 1 - probability)
    return round(probability, 4 + max(0, -math.floor(math.log10(rarer)) - 1)) if rarer > 0 else probability


def rank_among(
    predictor: Predictor, documents: Sequence[Document], labels: Collection[str], depth: int
) -> list[Prediction]:
    """The best `depth` of some labels for each document, without probabilities.

    Args:
        predictor: A bundle that knows these labels and may know others.
        documents: N documents.
        labels: Uids that count; fewer than `depth` give shorter rankings.
        depth: Labels wanted.
    """
    vectors, size, k = predictor.encode(documents), predictor.bundle.index.size, depth
    while True:
        # Others may stand before them: look deeper until enough are found.
        tagged = predictor.tag(documents, vectors, k=min(k, size))
        found = [replace(p.only(labels, depth), probabilities=()) for p in tagged]
        if k >= size or all(len(one.labels) == depth for one in found):
            return found
        k *= 2


def prediction_row(prediction: Prediction, k: int | None = None) -> dict[str, Any]:
    """A prediction as a JSON line: `{"uid", "tags": [{"label", "title", "score", "probability"}]}`.

    Args:
        prediction: Any prediction.
        k: Keep the best k only.
    """
    row = prediction.to_dict()
    row["tags"] = row["tags"][:k]
    for tag in row["tags"]:
        tag["score"] = round(tag["score"], 4)
        tag["probability"] = None if tag["probability"] is None else rounded(tag["probability"])
    return row


def occlusions(text: str, heading: str = "") -> list[Occluded]:
    """A text taken apart into sentences, or clauses, or words, and without each of them.

    Args:
        text: Any text.
        heading: What it begins with that is a part by itself, such as a title.

    Returns:
        At most `MOST_PARTS`, neighbours taken together where there were more; none where the text is one
        word.
    """
    begin = len(heading) if text.startswith(heading) and text[len(heading) :].strip() else 0
    spans: list[tuple[int, int]] = []
    for level in _LEVELS:
        cuts = [
            (begin, begin),
            *(found.span() for found in level.finditer(text, begin)),
            (len(text), len(text)),
        ]
        spans = [(0, begin), *((end, start) for (_, end), (start, _) in pairwise(cuts))]
        spans = [(start, end) for start, end in spans if text[start:end].strip()]
        if len(spans) > 1:
            break
    size = -(-len(spans) // MOST_PARTS)
    together = [spans[first : first + size] for first in range(0, len(spans), size or 1)]
    found = [
        Occluded(text[some[0][0] : some[-1][1]].strip(), text[: some[0][0]] + text[some[-1][1] :])
        for some in together
    ]
    return [one for one in found if one.rest.strip()]


def strongest(
    scores: NDArray[np.floating], without: NDArray[np.floating], parts: Sequence[Occluded]
) -> list[Evidence | None]:
    """The strongest part for each label; `None` where no part alone matters.

    Args:
        scores: (K,) of the labels with the whole text.
        without: (N, K) with each part left out.
        parts: The N parts.
    """
    if not len(parts):
        return [None] * len(scores)
    drops = scores - without
    return [
        Evidence(parts[best].part, float(drop)) if (drop := drops[best, label]) >= _LEAST else None
        for label, best in enumerate(drops.argmax(axis=0).tolist())
    ]
