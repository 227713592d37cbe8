"""What people make of a run's bundle: no run and no update takes it back, or leaves it out unsaid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from support.fakes import FakeTeacher
from support.spying import Messages, Spy, spied
from support.tinyworld import document, label_rows, topical, write_catalog, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import (
    Bundle,
    add_calibrator,
    add_decision,
    add_student_files,
    load_bundle,
    save_bundle,
)
from ezxmc.bundle.labels import add_labels, remove_labels
from ezxmc.bundle.manifest import read_manifest, write_manifest
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.decisions import Decision, Guarantee
from ezxmc.cli import bundle as labels_cli
from ezxmc.config import RunConfig
from ezxmc.disk import exchange
from ezxmc.pipeline import run as pipeline
from ezxmc.pipeline.people import LabelEdits, carry_exports, carry_over, outdated, peoples_calibrator
from ezxmc.pipeline.snapshot import Snapshot, label_content
from ezxmc.pipeline.update import update
from ezxmc.records import Document, Label, Pair
from ezxmc.report import figures as drift_figures
from ezxmc.report.update import UpdateReport

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]
ADDED = {"uid": "l-new", "title": document(2)["text"]}
"""A label that nobody can overlook: it is the text of a document."""
CURVE = Calibrator("human", 6, 60, Isotonic((0.0, 1.0), (0.1, 0.9)), documents=60)
RULE = Decision("missed_rate", 25, threshold=0.2, promise=Guarantee(0.5, 60))


def command(*arguments: object) -> None:
    app = typer.Typer()
    labels_cli.register(app)
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code in (0, 3), done.output  # 3: gold that names a label that was removed


def reviewed(folder: Path, first: int) -> tuple[Path, Path]:
    """Sixty documents that no run has seen, and all that is right of them."""
    rows = [document(number) for number in range(first, first + 60)]
    gold = [
        {"uid": row["uid"], "labels": [one.uid for one in LABELS if topical(Pair(Document(**row), one)) > 0]}
        for row in rows
    ]
    return write_rows(folder / f"docs-{first}.jsonl", rows), write_rows(folder / f"gold-{first}.jsonl", gold)


def people_at_work(bundle: Path, folder: Path) -> None:
    """They calibrate, decide, add a label and remove one."""
    documents, gold = reviewed(folder, 200)
    command("calibrate", bundle, documents, "--gold", gold, "--depth", 6)
    documents, gold = reviewed(folder, 300)
    command("decide", bundle, documents, gold, "--missed-rate", 0.9)
    command("labels", "add", bundle, write_rows(folder / "new.jsonl", [ADDED]))
    command("labels", "remove", bundle, "l-comet")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """A finished run whose bundle people changed; gives the configuration."""
    folder = tmp_path_factory.mktemp("people")
    config = write_catalog(folder, tiny_encoder, cycles=1)
    found = spied(config)
    people_at_work(found.place / "bundle", folder)
    return config


@pytest.fixture
def copy(changed: Path, tmp_path: Path, tiny_encoder: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        if not (tmp_path / "world").exists():
            shutil.copytree(changed.parent, tmp_path / "world")
        return write_catalog(tmp_path / "world", tiny_encoder, cycles=1, **changes)

    return make


def updated(config: Path) -> tuple[UpdateReport, FakeTeacher]:
    teacher = FakeTeacher(topical)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift_figures, "svg", lambda *args: "<svg></svg>")
        return update(RunConfig.load(config), teacher=teacher), teacher


def labels_stay(place: Path, bundle: Bundle) -> None:
    assert "l-new" in bundle.rows() and "l-comet" not in bundle.rows()
    tags = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert any(tag["label"] == "l-new" for row in tags for tag in row["tags"]), "it is tagged"
    assert all(tag["label"] != "l-comet" for row in tags for tag in row["tags"])


def lines_of(found: Spy | UpdateReport) -> str:
    return "\n".join(found.report.people if isinstance(found, Spy) else found.sentences())


def test_a_run_again_and_updates_keep_what_people_made(copy: Callable[..., Path]) -> None:
    config = copy()
    place = config.parent / "run"
    before = load_bundle(place / "bundle")
    assert before.calibrator is not None and before.calibrator.target == "human"
    assert before.decision is not None and before.decision.changed == 2

    watch = Messages()
    again = spied(config, watch=watch)
    assert again.teacher.asked == [] and again.trained == []
    after = load_bundle(place / "bundle")
    assert after.manifest == before.manifest, "nothing is made anew"
    labels_stay(place, after)
    for word in (
        "people added",
        "people removed",
        "calibrator stays, because people fitted it",
        "decision stays",
    ):
        assert word in lines_of(again) and any(word in line for line in watch.said)
    assert again.report.calibration is not None and again.report.calibration.target == "human"
    assert again.report.decision == before.decision.guarantee

    # Nothing to learn: the student stays, and with it all else.
    documents = config.parent / "documents.jsonl"
    documents.write_text("".join(f"{line}\n" for line in documents.read_text().splitlines()[:-1]))
    report, teacher = updated(config)
    assert report.number == 1 and teacher.asked == [] and report.student == "kept: nothing to learn"
    after = load_bundle(place / "bundle")
    assert after.calibrator == before.calibrator and after.decision == before.decision
    labels_stay(place, after)
    assert "people added" in lines_of(report) and "decision stays" in lines_of(report)

    # Another student: what was made for the former is told by name, and kept.
    write_rows(documents, [document(number) for number in range(80)])
    report, _ = updated(config)
    assert report.number == 2 and report.student == "trained"
    after = load_bundle(place / "bundle")
    assert after.calibrator is not None and after.calibrator.target == "teacher" and after.decision is None
    labels_stay(place, after)
    kept_aside(place, before, lines_of(report))


def kept_aside(place: Path, before: Bundle, told: str) -> None:
    (calibrator,) = place.glob("former/calibrator-*.json")
    (decision,) = place.glob("former/decision-*.json")
    assert Calibrator.load(calibrator) == before.calibrator and Decision.load(decision) == before.decision
    assert str(calibrator) in told and f"ezxmc calibrate {place / 'bundle'}" in told
    assert str(decision) in told and f"ezxmc decide {place / 'bundle'}" in told


@pytest.mark.parametrize("epochs", [2, 3])
def test_another_bundle_gets_what_fits_and_tells_what_does_not_whenever_it_is_interrupted(
    copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    config = copy(inference__k=4, training__epochs=epochs)
    place = config.parent / "run"
    before = load_bundle(place / "bundle")
    for late in (False, True):

        def interrupted(one: Path, other: Path, late: bool = late) -> None:
            if late:
                exchange(one, other)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipeline, "exchange", interrupted)
            spied(config)
    watch = Messages()
    found = spied(config, watch=watch)
    after = load_bundle(place / "bundle")
    assert found.trained == [] and after.manifest.k == 4 and not (place / "fresh").exists()
    labels_stay(place, after)
    if epochs == 2:  # the same student
        assert after.calibrator == before.calibrator and after.decision == before.decision
        assert found.teacher.asked == []
        return
    assert after.calibrator is not None and after.calibrator.target == "teacher" and after.decision is None
    kept_aside(place, before, lines_of(found))
    kept_aside(place, before, "\n".join(watch.said))
    # Once they did one of them again, nothing is said of the former one.
    documents, gold = reviewed(config.parent, 200)
    command("calibrate", place / "bundle", documents, "--gold", gold, "--depth", 6)
    said = lines_of(spied(config))
    assert "does not fit" not in said and "calibrator stays" in said and "holds no more" in said


def test_a_decision_on_the_runs_own_calibrator_keeps_both(tmp_path: Path, tiny_encoder: Path) -> None:
    config = write_catalog(tmp_path, tiny_encoder, cycles=1)
    bundle = spied(config).place / "bundle"
    own = load_bundle(bundle).calibrator
    assert not peoples_calibrator(bundle)
    add_decision(bundle, RULE)
    add_labels(bundle, [Label(**ADDED)])
    again = spied(write_catalog(tmp_path, tiny_encoder, cycles=1, budget={"calibration": 10}))
    opened = load_bundle(bundle)
    assert opened.calibrator == own and opened.decision == RULE.after(1)
    assert "because a decision rests on it" in lines_of(again) and again.teacher.asked == []


def test_what_people_fit_while_a_run_asks_is_not_replaced(tmp_path: Path, tiny_encoder: Path) -> None:
    class Watching(Messages):
        def stage(self, title: str) -> Callable[[int, int], None]:
            if title == "calibration: teacher judges":
                add_calibrator(tmp_path / "run" / "bundle", CURVE)
            return super().stage(title)

    found = spied(write_catalog(tmp_path, tiny_encoder, cycles=1, training__epochs=1), watch=Watching())
    assert load_bundle(found.place / "bundle").calibrator == CURVE


def test_a_parent_that_changes_in_the_catalog_changes_in_the_bundle(changed: Path, copy: Any) -> None:
    config = copy()
    rows = [{**row, "parent": "things"} for row in label_rows()]
    write_rows(config.parent / "labels.jsonl", rows)
    found = spied(config)
    opened = load_bundle(found.place / "bundle")
    assert found.trained == [] and found.teacher.asked == []
    assert {opened.labels[row].parent for uid, row in opened.rows().items() if uid != "l-new"} == {"things"}
    assert opened.decision is not None and opened.decision.changed == 2


# The parts.


def snapshot(*labels: Label) -> Snapshot:
    return Snapshot(0, 0.1, {}, {label.uid: label_content(label) for label in labels})


A, B, C = Label("a", "one"), Label("b", "two"), Label("c", "three")


@pytest.mark.parametrize(
    ("there", "former", "catalog", "found"),
    [
        ([A, B], snapshot(A, B), [A, B], LabelEdits()),
        ([A, B, C], snapshot(A, B), [A, B], LabelEdits(added=[C])),
        ([A], snapshot(A, B), [A, B], LabelEdits(removed=["b"])),
        ([A], snapshot(A, B), [A, Label("b", "two", "more of it")], LabelEdits(removed=["b"])),
        ([A, Label("two", "two")], snapshot(A, B), [A, B], LabelEdits([Label("two", "two")], [], ["b"])),
        ([A, Label("b", "zwei")], snapshot(A, B), [A, B], LabelEdits(changed=[Label("b", "zwei")])),
        # The catalog moved on by itself: a new label, a renamed one, one that is gone.
        ([A, B], snapshot(A, B), [A, B, C], LabelEdits()),
        ([A, B], snapshot(A, B), [A, Label("b", "zwei")], LabelEdits()),
        ([A, B], snapshot(A, B), [A], LabelEdits()),
        # What people added came to the catalog, too: under its uid, or its title.
        ([A, C], snapshot(A), [A, C], LabelEdits()),
        (
            [A, Label("three", "three")],
            snapshot(A),
            [A, C],
            LabelEdits(superseded=["'three' is label 'c' of the catalog"]),
        ),
        (
            [A, Label("b", "zwei")],
            snapshot(A, B),
            [A, Label("b", "deux")],
            LabelEdits(superseded=["'zwei' is 'deux' in the catalog by now"]),
        ),
        # A run that was never finished: nothing is taken for removed that may be new.
        ([A, C], None, [A, B], LabelEdits(added=[C])),
    ],
)
def test_what_people_did_to_labels_is_told_from_what_the_catalog_did(
    there: list[Label], former: Snapshot | None, catalog: list[Label], found: LabelEdits
) -> None:
    assert LabelEdits.between(there, former, catalog) == found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    path = tmp_path_factory.mktemp("plain") / "bundle"
    save_bundle(path, tiny_encoder, LABELS, max_length=32, k=4)
    return path


@pytest.fixture
def pair(plain: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two bundles of one student."""
    return shutil.copytree(plain, tmp_path / "former"), shutil.copytree(plain, tmp_path / "fresh")


