"""What stands before documents and labels: the checkpoint's own, the configuration's, a student's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from support.tinyworld import document

from ezxmc import save_bundle
from ezxmc.bundle.bundle import load_bundle
from ezxmc.config import EncoderPrompts, TrainingConfig
from ezxmc.errors import ModelError
from ezxmc.retrieval import BiEncoder
from ezxmc.retrieval.export import convert
from ezxmc.training import train_bi_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [document(i)["text"] for i in range(12)]
OWN = {"query": "rose music ", "passage": "star "}


@pytest.fixture(scope="module")
def published(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with prompts for both sides, as E5's are."""
    folder = tmp_path_factory.mktemp("published") / "encoder"
    SentenceTransformer(str(tiny_encoder), prompts=OWN, device="cpu").save(str(folder))
    return folder


def by_hand(folder: Path, prompt: str, texts: list[str] = TEXTS) -> np.ndarray:
    model = SentenceTransformer(str(folder), prompts={}, device="cpu")
    return model.encode([prompt + text for text in texts], prompt="", normalize_embeddings=True)


def test_the_checkpoints_own_go_where_they_belong(published: Path, tiny_encoder: Path) -> None:
    encoder = BiEncoder(published, device="cpu")
    assert encoder.prompts == EncoderPrompts(document="star ", label="rose music ")
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), by_hand(published, "star "), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_labels(TEXTS), by_hand(published, "rose music "), atol=1e-6)
    assert BiEncoder(tiny_encoder, device="cpu").prompts == EncoderPrompts()


def test_the_configurations_replace_them(published: Path, tmp_path: Path) -> None:
    given = EncoderPrompts(document="", label="soup ")
    encoder = BiEncoder(published, device="cpu", prompts=given)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), by_hand(published, ""), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_labels(TEXTS), by_hand(published, "soup "), atol=1e-6)
    # One before every text alike is replaced, too.
    model = SentenceTransformer(str(published), prompts=OWN, default_prompt_name="query", device="cpu")
    model.save(str(tmp_path / "default"))
    encoder = BiEncoder(tmp_path / "default", device="cpu", prompts=given)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), by_hand(published, ""), atol=1e-6)


@pytest.mark.parametrize("given", [None, EncoderPrompts(document="", label="soup ")])
def test_a_student_keeps_what_it_was_trained_with(
    published: Path, tmp_path: Path, given: EncoderPrompts | None
) -> None:
    rows = [(i, "music", float(i % 2)) for i in range(12)] + [(i, "sailing", 1.0 - i % 2) for i in range(12)]
    config = TrainingConfig(encoder=str(published), encoder_prompts=given, epochs=1, precision="float32")
    train_bi_encoder(TEXTS, ["music", "sailing"], rows, config, tmp_path / "student")
    student = BiEncoder(tmp_path / "student", device="cpu")
    wanted = given or EncoderPrompts(document="star ", label="rose music ")
    assert student.prompts == wanted
    stock = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    np.testing.assert_allclose(
        stock.encode_document(TEXTS, normalize_embeddings=True), student.encode_documents(TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        stock.encode_query(TEXTS, normalize_embeddings=True), student.encode_labels(TEXTS), atol=1e-6
    )
    # Bundle, and the folder saved again.
    save_bundle(tmp_path / "bundle", tmp_path / "student", ["music", "sailing"], max_length=32, k=2)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.encoder.prompts == wanted
    np.testing.assert_allclose(
        bundle.index.vectors([0, 1]), student.encode_labels(["music", "sailing"]), atol=0.01
    )
    student.save(tmp_path / "again")
    assert BiEncoder(tmp_path / "again").prompts == wanted


def test_training_reads_texts_as_tagging_does(published: Path) -> None:
    from ezxmc.training.step import Stepper

    encoder = BiEncoder(published, device="cpu")
    from ezxmc.data.in_memory import as_documents, as_labels
    from ezxmc.feedback.targets import targets_from_rows
    from ezxmc.training.dataset import examples

    config = TrainingConfig(precision="float32")
    documents, labels = as_documents(TEXTS), as_labels(["music", "sailing"])
    rows = [(i, "music", float(i % 2)) for i in range(12)]
    pool = examples(documents, labels, targets_from_rows(rows, documents, labels, config))
    stepper = Stepper(
        encoder,
        TEXTS,
        ["music", "sailing"],
        [e for e in pool if e.positives],
        config,
        np.random.default_rng(0),
    )
    unit = stepper.embed([stepper.documents[1]]).detach().numpy()
    np.testing.assert_allclose(unit / np.linalg.norm(unit), encoder.encode_documents(TEXTS[1:2]), atol=1e-6)
    unit = stepper.embed([stepper.titles[0]]).detach().numpy()
    np.testing.assert_allclose(unit / np.linalg.norm(unit), encoder.encode_labels(["music"]), atol=1e-6)


def test_students_of_versions_without_prompts_stay_without(published: Path, tmp_path: Path) -> None:
    """They name their checkpoint's prompts, and were trained without."""
    encoder = BiEncoder(published, device="cpu")
    encoder.save(tmp_path / "student")
    save_bundle(tmp_path / "bundle", encoder, ["music", "sailing"], max_length=32, k=2)
    for student in (tmp_path / "student", tmp_path / "bundle" / "student"):
        file = student / "config_sentence_transformers.json"
        told = json.loads(file.read_text())
        told["prompts"] = OWN
        former = shutil.copytree(student.parent, tmp_path / f"former-{student.parent.name}") / student.name
        (former / file.name).write_text(json.dumps(told))
        found = BiEncoder(former, device="cpu")
        assert found.prompts == EncoderPrompts()
        np.testing.assert_allclose(found.encode_labels(TEXTS), by_hand(published, ""), atol=1e-6)


def test_what_is_read_of_a_document_is_told_without_its_prompt(published: Path) -> None:
    encoder = BiEncoder(published, device="cpu", max_length=5)
    assert encoder.read_of("rose boat soup star") == "rose boat"
    assert encoder.read_of("") == ""


def test_pooling_that_leaves_prompts_out(published: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(published), device="cpu")
    model[1].include_prompt = False
    model.save(str(tmp_path / "left-out"))
    with pytest.raises(ModelError, match=r"leaves prompts out.*\n.*encoder_prompts"):
        BiEncoder(tmp_path / "left-out", device="cpu")
    assert BiEncoder(tmp_path / "left-out", device="cpu", prompts=EncoderPrompts()).dimension == 32


@pytest.mark.encoder
def test_a_converted_student_reads_the_same(published: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = BiEncoder(published, device="cpu", max_length=32)
    encoder.save(tmp_path / "student")
    convert(encoder, tmp_path / "student", TEXTS, backend="onnx", precision="float32")
    onnx = BiEncoder(tmp_path / "student", max_length=32, backend="onnx", precision="float32")
    np.testing.assert_allclose(onnx.encode_documents(TEXTS), encoder.encode_documents(TEXTS), atol=1e-5)
    np.testing.assert_allclose(onnx.encode_labels(TEXTS), encoder.encode_labels(TEXTS), atol=1e-5)
