"""`ezxmc labels` and `ezxmc bench index` on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from support.tinyworld import document, label_rows, write_rows
from typer.testing import CliRunner

from ezxmc.bench.index import bench_index, labels_of_size, synthetic
from ezxmc.bundle.bundle import save_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.cli import bench as command
from ezxmc.cli import bundle as labels_cli
from ezxmc.errors import ConfigError, DataError
from ezxmc.records import Document, Label

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bundle(tmp_path: Path, tiny_encoder: Path) -> Path:
    labels = [Label(row["uid"], row["title"]) for row in label_rows()]
    save_bundle(tmp_path / "bundle", tiny_encoder, labels, max_length=32, k=4)
    return tmp_path / "bundle"


def call(*arguments: object) -> str:
    app = typer.Typer()
    labels_cli.register(app)
    app.command("other")(lambda: None)
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_labels_come_and_go(bundle: Path, tmp_path: Path) -> None:
    listed = call("labels", "list", bundle).splitlines()
    assert len(listed) == 25 and "l-guitar\tguitar" in listed
    rows = [{"uid": "l-new", "title": "boat wind"}, {"uid": "l-rose", "title": "rose 2"}]
    file = write_rows(tmp_path / "new.jsonl", rows)
    told = json.loads(call("labels", "add", bundle, file, "--json"))
    assert (told["added"], told["changed"], told["bundle"]) == (1, 1, str(bundle))
    assert told["rows"]["labels"]["columns"] == {"uid": ["uid"], "title": ["title"], "unread": []}
    # The very same text: nothing can be nearer.
    assert Predictor(bundle).predict([Document("d", "", "boat wind")])[0].labels[0] == "l-new"
    assert json.loads(call("labels", "remove", bundle, "l-new", "l-boat", "--json"))["removed"] == 2
    assert "l-new" not in Predictor(bundle).predict([Document("d", "", "boat wind")], k=99)[0].labels
    found = json.loads(call("labels", "list", bundle, "--json"))
    assert len(found["labels"]) == 24 and {"uid": "l-rose", "title": "rose 2"} in found["labels"]
    assert found["index"]["kind"] == "exact" and found["index"]["recall"] == 1
    assert json.loads(call("labels", "rebuild", bundle, "--json"))["labels"] == 24
    assert len(call("labels", "list", bundle).splitlines()) == 24
    with pytest.raises(DataError, match="no label 'l-boat'"):
        call("labels", "remove", bundle, "l-boat")
    with pytest.raises(DataError, match="no usable label"):
        call("labels", "add", bundle, write_rows(tmp_path / "none.jsonl", [{"uid": "x"}]))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    rng = np.random.default_rng(0)
    spectrum = 1 / np.sqrt(1 + np.arange(32))
    centres = rng.normal(size=(60, 32)) * spectrum
    return unit(centres[rng.integers(60, size=1200)] + 0.5 * rng.normal(size=(1200, 32)) * spectrum)


def test_synthetic_labels_have_the_spectrum_and_the_clusters_of_real_ones(real: np.ndarray) -> None:
    made = synthetic(real, 1200)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    spectra = [np.linalg.eigvalsh(np.cov(rows, rowvar=False))[::-1] for rows in (real, made)]
    np.testing.assert_allclose(spectra[1][:8], spectra[0][:8], rtol=0.25)
    nearest = []
    for rows in (
        real,
        made,
        unit(np.random.default_rng(1).multivariate_normal(real.mean(0), np.cov(real.T), 1200)),
    ):
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -1)
        nearest.append(float(np.median(cosines.max(axis=1))))
    likeness = abs(nearest[1] - nearest[0])
    assert likeness < 0.1 and likeness < abs(nearest[2] - nearest[0]), "a plain Gaussian has no clusters"
    assert not np.array_equal(made, synthetic(real, 1200, seed=1))
    np.testing.assert_array_equal(labels_of_size(real, 1300)[:1200], real)
    assert {row.tobytes() for row in labels_of_size(real, 300)} <= {row.tobytes() for row in real}


def test_every_method_is_measured_on_the_same_labels(
    real: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.bench.index._MEASURED", 0.01)
    queries = unit(real[:64] + 0.1)
    found = bench_index(real, queries, [1500, 500], methods=["exact", "hnsw", "ivf", "torch", "numpy"])
    assert [(row["labels"], row["method"]) for row in found["rows"]] == [
        (size, method) for size in (500, 1500) for method in ("exact", "hnsw", "ivf", "torch", "numpy")
    ]
    for row in found["rows"]:
        assert row["recall"] > 0.999 if row["method"] in ("exact", "torch", "numpy") else row["recall"] > 0.9
        assert row["chosen"] == (row["method"] == "exact")
        assert row["single"] > 0 and row["batched"] > 0 and row["bytes"] > row["labels"] * 32
    assert {tuple(curve) for curve in found["difficulty"].values()} == {("1", "2", "4", "8", "16")}
    for curve in found["difficulty"].values():
        assert list(curve.values()) == sorted(curve.values())
    with pytest.raises(ConfigError, match="no index method magic"):
        bench_index(real, queries, [500], methods=["magic"])
    with pytest.raises(ConfigError, match="at least 100"):
        bench_index(real, queries, [50])


def test_the_command_measures_files(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.bench.index._MEASURED", 0.01)
    labels = write_rows(tmp_path / "labels.jsonl", [{"title": f"label {number}"} for number in range(200)])
    documents = write_rows(tmp_path / "documents.jsonl", [document(number) for number in range(80)])
    app = typer.Typer()
    app.command()(command.index)
    options = [
        "--encoder",
        str(tiny_encoder),
        "--sizes",
        "1e2,3e2",
        "--methods",
        "exact,numpy",
        "--count",
        "64",
    ]
    for more in ([], ["--json"]):
        done = CliRunner().invoke(app, [str(labels), str(documents), *options, *more], catch_exceptions=False)
        assert done.exit_code == 0
    assert [row["labels"] for row in json.loads(done.stdout)["rows"]] == [100, 100, 300, 300]
