"""What happens in a training step: a batch, its scores, a loss, gradients, new weights.

Texts are tokenised once, with little padding, and encoded in the faster precision; scores are those of
Matryoshka prefixes, too, without labels that may be positives after all. The schedule comes from the
configuration, else from the size of the data. The gradient cache takes a step against every label in the
memory of a few texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ezxmc.config import TrainingConfig
from ezxmc.errors import ConfigError, TrainingError
from ezxmc.retrieval.backends import TokenCache, has_fast_bfloat16, passes, tokens_per_pass
from ezxmc.retrieval.encoder import BiEncoder, prefixed
from ezxmc.training.dataset import Batch, Example, collate, length_grouped
from ezxmc.training.losses import DEFAULT_LOSSES, Scored, combined
from ezxmc.training.ranks import ALONE, Ranks

_LIKELY = 0.95
_SHORT = 128  # tokens


def prefix(vectors: Tensor, dimension: int) -> Tensor:
    """(N, dimension) unit rows: the first components of (N, D) rows, of unit length again."""
    return torch.nn.functional.normalize(vectors[:, :dimension], dim=1)


def scored(scores: Tensor, batch: Batch) -> Scored:
    """(B, C) cosines beside what `batch` knows of each pair, on the device of `scores`."""
    device = scores.device
    return Scored(
        scores,
        torch.from_numpy(batch.positives).to(device),
        torch.from_numpy(batch.negatives).to(device),
        torch.from_numpy(batch.probabilities).to(device),
        torch.from_numpy(batch.judged).to(device),
    )


def without_likely_positives(batch: Scored) -> Scored:
    """Take unjudged labels off the negatives that score nearly as high as a positive.

    Positive-aware mining (NV-Retriever, arXiv 2407.15831, TopK-PercPos): a label nobody judged is no negative
    of a document if the present student scores it at 0.95 of the document's lowest positive score or more.
    Judged negatives stay, however high they score. Measured, P@1, P@3, P@5, R@10 in points, of negatives in
    the batch: wordnet (7,326 judgments, 2,000 development glosses, one seed) +.5, +.5, +.4, +.2; debtags
    (2,280 judgments, 1,500 documents of the train part, one seed) +.9, +.5, +.4, +.7.
    """
    scores = batch.scores.detach()
    lowest = scores.masked_fill(batch.positives == 0, torch.inf).amin(dim=1, keepdim=True)
    likely = ~batch.judged & (scores >= _LIKELY * lowest)
    return replace(batch, negatives=batch.negatives & ~likely)


def matryoshka_loss(
    loss: Callable[[Scored], Tensor],
    documents: Tensor,
    labels: Tensor,
    batch: Batch,
    dimensions: list[int],
) -> Tensor:
    """Sum of the losses of several prefixes of the same vectors.

    Matryoshka representation learning (Kusupati et al., arXiv 2205.13147,
    equation 1, all weights 1); each prefix is brought to unit length first.

    Args:
        loss: Of one set of scores.
        documents: (B, D).
        labels: (C, D).
        batch: What is known of the (B, C) pairs.
        dimensions: Lengths of the prefixes, D itself among them.

    Returns:
        Scalar.
    """
    return torch.stack(
        [
            loss(scored(prefix(documents, dimension) @ prefix(labels, dimension).T, batch))
            for dimension in dimensions
        ]
    ).sum()


Precision = Literal["auto", "float32", "bfloat16"]


class Embedder:
    """A student's forward pass over texts that are known beforehand.

    Args:
        encoder: The student.
        texts: All texts that will be embedded; they are tokenised here, once.
        precision: As in the configuration; the weights stay float32.
    """

    def __init__(self, encoder: BiEncoder, texts: Iterable[str], precision: Precision = "auto") -> None:
        self.encoder = encoder
        self.dtype = computing_dtype(precision, encoder.model.device)
        self._tokens = TokenCache(encoder, texts)

    def length(self, text: str) -> int:
        """Tokens of one of the texts."""
        return self._tokens.length(text)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 rows with gradient, not yet of unit length."""
        # No dropout: measured, one or two epochs gain nothing from it, and without it a
        # step takes two thirds of the time and half the memory.
        model = self.encoder.model.eval()
        device = model.device
        if not texts:
            return torch.zeros(0, self.encoder.dimension, device=device, requires_grad=True)
        rows = passes([self.length(text) for text in texts], tokens_per_pass(device))
        parts = []
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            for part in rows:
                length = max(self.length(texts[i]) for i in part)
                with _attention(device, length):
                    parts.append(model(self._tokens.features([texts[i] for i in part]))["sentence_embedding"])
        back = torch.from_numpy(np.argsort(np.concatenate(rows))).to(device)
        # A checkpoint may ask for its vectors to be cut.
        return torch.cat(parts).float()[back, : self.encoder.dimension]