def test_edits_are_done_again_without_harm(pair: tuple[Path, Path]) -> None:
    path, _ = pair
    added = [Label(**ADDED), Label("boat", "boat")]
    edits = LabelEdits(added=added, changed=[Label("l-rose", "tulip")], removed=["l-boat"])
    for _ in range(2):
        edits.apply(path)
        bundle = load_bundle(path)
        assert bundle.index.size == 26 and "l-boat" not in bundle.rows()
        assert bundle.titles()["l-rose"] == "tulip" and "l-new" in bundle.rows()
    LabelEdits(removed=list(bundle.rows())).apply(path)
    assert load_bundle(path).index.size == 1, "no bundle is without a label"


@pytest.mark.parametrize(
    ("calibrator", "by_run", "decision", "why"),
    [
        (None, True, None, ""),
        (CURVE, True, None, ""),
        (CURVE, False, None, "people fitted it"),
        (CURVE, True, RULE, "a decision rests on it"),
    ],
)
def test_whose_a_calibrator_is(
    pair: tuple[Path, Path], calibrator: Calibrator | None, by_run: bool, decision: Decision | None, why: str
) -> None:
    path, _ = pair
    if calibrator:
        add_calibrator(path, calibrator, by_run=by_run)
    if decision:
        add_decision(path, decision)
    assert peoples_calibrator(path) == why


