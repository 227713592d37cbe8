"""People's decisions change ranks: in the bundle, by the command, in a run, and only where they gain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from support.fakes import FakeTeacher
from support.tinyworld import document, label_rows, topical
from typer.testing import CliRunner

from ezxmc.bundle.bundle import load_bundle, save_bundle
from ezxmc.bundle.labels import add_labels, rebuild_index, remove_labels
from ezxmc.bundle.manifest import OFFSETS, OFFSETS_FORMAT, read_manifest
from ezxmc.bundle.predict import Predictor
from ezxmc.cli import bundle as commands
from ezxmc.errors import ConfigError
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.pipeline.calibrate import calibrate
from ezxmc.pipeline.decide import decide
from ezxmc.pipeline.people import FORMER, carry_over
from ezxmc.pipeline.people_ranks import Decided, by_tags, part_for_ranks, peoples_ranks
from ezxmc.records import Document, Label, Pair, Prediction
from ezxmc.retrieval.label_offsets import LabelOffsets

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]
DOCUMENTS = [Document(**document(number)) for number in range(120)]
USUAL = LABELS[-1].uid
"""No text tells it, and it stands on every document."""
GOLD = {
    one.uid: {USUAL, *(label.uid for label in LABELS if topical(Pair(one, label)) > 0)} for one in DOCUMENTS
}
REVIEWED, NEW = DOCUMENTS[:60], DOCUMENTS[60:]


def said(documents: list[Document]) -> dict[str, set[str]]:
    return {one.uid: GOLD[one.uid] for one in documents}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "bundle"
    save_bundle(path, tiny_encoder, LABELS, max_length=32, k=4)
    return path


@pytest.fixture(scope="module")
def fitted(plain: Path) -> Path:
    path = shutil.copytree(plain, plain.with_name("fitted"))
    calibrate(path, REVIEWED, gold=said(REVIEWED))
    return path


@pytest.fixture
def copied(fitted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fitted, tmp_path / "bundle")


def right(bundle: Path, k: int = 5) -> float:
    found = Predictor(bundle).predict(NEW, k=k)
    return float(np.mean([len(GOLD[one.uid] & set(one.labels)) / k for one in found]))


def firsts(bundle: Path) -> list[str]:
    return [one.labels[0] for one in Predictor(bundle).predict(NEW, k=1)]


def test_new_documents_are_ranked_better(plain: Path, fitted: Path) -> None:
    assert right(fitted) > right(plain) + 0.1
    assert firsts(fitted).count(USUAL) > 50 > firsts(plain).count(USUAL)
    manifest = read_manifest(fitted)
    assert manifest.format == OFFSETS_FORMAT and manifest.file(OFFSETS)
    offsets = LabelOffsets.load(fitted / OFFSETS)
    assert offsets.gain["nDCG@5"] > 0 and offsets.gain["documents"] == len(offsets.documents) == 60


def test_probabilities_are_of_the_new_ranks(fitted: Path) -> None:
    found = Predictor(fitted).predict(NEW, k=5)
    sure = np.array([one.probabilities for one in found])
    hits = np.array([[label in GOLD[one.uid] for label in one.labels] for one in found])
    assert abs(sure.mean() - hits.mean()) < 0.1
    assert sure[:, 0].mean() > 0.8, "the usual label is nearly sure"


def test_a_documents_rank_does_not_rest_on_its_own_decisions(plain: Path) -> None:
    """Decisions by lot: nothing of them holds for other documents, so what each is ranked by must not fit."""
    rng = np.random.default_rng(0)
    bundle = load_bundle(plain)
    top = [set(one.labels) for one in Predictor(bundle).predict(DOCUMENTS, k=10)]
    lots = {
        one.uid: Decided(frozenset(uid for uid in labels if rng.random() < 0.5), frozenset(labels))
        for one, labels in zip(DOCUMENTS, top, strict=True)
    }
    lots = {uid: Decided(one.yes, one.no - one.yes) for uid, one in lots.items()}
    told: list[float] = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(DOCUMENTS))
        found = peoples_ranks(bundle, [DOCUMENTS[i] for i in order], lots, 10)
        told += [float(one.labels[0] in lots[one.uid].yes) for one in found.predictions]
    assert np.mean(told) < 0.62


def test_the_curve_goes_from_none_through_parts_to_fifty_more(plain: Path) -> None:
    bundle = load_bundle(plain)
    tags = by_tags(Predictor(bundle).predict(REVIEWED, k=10), said(REVIEWED))
    curve = peoples_ranks(bundle, REVIEWED, tags, 10).curve
    assert [point.documents for point in curve] == [0, 12, 24, 48, 110]
    assert [point.expected for point in curve] == [False] * 4 + [True]
    firsts = [point.values["P@1"] for point in curve]
    assert firsts[0] < firsts[-2] <= firsts[-1] <= 1


def test_ranks_stay_where_nothing_is_gained(plain: Path, tmp_path: Path) -> None:
    bundle = load_bundle(plain)
    best = {one.uid: set(one.labels) for one in Predictor(bundle).predict(REVIEWED, k=5)}
    found = peoples_ranks(bundle, REVIEWED, by_tags(Predictor(bundle).predict(REVIEWED, k=10), best), 10)
    assert found.offsets is None and found.line.startswith("ranks stay")
    assert found.predictions == Predictor(bundle).predict(REVIEWED, k=10)
    few = peoples_ranks(bundle, REVIEWED[:19], by_tags([], {}), 10)
    assert few.offsets is None and "from 20 on" in few.line
    copy = shutil.copytree(plain, tmp_path / "bundle")
    calibrate(copy, REVIEWED[:19], gold=said(REVIEWED[:19]))
    assert read_manifest(copy).file(OFFSETS) is None
    calibrate(copy, REVIEWED, gold=said(REVIEWED), ranks=0)
    assert read_manifest(copy).file(OFFSETS) is None


def test_documents_that_fitted_ranks_prove_nothing(copied: Path) -> None:
    with pytest.raises(ConfigError, match="60 of 60 documents fitted the bundle's ranks") as caught:
        decide(copied, REVIEWED, said(REVIEWED), missed_rate=0.5)
    assert "--ranks 0.5" in str(caught.value.cure)
    assert decide(copied, DOCUMENTS, said(DOCUMENTS), missed_rate=0.5).measured.documents == 60
    calibrate(copied, REVIEWED, gold=said(REVIEWED), ranks=0.5)
    assert decide(copied, REVIEWED, said(REVIEWED), missed_rate=0.5).measured.documents == 30
    assert len(part_for_ranks([one.uid for one in REVIEWED], 0.5)) == 30


def test_labels_come_and_go_beside_offsets(copied: Path) -> None:
    usual = next(label for label in LABELS if label.uid == USUAL)
    remove_labels(copied, [LABELS[0].uid])
    rebuild_index(copied)
    assert firsts(copied).count(USUAL) > 50, "rows are others, labels are the same"
    add_labels(copied, [replace(usual, title="Something else")])
    bundle = load_bundle(copied)
    assert bundle.offsets is not None
    row = bundle.rows()[USUAL]
    assert bundle.offsets.bias[row] == 0 and row not in bundle.offsets.rows, "about that title nobody decided"


def test_a_new_calibrator_takes_the_place_of_both(copied: Path) -> None:
    calibrate(copied, REVIEWED, gold=said(REVIEWED), ranks=0)
    assert read_manifest(copied).file(OFFSETS) is None and firsts(copied).count(USUAL) < 50


def test_the_next_bundle_of_the_same_student_gets_them(
    copied: Path, plain: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    fresh = shutil.copytree(plain, tmp_path / "fresh")
    carry_over(copied, fresh, tmp_path / FORMER)
    assert firsts(fresh) == firsts(copied) and not (tmp_path / FORMER).exists()
    other = tmp_path / "other"
    save_bundle(other, tiny_encoder, LABELS, max_length=16, k=4)
    carry_over(copied, other, tmp_path / FORMER)
    assert read_manifest(other).file(OFFSETS) is None
    kept = sorted(file.name.partition("-")[0] for file in (tmp_path / FORMER).iterdir())
    assert kept == ["calibrator", "offsets"], "put aside, not lost"


def test_tags_beyond_the_shown_labels_say_that_all_are_known() -> None:
    shown = [Prediction("d", ("a", "b"), ("A", "B"), (0.9, 0.1))]
    assert by_tags(shown, {"d": {"a"}}) == {"d": Decided(frozenset("a"), frozenset("b"))}
    assert by_tags(shown, {"d": {"c"}}) == {"d": Decided(frozenset("c"), others=1.0)}


def test_the_command_tells_what_it_gained(plain: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(plain, tmp_path / "bundle")
    documents, gold = tmp_path / "documents.jsonl", tmp_path / "gold.jsonl"
    documents.write_text("".join(json.dumps(document(number)) + "\n" for number in range(60)))
    lines = ({"uid": uid, "labels": sorted(tags)} for uid, tags in said(REVIEWED).items())
    gold.write_text("".join(json.dumps(line) + "\n" for line in lines))
    app = typer.Typer()
    commands.register(app)
    done = CliRunner().invoke(app, ["calibrate", str(copy), str(documents), "--gold", str(gold), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ranks_gain"]["nDCG@5"] > 0
    assert "ranks follow people's decisions on 60 documents: P@1" in done.stderr
    assert "50 documents more would bring about" in done.stderr


def test_counts_are_kept_in_the_bundle(copied: Path) -> None:
    counted = [replace(label, count=float(place)) for place, label in enumerate(LABELS)]
    add_labels(copied, counted)
    assert [label.count for label in load_bundle(copied).labels] == [label.count for label in counted]
    calibrate(copied, REVIEWED, gold=said(REVIEWED))
    assert LabelOffsets.load(copied / str(read_manifest(copied).file(OFFSETS))).frequency[0] > 0


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a teacher who finds the usual label on every document, and says so of no rare one."""
    place = tmp_path_factory.mktemp("judged") / "feedback.sqlite"
    teacher = FakeTeacher(lambda pair: 3.0 if pair.label.uid == USUAL else topical(pair))
    with FeedbackStore(place) as store:
        every = [range(len(LABELS))] * len(REVIEWED)
        annotate(lambda: pairs_of(REVIEWED, LABELS, every), teacher, store)
    return place


