"""The multilingual encoder out of its package, and which encoder a catalog gets."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from transformers import BertConfig, BertModel

from ezxmc.errors import ModelError
from ezxmc.models.packed_e5 import convert, unpacked
from ezxmc.models.resolve import ENGLISH, MULTILINGUAL, fitting_encoder, model_identity
from ezxmc.retrieval import BiEncoder
from ezxmc.training.static import token_vectors, tokenizer_of, without_unused

Q4 = GGMLQuantizationType.Q4_0
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁query", "▁passage", ":", "▁red", "▁rose", "fi", "n", "e"]
ENGLISH_TEXT = "A text editor for programmers that highlights the syntax of many languages."
FOREIGN = {
    "French": "Éditeur de texte pour programmeurs qui met en évidence la syntaxe de nombreux langages.",
    "German": "Texteditor für Programmierer, der die Syntax vieler Sprachen farbig hervorhebt.",
    "Italian": "Editor di testo per programmatori che evidenzia la sintassi di molti linguaggi.",
    "Russian": "Текстовый редактор для программистов с подсветкой синтаксиса многих языков.",
    "Japanese": "多くの言語の構文を強調表示するプログラマー向けのテキストエディタ。",
}


def blocks(weights: np.ndarray) -> bytes:
    return quantize(weights.astype(np.float32), Q4).tobytes()


def pack(model: BertModel) -> bytes:
    """The model in the package's form: matrices rounded, all else as it is."""
    short = {
        **{"attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v"},
        **{"attention.output.dense": "ao", "attention.output.LayerNorm": "aln"},
        **{"intermediate.dense": "fi", "output.dense": "fo", "output.LayerNorm": "oln"},
    }
    first = {"word_embeddings": "emb.word", "position_embeddings": "emb.pos"}
    first |= {"token_type_embeddings": "emb.type"}
    parts: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        if name.startswith("encoder.layer."):
            _, _, layer, rest = name.split(".", 3)
            module, kind = rest.rsplit(".", 1)
            parts[f"l{layer}.{short[module]}.{kind[0]}"] = value.numpy()
        elif "LayerNorm" in name:
            parts[f"emb.ln.{name.rsplit('.', 1)[1][0]}"] = value.numpy()
        elif name.startswith("embeddings."):
            parts[first[name.split(".")[1]]] = value.numpy()
    config = model.config
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    sizes += (config.intermediate_size, config.vocab_size, config.max_position_embeddings)
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes, config.type_vocab_size, config.layer_norm_eps, 32)
    text = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, text)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, *(-2 - len(piece) / 10 for piece in PIECES[4:])], dtype="<f4")
    head += struct.pack("<5iQ", len(text), 0, 2, 1, 3, len(b"".join(text)))
    head += offsets.tobytes() + scores.tobytes() + b"".join(text)
    table = struct.pack("<IB", 0xFB01, 2) + struct.pack("<2I", ord("f"), ord("i"))
    head += struct.pack("<iI", 1, len(table)) + table + struct.pack("<i", len(parts))
    directory = sum(2 + len(name) + 21 for name in parts)
    body = b""
    for name, value in parts.items():
        packed = name == "emb.word" or (value.ndim == 2 and not name.startswith("emb"))
        data = blocks(value) if packed else value.astype("<f4").tobytes()
        place = len(head) + directory + len(body)
        told = struct.pack("<H", len(name)) + name.encode()
        parts[name] = told + struct.pack("<BIQQ", packed, value.size, place, len(data))
        body += data
    return head + b"".join(parts.values()) + body


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BertModel]:
    """A converted folder, and the model it must be: transformers' own, its matrices rounded by gguf."""
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": 16, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 96, "max_position_embeddings": 20, "initializer_range": 0.5},
    )
    model = BertModel(config).eval()
    folder = tmp_path_factory.mktemp("packed")
    (folder / "source.bin").write_bytes(pack(model))
    (folder / "out").mkdir()
    convert(folder / "source.bin", folder / "out")
    rounded = {
        name: torch.from_numpy(dequantize(quantize(value.numpy(), Q4), Q4))
        if value.ndim == 2 and not name.startswith(("embeddings.position", "embeddings.token", "pooler"))
        else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(rounded)
    return folder / "out", model


def test_blocks_are_what_gguf_reads_in_them() -> None:
    weights = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    raw = quantize(weights, Q4)
    np.testing.assert_array_equal(unpacked(raw.ravel()).reshape(7, 96), dequantize(raw, Q4))


def test_a_packed_encoder_gives_the_vectors_of_the_model_it_was_made_of(
    packed: tuple[Path, BertModel],
) -> None:
    folder, model = packed
    ids = torch.tensor([[0, 6, 7, 8, 9, 2]])
    with torch.inference_mode():
        expected = model(ids).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    encoder = BiEncoder(folder, device="cpu")
    np.testing.assert_allclose(encoder.encode_documents(["red rose"]), expected, atol=1e-5)
    assert encoder.max_length == 20 and encoder.prompts.label == "query: "


@pytest.mark.parametrize("text", ["red  rose", "red\trose\n", "red\u200brose", " red rose ", "red\x07 rose"])
def test_spaces_and_controls_are_as_the_file_says(packed: tuple[Path, BertModel], text: str) -> None:
    tokens = BiEncoder(packed[0], device="cpu").model.tokenizer
    assert tokens(text)["input_ids"] == [0, 8, 9, 2]
    assert tokens.convert_ids_to_tokens(tokens("ﬁne")["input_ids"])[1:-1] == ["▁", "fi", "n", "e"]


def test_a_static_student_keeps_the_pieces_of_its_catalog(packed: tuple[Path, BertModel]) -> None:
    encoder = BiEncoder(packed[0], device="cpu")
    tokenizer = tokenizer_of(encoder)
    fewer, kept = without_unused(tokenizer, ["red fine", "red"])
    every = [*PIECES, "<mask>"]
    assert {every[token] for token in kept} == set(every) - {"▁query", "▁passage", "▁rose"}
    for text in ("red fine", "fine  red", "e"):
        assert [kept[token] for token in fewer.encode(text).ids] == tokenizer.encode(text).ids
    # What is left out falls into what is left, here the unknown.
    assert fewer.encode("rose", add_special_tokens=False).tokens[-1] == "e"
    rows = token_vectors(encoder, tokenizer, kept)
    whole = token_vectors(encoder, tokenizer, range(len(every)))
    np.testing.assert_allclose(rows.numpy(), whole.numpy()[kept], atol=1e-6)


def test_another_file_is_no_packed_encoder(tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(ValueError, match="is no packed E5 encoder"):
        convert(tmp_path / "source.bin", tmp_path)


@pytest.mark.encoder
def test_the_real_one_is_as_its_own_engine_says() -> None:
    """First numbers of vectors by the engine of the package, which rounds what it multiplies to 8 bits."""
    engine = {
        "passage: éditeur de texte en mode console": [0.0376, -0.0105, -0.0787, -0.0863, 0.0196, -0.0353],
        "passage: 日本語の文字認識プログラム": [0.1062, -0.0434, -0.0140, -0.0451, 0.0331, -0.0152],
        "query: Text Editing": [0.0169, -0.0331, -0.0622, -0.0834, 0.0445, -0.0448],
    }
    encoder = BiEncoder(MULTILINGUAL)
    np.testing.assert_allclose(encoder.encode(list(engine))[:, :6], list(engine.values()), atol=0.008)
    french, japanese = encoder.encode_documents([FOREIGN["French"], "ピアノの楽譜を書くプログラム"])
    labels = encoder.encode_labels(["text editing", "music notation"])
    assert (french @ labels.T).argmax() == 0 and (japanese @ labels.T).argmax() == 1


def test_a_name_is_a_name() -> None:
    assert model_identity("auto") == model_identity(ENGLISH), "where no documents tell"
    assert fitting_encoder("org/model", [FOREIGN["Russian"]]) == "org/model"


@pytest.mark.encoder
def test_other_languages_get_the_encoder_that_reads_them() -> None:
    told: list[str] = []
    assert fitting_encoder("auto", [ENGLISH_TEXT] * 300, say=told.append) == ENGLISH
    assert fitting_encoder("auto", ["rock music", "\ud800"], say=told.append) == ENGLISH
    assert fitting_encoder("auto", [], say=told.append) == ENGLISH and not told
    for text in FOREIGN.values():
        assert fitting_encoder("auto", [text], say=told.append) == MULTILINGUAL
    assert len(told) == len(FOREIGN)
    assert "all-MiniLM-L6-v2 knows 57% of these documents' words" in told[0]
    # Some words of another language make no other catalog.
    assert fitting_encoder("auto", [ENGLISH_TEXT] * 5 + [FOREIGN["French"]]) == ENGLISH


def test_a_catalog_without_the_english_encoder_in_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="cannot be fetched"):
        fitting_encoder("auto", ["text"])


def test_the_folder_says_what_it_is(packed: tuple[Path, BertModel]) -> None:
    config = json.loads((packed[0] / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-12 and config["architectures"] == ["BertModel"]
