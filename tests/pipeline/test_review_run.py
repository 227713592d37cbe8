"""Review of a whole run: picked, decided, taken back, and learnt from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from support.fakes import FakeTeacher
from support.spying import Messages
from support.tinyworld import TOPIC_OF, build_encoder, topical, write_catalog, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import load_bundle
from ezxmc.bundle.labels import add_labels
from ezxmc.bundle.predict import Predictor
from ezxmc.cli import bundle as bundle_cli
from ezxmc.cli import review, steps
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.errors import ArgumentError, ConfigError, TrainingError
from ezxmc.feedback import reviews as of_people
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.reviews import FEWEST_REVIEWED, Answer, Review, ReviewedLists, Reviews
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import build_targets
from ezxmc.hashing import text_hash
from ezxmc.pipeline import deliver
from ezxmc.pipeline.run import run
from ezxmc.progress import NoProgress
from ezxmc.records import Label, Pair
from ezxmc.retrieval.label_offsets import LabelOffsets
from ezxmc.review.material import Material, pick_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def mistaken(pair: Pair) -> float:
    """The tests' teacher, which says the opposite of one pair in ten."""
    return -topical(pair) if errs(pair.doc.uid, pair.label.uid) else topical(pair)


def errs(doc: str, label: str) -> bool:
    return int(text_hash(doc, label)[:4], 16) % 10 == 0


def fits(uid: str, label: str, documents: dict[str, Any]) -> bool:
    return TOPIC_OF[label.removeprefix("l-")] in documents[uid].shown


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("reviewed")
    config = write_catalog(
        folder,
        build_encoder(folder / "encoder"),
        documents=150,
        cycles=1,
        shortlist__size=8,
        seed=1,
    )
    run(RunConfig.load(config), teacher=FakeTeacher(mistaken))
    return folder


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    """The run, set back afterwards: its configuration holds its place."""
    shutil.copytree(made / "run", made / "kept")
    yield made
    shutil.rmtree(made / "run")
    (made / "kept").rename(made / "run")


