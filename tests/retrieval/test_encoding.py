"""Backends and precisions of the encoder: the same vectors, faster; converted models inside a bundle."""

from __future__ import annotations

import importlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from support.tinyworld import TOPICS, document

from ezxmc.config import Backend, Precision
from ezxmc.errors import ConfigError, ModelError
from ezxmc.models import resolve_model
from ezxmc.retrieval import BiEncoder, backends
from ezxmc.retrieval.backends import choose_precision, has_fast_bfloat16, passes
from ezxmc.retrieval.bert import PlainBert, open_plain
from ezxmc.retrieval.export import convert

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [f"{document(i)['title']} {document(i)['text'] * (1 + i % 4)}" for i in range(23)] + ["", "z9"]
CPU = torch.device("cpu")


def plain(folder: Path, texts: list[str], max_length: int) -> np.ndarray:
    """What sentence-transformers itself says."""
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = max_length
    return model.encode(texts, batch_size=4, normalize_embeddings=True, show_progress_bar=False)


@pytest.fixture(scope="module")
def converted(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder's folder with both ONNX models in it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("converted") / "student"
    encoder = BiEncoder(tiny_encoder, device="cpu")
    encoder.save(folder)
    same = convert(encoder, folder, TEXTS, backend="onnx", precision="float32")
    assert same.name == "onnx/embedding_float32.onnx" and same.cosine_least > 0.99999
    near = convert(encoder, folder, TEXTS, backend="onnx")
    assert near.name == "onnx/embedding_int8.onnx" and near.bytes == (folder / near.name).stat().st_size
    assert 0.98 < near.cosine_least < near.cosine_mean < 0.999999
    return folder


def opened(folder: Path, backend: Backend, precision: Precision, max_length: int = 32) -> BiEncoder:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[backend])
    return BiEncoder(folder, max_length=max_length, backend=backend, precision=precision)