@pytest.fixture
def counted(plain: Path, tmp_path: Path) -> Path:
    path = shutil.copytree(plain, tmp_path / "counted")
    add_labels(path, [replace(label, count=1000.0 if label.uid == USUAL else 10.0) for label in LABELS])
    return path


def test_the_teacher_says_what_counts_are_worth(counted: Path, plain: Path, judged: Path) -> None:
    calibrate(counted, REVIEWED, store=judged)
    assert firsts(counted).count(USUAL) > firsts(plain).count(USUAL) and right(counted) > right(plain)
    offsets = LabelOffsets.load(counted / str(read_manifest(counted).file(OFFSETS)))
    assert offsets.frequency[0] > 0 and not offsets.labels and len(offsets.documents) == 60
    found = Predictor(counted).predict(NEW, k=5)
    hits = np.mean([label in GOLD[one.uid] for one in found for label in one.labels])
    assert abs(np.mean([one.probabilities for one in found]) - hits) < 0.1
    with pytest.raises(ConfigError, match="60 of 60 documents fitted the bundle's ranks"):
        decide(counted, REVIEWED, said(REVIEWED), missed_rate=0.5)
    few = REVIEWED[:19]
    calibrate(counted, few, gold=said(few))
    kept = LabelOffsets.load(counted / str(read_manifest(counted).file(OFFSETS)))
    assert kept.frequency == offsets.frequency, "too few people's documents change nothing of it"
    calibrate(counted, REVIEWED, store=judged, ranks=0)
    assert read_manifest(counted).file(OFFSETS) is None


def test_counts_that_tell_nothing_change_no_rank(plain: Path, judged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(plain, tmp_path / "bundle")
    add_labels(copy, [replace(label, count=5.0 if label.uid == USUAL else 50.0) for label in LABELS])
    calibrate(copy, REVIEWED, store=judged)
    assert read_manifest(copy).file(OFFSETS) is None, "rare ones are not preferred, whatever the teacher says"


def test_people_gain_beside_counts(counted: Path, judged: Path) -> None:
    calibrate(counted, REVIEWED, store=judged, gold=said(REVIEWED))
    offsets = LabelOffsets.load(counted / str(read_manifest(counted).file(OFFSETS)))
    assert offsets.labels and offsets.gain["nDCG@5"] > 0
