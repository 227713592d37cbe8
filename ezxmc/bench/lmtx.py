"""LMTX, from the very judgments ezxmc's student learns from.

Zhang, Ullah and Babbar, arXiv 2406.09288, after its published code
(github.com/xmc-aalto/LMTX, train_biencoder.py and util.py): a judged label is
positive if the LLM leans to "yes" (log-odds above 0, uncorrected); documents
without one are dropped; one positive is drawn per document and epoch; negatives
are the 10 hardest of the other labels drawn in the batch, never one of the
document's own positives; triplet margin 0.3, weighted by softmax(sim / 0.1);
AdamW, peak 2e-4, no weight decay, batches of 128, linear warm-up over 100
steps, linear decay to 0; from the initial weights, dropout on; the last step is kept.

Not as published: the common initial encoder and its length; the last, smaller
batch of an epoch is used; and where 100 steps would be more than their share of
the published run (100 of 234: 30,000 documents, 1 epoch), warm-up is that
share. `LMTX` is one epoch as published, `LMTX4` four, for fewer documents mean
fewer steps; `LMTX_SMALL` is its loss at a rate and batch that fit some hundred
documents. It learns from all judged documents, for it holds none out. Documents
that were asked about all labels, for the priors, are no shortlists and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ezxmc.bench.contrastive import Embed, batch_count, fit, shuffled
from ezxmc.bench.task import Method, Ranking, Task
from ezxmc.errors import TrainingError

_WARM_UP, _PUBLISHED_STEPS = 100, 234
_MARGIN, _HARDEST, _TEMPERATURE = 0.3, 10, 0.1

_Batch = tuple[list[str], list[str], Tensor]


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
    weights = torch.softmax(hardest / _TEMPERATURE * (violation > 0), dim=1)
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

    def batches() -> Iterator[_Batch]:
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
        _loss,
        steps=steps,
        learning_rate=rate,
        warm_up=min(_WARM_UP, round(_WARM_UP / _PUBLISHED_STEPS * steps)),
        seed=seed,
        progress=task.watch.stage("LMTX"),
    )
    return task.ranked_by(encoder)


def _loss(embed: Embed, batch: _Batch) -> Tensor:
    documents, labels, own = batch
    scores = embed(documents) @ embed(labels).T
    return triplet_ohnm(scores, own.to(scores.device))


def _method(what: str, epochs: int, batch_size: int, rate: float) -> Method:
    rank = partial(_lmtx, epochs=epochs, batch_size=batch_size, rate=rate)
    return Method(rank, f"judgments, as hard yes or no; {what}", ("judgments",), amount="judgments")


LMTX = _method("as published", 1, 128, 2e-4)
LMTX4 = _method("4 epochs", 4, 128, 2e-4)
LMTX_SMALL = _method("4 epochs, batch 48, rate 1e-4", 4, 48, 1e-4)
