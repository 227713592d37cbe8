"""A bundle from a stranger: nothing in it is run, nothing outside it is read; and it may lie anywhere."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from support.tinyworld import label_rows

from ezxmc.bundle.bundle import load_bundle, save_bundle
from ezxmc.bundle.manifest import Manifest, read_manifest
from ezxmc.bundle.predict import Predictor
from ezxmc.errors import BundleError, ModelError
from ezxmc.hashing import file_hash
from ezxmc.models.resolve import load_tokenizer
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    path = tmp_path_factory.mktemp("made") / "bundle"
    save_bundle(path, tiny_encoder, LABELS, max_length=32, k=4)
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def sign(bundle: Path, **more: str) -> None:
    """A manifest that fits the files: a stranger can write one too."""
    raw = json.loads((bundle / "manifest.json").read_text())
    listed = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
    raw["files"] = {name: file_hash(bundle / name) for name in sorted(listed - {"manifest.json"})} | more
    (bundle / "manifest.json").write_text(json.dumps(raw))


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return os.putenv, ("EZXMC_TEST_BOMB", "went off")


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "weights.pt",
        "data.pkl",
        "1_Pooling/pytorch_model.bin",
        "modeling.py",
        "x.npy",
        "x",
    ],
)
def test_files_that_may_run_code_are_refused_even_with_a_fitting_hash(bundle: Path, name: str) -> None:
    (bundle / "student" / name).write_bytes(pickle.dumps(Bomb()))
    sign(bundle)
    with pytest.raises(BundleError, match=rf"student/{name} is of a kind that may run(.|\n)*safetensors"):
        load_bundle(bundle, verify=False)


def test_a_student_of_pickled_weights_is_refused(bundle: Path) -> None:
    from safetensors.torch import load_file

    weights = bundle / "student" / "model.safetensors"
    torch.save(load_file(weights), bundle / "student" / "pytorch_model.bin")
    weights.unlink()
    sign(bundle)
    with pytest.raises(BundleError, match=r"pytorch_model\.bin is of a kind"):
        load_bundle(bundle)


def test_a_converted_student_nobody_listed_is_never_run(bundle: Path) -> None:
    left = bundle / "student" / "onnx" / "model.onnx"
    left.parent.mkdir()
    left.write_bytes(b"what a killed writer left")
    with pytest.warns(UserWarning, match=r"ignored: student/onnx/model\.onnx"):
        assert load_bundle(bundle).index.size == 25
    with pytest.raises(BundleError, match=r"student/onnx/model\.onnx is not in the manifest"):
        load_bundle(bundle, backend="onnx")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "/etc/hostname",
        "student/../../x.json",
        "a\\b.json",
        "C:x.json",
        "./labels.json",
        ".",
    ],
)
def test_names_that_leave_the_folder_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside.json").write_text("{}")
    sign(bundle, **{name: file_hash(bundle.parent / "outside.json")})
    with pytest.raises(BundleError, match="no plain path inside the folder"):
        load_bundle(bundle)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_leave_the_folder_are_refused(bundle: Path, what: str) -> None:
    inner = bundle / ("index.json" if what == "file" else "student")
    inner.rename(bundle.parent / inner.name)
    inner.symlink_to(bundle.parent / inner.name)
    with pytest.raises(BundleError, match="a link that leaves the folder"):
        load_bundle(bundle)


def test_files_nobody_listed(bundle: Path) -> None:
    (bundle / "NOTES.txt").write_text("mine")
    (bundle / ".DS_Store").write_text("")
    (bundle / "labels.r9.jsonl").write_text("what a killed writer left")
    with pytest.warns(UserWarning, match=r"ignored: NOTES\.txt, labels\.r9\.jsonl"):
        opened = load_bundle(bundle)
    assert opened.strays == ("NOTES.txt", "labels.r9.jsonl") and opened.labels == LABELS
    for name in ("student/extra.json", "student/.hidden", "student/pytorch_model.bin"):
        (bundle / name).write_text("{}")
        with pytest.raises(BundleError, match=rf"{name} is not in the manifest(.|\n)*remove it"):
            load_bundle(bundle)
        (bundle / name).unlink()


def test_changes_nobody_listed_are_not_applied(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["index.npz"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    np.savez(bundle / "index.npz", added=np.zeros((0, 32), np.float32), removed=np.array([3]))
    with pytest.raises(BundleError, match=r"index\.npz is not in the manifest"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "os.system"}], "class os.system"),
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "my_model.Model"}], "class my_model"),
        ("modules.json", [{"idx": 0, "name": "0", "path": ""}], "class None"),
        ("modules.json", {"type": "sentence_transformers.models.Transformer"}, "lists no modules"),
        ("modules.json", [], "lists no modules"),
        (
            "modules.json",
            [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.WordEmbeddings"}],
            "WordEmbeddings, which is none of Transformer",
        ),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}, "model_type": "bert"}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map"),
    ],
)
def test_a_student_that_brings_code_is_refused(
    bundle: Path, file: str, content: object, message: str
) -> None:
    (bundle / "student" / file).write_text(json.dumps(content))
    sign(bundle)
    with pytest.raises(BundleError, match=rf"{file}.*{message}(.|\n)*cure"):
        load_bundle(bundle)


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


def trapped(encoder: Path, folder: Path) -> Path:
    """A copy of an encoder with code in it wherever a library could be led to; gives the file that tells."""
    told = folder.parent / "code was run"
    shutil.copytree(encoder, folder)
    code = f"open({str(told)!r}, 'w')\nclass Model:\n    pass\n"
    (folder / "modeling.py").write_text(code)
    for name in ("pytorch_model.bin", "notes.md", "x.safetensors.bin", "1_Pooling/pytorch_model.bin"):
        torch.save({"x": Canary(told)}, folder / name)
    index = {"metadata": {}, "weight_map": {"x": "notes.md"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    # Without a type of number in it, transformers looks into the weights for one.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": None}))
    return told


UNSAFE = {"use_safetensors": False, "weights_only": False}
AUTO = {name: "modeling.Model" for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")}
ATTACKS = [
    ("sentence_bert_config.json", {"model_kwargs": UNSAFE}, "the setting model_kwargs"),
    ("sentence_bert_config.json", {"model_args": UNSAFE}, "the setting model_args"),
    ("sentence_bert_config.json", {"config_kwargs": {"x": 1}}, "the setting config_kwargs"),
    ("sentence_bert_config.json", {"tokenizer_name_or_path": "/tmp"}, "the setting tokenizer_name_or_path"),
    ("sentence_bert_config.json", {"transformer_task": "retrieval"}, "transformer_task: retrieval"),
    (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "push_to_hub", "method_output_name": "x"}}},
        "modality_config",
    ),
    ("1_Pooling/config.json", {"pooling_mode": {"x": 1}}, "pooling_mode"),
    ("1_Pooling/config.json", {"model_kwargs": UNSAFE}, "the setting model_kwargs"),
    ("config.json", {"transformers_weights": "pytorch_model.bin"}, "transformers_weights"),
    ("config.json", {"_attn_implementation": "someone/kernel"}, "attn_implementation"),
    ("config.json", {"encoder": {"attn_implementation": {"": "someone/kernel"}}}, "attn_implementation"),
    ("config.json", {"quantization_config": {"quant_method": "x"}}, "quantization_config"),
    ("processor_config.json", {"audio_tokenizer": {"audio_tokenizer_name_or_path": "/x"}}, "audio_tokenizer"),
    ("adapter_config.json", {"base_model_name_or_path": "/x"}, "an adapter"),
    ("config_sentence_transformers.json", {"activation_fn": "os.system"}, "the setting activation_fn"),
]


def changed(file: Path, more: dict[str, object]) -> None:
    """Set keys of a JSON object in a file, or of the first row in a list."""
    content = json.loads(file.read_text()) if file.exists() else {}
    (content[0] if isinstance(content, list) else content).update(more)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("file", "more", "message"), ATTACKS)
def test_settings_that_lead_to_code_are_refused(
    bundle: Path, tiny_encoder: Path, tmp_path: Path, file: str, more: dict[str, object], message: str
) -> None:
    changed(bundle / "student" / file, more)
    sign(bundle)
    with pytest.raises(BundleError, match=rf"{file}.*{message}(.|\n)*cure"):
        Predictor(bundle)
    told = trapped(tiny_encoder, tmp_path / "encoder")
    changed(tmp_path / "encoder" / file, more)
    with pytest.raises(ModelError, match=rf"{file}.*{message}(.|\n)*cure"):
        BiEncoder(tmp_path / "encoder")
    assert not told.exists()


def test_pickled_weights_behind_an_index_are_never_opened(bundle: Path, tmp_path: Path) -> None:
    told, student = tmp_path / "told", bundle / "student"
    torch.save({"x": Canary(told)}, student / "notes.md")
    index = json.dumps({"metadata": {}, "weight_map": {"x": "notes.md"}})
    (student / "pytorch_model.bin.index.json").write_text(index)
    changed(student / "config.json", {"dtype": None})
    (student / "model.safetensors").rename(student / "vocab.txt")
    sign(bundle)
    with pytest.raises(BundleError, match="no weights in safetensors"):
        Predictor(bundle)
    (student / "model.safetensors.index.json").write_text(index)
    sign(bundle)
    with pytest.raises(BundleError, match=r"names weights that are no safetensors of this folder: notes\.md"):
        Predictor(bundle)
    assert not told.exists()


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/m.safetensors", "a/m.safetensors", "link.safetensors", "m.bin", None, 3]
)
def test_weights_that_lie_elsewhere_are_refused(tiny_encoder: Path, tmp_path: Path, name: object) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    (folder / "model.safetensors").rename(tmp_path / "m.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "m.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ModelError, match="no safetensors of this folder"):
        BiEncoder(folder)


def test_an_encoder_of_pickled_weights_alone_is_refused_with_the_cure(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    told = trapped(tiny_encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in safetensors; pickled(.|\n)*save_pretrained"):
        BiEncoder(tmp_path / "encoder")
    assert not told.exists()


def test_weights_in_parts_are_opened(tiny_encoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    # Laid out as the hub's cache: a snapshot of links to contents.
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    shutil.copytree(tiny_encoder, folder)
    blobs.mkdir()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {}
    for number, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        names |= dict.fromkeys(part, f"model-{number}.safetensors")
        save_file({key: weights[key] for key in part}, blobs / str(number), metadata={"format": "pt"})
        (folder / f"model-{number}.safetensors").symlink_to(Path("../../blobs", str(number)))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    text = ["guitar melody"]
    same = BiEncoder(tiny_encoder).encode_documents(text)
    assert np.array_equal(BiEncoder(folder).encode_documents(text), same)


def test_an_encoder_of_the_hub_is_checked_as_a_folder_is(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--someone--encoder"
    snapshot = cached / "snapshots" / ("a" * 40)
    told = trapped(tiny_encoder, snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = ["guitar melody"]
    same = BiEncoder(tiny_encoder).encode_documents(text)
    assert np.array_equal(BiEncoder("someone/encoder").encode_documents(text), same)
    changed(snapshot / "sentence_bert_config.json", {"model_kwargs": UNSAFE})
    with pytest.raises(ModelError, match="model_kwargs"):
        BiEncoder("someone/encoder")
    with pytest.raises(ModelError, match="nobody/has-it cannot be fetched"):
        BiEncoder("nobody/has-it")
    assert not told.exists()


def test_encoders_of_every_version_are_opened(tiny_encoder: Path, tmp_path: Path) -> None:
    text, folder = ["guitar melody"], tmp_path / "encoder"
    same = BiEncoder(tiny_encoder).encode_documents(text)
    told = trapped(tiny_encoder, folder)
    kinds = {"0": "Transformer", "1": "Pooling", "2": "Normalize"}
    rows = json.loads((folder / "modules.json").read_text())
    for row in rows:
        row["type"] = f"sentence_transformers.models.{kinds[row['name']]}"
    (folder / "modules.json").write_text(json.dumps(rows))
    old = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(old))
    (folder / "2_Normalize" / "config.json").unlink()
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    changed(folder / "sentence_bert_config.json", {"model_args": {}, "tokenizer_args": {}})
    changed(folder / "config.json", {"_name_or_path": "/home/x/y", "_attn_implementation_autoset": True})
    (folder / "config_sentence_transformers.json").write_text('{"__version__": {"pytorch": "1.8.1"}}')
    assert np.array_equal(BiEncoder(folder).encode_documents(text), same)

    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    model.append(Dense(32, 8))
    model.append(LayerNorm(8))
    model.truncate_dim = 8
    model.save(str(tmp_path / "more"), create_model_card=False)
    wanted = model.encode(text, normalize_embeddings=True)
    np.testing.assert_allclose(BiEncoder(tmp_path / "more").encode_documents(text), wanted, atol=1e-6)
    changed(tmp_path / "more" / "3_Dense" / "config.json", {"activation_function": "torch.hub.load"})
    with pytest.raises(ModelError, match=r"activation_function: torch\.hub\.load"):
        BiEncoder(tmp_path / "more")
    # Of models that came with code before transformers had it: that is neither run nor passed on.
    changed(folder / "config.json", {"auto_map": {"AutoModel": "modeling.Model"}})
    changed(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["modeling.Model", None]}})
    save_bundle(tmp_path / "bundle", folder, LABELS, max_length=32, k=4)
    assert np.array_equal(Predictor(tmp_path / "bundle").encode([Document("d", "", text[0])]), same)
    assert not told.exists()
    shutil.copytree(tiny_encoder, tmp_path / "plain")
    (tmp_path / "plain" / "modules.json").unlink()
    np.testing.assert_allclose(BiEncoder(tmp_path / "plain").encode_documents(text), same, atol=1e-6)


@pytest.fixture(scope="module")
def trap(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trap") / "encoder"
    return folder, trapped(tiny_encoder, folder)


SETTINGS_FILES = [
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
]
KEYS = [
    "type", "path", "name", "model_kwargs", "model_args", "tokenizer_args", "processor_kwargs",
    "config_kwargs", "processing_kwargs", "auto_map", "architectures", "model_type",
    "transformers_weights", "weight_map", "weights_only", "use_safetensors", "gguf_file",
    "trust_remote_code", "tokenizer_class", "processor_class", "tokenizer_name_or_path",
    "base_model_name_or_path", "_attn_implementation", "quantization_config", "configuration_files",
    "activation_function", "transformer_task", "modality_config", "code_revision", "backend",
]  # fmt: skip
WORDS = [
    "modeling.Model", "modeling", "pytorch_model.bin", "notes.md", "x.safetensors.bin", "../modeling.py",
    "os.system", "builtins.exec", "sentence_transformers.models.WordEmbeddings", "retrieval", "bert", "",
    "someone/kernel", "torch.hub.load", "AutoModel", "PreTrainedModel", "1_Pooling", ".",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 99) | st.sampled_from(WORDS) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*KEYS, *AUTO]), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(
    st.sampled_from(SETTINGS_FILES),
    st.dictionaries(st.sampled_from([*KEYS, *AUTO]) | st.text(max_size=4), VALUES, min_size=1, max_size=3),
)
@example("sentence_bert_config.json", {"model_kwargs": UNSAFE})
@example("sentence_bert_config.json", {"model_args": UNSAFE | {"gguf_file": "notes.md"}})
@example("config.json", {"auto_map": AUTO, "model_type": "unheard-of"})
@example("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["modeling.Model", None]}})
@example("modules.json", {"type": "modeling.Model"})
def test_whatever_the_settings_say_no_code_is_run(
    trap: tuple[Path, Path], name: str, more: dict[str, object]
) -> None:
    folder, told = trap
    file = folder / name
    before = file.read_bytes() if file.exists() else None
    changed(file, more)
    try:
        BiEncoder(folder, device="cpu").encode_documents(["guitar melody"])
    except Exception:
        # A library may stumble over nonsense in a text's way; what counts is that nothing was run.
        pass
    finally:
        file.unlink() if before is None else file.write_bytes(before)
    assert not told.exists()


def test_nobody_is_asked_whether_a_models_code_may_run(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    told = trapped(tiny_encoder, tmp_path / "llm")
    (tmp_path / "llm" / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": AUTO}))
    code = {"auto_map": {"AutoTokenizer": ["modeling.Model", None]}}
    (tmp_path / "llm" / "tokenizer_config.json").write_text(json.dumps(code))
    with pytest.raises(ModelError):
        load_tokenizer(str(tmp_path / "llm"))
    with pytest.raises(ModelError):
        BiEncoder(tmp_path / "llm")
    assert not told.exists()


def test_a_manifest_without_labels_or_with_two_is_refused(bundle: Path) -> None:
    raw = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(raw.replace('"labels.jsonl"', '"student/labels.jsonl"'))
    (bundle / "labels.jsonl").rename(bundle / "student" / "labels.jsonl")
    with pytest.raises(BundleError, match=r"does not list one labels\.jsonl"):
        load_bundle(bundle)
    shutil.copy(bundle / "student" / "labels.jsonl", bundle / "labels.jsonl")
    shutil.copy(bundle / "student" / "labels.jsonl", bundle / "labels.r1.jsonl")
    sign(bundle)
    with pytest.raises(BundleError, match=r"does not list one labels\.jsonl"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"uid": "a"}', '{"uid": "a", "title": "b", "aliases": [], "x": 1}']
)
def test_damaged_labels_are_refused_by_name(bundle: Path, line: str) -> None:
    (bundle / "labels.jsonl").write_text(line + "\n")
    sign(bundle)
    with pytest.raises(BundleError, match=r"labels\.jsonl cannot be read"):
        load_bundle(bundle)


def test_a_bundle_moves_between_folders_and_machines(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = [Document("d", "", "guitar melody")]
    here = Predictor(bundle).predict(text)
    moved = tmp_path / "elsewhere ü" / "b"
    moved.parent.mkdir()
    bundle.rename(moved)
    before = sorted((file, file.stat().st_mtime_ns) for file in moved.rglob("*"))
    for file in [*moved.rglob("*"), moved]:
        file.chmod(file.stat().st_mode & ~0o222)
    try:
        monkeypatch.chdir(moved.parent)
        assert Predictor("b").predict(text) == here
        monkeypatch.chdir(moved)
        assert Predictor(".").predict(text) == here
        after = sorted((file, file.stat().st_mtime_ns) for file in moved.rglob("*"))
        assert after == before, "reading writes nothing"
    finally:
        for file in [moved, *moved.rglob("*")]:
            file.chmod(file.stat().st_mode | 0o200)
    assert str(tmp_path) not in (moved / "manifest.json").read_text()


def test_names_of_changed_parts_do_not_meet() -> None:
    listed = {"labels.r2.jsonl": "", "index.faiss": "", "student/labels.r9.jsonl": "", "calibrator.json": ""}
    manifest = Manifest(
        format=2, created="", versions={}, labels=1, dimension=1, max_length=1, k=1, origin={}, files=listed
    )
    assert manifest.file("labels.jsonl") == "labels.r2.jsonl"
    assert manifest.file("index.faiss") == "index.faiss"
    assert manifest.file("decision.json") is None
    assert manifest.new_name("labels.jsonl") == "labels.r3.jsonl"
    assert manifest.new_name("index.faiss") == "index.r3.faiss"


def test_what_is_written_is_read_again(bundle: Path) -> None:
    assert Manifest.model_validate_json((bundle / "manifest.json").read_text()) == read_manifest(bundle)
