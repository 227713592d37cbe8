"""`ezxmc calibrate` on a real bundle with a tiny encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from support.tinyworld import TOPIC_OF, document, label_rows, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import load_bundle, save_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import Corrected
from ezxmc.cli import bundle as commands
from ezxmc.data import read_documents, read_gold
from ezxmc.errors import ArgumentError, DataError, TrainingError
from ezxmc.feedback.recall import Recalled
from ezxmc.pipeline import calibrate
from ezxmc.records import Document, Label

pytestmark = pytest.mark.usefixtures("one_thread")
LEFT_OUT = ("--without-gold", "unreviewed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("made")
    labels = [Label(row["uid"], row["title"]) for row in label_rows()]
    save_bundle(folder / "bundle", tiny_encoder, labels, max_length=32, k=4)
    rows = [document(i) for i in range(60)]
    write_rows(folder / "documents.jsonl", rows)
    write_rows(
        folder / "gold.jsonl",
        [
            {
                "uid": row["uid"],
                "labels": [f"l-{w}" for w, topic in TOPIC_OF.items() if topic in row["text"].split()],
            }
            for row in rows[:40]
        ],
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and a teacher that says yes to everything, a little more so where it is right."""
    shutil.copytree(made, tmp_path / "w")

    def verdicts(judgments: Any) -> Any:
        return lambda doc, label: 0.8 + 0.1 * (len(label) % 2)

    monkeypatch.setattr(calibrate, "teacher_verdicts", verdicts)
    monkeypatch.setattr(calibrate, "newest_judgments", lambda *given: Recalled([]))
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def call(*args: object) -> dict[str, Any]:
    app = typer.Typer()
    commands.register(app)
    done = CliRunner().invoke(app, ["calibrate", *map(str, args), "--json"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_teacher_then_people_correct_it(folder: Path) -> None:
    teacher = call("bundle", "documents.jsonl", "--store", "s.sqlite", "--kind", "platt")
    assert (teacher["target"], teacher["kind"], teacher["documents"], teacher["pairs"]) == (
        "teacher",
        "platt",
        60,
        600,
    )
    both = call("bundle", "documents.jsonl", "--gold", "gold.jsonl", *LEFT_OUT, "--target", "both")
    assert (both["target"], both["kind"], both["documents"], both["pairs"]) == ("both", "corrected", 40, 400)
    assert both["ece_uncorrected"] > 0.3 > both["ece_cross_fitted"]
    opened = load_bundle(folder / "bundle").calibrator
    assert opened is not None and isinstance(opened.curve, Corrected) and opened.curve.shape.kind == "platt"
    found = Predictor(folder / "bundle").predict([Document(**document(i)) for i in range(20)], k=4)
    assert all(list(p.probabilities) == sorted(p.probabilities, reverse=True) for p in found)


def test_both_at_once_equals_one_after_the_other(folder: Path) -> None:
    call("bundle", "documents.jsonl", "--store", "s.sqlite", "--kind", "ranked")
    call("bundle", "documents.jsonl", "--gold", "gold.jsonl", *LEFT_OUT, "--target", "both")
    after = load_bundle(folder / "bundle").calibrator
    at_once = call(
        "bundle",
        "documents.jsonl",
        "--store",
        "s.sqlite",
        "--gold",
        "gold.jsonl",
        *LEFT_OUT,
        "--kind",
        "ranked",
    )
    assert at_once["target"] == "both"
    assert load_bundle(folder / "bundle").calibrator == after


def test_documents_without_gold_count_if_nothing_fits_them(folder: Path) -> None:
    alone = ("bundle", "documents.jsonl", "--gold", "gold.jsonl")
    with pytest.raises(DataError, match=r"20 of 60 documents have no label in gold\.jsonl"):
        call(*alone)
    assert load_bundle(folder / "bundle").calibrator is None
    seen = call(*alone, *LEFT_OUT)
    left_out = load_bundle(folder / "bundle").calibrator
    everything = call(*alone, "--without-gold", "none")
    counted = load_bundle(folder / "bundle").calibrator
    assert (seen["documents"], everything["documents"]) == (40, 60)
    assert counted and left_out and (counted.transform([[0.9]]) < left_out.transform([[0.9]])).all()
    # A row that says so is as good, also in a table.
    rows = [json.loads(line) for line in (folder / "gold.jsonl").read_text().splitlines()]
    lines = [f"{row['uid']},{label}" for row in rows for label in row["labels"] or [""]]
    lines += [f"d{number}," for number in range(40, 60)]
    (folder / "gold.csv").write_text("doc,label\n" + "\n".join(lines) + "\n")
    told = call("bundle", "documents.jsonl", "--gold", "gold.csv")
    assert told["ece_cross_fitted"] == everything["ece_cross_fitted"]
    assert load_bundle(folder / "bundle").calibrator == counted


def test_people_alone(folder: Path) -> None:
    found = call("bundle", "documents.jsonl", "--gold", "gold.jsonl", *LEFT_OUT, "--depth", 3)
    assert found["target"] == "human" and found["pairs"] == 120 and "ece_uncorrected" not in found
    assert set(found["nll_cross_fitted"]) == {"isotonic", "platt", "temperature", "ranked"}
    with pytest.raises(TrainingError, match="no calibrator fitted to the teacher"):
        call("bundle", "documents.jsonl", "--gold", "gold.jsonl", *LEFT_OUT, "--target", "both")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--store"),
        (["--store", "s.sqlite", "--target", "human"], "--gold"),
        (["--gold", "gold.jsonl", "--target", "teacher"], "--store"),
        (["--gold", "gold.jsonl", "--kind", "magic"], "magic"),
    ],
)
def test_usage(folder: Path, options: list[str], said: str) -> None:
    app = typer.Typer()
    commands.register(app)
    done = CliRunner().invoke(app, ["calibrate", "bundle", "documents.jsonl", *options])
    if isinstance(done.exception, ArgumentError):
        assert said in done.exception.cure
    else:
        assert done.exit_code == 2 and said in done.output


def test_python_gives_what_the_command_gives(folder: Path) -> None:
    told = call("bundle", "documents.jsonl", "--gold", "gold.jsonl", *LEFT_OUT, "--depth", 5)
    by_command = load_bundle(folder / "bundle").calibrator
    documents, _ = read_documents("documents.jsonl")
    gold, _ = read_gold("gold.jsonl")
    for given in (("documents.jsonl", "gold.jsonl"), (documents, gold)):
        found = calibrate.calibrate("bundle", given[0], gold=given[1], depth=5, without_gold="unreviewed")
        assert found.calibrator == by_command == load_bundle(folder / "bundle").calibrator
        assert {**found.to_dict(), "rows": told["rows"]} == told
    with pytest.raises(DataError, match="were they reviewed"):
        calibrate.calibrate("bundle", documents, gold=gold)
    with pytest.raises(ArgumentError, match="the target is 'people'"):
        calibrate.calibrate("bundle", documents, gold=gold, target="people")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="depth is 0"):
        calibrate.calibrate("bundle", documents, gold=gold, depth=0)