def call(*args: object, code: int = 0) -> dict[str, Any]:
    app = typer.Typer()
    review.register(app)
    bundle_cli.register(app)
    done = CliRunner().invoke(app, [*map(str, args), "--json"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return dict(json.loads(done.stdout))


def decide(path: Path, catalog: Catalog, **more: Any) -> int:
    """Answer every pair of a .jsonl file rightly."""
    documents = {document.uid: document for document in catalog.documents}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"decision": "yes" if fits(row["doc"], row["label"], documents) else "no", **more}
    write_rows(path, rows)
    return len(rows)


def catalog_of(folder: Path) -> tuple[RunConfig, Catalog]:
    config = RunConfig.load(folder / "run" / "config.yaml")
    return config, Catalog.load(config.data, config.training.held_out, config.seed)


def test_doubtful_pairs_out_and_what_people_say_is_learnt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / "run"
    config, catalog = catalog_of(folder)
    found = call("review", "export", place, "--count", 40, "--per-document", 2)
    rows = [json.loads(line) for line in (place / "review.jsonl").read_text().splitlines()]
    assert found["pairs"] == len(rows) > 0 and sum(row["reason"] == "label_quality" for row in rows) > 0
    picked, _ = pick_pairs(place, "training", 40, per_document=2)
    assert [row["id"] for row in rows] == [pick.id for pick in picked]
    train = {catalog.documents[i].uid for i in catalog.to_train}
    assert {row["doc"] for row in rows} <= train
    # Like documents are mostly judged rightly, so it is mostly mistakes they object to.
    objected = [errs(row["doc"], row["label"]) for row in rows if row["reason"] == "label_quality"]
    assert sum(objected) / len(objected) > 0.5
    decide(place / "review.jsonl", catalog)
    done = call("review", "import", place, place / "review.jsonl", "--reviewer", "ann")
    assert (done["new"], done["known"], done["open"]) == (len(rows), 0, 0)
    assert call("review", "import", place, place / "review.jsonl")["new"] == 0
    again = call("review", "export", place, "--out", folder / "more.jsonl", "--count", 40)
    more = [json.loads(line) for line in (folder / "more.jsonl").read_text().splitlines()]
    assert again["pairs"] == len(more)
    assert not {(row["doc"], row["label"]) for row in more} & {(row["doc"], row["label"]) for row in rows}

    taught: list[dict[tuple[str, str], float]] = []

    def spy(*args: Any, **options: Any) -> Any:
        targets = build_targets(*args, **options)
        taught.append(
            {
                (target.doc_uid, uid): p
                for target in targets.documents
                for uid, p in zip(target.labels, target.probabilities, strict=True)
            }
        )
        return targets

    monkeypatch.setattr("ezxmc.pipeline.deliver.build_targets", spy)
    said: list[str] = []
    watch = NoProgress()
    watch.say = said.append  # type: ignore[method-assign]
    before = (place / "bundle" / "manifest.json").read_text()
    run(config, teacher=FakeTeacher(mistaken), watch=watch)
    assert f"people decided on {len(rows)} pairs" in said
    documents = {document.uid: document for document in catalog.documents}
    for probabilities in taught:
        for row in rows:
            pair = row["doc"], row["label"]
            assert probabilities[pair] == float(fits(*pair, documents))
    assert (place / "bundle" / "manifest.json").read_text() != before
    # Nothing new was decided: nothing is trained again.
    taught.clear()
    run(config, teacher=FakeTeacher(mistaken))
    assert not taught


def test_random_documents_calibrate_and_no_training_sees_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / "run"
    config, catalog = catalog_of(folder)
    apart = [catalog.documents[i].uid for i in catalog.to_calibrate]
    monkeypatch.setattr(of_people, "FEWEST_REVIEWED", 12)
    opened: list[str] = []

    def spy(*args: Any, precision: str = "float32", **more: Any) -> Any:
        opened.append(precision)
        return load_bundle(*args, precision=precision, **more)

    monkeypatch.setattr("ezxmc.bundle.predict.load_bundle", spy)
    few = call("review", "export", place, "--for", "calibration", "--count", 10)
    rows = [json.loads(line) for line in (place / "review.jsonl").read_text().splitlines()]
    depth = config.inference.calibration_depth
    assert opened == ["float32"], "the lists are those the calibrator will be fitted on"
    assert few["pairs"] == 10 * depth and few["documents"] == 10 and few["random_document"] == few["pairs"]
    assert {row["doc"] for row in rows} <= set(apart)
    assert all(row["teacher"] is None is row["student"] for row in rows)
    for start in range(0, len(rows), depth):
        assert len({row["doc"] for row in rows[start : start + depth]}) == 1
    decide(place / "review.jsonl", catalog)
    call("review", "import", place, place / "review.jsonl")
    # More documents continue the same random order: only what is undecided comes.
    later = folder / "later.jsonl"
    call("review", "export", place, "--for", "calibration", "--count", 15, "--out", later)
    more = [json.loads(line) for line in later.read_text().splitlines()]
    assert len(more) == 5 * depth and not {row["doc"] for row in more} & {row["doc"] for row in rows}

    manifest = json.loads((place / "bundle" / "manifest.json").read_text())
    watch = Messages()
    report = run(config, teacher=FakeTeacher(mistaken), watch=watch)
    calibrator = load_bundle(place / "bundle").calibrator
    assert calibrator is not None and calibrator.target == "teacher", "ten of twelve are not enough"
    for lines in (watch.said, report.people):
        assert any("people reviewed 10 documents" in line and "2 are missing" in line for line in lines)
    decide(later, catalog)
    # Of five documents more, each has a pair that the person skipped, and one is hardly begun.
    answered = [json.loads(line) for line in later.read_text().splitlines()]
    for row, one in enumerate(answered):
        if row % depth == 3 or row >= 4 * depth + 2:
            one["decision"] = "skip" if row % 2 else None
    write_rows(later, answered)
    call("review", "import", place, later)
    report = run(config, teacher=FakeTeacher(mistaken))
    calibrator = load_bundle(place / "bundle").calibrator
    assert calibrator is not None and (calibrator.target, calibrator.documents) == ("both", 14)
    assert calibrator.n == 14 * depth - 4
    told = (
        f"of 4 a part of the top labels; 4 of these documents' {14 * depth} top labels are undecided; 1 with"
    )
    assert any(f"14 documents, {told} less" in line for line in report.people)
    assert report.calibration is not None and report.calibration.target == "both"
    assert json.loads((place / "bundle" / "manifest.json").read_text())["created"] == manifest["created"]
    assert FEWEST_REVIEWED == 50


def test_counts_move_the_ranks_of_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are worth is given here; `test_people_ranks.py` says that the teacher's answers choose it."""
    place, (config, catalog) = folder / "run", catalog_of(folder)
    file, usual = Path(config.data.labels), catalog.labels[0].uid
    plain = [json.loads(line) for line in file.read_text().splitlines()]

    def worth(bundle: Any, documents: Any, predictions: Any, teacher: Any, watch: Any) -> LabelOffsets:
        answered = [teacher(p.uid, label) for p in predictions for label in p.labels]
        assert sum(answer is not None for answer in answered) == len(catalog.to_calibrate) * depth
        return LabelOffsets.by_counts(0.5, bundle.labels, bundle.index.dimension)

    depth = config.inference.calibration_depth
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "counted_offsets", worth)
        write_rows(file, [{**row, "count": 1000 if row["uid"] == usual else 1} for row in plain])
        run(config, teacher=FakeTeacher(mistaken))
    tags = [json.loads(line)["tags"] for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert {row[0]["label"] for row in tags} == {usual}
    found = Predictor(place / "bundle").predict([catalog.documents[i] for i in catalog.to_calibrate], k=depth)
    with FeedbackStore(place / "feedback.sqlite") as store:
        judged = {(one.doc_uid, one.label_uid) for one in store.judgments()}
    assert {(p.uid, label) for p in found for label in p.labels} <= judged, "drift can be tested"
    fitted = load_bundle(place / "bundle")
    assert (
        fitted.offsets is not None and fitted.calibrator is not None and fitted.calibrator.target == "teacher"
    )
    write_rows(file, plain)
    run(config, teacher=FakeTeacher(mistaken))
    assert load_bundle(place / "bundle").offsets is None


def test_lists_to_calibrate_on_are_those_a_run_fits_on_and_too_few_are_told(folder: Path) -> None:
    place = folder / "run"
    config, catalog = catalog_of(folder)
    apart = [catalog.documents[i] for i in catalog.to_calibrate]
    # The teacher knows nothing of labels that people added: they take no rank from the others.
    add_labels(place / "bundle", [Label(f"new-{i}", document.shown) for i, document in enumerate(apart)])
    assert Predictor(place / "bundle").predict(apart, k=1)[0].labels == ("new-0",)
    found = call("review", "export", place, "--for", "calibration", "--count", 5)
    rows = [json.loads(line) for line in (place / "review.jsonl").read_text().splitlines()]
    assert found["pairs"] == 5 * config.inference.calibration_depth
    assert not any(row["label"].startswith("new-") for row in rows)

    material = Material.load(place)
    assert review._DOCUMENTS > FEWEST_REVIEWED > len(apart)
    for count, named in ((5, "5 documents"), (60, f"{len(apart)} documents")):
        assert named in material.missing(count) and "training.held_out" in material.missing(count)
    more = replace(material, catalog=replace(catalog, to_calibrate=list(range(70))))
    assert more.missing(60) == "" and "--count 50 or more" in more.missing(20)


def test_either_teacher_or_people_give_probabilities_where_the_other_cannot(folder: Path) -> None:
    bundle = folder / "run" / "bundle"
    config, catalog = catalog_of(folder)
    documents = {document.uid: document for document in catalog.documents[:60]}
    depth = config.inference.calibration_depth
    found = Predictor(bundle).predict(list(documents.values()), k=depth)

    def silent(doc: str, label: str) -> None:
        return None

    def calibrated(teacher: Any, right: Any) -> tuple[str | None, str]:
        answers = {p.uid: {label: right(p.uid, label) for label in p.labels} for p in found}
        watch = Messages()
        made = deliver.calibrate(bundle, found, teacher, ReviewedLists(answers), depth, watch)
        return made and made.target, " ".join(watch.said)

    def by_topic(doc: str, label: str) -> bool:
        return fits(doc, label, documents)

    assert calibrated(by_topic, by_topic) == ("both", "")
    target, said = calibrated(silent, by_topic)
    assert target == "human" and "people and teacher: 0 judged pairs are too few" in said
    target, said = calibrated(by_topic, lambda doc, label: False)
    assert target == "teacher" and "people alone: none of" in said
    target, said = calibrated(silent, lambda doc, label: False)
    assert target is None and said.startswith("the bundle gives scores, not probabilities: ")


def test_answers_on_former_texts_count_neither_for_review_nor_for_the_report(folder: Path) -> None:
    """After texts were mended under the same ids, the store holds two answers on such a pair."""
    place = folder / "run"
    config, catalog = catalog_of(folder)
    told: list[str] = []
    watch = NoProgress()
    watch.say = told.append  # type: ignore[method-assign]

    def seen() -> tuple[list[Any], Any, Any]:
        call("review", "export", place, "--out", folder / "seen.jsonl", "--count", 40)
        rows = [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]
        report = json.loads((place / "report.json").read_text())
        return rows, report["disagreements"], report["log_odds_histogram"]

    before = seen()
    assert before[0] and before[1]
    former = [replace(document, text=f"former {document.text}") for document in catalog.documents]
    opposite = FakeTeacher(lambda pair: -topical(pair))
    with FeedbackStore(place / "feedback.sqlite") as store:
        every = [range(len(catalog.labels))] * len(former)
        annotate(lambda: pairs_of(former, catalog.labels, every), opposite, store)
    run(config, teacher=FakeTeacher(mistaken), watch=watch)
    assert seen() == before
    assert any(f"{len(former) * len(catalog.labels):,} of" in line for line in told)


def test_train_by_hand_learns_from_people_but_not_about_the_calibration_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, catalog = catalog_of(folder)
    seen, apart = (catalog.documents[part[0]] for part in (catalog.to_train, catalog.to_calibrate))
    label, store = catalog.labels[0], folder / "run" / "feedback.sqlite"
    with Reviews(store) as reviews:
        reviews.add([Review.of(document, label, Answer.YES) for document in (seen, apart)])
    given: list[Any] = []

    def spy(*args: Any, verdicts: Any) -> Any:
        given.append(verdicts)
        raise TrainingError("seen enough")

    monkeypatch.setattr("ezxmc.pipeline.steps.build_targets", spy)
    app = typer.Typer()
    steps.register(app)
    inputs = (folder / "documents.jsonl", folder / "labels.jsonl", store)
    split = ("--held-out", config.training.held_out, "--seed", config.seed)
    done = CliRunner().invoke(app, ["train", *map(str, (*inputs, *split))])
    assert isinstance(done.exception, TrainingError)
    assert given == [{(seen.uid, label.uid): True}]


def test_calibrating_on_a_store_is_calibrating_on_gold(folder: Path) -> None:
    place = folder / "run"
    config, catalog = catalog_of(folder)
    call("review", "export", place, "--for", "calibration", "--count", 20)
    rows = decide(place / "review.jsonl", catalog)
    call("review", "import", place, place / "review.jsonl")
    documents = {document.uid: document for document in catalog.documents}
    decided = [json.loads(line) for line in (place / "review.jsonl").read_text().splitlines()]
    gold: dict[str, list[str]] = {row["doc"]: [] for row in decided}
    for row in decided:
        if fits(row["doc"], row["label"], documents):
            gold[row["doc"]].append(row["label"])
    tags = write_rows(
        folder / "reviewed_gold.jsonl", [{"uid": uid, "labels": labels} for uid, labels in gold.items()]
    )
    depth = config.inference.calibration_depth
    common = ("calibrate", place / "bundle", folder / "documents.jsonl", "--depth", depth)
    by_gold = call(*common, "--gold", tags, "--without-gold", "unreviewed", "--target", "both")
    curve = load_bundle(place / "bundle").calibrator
    run_bundle = folder / "kept" / "bundle"
    shutil.rmtree(place / "bundle")
    shutil.copytree(run_bundle, place / "bundle")
    by_store = call(*common, "--reviewed", place / "feedback.sqlite", "--target", "both")
    assert by_store == by_gold and by_store["documents"] == 20
    assert by_store["ranks_gain"] and by_store["pairs"] < rows, "of labels that came up nothing is known"
    assert load_bundle(place / "bundle").calibrator == curve
    # Of a document with a skip among its labels the others count.
    with Reviews(place / "feedback.sqlite") as reviews:
        last = next(reversed(reviews.latest().values()))
        reviews.add([replace(last, answer=Answer.SKIP, at=last.at + 1)])
    skipped = call(*common, "--reviewed", place / "feedback.sqlite", "--ranks", 0)
    assert (skipped["documents"], skipped["pairs"]) == (20, rows - 1)
    for options, cure in (
        (["--gold", tags, "--reviewed", "x"], "not both"),
        (["--reviewed", "x", "--target", "teacher"], "give --store"),
    ):
        with pytest.raises(ArgumentError, match=cure):
            call(*common, *options)


def test_bad_rows_end_with_3(folder: Path) -> None:
    bad = write_rows(folder / "bad.jsonl", [{"doc": "gone", "label": "l-oven", "decision": "yes"}])
    found = call("review", "import", folder / "run", bad, code=3)
    assert found["new"] == 0 and found["rows"]["counts"] == {"unknown_document": 1}
    with pytest.raises(ConfigError, match="give the run_dir"):
        call("review", "export", folder / "encoder")
    with FeedbackStore(folder / "run" / "feedback.sqlite") as store:
        assert store.newest_teacher() == FakeTeacher().fingerprint


def test_import_and_page_need_no_torch() -> None:
    code = (
        "import json, sys, ezxmc.review.ui, ezxmc.review.material, ezxmc.review.exchange;"
        "sys.exit(bool({'torch', 'faiss', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
