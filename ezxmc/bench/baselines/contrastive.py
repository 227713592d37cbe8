"""The training loop of the published baselines: AdamW, linear warm-up and decay, dropout on.

It shares nothing but its precision with the student's loop on purpose: what is
changed there must not change what the student is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import get_linear_schedule_with_warmup

from ezxmc.errors import TrainingError
from ezxmc.retrieval import BiEncoder
from ezxmc.training.embedding import computing_dtype

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
        loss_of: Scalar loss of a batch; its first argument gives (n, D) unit
            rows with gradient.
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