def test_whose_a_calibrator_of_an_earlier_release_is(pair: tuple[Path, Path]) -> None:
    """It did not tell: what a run fits as a rule is taken for the run's."""
    for path, target in zip(pair, ("teacher", "human"), strict=True):
        add_calibrator(path, Calibrator(target, 6, 60, CURVE.curve))
        write_manifest(path, read_manifest(path).model_copy(update={"origin": {"teacher": "x"}}))
        assert peoples_calibrator(path) == ("people fitted it" if target == "human" else "")


def test_what_is_carried_over_counts_the_labels_that_changed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    former, fresh = pair
    add_calibrator(former, CURVE)
    add_decision(former, RULE)
    remove_labels(fresh, ["l-boat"])
    carry_over(former, fresh, tmp_path / "aside")
    found = load_bundle(fresh)
    assert found.calibrator == CURVE and found.decision is not None and found.decision.changed == 1
    assert peoples_calibrator(fresh) == "people fitted it" and not (tmp_path / "aside").exists()


def test_exported_forms_go_on_with_their_student(pair: tuple[Path, Path], tmp_path: Path) -> None:
    former, fresh = pair
    assert carry_exports(former, fresh) and not (fresh / "student" / "onnx").exists()
    (tmp_path / "made.onnx").write_bytes(b"converted")
    add_student_files(former, {"onnx/embedding.onnx": tmp_path / "made.onnx"})
    assert carry_exports(former, fresh)
    assert (fresh / "student/onnx/embedding.onnx").read_bytes() == b"converted"
    assert load_bundle(fresh).strays == load_bundle(former).strays == ()
    manifest = read_manifest(fresh)
    files = {name: "0" * 64 if name.endswith("s") else one for name, one in manifest.files.items()}
    write_manifest(fresh, manifest.model_copy(update={"files": files}))
    assert not carry_exports(former, fresh), "another student"


def test_other_label_vectors_are_other_scores(
    pair: tuple[Path, Path], tmp_path: Path, tiny_encoder: Path
) -> None:
    former, fresh = pair
    add_calibrator(former, CURVE)
    shutil.rmtree(fresh)
    save_bundle(fresh, tiny_encoder, LABELS, max_length=32, k=4, refine=lambda _, vectors: vectors * 1.1)
    for _ in range(2):
        carry_over(former, fresh, tmp_path / "aside")
        (kept,) = (tmp_path / "aside").iterdir()
        assert Calibrator.load(kept) == CURVE
    assert load_bundle(fresh).calibrator is None
    (told,) = outdated(fresh, tmp_path / "aside", named=former)
    assert f"does not fit the scores of the new student: it is kept in {kept}" in told
    assert f"ezxmc calibrate {former} " in told
    # The run's own does not end it; another of people does.
    add_calibrator(fresh, CURVE, by_run=True)
    assert len(list(outdated(fresh, tmp_path / "aside"))) == 1
    add_calibrator(fresh, CURVE)
    assert list(outdated(fresh, tmp_path / "aside")) == []
