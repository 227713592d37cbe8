"""Gradient cache: a training step against every label, in the memory of a few texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezxmc.retrieval.tokens import passes
from ezxmc.training.ranks import ALONE, Ranks


def all_label_step(
    encode: Callable[[Sequence[str]], Tensor],
    documents: Sequence[str],
    labels: Sequence[str],
    loss_of: Callable[[Tensor], Tensor],
    *,
    chunk: int,
    ranks: Ranks = ALONE,
) -> float:
    """Forward and backward over all pairs of documents and labels.

    Leaves on the parameters the gradients that `loss.backward()` would, but
    holds the activations of one chunk of texts at a time: all texts are
    encoded without a graph, the loss gives the gradient of every vector, and
    each chunk is encoded again to carry its part of that gradient into the
    model (GradCache: Gao et al., "Scaling Deep Contrastive Learning Batch Size
    under Memory Limited Setup", arXiv 2101.06983). Texts whose vectors get no
    gradient at all are not encoded again.

    The two encodings must agree, so the model must be without dropout, as in
    all training here; the states of random generators are not restored. Peak
    memory is the model's, its gradients', a chunk's activations, three times
    all vectors, and what the loss needs over (B, L).

    Args:
        encode: Texts → (n, D) float vectors with gradient, rows of unit length.
        documents: B texts.
        labels: L texts.
        loss_of: (B, L) cosines → scalar; its own parameters get gradients too.
        chunk: Labels of mean length encoded at once; of longer texts as many
            as have no more characters, padding included, but at least one.
        ranks: Processes that share the texts; the gradients left here are those
            of this one's part.

    Returns:
        The loss.
    """
    texts = [*documents, *labels]
    lengths = [len(text) for text in texts]
    budget = round(chunk * float(np.mean(lengths[len(documents) :])))
    mine = ranks.part(lengths)

    def chunks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        # In order of length, so that the texts of a chunk pad each other little.
        return [rows[part] for part in passes([lengths[row] for row in rows], budget)]

    with torch.no_grad():
        order = chunks(mine) or [mine]
        encoded = torch.cat([encode([texts[row] for row in rows]) for rows in order])
        vectors = ranks.gathered(encoded, np.concatenate(order), len(texts))
        del encoded
    left = vectors[: len(documents)].requires_grad_()
    right = vectors[len(documents) :].requires_grad_()
    loss = loss_of(left @ right.T)
    loss.backward()  # type: ignore[no-untyped-call]
    assert left.grad is not None and right.grad is not None
    gradients = torch.cat([left.grad, right.grad])
    del vectors, left, right
    for rows in chunks(mine[gradients.any(dim=1).cpu().numpy()[mine]]):
        part = gradients[torch.from_numpy(rows)]
        encode([texts[row] for row in rows]).backward(part)  # type: ignore[no-untyped-call]
    return loss.item()
