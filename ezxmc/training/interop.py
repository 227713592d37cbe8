"""For others: judgments and losses for sentence-transformers' own trainer, and a card for the hub.

The student's card is a README.md with the hub's front matter, from what a training round knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor, nn

from ezxmc.config import TrainingConfig
from ezxmc.data.in_memory import as_documents, as_labels
from ezxmc.errors import ArgumentError
from ezxmc.feedback.targets import Targets
from ezxmc.models import published_as
from ezxmc.records import Document, Label
from ezxmc.training.dataset import Example, collate, examples
from ezxmc.training.launch import Job, TrainSummary
from ezxmc.training.losses import DEFAULT_LOSSES, Scored, combined
from ezxmc.training.step import Schedule, matryoshka_loss, without_likely_positives


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
        columns = self.model(
            {n: part.to(rows.device) if isinstance(part, Tensor) else part for n, part in titles.items()}
        )
        return matryoshka_loss(self._cost, rows, columns["sentence_embedding"], batch, self.dimensions)

    def _cost(self, scores: Scored) -> Tensor:
        cost: Tensor = self.loss(without_likely_positives(scores))
        return cost


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


_TEACHER = ("model", "backend", "prompt", "engine")
# A folder of this machine, or the address of a server.
_PRIVATE = re.compile(r"^[/~.]|://|\\")

# sentence-transformers puts the repository's name into the line that begins with "model =" when it is pushed.
_BODY = """
# A bi-encoder that tags documents

Documents and the titles of labels are embedded in one space; the cosine of the two ranks the labels of a
document. ezxmc distilled it from judgments of (document, label) pairs; it is a plain
[sentence-transformers](https://www.sbert.net) model.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("sentence_transformers_model_id")
documents = model.encode(["Title of a document\\nand its text."])
labels = model.encode(["title of a label", "title of another"])
cosines = model.similarity(documents, labels)
```

## Training

{training}

## Evaluation

{evaluation}

## Licence

{licence}
The texts that were judged and the terms of whoever judged them may set further limits.
"""


def model_card(
    job: Job, plan: Schedule, summary: TrainSummary, agreement: float | None, base_card: str | None
) -> str:
    """The card of the student that a training round made; nothing in it tells of this machine or of a text.

    Args:
        job: What was asked for.
        plan: How long and how fast it was trained.
        summary: What came of it.
        agreement: With the teacher on the held-out documents, of the weights that are saved.
        base_card: Of the weights that training started from, for their licence.

    Returns:
        Markdown with the front matter of a model on the hub.
    """
    base, licence = published_as(job.config.encoder)
    if licence is None and base_card:
        said = ModelCard(base_card, ignore_metadata_errors=True).data.get("license")
        licence = said if isinstance(said, str) else None
    results = []
    evaluation = "None: no judged document was held out."
    if agreement is not None:
        results = [
            EvalResult(
                task_type="text-ranking",
                dataset_type="held-out",
                dataset_name="held-out documents, labels judged by the teacher",
                metric_type="ndcg_at_5",
                metric_name="nDCG@5, agreement with the teacher",
                metric_value=round(agreement, 4),
            )
        ]
        evaluation = (
            f"nDCG@5 of its order of the judged labels on {summary.held_out:,} documents that it was not "
            f"trained on, the gain being the teacher's probability: {agreement:.3f}; of the encoder "
            f"before training: {summary.selection[0]:.3f}. It is agreement with the teacher, not with people."
        )
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "ezxmc", "distillation"],
        license=licence.lower() if licence else "unknown",
        base_model=base,
        model_name="ezxmc student" if results else None,
        eval_results=results or None,
    )
    told = licence or "not known"
    body = _BODY.format(
        training=_table(_facts(job, plan, summary, base)),
        evaluation=evaluation,
        licence=f"Licence of the weights that training started from: {told}.",
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def told_of_teacher(description: Mapping[str, Any]) -> str:
    """What a card says of a teacher: model, backend, prompt and engine; no path, no address.

    Example:
        >>> told_of_teacher({"backend": "openai", "model": "/models/mine", "prompt": "generic/3"})
        'backend openai, prompt generic/3'
    """
    told = ((name, str(description[name])) for name in _TEACHER if description.get(name))
    return ", ".join(f"{name} {value}" for name, value in told if not _PRIVATE.search(value))


def _facts(job: Job, plan: Schedule, summary: TrainSummary, base: str | None) -> Iterable[tuple[str, str]]:
    config = job.config
    yield "started from", base or "weights that are not on the hub"
    yield "teacher", job.card.get("teacher") or "not told"
    yield "judgments", f"{job.card['judgments']:,}" if "judgments" in job.card else "not told"
    yield "documents", f"{summary.documents:,} trained on, {summary.held_out:,} held out"
    yield "labels", f"{len(job.titles):,}, of which {summary.labels_seen:,} occur in the judgments"
    losses = config.losses or DEFAULT_LOSSES
    yield "loss", " + ".join(f"{weight:g} {name}" for name, weight in losses.items())
    yield "negatives", {"all": "every label"}.get(config.negatives, "of the batch, and judged ones")
    others = "the initial ones and a former student's" if job.former else "the initial ones"
    averaged = f", then averaged with {others}" if config.average else ""
    yield "epochs", f"{plan.epochs}, the weights kept are those after {summary.best_epoch}{averaged}"
    yield "batch and rate", f"{plan.batch_size} documents, peak {plan.learning_rate:g}"
    if plan.large:
        yield "weights", "additions of low rank to all linear layers (LoRA) were trained and merged"
    yield "tokens read", f"{config.max_length}"
    libraries = ("ezxmc", "sentence-transformers", "torch")
    yield "versions", ", ".join(f"{name} {version(name)}" for name in libraries)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"| {name} | {value.replace('|', ' ')} |" for name, value in rows)
    return "\n".join(["| | |", "|---|---|", *cells])
