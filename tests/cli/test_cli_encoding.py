"""`ezxmc export` and `ezxmc bench encoding` on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from support.tinyworld import document, label_rows, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import add_calibrator, load_bundle, save_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.cli.bench import encoding
from ezxmc.cli.bundle import register
from ezxmc.records import Document, Label

pytestmark = pytest.mark.usefixtures("one_thread")

app = typer.Typer()
register(app)
app.command("encoding")(encoding)
DOCUMENTS = [document(number) for number in range(12)]
SHOWN = [Document(row["uid"], row["title"], row["text"]).shown for row in DOCUMENTS]


@pytest.fixture
def bundle(tiny_encoder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    save_bundle(path, tiny_encoder, [Label(**row) for row in label_rows()], max_length=32, k=5)
    add_calibrator(path, Calibrator("teacher", 5, 100, Isotonic((-1.0, 1.0), (0.1, 0.9))))
    return path


def asked(*arguments: str) -> dict:
    found = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.mark.encoder
def test_an_exported_student_belongs_to_the_bundle(bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    before = load_bundle(bundle)
    told = asked("export", str(bundle), "--backend", "onnx", "--precision", "int8")
    assert told["file"] == "student/onnx/embedding_int8.onnx"
    assert told["precision"] == "int8" and 0.98 < told["cosine_least"] < 1
    opened = load_bundle(bundle, backend="onnx", precision="auto")
    assert told["file"] in opened.manifest.files and opened.encoder.precision == "int8"
    cosines = (opened.encoder.encode_documents(SHOWN) * before.encoder.encode_documents(SHOWN)).sum(1)
    assert 0.98 < cosines.min() < 0.999999
    assert not [*bundle.glob(".export*")]
    texts = ["a recipe with flour", "an old boat"]
    one, other = (
        Predictor.load(bundle, backend=backend).predict(texts, k=5) for backend in ("torch", "onnx")
    )
    for left, right in zip(one, other, strict=True):
        assert len(set(left.labels) & set(right.labels)) >= 3
        assert np.allclose(left.scores, right.scores, atol=0.05)


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.encoder)])
def test_bench_encoding_measures_what_is_there_and_says_what_is_not(bundle: Path, exported: bool) -> None:
    documents = write_rows(bundle.parent / "documents.jsonl", DOCUMENTS)
    predictor = Predictor.load(bundle, precision="float32")
    gold = bundle.parent / "gold.tsv"
    found = predictor.predict([Document(row["uid"], row["title"], row["text"]) for row in DOCUMENTS], k=5)
    # Three of the five best labels of each document are right, and four documents have no gold.
    gold.write_text("".join(f"{one.uid}\t{label}\n" for one in found[:8] for label in one.labels[1:4]))
    if exported:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        asked("export", str(bundle), "--precision", "float32")
    told = asked(
        "encoding", str(bundle), str(documents), "--gold", str(gold), "--singles", "3", "--rounds", "1"
    )
    rows = {row["way"]: row for row in told["rows"]}
    assert told["documents"] == 8 and told["singles"] == 3
    plain, same = rows["SentenceTransformer.encode float32"], rows["torch float32"]
    assert plain["precision"] == pytest.approx(0.6) and plain["points_lost"] == 0
    assert plain["times_plain"] == 1 and same["cosine_least"] == pytest.approx(1, abs=1e-5)
    assert same["points_lost"] == 0
    assert rows["torch bfloat16"]["cosine_least"] > 0.999
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["documents_per_second"] > 0
    assert "ezxmc export" in told["skipped"]["onnx int8"]
    assert ("onnx float32" in rows) is exported and ("onnx float32" in told["skipped"]) is not exported