def _attention(device: torch.device, length: int) -> AbstractContextManager[None]:
    """Attention over texts of so many tokens: on processors by plain products where they are short.

    Measured (debtags, an epoch of 296 documents, 2 cores): 16.9 s, and 20.1 s by torch's own kind,
    whose backward pass is slow. Plain products hold all weights of a layer: too many of long texts.
    """
    short = device.type == "cpu" and length <= _SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


def computing_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type a student's matrix products are computed in.

    auto: bfloat16 on CUDA devices and processors that have instructions for it. Measured (all-MiniLM-L6-v2,
    48 texts of 100 to 256 tokens, forward and backward, one core of an AMD EPYC with AVX-512 bf16): 3.3 s a
    step, 7.4 s in float32.
    """
    faster = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))
    return torch.bfloat16 if faster else torch.float32


_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the documents.
        batch_size: Most documents in a step.
        learning_rate: Peak, after warm-up.
    """

    epochs: int
    batch_size: int
    learning_rate: float

    def steps(self, documents: int) -> int:
        """Optimiser steps over all epochs."""
        return self.epochs * -(-documents // self.batch_size)

    def factor(self, step: int, documents: int) -> float:
        """Share of the peak rate at step 0, 1, ...: linear warm-up over a tenth, then linear decay to 0."""
        steps = self.steps(documents)
        warm_up = max(1, round(_WARM_UP * steps))
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def schedule_for(documents: int) -> Schedule:
    """The default for so many documents with positives: few documents take another epoch.

    Swept on debtags with all-MiniLM-L6-v2 (888 to 1,212 documents, scored on 742 others, one seed): from 1e-4
    to 2e-4 P@1 rises by 3 points and R@10 by 1; 3e-4 over three epochs gains one more at P@3 and nothing
    else; the third epoch of 2e-4 moves nothing by a point.
    """
    return Schedule(epochs=2 if documents >= 600 else 3, batch_size=48, learning_rate=2e-4)


def configured_schedule(config: TrainingConfig, documents: int) -> Schedule:
    """What `config` says, and `schedule_for` where it says nothing."""
    default = schedule_for(documents)
    return Schedule(
        config.epochs or default.epochs,
        config.batch_size or default.batch_size,
        config.learning_rate or default.learning_rate,
    )


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

    Leaves on the parameters the gradients that `loss.backward()` would, but holds the activations of one
    chunk of texts at a time: all texts are encoded without a graph, the loss gives the gradient of every
    vector, and each chunk is encoded again to carry its part of that gradient into the model (GradCache: Gao
    et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983).
    Texts whose vectors get no gradient at all are not encoded again.

    The two encodings must agree, so the model must be without dropout, as in all training here; the states of
    random generators are not restored. Peak memory is the model's, its gradients', a chunk's activations,
    three times all vectors, and what the loss needs over (B, L).

    Args:
        encode: Texts → (n, D) float vectors with gradient, rows of unit length.
        documents: B texts.
        labels: L texts.
        loss_of: (B, L) cosines → scalar; its own parameters get gradients too.
        chunk: Labels of mean length encoded at once; of longer texts as many as have no more characters,
            padding included, but at least one.
        ranks: Processes that share the texts; the gradients left here are those of this one's part.

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


_MANY_WORDS = 100_000


def leave_words(model: torch.nn.Module) -> None:
    """Keep the word vectors of a vocabulary of many languages as they are: most of its words never occur.

    They are nine tenths of such a model's weights, and the optimiser would move all of them at every step.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings > _MANY_WORDS:
            module.requires_grad_(False)


_LABELS_AT_ONCE = 256
_WEIGHT_DECAY = 0.01
# The scale and bias of `bce`: single numbers far from where they must go, not weights to be tuned.
_LOSS_RATE = 0.01
_GRADIENT_NORM = 1.0


class Stepper:
    """An encoder with its optimiser, and the batches it learns from.

    Args:
        encoder: The student; its weights change in place.
        documents: Texts of the documents `pool` refers to.
        titles: Of all labels.
        pool: Documents with at least one positive each.
        config: Losses, negatives, sizes and rates.
        rng: Source of the order and of the positives drawn, the same on every rank.
        ranks: Processes that share each step.

    Raises:
        ConfigError: A loss is unknown, or a Matryoshka prefix is no shorter than the vectors.
    """

    def __init__(
        self,
        encoder: BiEncoder,
        documents: Sequence[str],
        titles: Sequence[str],
        pool: Sequence[Example],
        config: TrainingConfig,
        rng: np.random.Generator,
        ranks: Ranks = ALONE,
    ) -> None:
        self.dimensions = [*config.matryoshka, encoder.dimension]
        if max(config.matryoshka, default=0) >= encoder.dimension:
            raise ConfigError(
                f"training.matryoshka asks for {max(config.matryoshka)} dimensions; "
                f"the encoder's vectors have {encoder.dimension}",
                "name shorter prefixes only; the whole vector is always trained",
            )
        self.documents = documents = prefixed(documents, encoder.prompts.document)
        self.titles = titles = prefixed(titles, encoder.prompts.label)
        self.pool, self.rng = pool, rng
        self.ranks = ranks
        self.every_label = config.negatives == "all"
        self.plan = configured_schedule(config, len(pool))
        used = range(len(titles)) if self.every_label else np.unique(np.concatenate([e.labels for e in pool]))
        texts = [documents[example.document] for example in pool] + [titles[row] for row in used]
        self.embed = Embedder(encoder, texts, config.precision)
        self.lengths = [self.embed.length(documents[example.document]) for example in pool]
        self.encoder, self.model = encoder, encoder.model
        self.loss = combined(config.losses or DEFAULT_LOSSES, config.temperature)
        self.loss.to(self.model.device)
        leave_words(self.model)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.model.parameters()), "weight_decay": _WEIGHT_DECAY},
                {"params": list(self.loss.parameters()), "weight_decay": 0.0, "lr": _LOSS_RATE},
            ],
            lr=self.plan.learning_rate,
        )
        self.rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: self.plan.factor(step, len(pool))
        )

    def epoch(self) -> Iterator[float]:
        """Train on every document once; yields the loss of each step.

        Raises:
            TrainingError: The loss is not finite.
        """
        self.ranks.align(self.model, self.loss)
        for rows in length_grouped(self.lengths, self.plan.batch_size, self.rng):
            members = [self.pool[row] for row in rows]
            yield self._step(collate(members, len(self.titles), self.every_label, self.rng))

    def weights(self) -> dict[str, Tensor]:
        """A copy of the encoder's present weights."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _step(self, batch: Batch) -> float:
        self.optimizer.zero_grad()
        value = self._gradients(batch)
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss became {value}: training diverged",
                "lower training.learning_rate or raise training.temperature",
            )
        self.ranks.sum_gradients(self.model, self.loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimizer.step()
        self.rate.step()
        return value

    def _gradients(self, batch: Batch) -> float:
        texts = [self.documents[row] for row in batch.documents]
        titles = [self.titles[row] for row in batch.labels]
        if self.every_label:
            return sum(
                self._every_label_gradients(texts, titles, batch, dimension) for dimension in self.dimensions
            )
        vectors = self._shared(texts), self._shared(titles)
        loss = matryoshka_loss(self._cost, *vectors, batch, self.dimensions)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _cost(self, batch: Scored) -> Tensor:
        value: Tensor = self.loss(without_likely_positives(batch))
        return value

    def _shared(self, texts: Sequence[str]) -> Tensor:
        return self.ranks.embedded(self.embed, texts, [self.embed.length(text) for text in texts])

    def _every_label_gradients(
        self, texts: Sequence[str], titles: Sequence[str], batch: Batch, dimension: int
    ) -> float:
        def encode(some: Sequence[str]) -> Tensor:
            return prefix(self.embed(some), dimension)

        def loss_of(scores: Tensor) -> Tensor:
            return self._cost(scored(scores, batch))

        return all_label_step(encode, texts, titles, loss_of, chunk=_LABELS_AT_ONCE, ranks=self.ranks)
