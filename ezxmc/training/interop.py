"""Judgments and losses for sentence-transformers' own trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ezxmc.config import TrainingConfig
from ezxmc.data.in_memory import as_documents, as_labels
from ezxmc.errors import ArgumentError
from ezxmc.feedback.targets import Targets
from ezxmc.records import Document, Label
from ezxmc.training.dataset import Example, collate, examples
from ezxmc.training.losses import DEFAULT_LOSSES, Scored, combined
from ezxmc.training.step import matryoshka_loss, without_likely_positives


def targets_dataset(
    documents: Iterable[Any],
    labels: Iterable[Any],
    targets: Targets,
    form: Literal["pairs", "triplets", "documents"] = "pairs",
) -> Any:
    """Targets as a `datasets.Dataset` for `SentenceTransformerTrainer`.

    Args:
        documents: Documents, as `train_bi_encoder` takes them; those without targets are left out.
        labels: All labels, or their titles.
        targets: Of the documents.
        form: `pairs`: columns `document`, `title`, `score` (the probability), a row for each judged pair,
            as CoSENTLoss, AnglELoss and CosineSimilarityLoss take them. `triplets`: `anchor`, `positive`,
            `negative`, as MultipleNegativesRankingLoss and TripletLoss take them: each positive with one
            of its document's negatives in turn, the least probable first; documents without either are
            left out. `documents`: `document`, `label`, a row for each document with a positive, as
            `DistillationLoss` takes it.

    Raises:
        ArgumentError: There is no such form.

    Example:
        >>> from ezxmc import targets_from_rows
        >>> documents, labels = ["A song for guitar"], ["music", "food"]
        >>> rows = [(0, "music", 1.0), (0, "food", 0.0)]
        >>> targets = targets_from_rows(rows, documents, labels, TrainingConfig())
        >>> targets_dataset(documents, labels, targets)[0]
        {'document': 'A song for guitar', 'title': 'music', 'score': 1.0}
    """
    from datasets import Dataset

    forms: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
        "pairs": _pairs,
        "triplets": _triplets,
        "documents": _documents,
    }
    if form not in forms:
        raise ArgumentError(f"the form is {form!r}", f"choose of {', '.join(forms)}")
    documents, labels = as_documents(documents), as_labels(labels)
    return Dataset.from_list(list(forms[form](documents, labels, examples(documents, labels, targets))))


class DistillationLoss(nn.Module):
    """Any of `ezxmc.training.losses`, or a sum of them, as a loss of sentence-transformers.

    A batch is what `train_bi_encoder` makes of the same documents: the labels that were judged and the
    other documents' positives are encoded once each, and who is a negative of whom is read from the
    judgments. So the data set names documents alone, and the judgments are kept here. Titles get the
    model's default prompt, if it has one; the trainer puts none before the documents unless told `prompts`.

    Args:
        model: The SentenceTransformer to train.
        documents: As given to `targets_dataset`.
        labels: All labels, or their titles.
        targets: Of the documents.
        config: Losses, temperature, negatives and Matryoshka prefixes; all else is the trainer's.
        seed: Seed of the positives drawn.

    Raises:
        ConfigError: A loss is unknown.

    Example:
        >>> from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
        >>> from ezxmc import targets_from_rows
        >>> documents, labels = ["A song for guitar"], ["music", "food"]
        >>> rows = [(0, "music", 1.0), (0, "food", 0.0)]
        >>> targets = targets_from_rows(rows, documents, labels, TrainingConfig())
        >>> model = SentenceTransformer("encoder")
        >>> loss = DistillationLoss(model, documents, labels, targets)
        >>> data = targets_dataset(documents, labels, targets, "documents")
        >>> trainer = SentenceTransformerTrainer(model, train_dataset=data, loss=loss)
    """

    def __init__(
        self,
        model: Any,
        documents: Iterable[Any],
        labels: Iterable[Any],
        targets: Targets,
        config: TrainingConfig | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config, labels = config or TrainingConfig(), as_labels(labels)
        self.model = model
        self.titles = [label.title for label in labels]
        self.pool = examples(as_documents(documents), labels, targets)
        self.prompt = model.prompts.get(model.default_prompt_name) or None
        self.loss = combined(config.losses or DEFAULT_LOSSES, config.temperature)
        self.dimensions = [*config.matryoshka, int(model.get_embedding_dimension())]
        self.every_label = config.negatives == "all"
        self.rng = np.random.default_rng(seed)

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Scalar loss of a batch.

        Args:
            sentence_features: The tokenised documents, in one column.
            labels: (B,) which of the documents with targets they are.
        """
        members = [self.pool[row] for row in labels.tolist()]
        batch = collate(members, len(self.titles), self.every_label, self.rng)
        rows = self.model(sentence_features[0])["sentence_embedding"]
        titles = self.model.preprocess([self.titles[row] for row in batch.labels], prompt=self.prompt)
        columns = self.model({name: _on(rows.device, value) for name, value in titles.items()})
        return matryoshka_loss(self._cost, rows, columns["sentence_embedding"], batch, self.dimensions)

    def _cost(self, scores: Scored) -> Tensor:
        cost: Tensor = self.loss(without_likely_positives(scores))
        return cost


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _pairs(
    documents: Sequence[Document], labels: Sequence[Label], pool: Sequence[Example]
) -> Iterator[dict[str, Any]]:
    for example in pool:
        for row, probability in zip(example.labels.tolist(), example.probabilities.tolist(), strict=True):
            text, title = documents[example.document].shown, labels[row].title
            yield {"document": text, "title": title, "score": probability}


def _triplets(
    documents: Sequence[Document], labels: Sequence[Label], pool: Sequence[Example]
) -> Iterator[dict[str, Any]]:
    for example in pool:
        titles = [labels[row].title for row in example.labels.tolist()]
        worst = titles[::-1][: example.negatives]
        for place, title in enumerate(titles[: example.positives] if worst else ()):
            negative = worst[place % len(worst)]
            yield {"anchor": documents[example.document].shown, "positive": title, "negative": negative}


def _documents(
    documents: Sequence[Document], labels: Sequence[Label], pool: Sequence[Example]
) -> Iterator[dict[str, Any]]:
    for place, example in enumerate(pool):
        if example.positives:
            yield {"document": documents[example.document].shown, "label": place}
