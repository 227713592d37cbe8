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
from tinyworld import label_rows

from ezxmc.bundle import load_bundle, save_bundle
from ezxmc.errors import BundleError
from ezxmc.hashing import file_hash
from ezxmc.manifest import Manifest, read_manifest
from ezxmc.predict import Predictor
from ezxmc.records import Document, Label

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
