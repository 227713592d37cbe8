"""`ezxmc export --backend static` on a tiny bundle, and who uses what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from support.tinyworld import document, label_rows, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import add_calibrator, add_decision, load_bundle, save_bundle
from ezxmc.bundle.labels import add_labels
from ezxmc.bundle.predict import Predictor
from ezxmc.bundle.tagging import TaggingOptions
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.decisions import Decision
from ezxmc.cli.bench import encoding
from ezxmc.cli.bundle import register
from ezxmc.config import RunConfig
from ezxmc.errors import BundleError, ConfigError, DataError
from ezxmc.pipeline.export import export_static
from ezxmc.pipeline.people import carry_exports
from ezxmc.records import Document, Label

pytestmark = pytest.mark.usefixtures("one_thread")

app = typer.Typer()
register(app)
app.command("encoding")(encoding)
ROWS = [document(number) for number in range(240)]
SHOWN = [Document(row["uid"], row["title"], row["text"]).shown for row in ROWS]
CURVES = [Calibrator("both", 5, 100, Isotonic((-1.0, 1.0), (0.1, top))) for top in (0.9, 0.8)]


def saved(path: Path, tiny_encoder: Path) -> Path:
    save_bundle(path, tiny_encoder, [Label(**row) for row in label_rows()], max_length=32, k=5)
    add_calibrator(path, CURVES[0])
    return path


@pytest.fixture
def bundle(tiny_encoder: Path, tmp_path: Path) -> Path:
    return saved(tmp_path / "run" / "bundle", tiny_encoder)


def asked(*arguments: str) -> dict:
    found = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_a_static_student_belongs_to_the_bundle(bundle: Path, tmp_path: Path) -> None:
    documents = str(write_rows(tmp_path / "documents.jsonl", ROWS))
    told = asked("export", str(bundle), "--backend", "static", "--documents", documents)
    assert told["documents"] == 216 and told["kept_apart"] == 24 and told["bundle"] == str(bundle)
    assert 0.5 < told["cosine_mean"] < 1 and 0 <= told["first_agree"] <= 1 and told["five_agree"] > 0.3
    assert 0 < told["megabytes"] < 1 and told["ece_to_student"] < 0.1
    assert not [*bundle.glob(".export*")]
    plain, static = load_bundle(bundle), load_bundle(bundle, backend="static")
    assert "static/model.safetensors" in static.manifest.files and not static.strays
    assert static.calibrator.target == "both" and static.calibrator != plain.calibrator
    cosines = (plain.encoder.encode_documents(SHOWN) * static.encoder.encode_documents(SHOWN)).sum(1)
    assert cosines.mean() == pytest.approx(told["cosine_mean"], abs=0.1)
    one, other = (Predictor.load(bundle, backend=name).predict(SHOWN, k=5) for name in ("torch", "static"))
    same = [len({*left.labels} & {*right.labels}) / 5 for left, right in zip(one, other, strict=True)]
    assert np.mean(same) > 0.5
    # Probabilities are the student's on average, though scores are not.
    means = [np.mean([found.probabilities for found in tagged]) for tagged in (one, other)]
    assert means[0] == pytest.approx(means[1], abs=0.02)
    told = asked("encoding", str(bundle), documents, "--singles", "2", "--rounds", "1", "--count", "8")
    assert "static" in {row["way"] for row in told["rows"]}
    # Once more, in the place of the former one.
    asked("export", str(bundle), "--backend", "static", "--documents", documents)
    again = load_bundle(bundle, backend="static")
    assert (again.encoder.encode_documents(SHOWN) == static.encoder.encode_documents(SHOWN)).all()


def test_where_documents_come_from(bundle: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["export", str(bundle), "--documents", "documents.jsonl"])
    assert found.exit_code == 2 and "--backend static" in found.output
    with pytest.raises(ConfigError, match="no run directory") as refused:
        export_static(bundle)
    assert "--documents FILE" in refused.value.cure
    with pytest.raises(DataError, match="too few"):
        export_static(bundle, SHOWN[:9] * 2)
    rows = [{"uid": row["uid"], "words": row["text"]} for row in ROWS[:30]]
    write_rows(bundle.parent / "documents.jsonl", rows)
    data = {"documents": "documents.jsonl", "labels": "labels.jsonl", "columns": {"text": "words"}}
    config = RunConfig.model_validate({"data": data, "run_dir": str(bundle.parent)})
    (bundle.parent / "config.yaml").write_text(config.dump())
    said: list[str] = []

    class Watch:
        def stage(self, title: str):
            return lambda done, total: None

        def say(self, text: str) -> None:
            said.append(text)

        show = say

    made = export_static(bundle, watch=Watch())
    assert made.documents == 25 and made.kept_apart == 5
    assert "25 documents" in said[0] or "30 documents" in said[0]


def test_no_other_student_or_calibrator_has_it(bundle: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no static student") as refused:
        load_bundle(bundle, backend="static")
    assert "ezxmc export" in refused.value.cure
    made = export_static(bundle, SHOWN)
    other = saved(tmp_path / "other", tiny_encoder)
    assert carry_exports(bundle, other), "a bundle of the same student and calibrator takes it over"
    assert load_bundle(other, backend="static").calibrator == load_bundle(bundle, backend="static").calibrator
    # Labels come and go.
    add_labels(bundle, [Label("l-fjord", "guitar melody")])
    tagged = Predictor.load(bundle, backend="static").predict(["guitar melody"], k=3)
    assert "l-fjord" in tagged[0].labels
    # What a decision promises, the student keeps.
    add_decision(bundle, Decision.top_k(3))
    assert load_bundle(bundle).decision and load_bundle(bundle, backend="static").decision is None
    with pytest.raises(ConfigError, match="shown for the student"):
        TaggingOptions(str(bundle), backend="static", decide=True).tagger()
    add_calibrator(bundle, CURVES[1])
    with pytest.raises(BundleError, match="of another calibrator"):
        load_bundle(bundle, backend="static")
    assert load_bundle(bundle).calibrator == CURVES[1]
    third = saved(tmp_path / "third", tiny_encoder)
    assert not carry_exports(bundle, third) or not (third / "static").exists()
    assert export_static(bundle, SHOWN).cosine_mean == pytest.approx(made.cosine_mean, abs=0.05)
    assert load_bundle(bundle, backend="static").calibrator


def test_a_bundle_without_a_calibrator_has_scores_alone(tiny_encoder: Path, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", tiny_encoder, ["guitar", "oven", "boat"], max_length=32, k=2)
    made = export_static(tmp_path / "b", SHOWN)
    assert made.ece_to_student is None and "ece_to_student" not in made.to_dict()
    (found,) = Predictor.load(tmp_path / "b", backend="static").predict(["guitar"])
    assert len(found.labels) == 2 and not found.probabilities


def test_changed_and_unlisted_files_are_not_opened(bundle: Path) -> None:
    export_static(bundle, SHOWN)
    stray = bundle / "static" / "2_Dense"
    stray.mkdir()
    (stray / "config.json").write_text("{}")
    with pytest.warns(UserWarning, match="2_Dense"):
        assert load_bundle(bundle).strays == ("static/2_Dense/config.json",)
    with pytest.raises(BundleError, match="not in the manifest"):
        load_bundle(bundle, backend="static")
    (stray / "config.json").unlink()
    weights = bundle / "static" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(BundleError, match="not the file"):
        load_bundle(bundle, backend="static")
    weights.unlink()
    with pytest.raises(BundleError, match="missing"):
        load_bundle(bundle, backend="static")
