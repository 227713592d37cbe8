"""The student's model card: a README.md with the hub's front matter, from what a training round knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ezxmc.models import published_as
from ezxmc.training.launch import Job, TrainSummary
from ezxmc.training.losses import DEFAULT_LOSSES
from ezxmc.training.step import Schedule

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
