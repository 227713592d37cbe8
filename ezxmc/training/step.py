"""What happens in a training step: a batch, its scores, a loss, gradients, new weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ezxmc.config import TrainingConfig
from ezxmc.errors import ConfigError, TrainingError
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.training.dataset import Batch, Example, collate_all, collate_in_batch, length_grouped
from ezxmc.training.embedding import Embedder
from ezxmc.training.gradient_cache import all_label_step
from ezxmc.training.losses import DEFAULT_LOSSES, combined
from ezxmc.training.objective import matryoshka_loss, prefix, scored, without_likely_positives
from ezxmc.training.ranks import ALONE, Ranks
from ezxmc.training.schedule import configured_schedule

SAMPLED_POSITIVES = 2
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
        self.documents, self.titles, self.pool, self.rng = documents, titles, pool, rng
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
            if self.every_label:
                batch = collate_all(members, len(self.titles))
            else:
                batch = collate_in_batch(members, SAMPLED_POSITIVES, self.rng)
            yield self._step(batch)

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
        loss = matryoshka_loss(self.loss, self._shared(texts), self._shared(titles), batch, self.dimensions)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _shared(self, texts: Sequence[str]) -> Tensor:
        return self.ranks.embedded(self.embed, texts, [self.embed.length(text) for text in texts])

    def _every_label_gradients(
        self, texts: Sequence[str], titles: Sequence[str], batch: Batch, dimension: int
    ) -> float:
        def encode(some: Sequence[str]) -> Tensor:
            return prefix(self.embed(some), dimension)

        def loss_of(scores: Tensor) -> Tensor:
            value: Tensor = self.loss(without_likely_positives(scored(scores, batch)))
            return value

        return all_label_step(encode, texts, titles, loss_of, chunk=_LABELS_AT_ONCE, ranks=self.ranks)
