"""Tagging without the LLM: text → student → label index → calibrator → tags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ezxmc.bundle import Bundle, load_bundle
from ezxmc.errors import ConfigError
from ezxmc.records import Document, Prediction

_BATCH = 64


class Predictor:
    """Tags documents with a bundle.

    Args:
        bundle: An opened bundle, or its folder.

    Raises:
        BundleError: The folder is no intact bundle.

    Example:
        >>> predictor = Predictor("run/bundle")  # doctest: +SKIP
        >>> predictor.predict([Document("1", "", "A fast JSON parser")])  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle | str | Path) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)

    def predict(
        self, documents: Sequence[Document], *, k: int | None = None, threshold: float | None = None
    ) -> list[Prediction]:
        """Rank labels for each document.

        Args:
            documents: N documents.
            k: At most this many labels each; the bundle's own default if None.
            threshold: Leave out labels less probable than this: a document
                whose every label is left out gets none (abstention).

        Returns:
            N predictions in the order of `documents`, best label first.

        Raises:
            ConfigError: A threshold was given but the bundle has no calibrator.
        """
        if threshold is not None and self.bundle.calibrator is None:
            raise ConfigError(
                f"a threshold needs probabilities, and bundle {self.bundle.path} has no calibrator",
                "run `ezxmc calibrate` on it, or drop the threshold",
            )
        if not documents:
            return []
        vectors = self.bundle.encoder.encode_documents([document.shown for document in documents])
        scores, rows = self.bundle.index.search(vectors, k or self.bundle.manifest.k)
        probabilities = self.bundle.calibrator.transform(scores) if self.bundle.calibrator else None
        predictions = []
        for position, document in enumerate(documents):
            chosen = np.arange(rows.shape[1])
            if probabilities is not None and threshold is not None:
                chosen = chosen[probabilities[position] >= threshold]
            labels = [self.bundle.labels[row] for row in rows[position, chosen]]
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

    def stream(
        self, documents: Iterable[Document], *, k: int | None = None, threshold: float | None = None
    ) -> Iterator[Prediction]:
        """`predict` over any number of documents in bounded memory, in their order."""
        waiting = iter(documents)
        while batch := list(islice(waiting, _BATCH)):
            yield from self.predict(batch, k=k, threshold=threshold)


def prediction_row(prediction: Prediction, k: int | None = None) -> dict[str, Any]:
    """A prediction as a JSON line: `{"uid", "tags": [{"label", "title", "score", "probability"}]}`.

    Args:
        prediction: Any prediction.
        k: Keep the best k only.
    """
    probabilities = prediction.probabilities or (None,) * len(prediction.labels)
    columns = zip(prediction.labels, prediction.titles, prediction.scores, probabilities, strict=True)
    return {
        "uid": prediction.uid,
        "tags": [
            {
                "label": label,
                "title": title,
                "score": round(score, 4),
                "probability": None if probability is None else round(probability, 4),
            }
            for label, title, score, probability in islice(columns, k)
        ],
    }
