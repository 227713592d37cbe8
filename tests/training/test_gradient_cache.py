"""The gradient cache against the naive graph, on a tiny real encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from support.tinyworld import document, label_rows

from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.training.losses import Scored, combined
from ezxmc.training.step import all_label_step

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENTS = [document(number)["text"] * (1 + number % 3) for number in range(10)]
LABELS = [row["title"] for row in label_rows()]


class World:
    def __init__(self, folder: Path, dtype: torch.dtype, losses: dict[str, float]) -> None:
        self.model = BiEncoder(folder, device="cpu")
        self.model.model.to(dtype)
        self.loss = combined(losses, 0.05).to(dtype)
        self.batches: list[Sequence[str]] = []
        generator = torch.Generator().manual_seed(0)
        kind = torch.randint(0, 4, (len(DOCUMENTS), len(LABELS)), generator=generator)
        judged = kind > 1
        self.known = {
            "positives": (kind == 2).to(dtype) * 0.8,
            "negatives": (kind == 0) | (kind == 3),
            "probabilities": torch.rand(kind.shape, generator=generator).to(dtype) * judged,
            "judged": judged,
        }

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        self.batches.append(texts)
        vectors = self.model.model(self.model.features(texts))["sentence_embedding"]
        return torch.nn.functional.normalize(vectors, dim=1)

    def loss_of(self, scores: torch.Tensor) -> torch.Tensor:
        return self.loss(Scored(scores, **self.known))

    def gradients(self, backward: Callable[[], float]) -> tuple[float, dict[str, torch.Tensor]]:
        value = backward()
        named = [*self.model.model.named_parameters(), *self.loss.named_parameters()]
        found = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
        for _, parameter in named:
            parameter.grad = None
        return value, found

    def naive(self) -> float:
        loss = self.loss_of(self.encode(DOCUMENTS) @ self.encode(LABELS).T)
        loss.backward()
        return loss.item()

    def cached(self, chunk: int) -> float:
        return all_label_step(self.encode, DOCUMENTS, LABELS, self.loss_of, chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("losses", [{"decoupled_softmax": 1.0}, {"mw": 1.0, "bce": 0.1, "soft_topk": 2.0}])
def test_gradients_equal_the_naive_graphs(tiny_encoder: Path, losses: dict[str, float], chunk: int) -> None:
    world = World(tiny_encoder, torch.float64, losses)
    value, expected = world.gradients(world.naive)
    again, found = world.gradients(lambda: world.cached(chunk))
    assert again == pytest.approx(value, rel=1e-12) and found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9 * largest)
    assert largest > 1e-3 and (len(losses) == 1 or "losses.bce.bias" in expected)


def test_equal_in_float32(tiny_encoder: Path) -> None:
    world = World(tiny_encoder, torch.float32, {"decoupled_softmax": 1.0})
    _, expected = world.gradients(world.naive)
    _, found = world.gradients(lambda: world.cached(4))
    for name, gradient in expected.items():
        distance = float((found[name] - gradient).norm())
        assert distance <= 1e-5 * max(float(one.norm()) for one in expected.values()), name


def test_gradients_add_to_those_present(tiny_encoder: Path) -> None:
    world = World(tiny_encoder, torch.float64, {"dcl": 1.0})
    _, once = world.gradients(lambda: world.cached(8))
    _, twice = world.gradients(lambda: world.cached(8) + world.cached(8))
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], 2 * gradient)


def test_texts_without_gradient_are_not_encoded_again(tiny_encoder: Path) -> None:
    world = World(tiny_encoder, torch.float64, {"triplet_ohnm": 1.0})
    known = {name: torch.zeros_like(value) for name, value in world.known.items()}
    known["positives"][3, 5] = 1
    known["negatives"][3, 7] = True
    world.known = known
    _, expected = world.gradients(world.naive)
    world.batches.clear()
    _, found = world.gradients(lambda: world.cached(4))
    encoded = [text for batch in world.batches for text in batch]
    texts = [*DOCUMENTS, *LABELS]
    assert sorted(encoded[: len(texts)]) == sorted(texts)
    assert sorted(encoded[len(texts) :]) == sorted([DOCUMENTS[3], LABELS[5], LABELS[7]])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_a_chunk_is_as_large_as_so_many_labels(tiny_encoder: Path) -> None:
    world = World(tiny_encoder, torch.float64, {"decoupled_softmax": 1.0})
    world.cached(8)
    mean = sum(len(label) for label in LABELS) / len(LABELS)
    sizes = [len(batch) * max(len(text) for text in batch) for batch in world.batches if len(batch) > 1]
    assert 5 * mean < max(sizes) <= 8 * mean + 1
    assert min(len(batch) for batch in world.batches) == 1  # long documents go alone


def test_a_loss_without_gradient_leaves_none(tiny_encoder: Path) -> None:
    world = World(tiny_encoder, torch.float64, {"decoupled_softmax": 1.0})
    world.known["positives"] *= 0
    value, found = world.gradients(lambda: world.cached(4))
    assert value == 0 and not found
