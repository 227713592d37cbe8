"""Large encoders: additions of low rank learn in their place; activations are computed twice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from support.fakes import FakeTeacher
from support.families import build_family
from support.tinyworld import TOPIC_OF, document

from ezxmc.config import RunConfig, TrainingConfig
from ezxmc.errors import ModelError
from ezxmc.pipeline.run import run
from ezxmc.retrieval import BiEncoder
from ezxmc.training import adapters, train_bi_encoder
from ezxmc.training.dataset import Example
from ezxmc.training.step import Embedder, Stepper, schedule_for
from ezxmc.training.student import averaged

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENTS, TITLES = [document(number)["text"] for number in range(24)], list(TOPIC_OF)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any encoder is a large one."""
    pytest.importorskip("peft")
    monkeypatch.setattr(adapters, "LARGE", 0)


def stepper(encoder: BiEncoder) -> Stepper:
    """One that learns which labels are of a document's topic."""
    pool = []
    for row, text in enumerate(DOCUMENTS):
        fits = np.array([topic in text for topic in TOPIC_OF.values()])
        order = np.argsort(~fits, kind="stable")[: 2 * fits.sum()]
        pool.append(Example(row, order, np.where(fits[order], 0.95, 0.05), int(fits.sum()), int(fits.sum())))
    config = TrainingConfig(epochs=4, batch_size=8, learning_rate=1e-2, precision="float32")
    torch.manual_seed(0)
    return Stepper(encoder, DOCUMENTS, TITLES, pool, config, np.random.default_rng(0))


@pytest.mark.usefixtures("large")
def test_additions_learn_alone_and_are_merged(tiny_encoder: Path) -> None:
    encoder = BiEncoder(tiny_encoder, device="cpu")
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    untrained = encoder.encode_documents(DOCUMENTS)
    step = stepper(encoder)
    learning = {name for name, weight in step.model.named_parameters() if weight.requires_grad}
    assert learning and all(".lora_" in name for name in learning)
    initial = step.weights.merged()
    assert initial.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in initial.items())
    costs = [float(np.mean(list(step.epoch()))) for _ in range(4)]
    assert costs[-1] < 0.9 * costs[0]
    # Neither the encoder's own layers nor what has no addition has moved.
    for name, value in step.model.state_dict().items():
        assert ".lora_" in name or torch.equal(value, before[name.replace(".base_layer.", ".")])
    merged = step.weights.merged()
    moved = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    linear = {name for name in before if name.endswith(("query.weight", "value.weight", "dense.weight"))}
    assert linear - {"0.model.pooler.dense.weight"} <= moved
    assert not [name for name in moved if "embeddings" in name or "LayerNorm" in name or "bias" in name]
    adapted = encoder.encode_documents(DOCUMENTS)
    assert np.abs(adapted - untrained).max() > 0.01
    step.weights.settle()
    assert encoder.model.state_dict().keys() == before.keys()
    np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), adapted, atol=1e-5)


@pytest.mark.usefixtures("large")
def test_the_student_is_a_plain_folder_averaged_as_any(tiny_encoder: Path, tmp_path: Path) -> None:
    rows = [(i, word, float(TOPIC_OF[word] in text)) for i, text in enumerate(DOCUMENTS) for word in TITLES]
    given = {"encoder": str(tiny_encoder), "epochs": 1, "batch_size": 8, "precision": "float32"}

    def trained(name: str, former: Path | None = None, **changes: bool) -> dict[str, torch.Tensor]:
        config = TrainingConfig(**given, **changes)
        train_bi_encoder(DOCUMENTS, TITLES, rows, config, tmp_path / name, former=former)
        return load_file(tmp_path / name / "model.safetensors")

    alone, first = trained("alone", average=False), trained("first")
    second = trained("second", tmp_path / "first")
    initial = load_file(tiny_encoder / "model.safetensors")
    for found, wanted in ((first, averaged(alone, initial)), (second, averaged(alone, initial, first))):
        assert found.keys() == initial.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(value, initial[name]) for name, value in alone.items())
    assert not [file for file in (tmp_path / "second").rglob("*") if "adapter" in file.name]
    stock = SentenceTransformer(str(tmp_path / "second"), device="cpu")
    np.testing.assert_allclose(
        stock.encode(DOCUMENTS, normalize_embeddings=True),
        BiEncoder(tmp_path / "second", device="cpu").encode_documents(DOCUMENTS),
        atol=1e-6,
    )
    card = (tmp_path / "second" / "README.md").read_text()
    assert "(LoRA)" in card and "peak 0.0001" in card
    assert schedule_for(5000).learning_rate == 2e-4


@pytest.fixture(scope="module", params=["bert", "qwen3", "gemma"])
def encoder(
    request: pytest.FixtureRequest, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A BERT, a decoder, and one with windows of attention and dense layers."""
    if request.param == "bert":
        return tiny_encoder
    return build_family(request.param, tmp_path_factory.mktemp("families") / request.param)


def adapted(folder: Path) -> tuple[BiEncoder, adapters.LearningWeights]:
    """An encoder with additions that are not zero."""
    encoder = BiEncoder(folder, device="cpu")
    learning = adapters.LearningWeights(encoder.model)
    torch.manual_seed(0)
    for name, weight in encoder.model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return encoder, learning


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_computed_twice_give_the_same_gradients(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    def gradients(short: int) -> tuple[list[torch.Tensor], int]:
        monkeypatch.setattr(adapters, "SHORT", short)
        model = (opened := adapted(encoder)[0]).model
        attention = next(module for module in model.modules() if type(module).__name__.endswith("Attention"))
        passed: list[int] = []
        attention.register_forward_hook(lambda *told: passed.append(1))
        embed = Embedder(opened, DOCUMENTS[:8], precision)
        embed(DOCUMENTS[:8])[:, 0].sum().backward()
        assert not any(module.training for module in attention.modules())
        return [weight.grad for weight in model.parameters() if weight.grad is not None], len(passed)

    (kept, once), (again, twice) = gradients(1000), gradients(0)
    assert once > 0 and twice == 2 * once
    assert len(kept) == len(again) > 0
    largest = max(float(gradient.abs().max()) for gradient in kept)
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=largest / (1e4 if precision == "float32" else 20))


@pytest.mark.usefixtures("large")
def test_merged_weights_answer_as_the_additions_did(encoder: Path, tmp_path: Path) -> None:
    plain = BiEncoder(encoder, device="cpu").encode_documents(DOCUMENTS)
    opened, learning = adapted(encoder)
    vectors = opened.encode_documents(DOCUMENTS)
    assert np.abs(vectors - plain).max() > 0.01
    learning.settle()
    opened.save(tmp_path / "student")
    found = BiEncoder(tmp_path / "student", device="cpu").encode_documents(DOCUMENTS)
    np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_a_large_encoder_wants_peft(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "LARGE", 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"peft is missing.*\n.*pip install 'ezxmc\[lora\]'"):
        stepper(BiEncoder(tiny_encoder, device="cpu"))


def test_a_run_says_so_before_it_asks(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "LARGE", 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"ezxmc\[lora\]"):
        run(RunConfig.load(tiny_config), teacher=FakeTeacher(log=tmp_path / "asked"))
    assert not (tmp_path / "asked").exists()


def test_word_vectors_of_many_languages_are_left(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_MANY_WORDS", 70)
    model = BiEncoder(tiny_encoder, device="cpu").model
    adapters.LearningWeights(model)
    left = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert left == ["0.model.embeddings.word_embeddings.weight"]
