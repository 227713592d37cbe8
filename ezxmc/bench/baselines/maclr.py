"""MACLR without labels: titles find their contents, then the encoder teaches itself.

Xiong et al., arXiv 2112.08652 (NAACL 2022), after its published code
(github.com/amzn/pecos, examples/MACLR). Stage I: pairs of a document's title
and its content, from whose sentences the title is struck out nine times of ten;
documents of one K-means cluster are each other's positives, with K growing over
the first half of the steps and each document on its own in the second
(multi-scale adaptive clustering); a second loss tells a content from real label
titles, its second encoding under other dropout being the positive (label
regularization). Stage II: pairs of a document and its best label, by TF-IDF and
by the encoder of stage I where that is confident; in-batch softmax.

Not as published: the common initial encoder, hence cosines and a temperature
(0.05) instead of dot products; K keeps its ratio to the number of documents
(294,805 in LF-Amazon-131K); "confident" is above the median instead of a dot
product above 36; a pair both sources name counts once; the same label drawn
twice in a batch is not its own negative; one pass of each stage instead of
100,000 steps of 128 pairs. A document without a title takes its first sentence
for one; documents of a single sentence take no part in stage I.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezxmc.bench.baselines.contrastive import Batch, Embed, batch_count, fit, info_nce, shuffled
from ezxmc.bench.baselines.lexical import tfidf_rows
from ezxmc.bench.baselines.task import Method, Ranking, Task
from ezxmc.records import Document
from ezxmc.retrieval import BiEncoder, LabelIndex

_TEMPERATURE = 0.05
_BATCH, _RATE, _WARM_UP = 48, 1e-5, 0.1
_KEEP_TITLE = 0.1
_LABELS_PER_PAIR = 0.25  # batches of 4 labels beside batches of 16 pairs
_CLUSTERS = [clusters / 294_805 for clusters in (2_500, 5_000, 10_000, 20_000, 40_000)]
_PHASES = 2 * len(_CLUSTERS)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")

_TitleBatch = tuple[list[str], list[str], NDArray[np.int64], list[str]]
_LabelBatch = tuple[list[str], list[int], Tensor]


def _maclr(task: Task, seed: int) -> Ranking:
    rng = np.random.default_rng(seed)
    encoder = task.encoder()
    _stage_one(task, encoder, rng, seed)
    _stage_two(task, encoder, rng, seed)
    return task.ranked_by(encoder)


def _stage_one(task: Task, encoder: BiEncoder, rng: np.random.Generator, seed: int) -> None:
    pool = [pair for document in task.rest if (pair := title_and_sentences(document))]
    if len(pool) < 2:
        return
    steps = batch_count(len(pool), _BATCH)

    def batches() -> Iterator[_TitleBatch]:
        reached, clusters = -1, np.arange(len(pool))
        for step, rows in enumerate(shuffled(len(pool), _BATCH, rng)):
            if (phase := step * _PHASES // steps) != reached:
                reached = phase
                clusters = _clustered(encoder, pool, phase)
            members = [pool[row] for row in rows]
            drawn = rng.integers(len(task.titles), size=max(1, round(_LABELS_PER_PAIR * len(rows))))
            yield (
                [title for title, _ in members],
                [_content(title, sentences, rng) for title, sentences in members],
                clusters[rows],
                [task.titles[row] for row in drawn],
            )

    _train(task, encoder, batches(), _title_loss, steps, seed, "MACLR, stage I")


def title_and_sentences(document: Document) -> tuple[str, list[str]] | None:
    """A document's title and sentences; `None` if it lacks one of them."""
    sentences = [part for part in _SENTENCE_END.split(document.text.strip()) if part.strip()]
    if document.title:
        return (document.title, sentences) if sentences else None
    return (sentences[0], sentences[1:]) if len(sentences) > 1 else None


def _content(title: str, sentences: list[str], rng: np.random.Generator) -> str:
    text = " ".join(
        sentence if rng.random() < _KEEP_TITLE else sentence.replace(title, "") for sentence in sentences
    )
    return text.strip() or " ".join(sentences)


def _clustered(encoder: BiEncoder, pool: list[tuple[str, list[str]]], phase: int) -> NDArray[np.int64]:
    """The cluster of each document in a phase; in the later ones each is its own."""
    if phase >= len(_CLUSTERS):
        return np.arange(len(pool))
    vectors = encoder.encode_documents([" ".join([title, *sentences]) for title, sentences in pool])
    clusters = max(2, round(_CLUSTERS[phase] * len(pool)))
    means = faiss.Kmeans(
        vectors.shape[1], clusters, niter=20, seed=0, min_points_per_centroid=1, max_points_per_centroid=1000
    )
    means.train(vectors)
    found: NDArray[np.int64] = means.index.search(vectors, 1)[1][:, 0]
    return found


def _title_loss(embed: Embed, batch: _TitleBatch) -> Tensor:
    titles, contents, clusters, labels = batch
    content = embed(contents)
    device = content.device
    same = torch.from_numpy(clusters[:, None] == clusters[None, :]).to(device)
    contrast = info_nce(content @ embed(titles).T, same, _TEMPERATURE)
    others = torch.cat([embed(contents), embed(labels)])
    none = torch.zeros(len(contents), len(labels), dtype=torch.bool, device=device)
    return contrast + info_nce(content @ others.T, torch.cat([same, none], dim=1), _TEMPERATURE)


def _stage_two(task: Task, encoder: BiEncoder, rng: np.random.Generator, seed: int) -> None:
    pseudo = pseudo_positives(task, encoder)
    pool = [(row, label) for row, labels in enumerate(pseudo) for label in sorted(labels)]
    if len(pool) < 2:
        return

    def batches() -> Iterator[_LabelBatch]:
        for picks in shuffled(len(pool), _BATCH, rng):
            rows, labels = zip(*(pool[pick] for pick in picks), strict=True)
            own = torch.from_numpy(np.array([np.isin(labels, list(pseudo[row])) for row in rows]))
            yield [task.rest[row].shown for row in rows], list(labels), own

    def loss(embed: Embed, batch: _LabelBatch) -> Tensor:
        documents, labels, own = batch
        scores = embed(documents) @ embed([task.titles[label] for label in labels]).T
        diagonal = torch.eye(len(labels), dtype=torch.bool, device=scores.device)
        return info_nce(scores, diagonal, _TEMPERATURE, ignored=own.to(scores.device) & ~diagonal)

    _train(task, encoder, batches(), loss, batch_count(len(pool), _BATCH), seed, "MACLR, stage II")


def pseudo_positives(task: Task, encoder: BiEncoder) -> list[set[int]]:
    """For each unlabelled document its best label by TF-IDF, and the encoder's where it is confident."""
    index = LabelIndex(encoder.encode_labels(task.titles))
    vectors = encoder.encode_documents([document.shown for document in task.rest])
    scores, rows = index.search(vectors, 1)
    sure = scores[:, 0] > np.median(scores[:, 0])
    return [
        {*words[:1], *([int(rows[i, 0])] if sure[i] else [])}
        for i, words in enumerate(tfidf_rows(task, task.rest))
    ]


def _train(
    task: Task,
    encoder: BiEncoder,
    batches: Iterator[Batch],
    loss: Callable[[Embed, Batch], Tensor],
    steps: int,
    seed: int,
    name: str,
) -> None:
    fit(
        encoder,
        batches,
        loss,
        steps=steps,
        learning_rate=_RATE,
        warm_up=round(_WARM_UP * steps),
        seed=seed,
        clip=1.0,
        progress=task.watch.stage(name),
    )


MACLR = Method(_maclr, "label titles, unlabelled documents")
