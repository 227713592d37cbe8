"""`ezxmc run --update`: a catalog grows, drifts, is edited; the run follows and forgets nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from support.fakes import FakeTeacher
from support.heads import with_head
from support.interrupted import Interrupted, Interrupting, done_on_failing_disks, killed_and_resumed
from support.power import Disk, whole_bundle
from support.spying import Messages
from support.tinyworld import TOPIC_OF, document, label_rows, topical, write_catalog, write_rows
from typer.testing import CliRunner

import ezxmc.pipeline.update_steps as work
from ezxmc.bundle.bundle import add_calibrator, add_decision, load_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.decisions import Decision
from ezxmc.cli import run as pipeline_cli
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.errors import ConfigError, DataError
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.reviews import Answer, Review, Reviews
from ezxmc.models import resolve_model
from ezxmc.pipeline import deliver
from ezxmc.pipeline import run as pipeline
from ezxmc.pipeline.rundir import History
from ezxmc.pipeline.snapshot import Snapshot
from ezxmc.pipeline.update import update
from ezxmc.pipeline.update_pairs import PRIORS
from ezxmc.records import Pair
from ezxmc.report.update import UpdateReport, render_update

pytestmark = pytest.mark.usefixtures("one_thread")

BEFORE, NOW = 130, 200
SETTINGS: dict[str, Any] = {
    "cycles": 1,
    "training__epochs": 2,
    "training__held_out": 0.5,
    "training__positive_share": 0.5,
    "update": {"probe": 300},
}
LATE = {"singer", "spice", "mast", "compost", "orbit"}
"""Words that become labels on the second day."""


def write_day(
    folder: Path,
    encoder: Path,
    documents: int,
    *,
    late: bool,
    edit: Callable[[list[dict[str, Any]], list[dict[str, Any]]], None] | None = None,
    **changes: Any,
) -> Path:
    """The catalog of a day, its labels grouped by topic; `edit` may change documents and labels."""
    config = write_catalog(folder, encoder, documents=documents, **{**SETTINGS, **changes})
    rows = [document(number) for number in range(documents)]
    labels: list[dict[str, Any]] = [
        {**row, "parent": TOPIC_OF[row["title"]]} for row in label_rows() if late or row["title"] not in LATE
    ]
    if edit:
        edit(rows, labels)
    write_rows(folder / "documents.jsonl", rows)
    write_rows(folder / "labels.jsonl", labels)
    return config


@dataclass
class Base:
    """A finished run on the first day's catalog."""

    folder: Path
    asked: set[str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Base:
    folder = tmp_path_factory.mktemp("base")
    teacher = FakeTeacher(topical)
    pipeline.run(RunConfig.load(write_day(folder, tiny_encoder, BEFORE, late=False)), teacher=teacher)
    return Base(folder, set(teacher.asked))


@pytest.fixture
def grown(base: Base, tmp_path: Path, tiny_encoder: Path) -> Callable[..., Path]:
    """The finished run in a folder of its own, with the catalog of another day; gives the configuration."""

    def make(documents: int = NOW, *, name: str = "world", late: bool = True, **options: Any) -> Path:
        shutil.copytree(base.folder, tmp_path / name)
        return write_day(tmp_path / name, tiny_encoder, documents, late=late, **options)

    return make


@dataclass
class Whole:
    """An update that nothing interrupted."""

    report: UpdateReport
    asked: set[str]
    predictions: str


@pytest.fixture(scope="module")
def whole(base: Base, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "world"
    shutil.copytree(base.folder, folder)
    report, teacher = updated(write_day(folder, tiny_encoder, NOW, late=True))
    return Whole(report, set(teacher.asked), (folder / "run" / "predictions.jsonl").read_text())


def updated(
    config: Path, teacher: FakeTeacher | None = None, **options: Any
) -> tuple[UpdateReport, FakeTeacher]:
    teacher = teacher or FakeTeacher(topical)
    return update(RunConfig.load(config), teacher=teacher, **options), teacher


def catalog_of(config: Path) -> Catalog:
    settings = RunConfig.load(config)
    former = Snapshot.places(Path(settings.run_dir))
    return Catalog.load(settings.data, settings.training.held_out, settings.seed, former=former)


def bundle_bytes(config: Path) -> dict[str, bytes]:
    place = config.parent / "run" / "bundle"
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_growth_asks_only_what_is_new_and_learns_from_all(
    grown: Callable[..., Path], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = grown()
    place, catalog = config.parent / "run", catalog_of(config)
    taught: list[set[tuple[str, str]]] = []
    trained: list[tuple[set[str], set[str], Path, bytes]] = []
    build, train = deliver.build_targets, deliver.train_bi_encoder

    def build_targets(judgments: Any, *args: Any) -> Any:
        taught.append({(j.doc_uid, j.label_uid) for j in judgments})
        return build(judgments, *args)

    def train_bi_encoder(documents: Any, *args: Any, held_out: Any, **options: Any) -> Any:
        weights = (Path(options["base"]) / "model.safetensors").read_bytes()
        trained.append(({d.uid for d in documents}, {d.uid for d in held_out}, options["base"], weights))
        return train(documents, *args, held_out=held_out, **options)

    monkeypatch.setattr(deliver, "build_targets", build_targets)
    monkeypatch.setattr(deliver, "train_bi_encoder", train_bi_encoder)
    former = (place / "bundle" / "student" / "model.safetensors").read_bytes()
    report, teacher = updated(config)

    assert report.changes["new documents"] == NOW - BEFORE and report.changes["new labels"] == len(LATE)
    assert len(teacher.asked) == len(set(teacher.asked)) == report.asked
    assert not set(teacher.asked) & base.asked, "a judged pair was asked again"
    assert report.asked < report.full_run - BEFORE and report.unasked == 0
    # Why each pair was asked: its document is new, its label is new, or it calibrates.
    names = {
        teacher.key(Pair(doc, label)): (doc.uid, label.title)
        for doc in catalog.documents
        for label in catalog.labels
    }
    apart = {catalog.documents[i].uid for i in catalog.to_calibrate}
    asked = [names[key] for key in teacher.asked]
    assert all(int(doc[1:]) >= BEFORE or title in LATE or doc in apart for doc, title in asked)
    assert any(int(doc[1:]) < BEFORE and title in LATE for doc, title in asked)
    # The parts stay; the old judgments are rehearsed; the start is the last student.
    ((learnt, selected, _, start),) = trained
    assert start == former
    assert learnt == {catalog.documents[i].uid for i in catalog.to_train}
    assert selected == {catalog.documents[i].uid for i in catalog.to_select}
    assert not {doc for doc, _ in taught[0]} & apart
    assert len({doc for doc, _ in taught[0] if int(doc[1:]) < BEFORE}) > BEFORE / 3

    assert report.student == "trained" and report.training is not None
    assert report.drift is not None and report.drift.documents >= 20
    assert report.forgetting is not None and not report.forgetting.worse
    assert report.forgetting.documents >= 20 and {"P@3", "nDCG@5", "Brier@6", "ECE@6"} <= set(
        report.forgetting.metrics
    )
    bundle = load_bundle(place / "bundle")
    assert bundle.rows().keys() == {label.uid for label in catalog.labels} and bundle.calibrator is not None
    assert bundle.calibrator.documents is not None and bundle.calibrator.documents > 40
    rows = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in rows] == [document.uid for document in catalog.documents]
    done = place / "updates" / "0001"
    assert UpdateReport.model_validate_json((done / "report.json").read_bytes()) == report
    page = (done / "report.html").read_text()
    assert page.count("<svg") == 1 and "What it kept" in page and "<script" not in page
    assert (done / "former" / "student" / "model.safetensors").read_bytes() == former
    assert not (done / "student").exists()

    # A new label is found where it belongs: no document names one, so it was learnt.
    hits = [
        label.startswith("l-") and TOPIC_OF[label[2:]] in document(int(p.uid[1:]))["text"].split()
        for p in Predictor(place / "bundle").predict(
            [catalog.documents[i] for i in catalog.to_calibrate], k=5
        )
        for label in p.labels
        if label[2:] in LATE
    ]
    assert len(hits) > 10 and sum(hits) / len(hits) > 0.8

    before = bundle_bytes(config)
    again, silent = updated(config)
    assert silent.asked == [] and not any(again.changes.values()) and again.number == 0
    assert again.sentences() == [
        "Nothing has changed since the last time: nothing was asked, nothing was trained."
    ]
    assert bundle_bytes(config) == before and len(list((place / "updates").iterdir())) == 1


def test_a_plan_asks_and_writes_nothing_and_is_no_less_than_what_is_asked(grown: Callable[..., Path]) -> None:
    config = grown()
    files = {path: path.stat().st_mtime_ns for path in config.parent.rglob("*") if path.is_file()}
    report, teacher = updated(config, plan=True)
    after = {path: path.stat().st_mtime_ns for path in config.parent.rglob("*") if path.is_file()}
    assert {p for p in after if after[p] != files.get(p)} <= {p for p in after if "sqlite" in p.name}
    assert teacher.asked == [] and report.planned and report.number == 0
    assert report.selected["new documents"] > 0 and report.selected["new labels"] > 0 and report.probe > 0
    planned = report.probe + sum(report.selected.values()) + report.check
    assert "would ask at most" in report.sentences()[1]
    _, asked = updated(config)
    assert len(asked.asked) <= planned


def test_of_equal_new_documents_one_tests_for_drift(grown: Callable[..., Path]) -> None:
    def twice(rows: list[dict[str, Any]], _: Any) -> None:
        for row in rows[BEFORE + 20 :]:
            row["title"], row["text"] = rows[BEFORE]["title"], rows[BEFORE]["text"]

    report, _ = updated(grown(edit=twice), plan=True)
    distinct = len({(document(i)["title"], document(i)["text"]) for i in range(BEFORE, BEFORE + 20)})
    assert report.probe == distinct * 6, "300 pairs would pay for 50 documents"


def test_no_more_documents_select_than_in_a_run(
    grown: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def selecting(name: str, most: int | None) -> tuple[set[int], set[int]]:
        config = grown(name=name, budget={"calibration": most}, update={"probe": 0})
        catalog = catalog_of(config)
        idle = Budget.of(RunConfig.load(config), catalog).idle.intersection(catalog.to_select)
        found = set[int]()

        def spied(*args: Any) -> Any:
            chosen = select(*args)
            found.update(i for rows in chosen.parts.values() for i, row in enumerate(rows) if row)
            return chosen

        monkeypatch.setattr(work, "select", spied)
        updated(config, plan=True)
        return found.intersection(catalog.to_select), idle

    select = work.select

    some, idle = selecting("some", 10)
    more, fewer = selecting("more", 15)
    every, none = selecting("every", None)
    assert idle and not some & idle and not more & fewer and not none
    # A new label is asked on the documents that are nearest to it, so one may give way to another.
    assert len(some) < len(more) < len(every) and every & idle


def test_all_that_people_reviewed_calibrates_however_few_the_teacher_is_asked_about(
    grown: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.feedback.reviews.FEWEST_REVIEWED", 30)
    config = grown(update={"probe": 0, "check": 5}, budget={"calibration": 5})
    catalog = catalog_of(config)
    apart = [catalog.documents[i] for i in catalog.to_calibrate]
    with Reviews(config.parent / "run" / "feedback.sqlite") as reviews:
        reviews.add(
            [
                Review.of(document, label, Answer.YES if topical(Pair(document, label)) > 0 else Answer.NO)
                for document in apart
                for label in catalog.labels
            ]
        )
    report, teacher = updated(config)
    calibrator = load_bundle(config.parent / "run" / "bundle").calibrator
    assert calibrator is not None and (calibrator.target, calibrator.documents) == ("both", len(apart))
    assert len(apart) > 30 and any(f"people reviewed {len(apart)} documents" in note for note in report.notes)
    keys = set(teacher.asked)
    asked = [d for d in apart if any(teacher.key(Pair(d, label)) in keys for label in catalog.labels)]
    assert len(asked) <= 10


def test_edited_renamed_and_removed_rows(grown: Callable[..., Path], base: Base) -> None:
    def rename(documents: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
        documents[3] = {**document(7), "uid": "d3", "title": "changed"}
        documents[5]["uid"] = "other5"
        del documents[4]
        first, gone = labels[0], next(row for row in labels if row["title"] == "oven")
        first["title"] = "singer"
        labels.remove(gone)
        labels[-1]["text"] = "what is told of it"

    config = grown(BEFORE, late=False, edit=rename)
    catalog, place = catalog_of(config), config.parent / "run"
    report, teacher = updated(config)
    changes = {name: count for name, count in report.changes.items() if count}
    assert changes == {
        "edited documents": 1,
        "known texts under another uid": 1,
        "removed documents": 1,
        "renamed labels": 1,
        "labels described otherwise": 1,
        "removed labels": 1,
    }
    assert report.renamed == [("guitar", "singer")] and not set(teacher.asked) & base.asked
    # Asked are the new title and the new text, and what calibrates.
    apart = {catalog.documents[i].uid for i in catalog.to_calibrate}
    names = {
        teacher.key(Pair(doc, tag)): (doc.uid, tag.uid) for doc in catalog.documents for tag in catalog.labels
    }
    assert all(
        doc in {"d3", *apart} or label == "l-guitar" for doc, label in map(names.__getitem__, teacher.asked)
    )
    assert "other5" not in {names[key][0] for key in teacher.asked if names[key][1] != "l-guitar"} - apart
    bundle = load_bundle(place / "bundle")
    assert "l-oven" not in bundle.rows()
    assert bundle.labels[bundle.rows()["l-guitar"]].title == "singer"
    tags = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert {row["uid"] for row in tags} == {d.uid for d in catalog.documents}
    assert all(tag["label"] != "l-oven" for row in tags for tag in row["tags"])


def test_rows_that_only_go_ask_and_train_nothing(grown: Callable[..., Path]) -> None:
    def shrink(documents: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
        del documents[10:20], labels[1]

    config = grown(BEFORE, late=False, edit=shrink)
    student = (config.parent / "run" / "bundle" / "student" / "model.safetensors").read_bytes()
    report, teacher = updated(config)
    assert teacher.asked == [] and report.student == "kept: nothing to learn" and report.training is None
    bundle = load_bundle(config.parent / "run" / "bundle")
    assert len(bundle.rows()) == 19 and bundle.calibrator is not None
    assert (config.parent / "run" / "bundle" / "student" / "model.safetensors").read_bytes() == student
    assert len((config.parent / "run" / "predictions.jsonl").read_text().splitlines()) == BEFORE - 10


def contrary(pair: Pair) -> float:
    """On new documents no label of music is right any more."""
    number = int(pair.doc.uid[1:])
    return -3.0 if number >= BEFORE and TOPIC_OF[pair.label.title] == "music" else topical(pair)


@pytest.mark.usefixtures("drawn")
def test_drift_of_a_label_group_is_found_drawn_and_asked_about(grown: Callable[..., Path]) -> None:
    config = grown(late=False)
    report, _ = updated(config, FakeTeacher(contrary))
    assert report.drift is not None and report.drift.found
    drifted = {part.name for part in report.drift.parts if part.drifted}
    music = {word for word, topic in TOPIC_OF.items() if topic == "music"}
    assert "music" in drifted and len(drifted & music) >= 3
    # In a world without noise little moves are sure too; those of music are the great ones.
    others = [part for part in report.drift.parts if part.name not in {"music", *music}]
    assert max(abs(part.error) for part in others) < 0.2 < max(-part.error for part in report.drift.parts)
    assert any("has drifted, of" in sentence and "music" in sentence for sentence in report.sentences())
    assert report.windows[-1].drifted
    page = (config.parent / "run" / "updates" / "0001" / "report.html").read_text()
    assert "music</bdi> (group)" in page and "Calibration before and on new documents" in page
    # The same teacher, the same documents, no drift: the test above is no chance.
    quiet, _ = updated(grown(late=False, name="quiet"))
    assert quiet.drift is not None and not quiet.drift.found
    assert report.selected["drifting labels"] > 0 == quiet.selected["drifting labels"]


@pytest.mark.usefixtures("drawn")
def test_windows_follow_one_another(grown: Callable[..., Path], tiny_encoder: Path) -> None:
    config = grown(NOW, late=False)
    updated(config)
    write_day(config.parent, tiny_encoder, NOW + 60, late=True)
    report, teacher = updated(config)
    assert report.number == 2 and [window.number for window in report.windows] == [1, 2]
    assert "each update" in render_update(report)
    assert len(teacher.asked) == len(set(teacher.asked)) and report.changes["new documents"] == 60
    updates = config.parent / "run" / "updates"
    assert not (updates / "0001" / "former").exists() and (updates / "0002" / "former").exists()


def test_a_student_that_lost_old_labels_is_not_taken(
    grown: Callable[..., Path], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = deliver.train_bi_encoder

    def forgets(*args: Any, **options: Any) -> Any:
        summary = train(*args, **options)
        shutil.rmtree(args[4])
        shutil.copytree(tiny_encoder, args[4])  # as if it had never learnt anything
        return summary

    monkeypatch.setattr(deliver, "train_bi_encoder", forgets)
    config = grown(training__label_vectors="titles")
    student = (config.parent / "run" / "bundle" / "student" / "model.safetensors").read_bytes()
    # To the student that stays, what people fitted goes on fitting.
    peoples = Calibrator("human", 6, 60, Isotonic((0.0, 1.0), (0.1, 0.9)))
    add_calibrator(config.parent / "run" / "bundle", peoples)
    former = Predictor(config.parent / "run" / "bundle")
    catalog = catalog_of(config)
    report, teacher = updated(config)
    assert report.forgetting is not None and report.forgetting.worse
    assert report.student == "kept: the new one is worse on old labels"
    assert (config.parent / "run" / "bundle" / "student" / "model.safetensors").read_bytes() == student
    now = Predictor(config.parent / "run" / "bundle")
    assert now.bundle.rows().keys() == {label.uid for label in catalog.labels}
    # Old labels stand to each other as before.
    for one, other in zip(*(p.predict(catalog.documents[:20], k=25) for p in (former, now)), strict=True):
        assert one.labels == tuple(label for label in other.labels if label in one.labels)
    assert now.bundle.calibrator == peoples and len(teacher.asked) == len(set(teacher.asked))
    assert any("calibrator stays, because people fitted it" in note for note in report.notes)

    told = grown(name="told", training__label_vectors="titles", update={"probe": 300, "accept_loss": True})
    report, _ = updated(told)
    assert report.forgetting is not None and report.forgetting.worse and report.student == "trained"


def test_a_head_that_is_lost_is_told(grown: Callable[..., Path]) -> None:
    config = grown()
    with_head(config.parent / "run" / "bundle")
    report, _ = updated(config)
    assert report.student == "trained" and any("sparse head is gone" in note for note in report.notes)


def test_a_limit_holds_over_all_sessions(grown: Callable[..., Path]) -> None:
    config = grown(update={"probe": 300, "max_pairs": 250})
    first = Interrupted(100)
    with pytest.raises(KeyboardInterrupt):
        updated(config, first)
    report, second = updated(config)
    assert len(first.asked) + len(second.asked) == report.asked <= 250
    assert not set(first.asked) & set(second.asked)
    assert report.asked > 200 and report.selected["new documents"] > 0
    assert any("left out by the limit" in note for note in report.notes)


def test_a_run_that_does_not_fit_is_refused(
    grown: Callable[..., Path], tmp_path: Path, tiny_encoder: Path
) -> None:
    with pytest.raises(DataError, match="no finished run"):
        updated(write_day(tmp_path / "none", tiny_encoder, 20, late=False))
    config = grown(seed=1)
    with pytest.raises(ConfigError, match="documents kept apart so far would be trained on"):
        updated(config)
    other = FakeTeacher(topical, name="another")
    with pytest.raises(ConfigError, match="nothing is known of this teacher"):
        updated(grown(name="other"), other)
    assert other.asked == [] and other.closed == 1
    mine, asked = grown(name="mine"), FakeTeacher(topical)
    for name in ("trained", "kept", "bundle"):
        notes = mine.parent / "run" / "updates" / "0001" / name / "notes.txt"
        notes.parent.mkdir(parents=True)
        notes.write_text("mine")
        with pytest.raises(ConfigError, match="is no bundle that ezxmc made"):
            updated(mine, asked)
        assert notes.read_text() == "mine" and asked.asked == []
        shutil.rmtree(notes.parent)
    (config.parent / "run" / "catalog.jsonl").unlink()
    with pytest.raises(DataError, match=r"is missing[\s\S]*ezxmc run"):
        updated(config)


def test_a_full_run_after_an_update_starts_from_what_is_judged(grown: Callable[..., Path]) -> None:
    config = grown(NOW, late=False)
    _, teacher = updated(config)
    bundle = load_bundle(config.parent / "run" / "bundle").manifest
    again = FakeTeacher(topical)
    pipeline.run(RunConfig.load(config), teacher=again)
    assert not set(again.asked) & set(teacher.asked)
    assert load_bundle(config.parent / "run" / "bundle").manifest != bundle
    report, silent = updated(config)
    assert silent.asked == [] and not any(report.changes.values())


def test_interrupted_at_every_point_it_ends_as_if_it_never_was(
    grown: Callable[..., Path], whole: Whole
) -> None:
    config = grown()
    former = bundle_bytes(config)
    asked: list[str] = []
    points: list[str | int] = [
        50,
        "teacher judges: new labels",
        100,
        "teacher judges: new documents",
        "training",
        "bundle: label index",
        20,
        "teacher judges: calibration and comparison",
        "tagging",
    ]
    for point in points:
        interrupted = Interrupted(point)
        with pytest.raises(KeyboardInterrupt):
            updated(config, interrupted, watch=Interrupting(point))
        asked += interrupted.asked
        assert bundle_bytes(config) == former, "the former bundle was touched"
    report, last = updated(config)
    asked += last.asked
    assert len(asked) == len(set(asked)) and set(asked) == whole.asked
    assert report.asked == whole.report.asked and report.drift == whole.report.drift
    assert report.forgetting == whole.report.forgetting and report.ece == whole.report.ece
    assert (config.parent / "run" / "predictions.jsonl").read_text() == whole.predictions


def slow_update(config: str, log: str) -> None:
    """In a process of its own: an update whose teacher takes its time and logs what it is asked."""
    torch.set_num_threads(1)
    update(RunConfig.load(config), teacher=FakeTeacher(topical, log=Path(log), delay=0.004))


def test_kill_9_loses_nothing_and_asks_nothing_twice(
    grown: Callable[..., Path], whole: Whole, tmp_path: Path
) -> None:
    config = grown()
    place = config.parent / "run"
    done, killed = killed_and_resumed(
        slow_update,
        config,
        tmp_path,
        attempts=3,
        look=lambda: load_bundle(place / "bundle"),
    )
    assert killed >= 1
    assert whole.asked <= done
    assert (place / "predictions.jsonl").read_text() == whole.predictions


def test_what_people_do_to_the_bundle_meanwhile_is_not_undone(
    grown: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deciding(Messages):
        """Somebody changes the bundle while the update tags."""

        def stage(self, title: str) -> Callable[[int, int], None]:
            if title == "tagging":
                add_decision(bundle, Decision.top_k(2))
            return super().stage(title)

    config = grown(BEFORE + 10, late=False)
    bundle, first = config.parent / "run" / "bundle", config.parent / "run" / "updates" / "0001"
    with pytest.raises(DataError, match=r"was changed while the update was made(.|\n)*same command again"):
        updated(config, watch=Deciding())
    assert load_bundle(bundle).decision == Decision.top_k(2) and not (first / "ready.json").exists()

    def killed(history: History, *arguments: Any) -> None:
        raise KeyboardInterrupt

    # Killed before it is moved, and what tells of it lost: made again.
    for text in ("", "[]", "{}"):
        teacher = FakeTeacher(topical)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(History, "_install", killed)
            updated(config, teacher)
        assert teacher.asked == [] and json.loads((first / "ready.json").read_text())
        ready = (first / "ready.json").read_text()
        (first / "ready.json").write_text(text)
    pairs = (first / "pairs.jsonl").read_bytes()
    for data in (b"{", b"".join(pairs.splitlines(keepends=True)[:-1])):
        (first / "pairs.jsonl").write_bytes(data)
        with pytest.raises(DataError, match=r"pairs\.jsonl is damaged(.|\n)*cure: delete this file"):
            updated(config)
    (first / "pairs.jsonl").write_bytes(pairs)
    # It waits to be moved, and the bundle is another by then.
    (first / "ready.json").write_text(ready)
    add_decision(bundle, Decision.top_k(1))
    watch = Messages()
    report, teacher = updated(config, watch=watch)
    assert any("0001 was made: it is made again" in line for line in watch.said)
    assert teacher.asked == [] and report.number == 1 and (first / "done.json").exists()
    assert load_bundle(first / "former").decision == Decision.top_k(1)
    assert load_bundle(bundle).manifest.origin["update"] == "0001"
    # A report that is lost takes its window with it, no more.
    (first / "report.json").write_text("")
    assert updated(config, plan=True, watch=watch)[0].windows == []
    assert "report.json cannot be read" in watch.said[-1]


def test_a_power_cut_at_any_moment_leaves_the_former_or_the_new_bundle(
    grown: Callable[..., Path],
) -> None:
    config = grown(BEFORE + 10, late=False)
    bundles = list[str]()

    def look(disk: Disk) -> None:
        kept = disk.kept()
        there = whole_bundle(kept, "bundle")
        assert there, "there is none"
        if there not in bundles:
            bundles.append(there)
        ready, done = (kept.get(f"updates/0001/{name}.json") for name in ("ready", "done"))
        if ready:
            wanted = json.loads(ready)["manifest"]
            assert wanted in (there, whole_bundle(kept, "updates/0001/bundle"))
        if done:
            assert there == wanted and "stages/bundle.json" not in kept
            assert kept["catalog.jsonl"] == disk.live()["catalog.jsonl"]

    disk = Disk(config.parent / "run", look)
    with disk.running():
        updated(config)
        assert disk.kept() == disk.live()
    assert len(bundles) == 2


@pytest.mark.filterwarnings("ignore:bundle .* not part of it")
@pytest.mark.parametrize("faults", [pytest.param(50, marks=pytest.mark.long)])
def test_a_disk_that_fails_at_any_write_of_an_update_costs_nothing_but_time(
    grown: Callable[..., Path], tmp_path: Path, faults: int
) -> None:
    done_on_failing_disks(update, lambda name: grown(BEFORE + 10, name=name, late=False), tmp_path, faults)


def test_texts_of_users_are_escaped_on_the_page(grown: Callable[..., Path]) -> None:
    def evil(documents: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
        labels[0]["title"] = "<script>alert(1)</script> guitar"

    config = grown(BEFORE, late=False, edit=evil)
    report, _ = updated(config, FakeTeacher(lambda pair: -3.0 + len(pair.label.title) / 20))
    assert "<script>" in report.renamed[0][1]
    assert "<script>" not in (config.parent / "run" / "updates" / "0001" / "report.html").read_text()


def test_the_command_plans_updates_and_says_when_there_is_nothing(
    tmp_path: Path, tiny_encoder: Path, one_thread: None
) -> None:
    recorded = tmp_path / "judgments.jsonl"
    rows = [document(number) for number in range(90)]
    write_rows(
        recorded,
        [
            {
                "doc": row["uid"],
                "label": f"l-{word}",
                "log_odds": 3.0 if topic in row["text"] else -3.0,
                "mass": 1,
            }
            for row in rows
            for word, topic in TOPIC_OF.items()
        ],
    )
    settings: dict[str, Any] = {
        "teacher": {"kind": "replay", "judgments": str(recorded)},
        "training__prior": "contextual",
        "training__prior_documents": 2,
    }
    config = write_day(tmp_path / "w", tiny_encoder, 70, late=False, **settings)

    app = typer.Typer()
    pipeline_cli.register(app)

    def called(*options: str) -> Any:
        return CliRunner().invoke(app, ["run", str(config), *options])

    assert isinstance(called("--update").exception, DataError)
    assert called("--plan").exit_code == 2 and called("--update", "--max-hours", "1").exit_code == 2
    assert called().exit_code == 3, "the gold names labels that come later"
    nothing = called("--update")
    assert nothing.exit_code == 3 and "nothing was asked" in nothing.stdout

    def poor(rows: list[Any], labels: list[Any]) -> None:
        labels.extend({"uid": f"x{i}", "title": f"other {i}"} for i in range(3))

    write_day(tmp_path / "w", tiny_encoder, 75, late=False, edit=poor, **settings, update={"probe": 0})
    few = json.loads(called("--update", "--max-pairs", "24", "--json").stdout)
    # A quarter of what the calibration leaves pays for two of three labels on both documents.
    assert few["selected"][PRIORS] == 4 and few["asked"] <= 24
    assert any("1 of 23 labels have no prior of their own" in note for note in few["notes"])
    write_day(tmp_path / "w", tiny_encoder, 90, late=True, **settings)
    planned = called("--update", "--plan", "--json")
    assert planned.exit_code == 0 and json.loads(planned.stdout)["changes"]["new documents"] == 15
    done = called("--update", "--max-pairs", "150", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    # Two documents were asked about all labels: the new ones are now asked there too.
    assert told["selected"][PRIORS] == 2 * len(LATE)
    assert not any("no prior" in note for note in told["notes"])
    assert told["number"] == 2 and told["asked"] <= 150 and told["student"] == "trained"
    with (tmp_path / "w" / "documents.jsonl").open("a") as handle:
        handle.write("{broken\n")
    assert called("--update").exit_code == 3, "a bad row is not dropped in silence"


@pytest.mark.encoder
def test_the_real_encoder_learns_new_labels_and_keeps_old_ones(tmp_path: Path) -> None:
    encoder = Path(resolve_model("all-MiniLM-L6-v2", kind="encoder"))
    settings = {"training__epochs": 2, "training__learning_rate": 1e-4, "training__batch_size": 16}
    config = write_day(tmp_path, encoder, 100, late=False, **settings)
    pipeline.run(RunConfig.load(config), teacher=FakeTeacher(topical))
    write_day(tmp_path, encoder, 140, late=True, **settings)
    report, teacher = updated(config)
    assert report.student == "trained" and report.forgetting is not None
    kept = report.forgetting.metrics[report.forgetting.primary]
    # Of so few documents even like answers leave a sixth open.
    assert kept.low is not None and kept.low > -0.2 and kept.new > kept.former - 0.05
    assert len(teacher.asked) < report.full_run
    catalog = catalog_of(config)
    documents = [catalog.documents[i] for i in catalog.to_calibrate]
    found = Predictor(config.parent / "run" / "bundle").predict(documents, k=5)
    right = [
        TOPIC_OF[label[2:]] in d.text.split()
        for d, p in zip(documents, found, strict=True)
        for label in p.labels
    ]
    assert sum(right) / len(right) > 0.8
    assert any(label[2:] in LATE for p in found for label in p.labels)
