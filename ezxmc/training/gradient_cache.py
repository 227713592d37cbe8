"""Gradient cache: a training step against every label, in the memory of a few texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ezxmc.retrieval.tokens import passes


def all_label_step(
    encode: Callable[[Sequence[str]], Tensor],
    documents: Sequence[str],
    labels: Sequence[str],
    loss_of: Callable[[Tensor], Tensor],
    *,
    chunk: int,
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

    Returns:
        The loss.
    """
    texts = [*documents, *labels]
    lengths = [len(text) for text in texts]
    budget = round(chunk * float(np.mean(lengths[len(documents) :])))
    # In order of length, so that the texts of a chunk pad each other little.
    chunks = passes(lengths, budget)
    with torch.no_grad():
        encoded = torch.cat([encode([texts[row] for row in rows]) for rows in chunks])
        vectors = torch.empty_like(encoded)
        vectors[torch.from_numpy(np.concatenate(chunks))] = encoded
        del encoded
    left = vectors[: len(documents)].requires_grad_()
    right = vectors[len(documents) :].requires_grad_()
    loss = loss_of(left @ right.T)
    loss.backward()  # type: ignore[no-untyped-call]
    assert left.grad is not None and right.grad is not None
    gradients = torch.cat([left.grad, right.grad])
    del vectors, left, right
    touched = gradients.any(dim=1).nonzero().flatten().tolist()
    for part in passes([lengths[row] for row in touched], budget):
        rows = [touched[i] for i in part]
        encode([texts[row] for row in rows]).backward(gradients[rows])  # type: ignore[no-untyped-call]
    return loss.item()
