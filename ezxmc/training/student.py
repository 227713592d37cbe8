"""One training round of the student: a plain PyTorch loop over a sentence-transformers model."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ezxmc.config import TrainingConfig
from ezxmc.errors import TrainingError
from ezxmc.feedback.targets import Targets
from ezxmc.models import resolve_model
from ezxmc.records import Document, Label
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.training.dataset import Batch, Example, batches, examples
from ezxmc.training.losses import decoupled_softmax
from ezxmc.training.selection import student_agreement

_SAMPLED_POSITIVES = 2
_WARM_UP = 0.1
_WEIGHT_DECAY = 0.01
_GRADIENT_NORM = 1.0
_TEXTS_PER_PASS = 16


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training round did.

    Attributes:
        documents: Documents trained on.
        labels_seen: Distinct labels that occur in their judgments.
        held_out: Documents the epochs were compared on.
        steps: Optimiser steps.
        seconds: Wall time of the training steps, selection excluded.
        samples_per_second: Documents through a training step per second.
        losses: Mean loss of each epoch.
        selection: Agreement with the teacher (nDCG@5) on held-out documents,
            first of the untrained student, then after each epoch; empty
            without held-out documents.
        best_epoch: The epoch kept; 0 is the untrained student.
        peak_memory_bytes: Of the device on CUDA, else of the process so far.
    """

    documents: int
    labels_seen: int
    held_out: int
    steps: int
    seconds: float
    samples_per_second: float
    losses: tuple[float, ...]
    selection: tuple[float, ...]
    best_epoch: int
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def train_bi_encoder(
    documents: Sequence[Document],
    labels: Sequence[Label],
    targets: Targets,
    config: TrainingConfig,
    out: Path,
    *,
    base: str | Path | None = None,
    held_out: Sequence[Document] = (),
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> TrainSummary:
    """Distil the teacher's judgments into a bi-encoder and save its best epoch.

    AdamW with linear warm-up and decay on the decoupled softmax. After each
    epoch the held-out documents' judged labels are ranked and compared with
    the teacher's probabilities; no human label is used. The same seed gives
    the same weights on the same machine and thread count.

    Args:
        documents: Documents to train on; those without positives are skipped.
        labels: All labels.
        targets: Of the training and the held-out documents.
        config: Sizes, rates and the encoder.
        out: Folder to write, replaced as a whole; a plain sentence-transformers model.
        base: Weights to start from instead of `config.encoder`.
        held_out: Documents for selection, disjoint from `documents`; without
            any judged ones the last epoch is kept.
        seed: Of the order and of the positives drawn.
        progress: Called with (step, steps, loss).

    Raises:
        TrainingError: No document has a positive, the sets overlap, or the loss is not finite.
        ModelError: The base cannot be loaded.
    """
    if shared := {d.uid for d in documents} & {d.uid for d in held_out}:
        raise TrainingError(
            f"{len(shared)} documents are both trained on and held out, {min(shared)!r} among them",
            "split the documents by uid",
        )
    pool = [example for example in examples(documents, labels, targets) if example.positives]
    judged = examples(held_out, labels, targets)
    if not pool:
        raise TrainingError(
            f"none of {len(documents)} documents has a label the teacher calls probable",
            "annotate more documents, or look at a few judgments: the prompt may not fit",
        )
    encoder = BiEncoder(base or resolve_model(config.encoder, kind="encoder"), max_length=config.max_length)
    cuda = encoder.model.device.type == "cuda"
    with torch.random.fork_rng(devices=[encoder.model.device] if cuda else []):
        torch.manual_seed(seed)
        return _Round(encoder, documents, labels, pool, held_out, judged, config, seed).run(out, progress)


class _Round:
    """The state of one training round."""

    def __init__(
        self,
        encoder: BiEncoder,
        documents: Sequence[Document],
        labels: Sequence[Label],
        pool: Sequence[Example],
        held_out: Sequence[Document],
        judged: Sequence[Example],
        config: TrainingConfig,
        seed: int,
    ) -> None:
        self.encoder, self.config, self.pool, self.judged = encoder, config, pool, judged
        self.texts = [document.shown for document in documents]
        self.titles = [label.title for label in labels]
        self.held_out = [document.shown for document in held_out]
        self.rng = np.random.default_rng(seed)
        self.steps = config.epochs * -(-len(pool) // config.batch_size)
        self.optimizer = torch.optim.AdamW(
            encoder.model.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY
        )
        warm_up = max(1, round(_WARM_UP * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm_up, (self.steps - step) / max(1, self.steps - warm_up)),
        )

    def run(self, out: Path, progress: Callable[[int, int, float], None] | None) -> TrainSummary:
        losses: list[float] = []
        selection = self.select()
        best, best_epoch, done, seconds = self.weights(), 0, 0, 0.0
        scores = [] if selection is None else [selection]
        for epoch in range(1, self.config.epochs + 1):
            started, costs = time.perf_counter(), []
            for batch in batches(self.pool, self.config.batch_size, _SAMPLED_POSITIVES, self.rng):
                costs.append(self.step(batch))
                done += 1
                if progress:
                    progress(done, self.steps, costs[-1])
            seconds += time.perf_counter() - started
            losses.append(float(np.mean(costs)))
            selection = self.select()
            if selection is None or selection > max(scores):
                best, best_epoch = self.weights(), epoch
            if selection is not None:
                scores.append(selection)
        self.encoder.model.load_state_dict(best)
        _save(self.encoder, out)
        return TrainSummary(
            documents=len(self.pool),
            labels_seen=len(set(np.concatenate([example.labels for example in self.pool]).tolist())),
            held_out=len(self.judged),
            steps=done,
            seconds=seconds,
            samples_per_second=self.config.epochs * len(self.pool) / seconds,
            losses=tuple(losses),
            selection=tuple(scores),
            best_epoch=best_epoch,
            peak_memory_bytes=_peak_memory(),
        )

    def step(self, batch: Batch) -> float:
        # No dropout: measured, one or two epochs gain nothing from it, and without it a
        # step takes two thirds of the time and half the memory.
        self.encoder.model.eval()
        device = self.encoder.model.device
        rows = self.embed([self.texts[row] for row in batch.documents])
        columns = self.embed([self.titles[row] for row in batch.labels])
        loss = decoupled_softmax(
            rows @ columns.T,
            torch.from_numpy(batch.positives).to(device),
            torch.from_numpy(batch.negatives).to(device),
            self.config.temperature,
        )
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss became {value}: training diverged",
                "lower training.learning_rate or raise training.temperature",
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.encoder.model.parameters(), _GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        return value

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N, D) unit rows with gradient; texts of like length share a pass, to pad little."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = [
            self.encoder.model(
                self.encoder.features([texts[i] for i in order[start : start + _TEXTS_PER_PASS]])
            )
            for start in range(0, len(texts), _TEXTS_PER_PASS)
        ]
        vectors = torch.cat([part["sentence_embedding"] for part in parts])
        back = torch.from_numpy(np.argsort(order)).to(vectors.device)
        return torch.nn.functional.normalize(vectors, dim=1)[back]

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.encoder.model.state_dict().items()}

    def select(self) -> float | None:
        return student_agreement(self.encoder, self.held_out, self.titles, self.judged)


def _save(encoder: BiEncoder, out: Path) -> None:
    """Write the model beside `out` and move it there: `out` is never half a model."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    encoder.save(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
