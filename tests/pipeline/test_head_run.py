"""A run with a head, on the small catalog: in the bundle, in the tags, in what the calibrator saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.spying import Messages, Spy, spied
from support.tinyworld import TOPIC_OF, document, write_catalog

from ezxmc.bundle.bundle import load_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.data import Catalog
from ezxmc.feedback.budget import Budget
from ezxmc.records import Document, Pair
from ezxmc.report import RunReport

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "head__enabled": True,
    "head__fan_in": 8,
    "head__epochs": 30,
    "shortlist__size": 8,
    "cycles": 1,
    "training__held_out": 0.5,
    # A student that learned little leaves the head something to add.
    "training__epochs": 1,
    "training__learning_rate": 1e-4,
    "training__label_vectors": "titles",
}


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None
) -> tuple[Spy, Messages]:
    watch = Messages()
    config = write_catalog(tmp_path_factory.mktemp("head"), tiny_encoder, documents=120, **SETTINGS)
    return spied(config, watch=watch), watch


def test_a_run_puts_a_head_into_the_bundle(run: tuple[Spy, Messages]) -> None:
    spy, watch = run
    bundle = load_bundle(spy.place / "bundle")
    assert bundle.head is not None and 0 < bundle.head.fusion.weight <= 1 and bundle.manifest.format == 3
    assert bundle.head.columns.shape[1] == 8
    line = next(line for line in watch.said if line.startswith("head: agreement"))
    assert "with the head at weight" in line
    assert RunReport.model_validate_json((spy.place / "report.json").read_text()).head == line
    assert f"H{line[1:]}." in (spy.place / "report.html").read_text()
    assert watch.ended["head: training"][0] == watch.ended["head: training"][1] > 0


def test_a_head_is_weighed_where_both_rankings_first_labels_are_judged(run: tuple[Spy, Messages]) -> None:
    spy, _ = run
    bundle, config = load_bundle(spy.place / "bundle"), spy.config
    catalog = Catalog.load(config.data, config.training.held_out, config.seed)
    done = json.loads((spy.place / "stages" / "bundle.json").read_text())["result"]["head"]
    selecting = Budget.of(config, catalog).selecting
    documents = [catalog.documents[i] for i in selecting[: done["documents"]]]
    assert len(documents) >= 10 and done["pairs"] > 0 and len(done["agreement"]) == 2
    vectors = bundle.encoder.encode_documents([one.shown for one in documents])
    asked = set(spy.teacher.asked)
    for _, rows in (bundle.index.search(vectors, 5), bundle.search(vectors, 5)):
        for one, some in zip(documents, rows, strict=True):
            assert {spy.teacher.key(Pair(one, bundle.labels[row])) for row in some} <= asked


def test_calibrator_and_tags_are_of_the_fused_scores(run: tuple[Spy, Messages]) -> None:
    spy, _ = run
    predictor = Predictor(spy.place / "bundle")
    assert predictor.bundle.calibrator is not None and predictor.bundle.head is not None
    documents = [Document("a", "", "a boat in the wind sailing"), Document("b", "", "flour and oven cooking")]
    vectors = predictor.encode(documents)
    fused, rows = predictor.bundle.head.search(predictor.bundle.index, vectors, 3)
    found = predictor.predict(documents, k=3)
    assert [one.labels for one in found] == [
        tuple(predictor.bundle.labels[row].uid for row in some) for some in rows
    ]
    np.testing.assert_allclose([one.scores for one in found], fused, atol=1e-6)
    alone = predictor.bundle.index.search(vectors, 3)[0]
    assert np.abs(alone - fused).max() > 1e-3


def test_a_head_makes_the_tags_better(run: tuple[Spy, Messages]) -> None:
    """On documents of the world that the run never saw."""
    bundle = load_bundle(run[0].place / "bundle")
    texts = [row["text"] for row in map(document, range(120, 240))]
    vectors = bundle.encoder.encode_documents(texts)

    def right(rows: NDArray[np.int64]) -> float:
        topics = [[TOPIC_OF[bundle.labels[row].title] for row in some] for some in rows]
        return float(
            np.mean([topic in text for text, some in zip(texts, topics, strict=True) for topic in some])
        )

    alone, fused = bundle.index.search(vectors, 3)[1], bundle.search(vectors, 3)[1]
    assert right(fused) > right(alone) + 0.1


def test_the_same_run_again_trains_no_head_and_without_one_it_goes(
    run: tuple[Spy, Messages], tiny_encoder: Path
) -> None:
    spy, _ = run
    file = spy.place / "bundle" / "head.safetensors"
    made = file.stat().st_mtime_ns
    again = Messages()
    folder = spy.place.parent
    spied(write_catalog(folder, tiny_encoder, documents=120, **SETTINGS), watch=again)
    assert file.stat().st_mtime_ns == made and "head: training" not in again.ended
    off = {**SETTINGS, "head__enabled": False}
    spied(write_catalog(folder, tiny_encoder, documents=120, **off))
    bundle = load_bundle(spy.place / "bundle")
    assert bundle.head is None and bundle.manifest.format == 2 and not file.exists()


@pytest.mark.parametrize("large", [False, True])
def test_a_head_may_train_the_student_on(
    tmp_path: Path, tiny_encoder: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        pytest.importorskip("peft")
        monkeypatch.setattr("ezxmc.training.adapters.LARGE", 0)
    watch = Messages()
    config = write_catalog(
        tmp_path, tiny_encoder, documents=120, **{**SETTINGS, "head__fine_tune": True, "head__epochs": 20}
    )
    spy = spied(config, watch=watch)
    bundle = load_bundle(spy.place / "bundle")
    before = load_student(spy.place / "cycles" / "1" / "student")
    after = load_student(spy.place / "bundle" / "student")
    assert (bundle.head is not None) == any("with the head at weight" in line for line in watch.said)
    assert (bundle.head is None) == (before == after), (
        "the student in the bundle is the one the head was made with"
    )
    assert load_student(spy.place / "head" / "student") not in (b"", before)


def test_few_judgments_make_no_head(tmp_path: Path, tiny_encoder: Path) -> None:
    watch = Messages()
    config = write_catalog(tmp_path, tiny_encoder, **{**SETTINGS, "head__least_positives": 1000})
    spy = spied(config, watch=watch)
    assert load_bundle(spy.place / "bundle").head is None
    line = next(line for line in watch.said if line.startswith("no head: no label has 1000 positives"))
    assert json.loads((spy.place / "report.json").read_text())["head"] == line


def load_student(folder: Path) -> bytes:
    return next(folder.rglob("model.safetensors")).read_bytes()
