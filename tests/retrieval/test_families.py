"""Well-known families of encoders, through stand-ins of their layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from support.families import FAMILIES, build_family
from support.tinyworld import TOPICS, document

from ezxmc import save_bundle
from ezxmc.bundle.bundle import load_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.config import TrainingConfig
from ezxmc.errors import ModelError
from ezxmc.retrieval import BiEncoder
from ezxmc.retrieval.backends import TokenCache
from ezxmc.retrieval.export import convert
from ezxmc.training import train_bi_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["star", *(document(number)["text"] for number in range(9)), "the orbit of a comet, " * 6]
LABELS = list(TOPICS)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(request.param, tmp_path_factory.mktemp("families") / request.param)


def agrees_with_sentence_transformers(encoder: BiEncoder, folder: Path) -> None:
    stock = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    # Its `encode_document` knows no other name than "document" once it has read a model.
    named = "document" if stock.prompts["document"] else "passage" if "passage" in stock.prompts else None
    documents = stock.encode(TEXTS, prompt_name=named, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), documents, atol=1e-5)
    labels = stock.encode_query(LABELS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_labels(LABELS), labels, atol=1e-5)
    assert np.abs(documents[0] - documents[1]).max() > 0.01


def test_vectors_are_those_of_sentence_transformers(family: Path) -> None:
    encoder = BiEncoder(family, device="cpu")
    agrees_with_sentence_transformers(encoder, family)
    assert all(weight.dtype == torch.float32 for weight in encoder.model.parameters())


def test_texts_tokenised_once_are_padded_as_the_tokenizer_does(family: Path) -> None:
    encoder = BiEncoder(family, device="cpu")
    tokens = TokenCache(encoder, TEXTS)
    for some in (TEXTS[:2], TEXTS[::-1], TEXTS[-1:]):
        wanted, found = encoder.features(some), tokens.features(some)
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            assert (
                torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
            )
    assert encoder.read_of(TEXTS[-1]).rstrip() == TEXTS[-1].rstrip()


def test_trained_bundled_and_asked(family: Path, tmp_path: Path) -> None:
    rows = [(i, label, 0.95 if label in text else 0.05) for i, text in enumerate(TEXTS) for label in LABELS]
    config = TrainingConfig(encoder=str(family), epochs=1, precision="float32")
    summary = train_bi_encoder(TEXTS, LABELS, rows, config, tmp_path / "student")
    assert np.isfinite(summary.losses).all()
    student = BiEncoder(tmp_path / "student", device="cpu")
    assert student.prompts == BiEncoder(family, device="cpu").prompts
    agrees_with_sentence_transformers(student, tmp_path / "student")
    before = load_file(family / "model.safetensors")
    before = {name.removeprefix("model."): weight for name, weight in before.items()}
    after = load_file(tmp_path / "student" / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert before.keys() == after.keys()
    assert any(not torch.equal(weight.float(), after[name]) for name, weight in before.items())
    save_bundle(tmp_path / "bundle", student, LABELS, max_length=student.max_length, k=2)
    bundle = load_bundle(tmp_path / "bundle")
    nearest = (student.encode_documents(TEXTS) @ student.encode_labels(LABELS).T).argmax(axis=1)
    tags = [prediction.tags[0].title for prediction in Predictor(bundle).predict(TEXTS, k=2)]
    assert tags == [LABELS[row] for row in nearest]


@pytest.mark.encoder
def test_converted(family: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = BiEncoder(family, device="cpu")
    encoder.save(tmp_path / "student")
    try:
        convert(encoder, tmp_path / "student", TEXTS, backend="onnx", precision="float32")
    except ModelError as error:
        pytest.skip(f"{family.name}: {str(error)[:100]}")
    onnx = BiEncoder(tmp_path / "student", backend="onnx", precision="float32")
    np.testing.assert_allclose(onnx.encode_documents(TEXTS), encoder.encode_documents(TEXTS), atol=1e-4)
    np.testing.assert_allclose(onnx.encode_labels(LABELS), encoder.encode_labels(LABELS), atol=1e-4)
