"""The published baselines that train an encoder, MACLR, RTS and LMTX, and their training loop.

The loop (AdamW, linear warm-up and decay, dropout on) shares nothing but its precision with the student's
loop on purpose: what is changed there must not change what the student is compared with.

MACLR, without labels (titles find their contents, then the encoder teaches itself): Xiong et al., arXiv
2112.08652 (NAACL 2022), after its published code (github.com/amzn/pecos, examples/MACLR). Stage I: pairs of a
document's title and its content, from whose sentences the title is struck out nine times of ten; documents of
one K-means cluster are each other's positives, with K growing over the first half of the steps and each
document on its own in the second (multi-scale adaptive clustering); a second loss tells a content from real
label titles, its second encoding under other dropout being the positive (label regularization). Stage II:
pairs of a document and its best label, by TF-IDF and by the encoder of stage I where that is confident;
in-batch softmax.

Not as published: the common initial encoder, hence cosines and a temperature (0.05) instead of dot products;
K keeps its ratio to the number of documents (294,805 in LF-Amazon-131K); "confident" is above the median
instead of a dot product above 36; a pair both sources name counts once; the same label drawn twice in a batch
is not its own negative; one pass of each stage instead of 100,000 steps of 128 pairs. A document without a
title takes its first sentence for one; documents of a single sentence take no part in stage I.

RTS (a document's two halves, cut at random, find each other): Zhang, Xu, Medini and Shrivastava, "Structural
Contrastive Representation Learning for Zero-shot Multi-label Text Classification", Findings of EMNLP 2022,
pages 4966-4976: pairs of segments of one document, title included, are drawn together and pushed from the
other segments of the batch (InfoNCE, τ = 0.05). Labels play no part until they are searched.

Ours, where the paper's code was not at hand or its scale is another: the text is cut at one word drawn
uniformly, anew in each epoch; both directions of the loss; batch, rate and number of epochs; the common
initial encoder instead of mpnet; the last step is kept (no test set chooses a checkpoint).

LMTX, from the very judgments ezxmc's student learns from: Zhang, Ullah and Babbar, arXiv 2406.09288, after
its published code (github.com/xmc-aalto/LMTX, train_biencoder.py and util.py): a judged label is positive if
the LLM leans to "yes" (log-odds above 0, uncorrected); documents without one are dropped; one positive is
drawn per document and epoch; negatives are the 10 hardest of the other labels drawn in the batch, never one
of the document's own positives; triplet margin 0.3, weighted by softmax(sim / 0.1); AdamW, peak 2e-4, no
weight decay, batches of 128, linear warm-up over 100 steps, linear decay to 0; from the initial weights,
dropout on; the last step is kept.

Not as published: the common initial encoder and its length; the last, smaller batch of an epoch is used; and
where 100 steps would be more than their share of the published run (100 of 234: 30,000 documents, 1 epoch),
warm-up is that share. `LMTX` is one epoch as published, `LMTX4` four, for fewer documents mean fewer steps;
`LMTX_SMALL` is its loss at a rate and batch that fit some hundred documents. It learns from all judged
documents, for it holds none out. Documents that were asked about all labels, for the priors, are no
shortlists and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import faiss
import numpy as np
import torch
from baselines import tfidf_rows
from numpy.typing import NDArray
from task import Method, Ranking, Task
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import get_linear_schedule_with_warmup

from ezxmc.errors import TrainingError
from ezxmc.records import Document
from ezxmc.retrieval import BiEncoder, LabelIndex
from ezxmc.training.step import computing_dtype

Embed = Callable[[Sequence[str]], Tensor]
Batch = TypeVar("Batch")

_TEXTS_PER_PASS = 16
# Above it activations are computed again in the backward pass instead of kept.
_TEXTS_KEPT = 64


def fit(
    encoder: BiEncoder,
    batches: Iterable[Batch],
    loss_of: Callable[[Embed, Batch], Tensor],
    *,
    steps: int,
    learning_rate: float,
    warm_up: int,
    seed: int,
    clip: float | None = None,
    progress: Callable[[int, int], None],
) -> None:
    """Train an encoder in place.

    Args:
        encoder: Trained with its own dropout; left in evaluation mode.
        batches: `steps` of them; they may use the encoder between two steps.
        loss_of: Scalar loss of a batch; its first argument gives (n, D) unit rows with gradient.
        steps: Optimiser steps, for the schedule.
        learning_rate: The peak.
        warm_up: Steps from 0 to the peak.
        seed: Of dropout.
        clip: Largest norm of the gradient.
        progress: Called with (step, steps).

    Raises:
        TrainingError: The loss is not finite.
    """
    model = encoder.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warm_up, steps)

    def embed(texts: Sequence[str]) -> Tensor:
        return _embed(encoder, texts)

    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step, batch in enumerate(batches, start=1):
            model.train()
            loss = loss_of(embed, batch)
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss became {float(loss)}: training of a baseline diverged")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            progress(step, steps)
    model.eval()


def info_nce(scores: Tensor, positives: Tensor, temperature: float, ignored: Tensor | None = None) -> Tensor:
    """−log softmax, averaged over a row's positives, then over rows (arXiv 1807.03748; 2004.11362, L_out).

    Args:
        scores: (B, C) cosines.
        positives: (B, C) bool, at least one a row.
        temperature: τ.
        ignored: (B, C) bool, never a positive: in no denominator.

    Returns:
        Scalar.
    """
    logits = scores / temperature
    if ignored is not None:
        logits = logits.masked_fill(ignored, torch.finfo(logits.dtype).min)
    logs = logits.log_softmax(dim=1).masked_fill(~positives, 0.0)
    return -(logs.sum(dim=1) / positives.sum(dim=1)).mean()


def shuffled(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """One epoch: positions in random order, in batches of nearly equal size, at most `batch_size`."""
    yield from np.array_split(rng.permutation(count), batch_count(count, batch_size))


def batch_count(count: int, batch_size: int) -> int:
    """Batches of one epoch."""
    return -(-count // batch_size)


def _embed(encoder: BiEncoder, texts: Sequence[str]) -> Tensor:
    order = np.argsort([len(text) for text in texts], kind="stable")  # texts of like length: little padding

    def forward(features: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = encoder.model(dict(features))["sentence_embedding"]
        return vectors

    parts = []
    device = encoder.model.device
    faster = computing_dtype("auto", device) is torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=faster):
        for start in range(0, len(texts), _TEXTS_PER_PASS):
            features = encoder.features([texts[i] for i in order[start : start + _TEXTS_PER_PASS]])
            if len(texts) > _TEXTS_KEPT:
                parts.append(checkpoint(forward, features, use_reentrant=False))
            else:
                parts.append(forward(features))
    vectors = torch.cat(parts).float()
    back = torch.from_numpy(np.argsort(order)).to(vectors.device)
    return torch.nn.functional.normalize(vectors, dim=1)[back]


# Of MACLR and RTS.
_TEMPERATURE, _BATCH, _WARM_UP = 0.05, 48, 0.1
_MACLR_RATE = 1e-5
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

    _train(task, encoder, batches(), _title_loss, steps, seed, "MACLR, stage I", _MACLR_RATE)


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

    steps = batch_count(len(pool), _BATCH)
    _train(task, encoder, batches(), loss, steps, seed, "MACLR, stage II", _MACLR_RATE)


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
    rate: float,
) -> None:
    fit(
        encoder,
        batches,
        loss,
        steps=steps,
        learning_rate=rate,
        warm_up=round(_WARM_UP * steps),
        seed=seed,
        clip=1.0,
        progress=task.watch.stage(name),
    )


MACLR = Method(_maclr, "label titles, unlabelled documents")


_RTS_EPOCHS, _RTS_RATE = 2, 2e-5

_Pairs = tuple[list[str], list[str]]


def _rts(task: Task, seed: int) -> Ranking:
    texts = [words for document in task.rest if len(words := document.shown.split()) > 1]
    if len(texts) < 2:
        return task.untrained
    rng = np.random.default_rng(seed)
    encoder = task.encoder()
    steps = _RTS_EPOCHS * batch_count(len(texts), _BATCH)

    def batches() -> Iterator[_Pairs]:
        for _ in range(_RTS_EPOCHS):
            for rows in shuffled(len(texts), _BATCH, rng):
                halves = [_cut(texts[row], rng) for row in rows]
                yield [first for first, _ in halves], [second for _, second in halves]

    _train(task, encoder, batches(), _halves_loss, steps, seed, "RTS", _RTS_RATE)
    return task.ranked_by(encoder)


def _cut(words: list[str], rng: np.random.Generator) -> tuple[str, str]:
    place = int(rng.integers(1, len(words)))
    return " ".join(words[:place]), " ".join(words[place:])


def _halves_loss(embed: Embed, pairs: _Pairs) -> Tensor:
    first, second = pairs
    scores = embed(first) @ embed(second).T
    own = torch.eye(len(first), dtype=torch.bool, device=scores.device)
    return (info_nce(scores, own, _TEMPERATURE) + info_nce(scores.T, own, _TEMPERATURE)) / 2


RTS = Method(_rts, "unlabelled documents")


_LMTX_WARM_UP, _LMTX_STEPS = 100, 234
_MARGIN, _HARDEST, _SHARPNESS = 0.3, 10, 0.1

_DrawnBatch = tuple[list[str], list[str], Tensor]


def triplet_ohnm(scores: Tensor, own: Tensor) -> Tensor:
    """LMTX's triplet loss with online hard negatives.

    With s_ij the cosine of document i and the label drawn for document j, and
    H_i the 10 columns j of largest s_ij whose label is no positive of i::

        v_ij = max(0, s_ij − s_ii + 0.3)
        loss = mean over i, j ∈ H_i of v_ij · softmax_j(s_ij / 0.1 · [v_ij > 0])

    Args:
        scores: (B, B) cosines; the diagonal are the positives.
        own: (B, B) bool: whether the column's label is a positive of the row's document.

    Returns:
        Scalar.
    """
    positive = scores.diagonal()[:, None]
    hardest = scores.masked_fill(own, -10.0).topk(min(_HARDEST, len(scores)), dim=1).values
    violation = torch.relu(hardest - positive + _MARGIN)
    weights = torch.softmax(hardest / _SHARPNESS * (violation > 0), dim=1)
    return (violation * weights).mean()


def _lmtx(task: Task, seed: int, epochs: int, batch_size: int, rate: float) -> Ranking:
    row_of = {label.uid: row for row, label in enumerate(task.labels)}
    positives: dict[str, list[int]] = {}
    for judgment in task.judgments:
        if judgment.log_odds is not None and judgment.log_odds > 0:
            positives.setdefault(judgment.doc_uid, []).append(row_of[judgment.label_uid])
    pool = [(document.shown, positives[document.uid]) for document in task.rest if document.uid in positives]
    if not pool:
        raise TrainingError('the teacher said "yes" to nothing', "LMTX needs log-odds above 0")
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[_DrawnBatch]:
        for _ in range(epochs):
            for rows in shuffled(len(pool), batch_size, rng):
                members = [pool[row] for row in rows]
                drawn = [int(rng.choice(labels)) for _, labels in members]
                own = np.array([np.isin(drawn, labels) for _, labels in members])
                yield (
                    [text for text, _ in members],
                    [task.titles[row] for row in drawn],
                    torch.from_numpy(own),
                )

    steps = epochs * batch_count(len(pool), batch_size)
    encoder = task.encoder()
    fit(
        encoder,
        batches(),
        _drawn_loss,
        steps=steps,
        learning_rate=rate,
        warm_up=min(_LMTX_WARM_UP, round(_LMTX_WARM_UP / _LMTX_STEPS * steps)),
        seed=seed,
        progress=task.watch.stage("LMTX"),
    )
    return task.ranked_by(encoder)


def _drawn_loss(embed: Embed, batch: _DrawnBatch) -> Tensor:
    documents, labels, own = batch
    scores = embed(documents) @ embed(labels).T
    return triplet_ohnm(scores, own.to(scores.device))


def _method(what: str, epochs: int, batch_size: int, rate: float) -> Method:
    rank = partial(_lmtx, epochs=epochs, batch_size=batch_size, rate=rate)
    return Method(rank, f"judgments, as hard yes or no; {what}", ("judgments",), amount="judgments")


LMTX = _method("as published", 1, 128, 2e-4)
LMTX4 = _method("4 epochs", 4, 128, 2e-4)
LMTX_SMALL = _method("4 epochs, batch 48, rate 1e-4", 4, 48, 1e-4)