def test_documents_get_the_vectors_of_sentence_transformers(tiny_encoder: Path) -> None:
    encoder = BiEncoder(tiny_encoder, max_length=32, device="cpu")
    expected = plain(tiny_encoder, TEXTS, 32)
    found = encoder.encode_documents(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Who shares a pass with whom changes nothing.
    for row in (0, 7, 23, 24):
        np.testing.assert_allclose(encoder.encode_documents([TEXTS[row]])[0], expected[row], atol=1e-6)


ODD = [
    *("Ünïcode 漢字 x\u0301 don't [SEP] [MASK] 3.14", "\ud800 half", " ", "guitar" * 99, "\t\n"),
    *(" ".join(["guitar soup wind comet hedge zq"] * many) for many in (1, 2, 60)),
]


def same_bits(folder: Path, precision: Precision, length: int | None) -> None:
    encoder = BiEncoder(folder, max_length=length, device="cpu", precision=precision)
    assert isinstance(encoder.runner, PlainBert)
    inputs = encoder.features(ODD)
    found = [encoder.encode_documents(ODD), encoder.encode_documents(ODD[:1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "has_fast_bfloat16", lambda device: True)
        faster = encoder.faster()
    assert isinstance(faster.runner, PlainBert) and faster.precision == "bfloat16"
    found.append(faster.encode_documents(ODD))
    assert isinstance(encoder.model, SentenceTransformer)
    assert isinstance(encoder.runner, SentenceTransformer)
    whole = BiEncoder(folder, max_length=length, device="cpu", precision="bfloat16")
    assert isinstance(whole.model, SentenceTransformer)
    np.testing.assert_array_equal(found[2], whole.encode_documents(ODD))
    expected = encoder.features(ODD)
    assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
    np.testing.assert_array_equal(found[0], encoder.encode_documents(ODD))
    np.testing.assert_array_equal(found[1], encoder.encode_documents(ODD[:1]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_plain_bert_gives_the_same_bits_as_sentence_transformers(
    precision: Precision, tiny_encoder: Path, tmp_path: Path
) -> None:
    same_bits(tiny_encoder, precision, 9)
    # As older versions wrote it; the first token's vector, of any length.
    shutil.copytree(tiny_encoder, tmp_path / "old")
    (tmp_path / "old" / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    (tmp_path / "old" / "sentence_bert_config.json").write_text('{"max_seq_length": 21}')
    modules = json.loads((tmp_path / "old" / "modules.json").read_text())
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules[:2]))
    shutil.rmtree(tmp_path / "old" / "2_Normalize")
    same_bits(tmp_path / "old", precision, None)


@pytest.mark.encoder
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_real_student_gives_the_same_bits_as_sentence_transformers(precision: Precision) -> None:
    same_bits(Path(resolve_model("all-MiniLM-L6-v2", kind="encoder")), precision, 128)


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("config.json", ["hidden_act"], "relu"),
        ("config.json", ["model_type"], "roberta"),
        ("config.json", ["chunk_size_feed_forward"], 4),
        ("config.json", ["max_position_embeddings"], 32),
        ("modules.json", [1, "type"], "sentence_transformers.models.Dense"),
        ("1_Pooling/config.json", ["pooling_mode"], "max"),
        ("1_Pooling/config.json", ["include_prompt"], False),
        ("config_sentence_transformers.json", ["default_prompt_name"], "query"),
        ("config_sentence_transformers.json", ["truncate_dim"], 8),
        ("sentence_bert_config.json", ["do_lower_case"], True),
        ("tokenizer_config.json", ["strip_accents"], False),
        ("tokenizer_config.json", ["tokenizer_class"], "PreTrainedTokenizerFast"),
        ("tokenizer_config.json", ["padding_side"], "left"),
        ("tokenizer.json", ["normalizer", "lowercase"], False),
        ("tokenizer.json", ["pre_tokenizer", "type"], "Whitespace"),
        ("tokenizer.json", ["added_tokens", 1, "lstrip"], True),
        ("tokenizer.json", ["post_processor", "single"], [{"Sequence": {"id": "A", "type_id": 0}}]),
        ("added_tokens.json", [], {"[NEW]": 7}),
    ],
)
def test_what_is_no_plain_bert_is_left_to_sentence_transformers(
    file: str, place: list[str | int], value: object, tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_encoder, tmp_path / "odd")
    assert open_plain(folder) is not None
    whole = json.loads((folder / file).read_text()) if place else value
    part = whole
    for step in place[:-1]:
        part = part[step]
    if place:
        part[place[-1]] = value
    (folder / file).write_text(json.dumps(whole))
    assert open_plain(folder) is None


def test_a_folder_that_was_changed_since_is_not_taken_for_what_was_read(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_encoder, tmp_path / "changed")
    encoder = BiEncoder(folder, device="cpu")
    expected = encoder.encode_documents(ODD)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: part + 1 for name, part in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    np.testing.assert_array_equal(encoder.encode_documents(ODD), expected)
    with pytest.raises(ModelError, match=r"was changed since it was read.*\n.*open it again"):
        _ = encoder.model


def test_more_texts_than_are_tokenised_at_once(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ezxmc.retrieval.encoder._TEXTS_AT_ONCE", 4)
    told: list[tuple[int, int]] = []
    encoder = BiEncoder(tiny_encoder, max_length=32, device="cpu")
    found = encoder.encode_documents(TEXTS[:10], progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(found, plain(tiny_encoder, TEXTS[:10], 32), atol=1e-6)
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_a_prompt_that_pooling_leaves_out_is_left_out(tiny_encoder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(
        str(tiny_encoder), prompts={"query": "rose music "}, default_prompt_name="query", device="cpu"
    )
    model[1].include_prompt = False
    model.save(str(tmp_path / "prompted"))
    found = BiEncoder(tmp_path / "prompted", max_length=32, device="cpu").encode_documents(TEXTS)
    np.testing.assert_allclose(found, plain(tmp_path / "prompted", TEXTS, 32), atol=1e-6)
    assert not np.allclose(found, plain(tiny_encoder, TEXTS, 32), atol=1e-3)


def test_bfloat16_is_near_and_never_saved(tiny_encoder: Path, tmp_path: Path) -> None:
    exact = BiEncoder(tiny_encoder, max_length=32, device="cpu")
    rough = BiEncoder(tiny_encoder, max_length=32, device="cpu", precision="bfloat16")
    left, right = exact.encode_documents(TEXTS), rough.encode_documents(TEXTS)
    assert right.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), 1, atol=1e-5)
    assert 0 < np.abs(left - right).max() < 0.02
    assert (left * right).sum(1).min() > 0.999
    with pytest.raises(ModelError, match="in float32"):
        rough.save(tmp_path / "never")
    with pytest.raises(ModelError, match="in float32"):
        convert(rough, tmp_path / "never", TEXTS, backend="onnx")
    assert not (tmp_path / "never").exists()


@pytest.mark.encoder
def test_converted_models_agree_with_torch(tiny_encoder: Path, converted: Path) -> None:
    expected = plain(tiny_encoder, TEXTS, 32)
    same = opened(converted, "onnx", "float32")
    np.testing.assert_allclose(same.encode_documents(TEXTS), expected, atol=1e-5)
    near = opened(converted, "onnx", "auto")
    assert near.precision == "int8"
    found = near.encode_labels(TEXTS)
    assert np.abs(found - expected).max() > 1e-5
    assert (found * expected).sum(1).min() > 0.99
    small, large = (converted / f"onnx/embedding_{name}.onnx" for name in ("int8", "float32"))
    assert small.stat().st_size < large.stat().st_size
    # What was written beside the student leaves the student as it was.
    np.testing.assert_array_equal(plain(converted, TEXTS, 32), expected)
    assert {file.name for file in (converted / "onnx").iterdir()} == {small.name, large.name}


@pytest.mark.encoder
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_length_the_conversion_never_saw(converted: Path, tiny_encoder: Path, backend: Backend) -> None:
    texts = [" ".join([*TOPICS] * 12), "rose"]
    found = opened(converted, backend, "float32", max_length=60).encode_documents(texts)
    np.testing.assert_allclose(found, plain(tiny_encoder, texts, 60), atol=1e-5)


@pytest.mark.encoder
def test_openvino_rounds_where_it_is_told_to(converted: Path, tiny_encoder: Path) -> None:
    expected = plain(tiny_encoder, TEXTS, 32)
    np.testing.assert_allclose(
        opened(converted, "openvino", "float32").encode_documents(TEXTS), expected, atol=1e-5
    )
    if has_fast_bfloat16(CPU):
        rounded = opened(converted, "openvino", "bfloat16").encode_documents(TEXTS)
        assert np.abs(rounded - expected).max() > 1e-5
        assert (rounded * expected).sum(1).min() > 0.999


@pytest.mark.encoder
def test_a_model_without_token_rows_is_converted_too(tiny_encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "text": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = BiEncoder(tiny_encoder, device="cpu")
    encoder.model, encoder.dimension = (
        SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu"),
        8,
    )
    texts = ["one text", "text", "one one text", "two", "text one text one"]
    convert(encoder, tmp_path, texts[:1], backend="onnx", precision="float32")
    expected = encoder.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    found = encoder.converted(tmp_path, "onnx", "float32").encode_documents(texts)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.encoder
def test_a_model_that_cannot_be_converted_leaves_nothing(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")

    def refuse(model: object, inputs: object, file: Path, **settings: object) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ModelError, match=r"no such operator\n  cure: use the torch backend"):
        convert(BiEncoder(tiny_encoder, device="cpu"), tmp_path, ["one"], backend="onnx", precision="float32")
    assert not [*(tmp_path / "onnx").iterdir()]


def test_precisions_and_backends_that_do_not_go_together(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch does not compute in int8[^$]*choose of auto, float32, bfl"):
        BiEncoder(tiny_encoder, precision="int8")
    with pytest.raises(ConfigError, match="onnx does not compute in bfloat16"):
        choose_precision("onnx", "bfloat16", CPU)
    with pytest.raises(ConfigError, match="export for onnx or openvino"):
        convert(BiEncoder(tiny_encoder, device="cpu"), tmp_path, TEXTS, backend="torch")
    with pytest.raises(ConfigError, match="no backend is called 'tensorrt'"):
        BiEncoder(tiny_encoder, backend="tensorrt")  # type: ignore[arg-type]


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_the_fastest_of_this_processor(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device: has)
    for backend in ("torch", "openvino"):
        assert choose_precision(backend, "auto", CPU) == ("bfloat16" if has else "float32")
    assert choose_precision("onnx", "auto", CPU) == "int8"


@pytest.mark.encoder
def test_what_is_missing_is_named(
    tiny_encoder: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="ezxmc export BUNDLE --backend onnx --precision int8"):
        BiEncoder(tiny_encoder, backend="onnx", precision="int8")
    damaged = tmp_path / "damaged"
    BiEncoder(tiny_encoder, device="cpu").save(damaged)
    (damaged / "onnx").mkdir()
    (damaged / "onnx/embedding_int8.onnx").write_bytes(
        (converted / "onnx/embedding_int8.onnx").read_bytes()[:9000]
    )
    with pytest.raises(ModelError, match="convert the model again: ezxmc export"):
        BiEncoder(damaged, backend="onnx", precision="int8")

    def without(name: str) -> object:
        if name.startswith(("onnx", "openvino")):
            raise ImportError(f"No module named {name!r}")
        return importlib.import_module(name)

    monkeypatch.setattr(backends, "import_module", without)
    with pytest.raises(ModelError, match=r"pip install 'ezxmc\[onnx\]'"):
        BiEncoder(converted, backend="onnx", precision="auto")
    with pytest.raises(ModelError, match=r"pip install 'ezxmc\[openvino\]'"):
        BiEncoder(converted, backend="openvino")
    with pytest.raises(ModelError, match=r"pip install 'ezxmc\[onnx\]'"):
        convert(BiEncoder(tiny_encoder, device="cpu"), tmp_path, TEXTS, backend="onnx")


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 600))
def test_passes_hold_every_row_once_within_their_budget(lengths: list[int], budget: int) -> None:
    found = passes(lengths, budget)
    assert sorted(row for part in found for row in part.tolist()) == list(range(len(lengths)))
    for part in found:
        longest = max(lengths[row] for row in part)
        assert len(part) == 1 or len(part) * longest <= budget


@pytest.mark.encoder
def test_a_real_encoder_in_every_precision(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = Path(resolve_model("all-MiniLM-L6-v2", kind="encoder"))
    exact = BiEncoder(source, max_length=128, device="cpu")
    texts = [
        f"{document(i)['text']} and a library to parse JSON, version {i}. " * (1 + i % 9) for i in range(24)
    ]
    expected = plain(source, texts, 128)
    np.testing.assert_allclose(exact.encode_documents(texts), expected, atol=1e-5)
    exact.save(tmp_path)
    for precision in ("int8", "float32"):
        convert(exact, tmp_path, texts, backend="onnx", precision=precision)
    ways = [("torch", "bfloat16", 0.9999), ("onnx", "float32", 0.99999), ("onnx", "int8", 0.99)]
    if find_spec("openvino"):
        ways.append(("openvino", "float32", 0.99999))
    for backend, precision, mean in ways:
        encoder = BiEncoder(tmp_path, max_length=128, backend=backend, precision=precision)
        cosines = (encoder.encode_documents(texts) * expected).sum(1)
        # Single documents scatter a little.
        assert cosines.mean() > mean and 1 - cosines.min() < 2 * (1 - mean), (
            f"{backend} {precision}: {cosines}"
        )


@pytest.mark.encoder
def test_a_conversion_that_says_something_else_is_refused(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = BiEncoder(tiny_encoder, max_length=32, device="cpu")
    other = BiEncoder(tiny_encoder, max_length=32, device="cpu")
    with torch.no_grad():
        for weights in other.model.parameters():
            weights.copy_(torch.randn_like(weights))
    monkeypatch.setattr(BiEncoder, "converted", lambda self, folder, backend, precision: other)
    with pytest.raises(ModelError, match="mean cosine of"):
        convert(encoder, tmp_path, TEXTS, backend="onnx", precision="float32")
