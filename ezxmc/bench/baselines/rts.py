"""RTS: a document's two halves, cut at random, find each other.

Zhang, Xu, Medini and Shrivastava, "Structural Contrastive Representation
Learning for Zero-shot Multi-label Text Classification", Findings of EMNLP 2022,
pages 4966-4976: pairs of segments of one document, title included, are drawn
together and pushed from the other segments of the batch (InfoNCE, τ = 0.05).
Labels play no part until they are searched.

Ours, where the paper's code was not at hand or its scale is another: the text
is cut at one word drawn uniformly, anew in each epoch; both directions of the
loss; batch, rate and number of epochs; the common initial encoder instead of
mpnet; the last step is kept (no test set chooses a checkpoint).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ezxmc.bench.baselines.contrastive import Embed, batch_count, fit, info_nce, shuffled
from ezxmc.bench.baselines.task import Method, Ranking, Task

_TEMPERATURE = 0.05
_EPOCHS, _BATCH, _RATE, _WARM_UP = 2, 48, 2e-5, 0.1

_Pairs = tuple[list[str], list[str]]


def _rts(task: Task, seed: int) -> Ranking:
    texts = [words for document in task.rest if len(words := document.shown.split()) > 1]
    if len(texts) < 2:
        return task.untrained
    rng = np.random.default_rng(seed)
    encoder = task.encoder()
    steps = _EPOCHS * batch_count(len(texts), _BATCH)

    def batches() -> Iterator[_Pairs]:
        for _ in range(_EPOCHS):
            for rows in shuffled(len(texts), _BATCH, rng):
                halves = [_cut(texts[row], rng) for row in rows]
                yield [first for first, _ in halves], [second for _, second in halves]

    fit(
        encoder,
        batches(),
        _loss,
        steps=steps,
        learning_rate=_RATE,
        warm_up=round(_WARM_UP * steps),
        seed=seed,
        clip=1.0,
        progress=task.watch.stage("RTS"),
    )
    return task.ranked_by(encoder)


def _cut(words: list[str], rng: np.random.Generator) -> tuple[str, str]:
    place = int(rng.integers(1, len(words)))
    return " ".join(words[:place]), " ".join(words[place:])


def _loss(embed: Embed, pairs: _Pairs) -> Tensor:
    first, second = pairs
    scores = embed(first) @ embed(second).T
    own = torch.eye(len(first), dtype=torch.bool, device=scores.device)
    return (info_nce(scores, own, _TEMPERATURE) + info_nce(scores.T, own, _TEMPERATURE)) / 2


RTS = Method(_rts, "unlabelled documents")
