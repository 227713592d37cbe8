"""The bundle, tagging with it, and the calibrator's fit on predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.tinyworld import document, label_rows

from ezxmc.bundle.bundle import add_calibrator, load_bundle, save_bundle
from ezxmc.bundle.manifest import FORMAT, PATHS_FORMAT
from ezxmc.bundle.predict import Predictor, prediction_row
from ezxmc.calibration import Calibrator, Isotonic, fit_calibrator
from ezxmc.data.predictions import WINDOW
from ezxmc.errors import BundleError, ConfigError, EzxmcError, ModelError, TrainingError
from ezxmc.records import Document, Label, Prediction
from ezxmc.retrieval import BiEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [Label(row["uid"], row["title"], "text", ("alias", "ü😀"), "parent") for row in label_rows()]
DOCUMENTS = [Document(**document(i)) for i in range(150)]
HALVES = Calibrator("teacher", 5, 100, Isotonic((0.0, 0.5, 1.0), (0.1, 0.4, 0.9)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    path = tmp_path_factory.mktemp("made") / "bundle"
    save_bundle(path, tiny_encoder, LABELS, max_length=32, k=4, origin={"teacher": "a rule"})
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A bundle without calibrator that a test may damage."""
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def predictor(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """With probabilities spread over this encoder's scores, so that thresholds cut somewhere."""
    path = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(made, path)
    scores = np.unique([score for p in Predictor(made).predict(DOCUMENTS, k=25) for score in p.scores])
    y = np.linspace(0.05, 0.95, len(scores))
    curve = Isotonic(tuple(scores.tolist()), tuple(y.tolist()))
    add_calibrator(path, Calibrator("teacher", 25, 100, curve))
    return Predictor(path)


def test_what_is_saved_comes_back(bundle: Path, tiny_encoder: Path) -> None:
    opened = load_bundle(bundle)
    assert opened.labels == LABELS and opened.calibrator is None
    assert opened.manifest.k == 4 and opened.manifest.max_length == 32 == opened.encoder.max_length
    assert opened.manifest.origin == {"teacher": "a rule"} and opened.manifest.format == FORMAT
    vectors = BiEncoder(tiny_encoder, max_length=32).encode_labels([label.title for label in LABELS])
    scores, rows = opened.index.search(vectors, 1)
    assert rows[:, 0].tolist() == list(range(len(LABELS)))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    on_disk = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    assert on_disk == {*opened.manifest.files, "manifest.json"}
    assert not [path.name for path in bundle.parent.iterdir() if path != bundle]


def test_the_student_folder_is_plain_sentence_transformers(bundle: Path, tiny_encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [d.shown for d in DOCUMENTS[:5]]
    alone = SentenceTransformer(str(bundle / "student"), device="cpu").encode(texts)
    np.testing.assert_allclose(alone, load_bundle(bundle).encoder.encode_documents(texts), atol=1e-6)


FILES = [
    "labels.jsonl",
    "index.faiss",
    "index.json",
    "index.npz",
    "student/model.safetensors",
    "student/1_Pooling/config.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_and_named(bundle: Path, name: str) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / name).write_bytes(raw)
    with pytest.raises(BundleError, match=rf"{name} is not the file.*\n.*cure"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_and_named(bundle: Path, name: str) -> None:
    raw = (bundle / name).read_bytes()
    for left in (0, len(raw) // 2, len(raw) - 1):
        (bundle / name).write_bytes(raw[:left])
        with pytest.raises(BundleError, match=rf"{name} is not the file.*\n.*cure"):
            load_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, "calibrator.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_named(bundle: Path, name: str, verify: bool) -> None:
    add_calibrator(bundle, HALVES)
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(bundle, verify=verify)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: json.dumps({"format": PATHS_FORMAT + 1, "news": True}),
            f"manifest.json has format {PATHS_FORMAT + 1}, .*\n.*upgrade",
        ),
        (lambda text: text[: len(text) // 2], "manifest.json is damaged"),
        (lambda text: "", "manifest.json is damaged"),
        (lambda text: "[]", "manifest.json is damaged"),
        (
            lambda text: "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
            "manifest.json is damaged",
        ),
        (lambda text: text.replace('"labels": 25', '"labels": 24'), "25 labels"),
    ],
)
def test_a_manifest_that_does_not_fit(bundle: Path, change: Callable[[str], str], message: str) -> None:
    file = bundle / "manifest.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_what_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("nowhere", "file", "."):
        with pytest.raises(BundleError, match="no bundle"):
            load_bundle(tmp_path / place)


def test_only_a_bundle_is_overwritten(tmp_path: Path, tiny_encoder: Path, bundle: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    for taken in (mine, tmp_path / "file"):
        with pytest.raises(ConfigError, match=f"{taken.name} (exists and is no bundle|is a file)"):
            save_bundle(taken, tiny_encoder, LABELS, max_length=32, k=4)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more work"
    (tmp_path / "empty").mkdir()
    for free in (tmp_path / "empty", bundle, tmp_path / "new" / "folder"):
        save_bundle(free, tiny_encoder, LABELS[:3], max_length=32, k=1, calibrator=HALVES)
        opened = load_bundle(free)
        assert len(opened.labels) == 3 and opened.calibrator == HALVES


def test_a_failed_save_leaves_the_old_bundle(
    bundle: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError):
        save_bundle(bundle, tmp_path / "no-model", LABELS, max_length=32, k=4)
    with pytest.raises(ModelError, match="empty"):
        save_bundle(bundle, tiny_encoder, [], max_length=32, k=4)

    def disk_full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ezxmc.retrieval.index.LabelIndex.save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(bundle, tiny_encoder, LABELS, max_length=32, k=4)
    monkeypatch.undo()
    assert load_bundle(bundle).labels == LABELS
    save_bundle(bundle, tiny_encoder, LABELS[:2], max_length=32, k=4)
    assert len(load_bundle(bundle).labels) == 2 and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_predictions_are_in_order_and_ranked(predictor: Predictor) -> None:
    found = predictor.predict(DOCUMENTS[:7])
    assert [p.uid for p in found] == [f"d{i}" for i in range(7)]
    title = {label.uid: label.title for label in LABELS}
    for p in found:
        assert len(p.labels) == 4 == len(set(p.labels)) and p.titles == tuple(title[uid] for uid in p.labels)
        assert list(p.scores) == sorted(p.scores, reverse=True)
        assert list(p.probabilities) == sorted(p.probabilities, reverse=True)
    assert [p.labels for p in predictor.predict(DOCUMENTS[:7], k=2)] == [p.labels[:2] for p in found]
    assert {len(p.labels) for p in predictor.predict(DOCUMENTS[:3], k=1000)} == {25}
    assert predictor.predict([]) == []
    alone = predictor.predict([DOCUMENTS[3]])[0]
    assert alone.labels == found[3].labels


def test_probabilities_rise_with_scores_over_all_documents(predictor: Predictor) -> None:
    found = predictor.predict(DOCUMENTS[:50], k=25)
    pairs = sorted(
        (score, probability)
        for p in found
        for score, probability in zip(p.scores, p.probabilities, strict=True)
    )
    probabilities = [probability for _, probability in pairs]
    assert probabilities == sorted(probabilities) and len(set(probabilities)) > 100
    assert 0 <= probabilities[0] < probabilities[-1] <= 1


def test_a_threshold_leaves_out_and_abstains(predictor: Predictor) -> None:
    everything = predictor.predict(DOCUMENTS[:50], k=25)
    best = sorted(p.probabilities[0] for p in everything)
    threshold = best[len(best) // 2]
    found = predictor.predict(DOCUMENTS[:50], k=25, threshold=threshold)
    for p, whole in zip(found, everything, strict=True):
        kept = sum(probability >= threshold for probability in whole.probabilities)
        assert p.labels == whole.labels[:kept] and p.probabilities == whole.probabilities[:kept]
        assert len(p.scores) == len(p.titles) == kept
    assert any(not p.labels for p in found) and any(p.labels for p in found)
    assert all(len(p.labels) == 25 for p in predictor.predict(DOCUMENTS[:5], k=25, threshold=0))
    assert all(not p.labels for p in predictor.predict(DOCUMENTS[:5], threshold=1.0))


def test_a_threshold_without_calibrator_is_a_clear_error(made: Path) -> None:
    with pytest.raises(EzxmcError, match=r"needs probabilities.*\n.*cure.*ezxmc calibrate") as caught:
        Predictor(made).predict(DOCUMENTS[:1], threshold=0.5)
    assert isinstance(caught.value, ConfigError)
    assert Predictor(made).predict(DOCUMENTS[:1])[0].probabilities == ()


def test_a_stream_equals_predict_and_reads_no_further_than_it_must(predictor: Predictor) -> None:
    whole = predictor.predict(DOCUMENTS)
    streamed = list(predictor.stream(iter(DOCUMENTS), k=4))
    assert [p.labels for p in streamed] == [p.labels for p in whole]
    np.testing.assert_allclose([p.scores for p in streamed], [p.scores for p in whole], atol=1e-5)

    read = 0

    def endless() -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield DOCUMENTS[read % 150]

    endless_stream = predictor.stream(endless())
    for asked in range(1, 200):
        next(endless_stream)
        assert read - asked < WINDOW, "a stream must not run ahead by more than a window"
    assert list(predictor.stream([])) == []


def test_hostile_documents_are_tagged_like_any_other(predictor: Predictor) -> None:
    texts = ["guitar melody music " * 67_000, "😀" * 500, "\u202e", "é" * 100_000]
    found = predictor.predict([Document(str(i), "", text) for i, text in enumerate(texts)])
    assert all(np.isfinite(p.scores).all() and len(p.labels) == 4 for p in found)
    # Nobody reads beyond the length the student was made for.
    assert found[0].labels == predictor.predict([Document("", "", "guitar melody music " * 32)])[0].labels


def test_a_prediction_as_a_row() -> None:
    p = Prediction("d", ("a", "b"), ("A", "B"), (0.123456, 0.1), (0.98765, 0.5))
    assert prediction_row(p, 1) == {
        "uid": "d",
        "tags": [{"label": "a", "title": "A", "score": 0.1235, "probability": 0.98765}],
    }
    bare = prediction_row(Prediction("d", ("a",), ("A",), (0.5,)))
    assert bare["tags"][0]["probability"] is None
    assert prediction_row(Prediction("d", (), (), ())) == {"uid": "d", "tags": []}


def predictions(documents: int) -> list[Prediction]:
    return [
        Prediction(f"d{i}", ("a", "b", "c"), ("A", "B", "C"), (0.9 - i / 1000, 0.5 - i / 1000, 0.1))
        for i in range(documents)
    ]


def test_pairs_nobody_judged_are_left_out_of_the_fit() -> None:
    verdicts = {"a": True, "b": None, "c": False}
    found = fit_calibrator(predictions(30), lambda doc, label: verdicts[label], target="teacher", k=3)
    assert found.n == 60 and found.k == 3 and found.target == "teacher"
    high, _, low = found.transform([0.95, 0.5, 0.1])
    assert high > 0.9 and low < 0.1
    shallow = fit_calibrator(predictions(30), lambda doc, label: verdicts[label], target="human", k=2)
    assert shallow.n == 30, "ranks beyond k must not enter"


def test_too_few_verdicts_are_a_training_error() -> None:
    judged = {f"d{i}" for i in range(19)}

    def verdict(doc: str, label: str) -> bool | None:
        return doc in judged and label == "a" if label == "a" and doc in judged else None

    with pytest.raises(TrainingError, match=r"19 judged pairs are too few.*\n.*cure"):
        fit_calibrator(predictions(40), verdict, target="teacher", k=3)
    judged.add("d19")
    assert fit_calibrator(predictions(40), verdict, target="teacher", k=3).n == 20
    with pytest.raises(TrainingError, match="0 judged pairs"):
        fit_calibrator([], verdict, target="teacher", k=3)
