"""What two ranks must do as one process does; each of them calls `main`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from support.tinyworld import TOPIC_OF, document
from torch import Tensor, nn

from ezxmc.config import TrainingConfig
from ezxmc.retrieval import BiEncoder
from ezxmc.training import adapters
from ezxmc.training.dataset import Batch, Example
from ezxmc.training.losses import LOSSES, combined
from ezxmc.training.ranks import Ranks, joined
from ezxmc.training.step import Stepper, all_label_step, matryoshka_loss, prefix, scored

# Numbers of documents and labels: one over two ranks leaves one of them without any.
SIZES = ((7, 5), (1, 4), (1, 1))
CONFIGS: dict[str, dict[str, Any]] = {
    "in batch": {},
    "a last batch of one": {"batch_size": 2},
    "every label": {"negatives": "all"},
    "every label, prefixes": {"negatives": "all", "matryoshka": [8]},
    "prefixes": {"matryoshka": [4, 16]},
    "a loss that learns": {"losses": {"bce": 0.1, "mw": 1.0, "listwise_kl": 1.0}},
    "bfloat16": {"precision": "bfloat16"},
}
if find_spec("peft"):
    CONFIGS["a large encoder"] = {"negatives": "all"}
DOCUMENTS, TITLES = [document(number)["text"] for number in range(23)], list(TOPIC_OF)


class Bags(nn.Module):
    """Letters to vectors, in double precision; one of its parameters is never used."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.letters = nn.Parameter(torch.randn(26, 8, generator=generator, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, 8, dtype=torch.float64, requires_grad=True)
        return torch.stack(
            [self.letters[[ord(letter) - 97 for letter in text]].tanh().sum(0) for text in texts]
        )


def known(documents: int, labels: int) -> Batch:
    rng = np.random.default_rng(documents)
    kind = rng.integers(0, 4, size=(documents, labels))
    kind[:, 0] = 2
    judged = kind > 1
    return Batch(
        list(range(documents)),
        np.arange(labels),
        (kind == 2).astype(np.float64) * 0.8,
        (kind == 0) | (kind == 3),
        rng.random(kind.shape) * judged,
        judged,
    )


def gradients(ranks: Ranks, name: str, documents: int, labels: int, cached: bool) -> dict[str, Tensor]:
    """Loss and gradients of one step in double precision."""
    model, loss = Bags(), combined({name: 1.0}, 0.05).double()
    texts = ["abcdefghijklmnopqrstuvwxyz"[i : 2 * i + 1] for i in range(documents)]
    titles = ["zyxwvutsrqponmlkjihgfedcba"[i : 3 * i + 2] for i in range(labels)]
    batch = known(documents, labels)
    if cached:
        value = all_label_step(
            lambda some: prefix(model(some), 8),
            texts,
            titles,
            lambda scores: loss(scored(scores, batch)),
            chunk=2,
            ranks=ranks,
        )
    else:
        left, right = (ranks.embedded(model, part, list(map(len, part))) for part in (texts, titles))
        whole = matryoshka_loss(loss, left, right, batch, [4, 8])
        whole.backward()
        value = whole.item()
    ranks.sum_gradients(model, loss)
    assert model.unused.grad is None
    named = {
        n: p.grad for n, p in [*model.named_parameters(), *loss.named_parameters()] if p.grad is not None
    }
    return {"value": torch.tensor(value, dtype=torch.float64), **named}


def trained(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> dict[str, Tensor]:
    """Losses of all steps of two epochs, all weights after them, and vectors."""
    config = TrainingConfig(
        **{"epochs": 2, "batch_size": 6, "learning_rate": 1e-3, "precision": "float32", **changes}
    )
    rng = np.random.default_rng(0)
    pool = [
        Example(row, rng.permutation(len(TITLES))[:8], np.linspace(0.95, 0.05, 8), 3, 4)
        for row in range(len(DOCUMENTS))
    ]
    encoder = BiEncoder(folder, max_length=32, device="cpu")
    torch.manual_seed(2)
    stepper = Stepper(encoder, DOCUMENTS, TITLES, pool, config, np.random.default_rng(1), ranks)
    losses = [loss for _ in range(2) for loss in stepper.epoch()]
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "vectors": torch.from_numpy(ranks.encoded(encoder.encode_documents, [*DOCUMENTS, *TITLES])),
        **{f"weights {name}": value for name, value in stepper.weights.merged().items()},
        **{f"loss {name}": value.detach().clone() for name, value in stepper.loss.named_parameters()},
    }


def every_case(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """All results, by `case/result`."""
    cases: dict[str, dict[str, Tensor]] = {}
    for name in LOSSES:
        for documents, labels in SIZES:
            for way in ("graph", "cache"):
                found = gradients(ranks, name, documents, labels, way == "cache")
                cases[f"{name}, {way}, {documents}x{labels}"] = found
    for name, changes in CONFIGS.items():
        size, adapters.LARGE = adapters.LARGE, 0 if name == "a large encoder" else adapters.LARGE
        cases[name] = trained(ranks, folder, changes)
        adapters.LARGE = size
    return {
        f"{case}/{name}": value.contiguous() for case, found in cases.items() for name, value in found.items()
    }


def main(folder: Path, out: Path) -> None:
    with joined() as ranks:
        save_file(every_case(ranks, folder), out / f"{ranks.rank}.safetensors")
        ranks.compare(b"the same on both")
        ranks.wait()
        ranks.compare(b"another on rank %d" % ranks.rank)
