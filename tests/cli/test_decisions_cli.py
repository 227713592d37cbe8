"""`ezxmc decide`: from a bundle and reviewed documents to a decision inside the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from support.tinyworld import document, label_rows, topical, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import add_calibrator, load_bundle, save_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.guarantees import ReviewedDocuments, missed
from ezxmc.cli import bundle as labels
from ezxmc.cli import predict as inference
from ezxmc.errors import ArgumentError, ConfigError, DataError
from ezxmc.pipeline.decide import decide
from ezxmc.records import Document, Label, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]
DOCUMENTS = [Document(**document(number)) for number in range(80)]
GOLD = {one.uid: {label.uid for label in LABELS if topical(Pair(one, label)) > 0} for one in DOCUMENTS[:60]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """A folder with a calibrated bundle, documents (more than were reviewed) and gold."""
    folder = tmp_path_factory.mktemp("decide")
    save_bundle(folder / "bundle", tiny_encoder, LABELS, max_length=32, k=4)
    found = [score for one in Predictor(folder / "bundle").predict(DOCUMENTS, k=25) for score in one.scores]
    curve = Isotonic((min(found), max(found)), (0.02, 0.95))
    add_calibrator(folder / "bundle", Calibrator("human", 25, 100, curve))
    write_rows(folder / "documents.jsonl", [document(number) for number in range(80)])
    write_rows(folder / "gold.jsonl", [{"uid": uid, "labels": sorted(tags)} for uid, tags in GOLD.items()])
    return folder


def run(folder: Path, *options: str, without_gold: str | None = "unreviewed") -> Result:
    app = typer.Typer()
    labels.register(app)
    paths = [str(folder / name) for name in ("bundle", "documents.jsonl", "gold.jsonl")]
    if without_gold:
        options = (*options, "--without-gold", without_gold)
    return CliRunner().invoke(app, ["decide", *paths, *options])


def answer(folder: Path, *options: str) -> Any:
    done = run(folder, *options, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--missed-rate", "0.5"], "missed_rate"),
        (["--false-tag-rate", "0.9"], "false_tag_rate"),
        (["--first-tag-error", "0.95", "--top-k", "2"], "top_error"),
        (["--f1", "--abstain-below", "0.3"], "expected_f1"),
        (["--document-f1", "--depth", "8"], "expected_document_f1"),
        (["--threshold", "0.6"], "threshold"),
        (["--top-k", "99"], "top_k"),
    ],
)
def test_the_decision_is_in_the_bundle_and_predicts(made: Path, options: list[str], kind: str) -> None:
    told = answer(made, *options)
    bundle = load_bundle(made / "bundle")
    assert bundle.decision is not None and bundle.decision.kind == kind == told["decision"]["kind"]
    assert told["guarantee"] == bundle.decision.guarantee
    assert told["measured"]["documents"] == len(GOLD)
    tagged = Predictor(bundle).predict(DOCUMENTS[:60], decision=bundle.decision)
    assert np.mean([len(one.labels) for one in tagged]) == pytest.approx(told["measured"]["tags"])
    assert told["measured"]["missed"] == pytest.approx(
        np.mean([1 - len(GOLD[one.uid] & set(one.labels)) / len(GOLD[one.uid]) for one in tagged])
    )


def test_python_gives_what_the_command_gives(made: Path) -> None:
    told = answer(made, "--false-tag-rate", "0.9", "--confidence", "0.8")
    files = made / "documents.jsonl", made / "gold.jsonl"
    for documents, gold in (files, (DOCUMENTS, GOLD)):
        found = decide(
            made / "bundle", documents, gold, false_tag_rate=0.9, confidence=0.8, without_gold="unreviewed"
        )
        assert json.loads(json.dumps({**found.to_dict(), "rows": told["rows"]})) == told
        assert load_bundle(made / "bundle").decision == found.decision
    # Labels that the bundle does not have are left out, as of a file.
    strange = {**GOLD, "d0": GOLD["d0"] | {"l-none"}, "d1": {"l-none"}}
    rows = [{"uid": uid, "labels": sorted(tags)} for uid, tags in strange.items()]
    write_rows(made / "strange.jsonl", rows)
    by_file, by_hand = (
        decide(made / "bundle", DOCUMENTS, gold, top_k=2, without_gold="unreviewed")
        for gold in (made / "strange.jsonl", strange)
    )
    assert by_file.to_dict() == by_hand.to_dict() and by_hand.measured.documents == 59
    with pytest.raises(ArgumentError, match="abstain_below is 2"):
        decide(made / "bundle", DOCUMENTS, GOLD, f1=True, abstain_below=2)


def test_what_was_promised_is_kept_on_these_documents(made: Path) -> None:
    told = answer(made, "--missed-rate", "0.5")
    assert told["measured"]["missed"] <= 0.5 and "50 %" in told["guarantee"]
    everything = Predictor(made / "bundle").predict(DOCUMENTS[:60], k=25)
    reviewed = ReviewedDocuments.of(everything, GOLD)
    for point in told["curve"]:
        expected = missed(reviewed, reviewed.probabilities >= point["threshold"]).mean()
        assert point["missed"] == pytest.approx(expected)
    thresholds = [point["threshold"] for point in told["curve"]]
    assert thresholds == sorted(thresholds) and len(thresholds) == 49


def test_labels_that_come_and_go_end_the_promise_wherever_it_is_shown(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "made")
    bundle = tmp_path / "made" / "bundle"
    answer(tmp_path / "made", "--missed-rate", "0.5", "--depth", "25")
    app = typer.Typer()
    labels.register(app)
    inference.register(app)

    def call(*arguments: object) -> Result:
        done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    assert "at most 50 %" in call("labels", "list", bundle).stderr
    new = write_rows(tmp_path / "new.jsonl", [{"uid": "l-new", "title": "boat wind"}])
    void = "no rate is guaranteed any more"
    assert json.loads(call("labels", "add", bundle, new, "--json").stdout)["decision"].startswith(void)
    assert void in call("labels", "remove", bundle, "l-new", "l-boat").stdout
    assert void in call("labels", "list", bundle).stderr
    assert json.loads(call("labels", "list", bundle, "--json").stdout)["decision"].startswith(void)
    tagged = call("predict", bundle, made / "documents.jsonl", "--decide")
    assert len(tagged.stdout.splitlines()) == 80 and tagged.stderr.count(void) == 1
    assert run(tmp_path / "made", "--missed-rate", "0.5").exit_code == 3, "the gold names a label that went"
    assert void not in call("predict", bundle, made / "documents.jsonl", "--decide").stderr


def test_documents_without_gold_must_be_said_to_fit_nothing_or_to_be_unreviewed(made: Path) -> None:
    before = load_bundle(made / "bundle").decision
    for options in (["--false-tag-rate", "0.9"], ["--missed-rate", "0.5"], ["--threshold", "0.5"]):
        refused = run(made, *options, without_gold=None).exception
        assert isinstance(refused, DataError)
        assert "20 of 80 documents have no label in" in refused.message and "'d60', 'd61'" in refused.message
        assert refused.cure and "--without-gold none" in refused.cure and "labels" in refused.cure
    assert load_bundle(made / "bundle").decision == before
    told = {}
    for meaning in ("none", "unreviewed"):
        done = run(made, "--top-k", "1", "--json", without_gold=meaning)
        told[meaning] = json.loads(done.stdout)["measured"]
        assert "20 of 80 documents" in done.stderr
    assert told["none"]["documents"] == 80 and told["unreviewed"]["documents"] == 60
    assert told["none"]["top_error"] == pytest.approx(told["unreviewed"]["top_error"] * 0.75 + 0.25)


def test_it_tells_people_too(made: Path) -> None:
    shown = run(made, "--false-tag-rate", "0.9").stdout
    assert "false_tag_rate" in shown and "at most 90 % are false" in " ".join(shown.split())


def test_refusals(made: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    before = load_bundle(made / "bundle").decision
    for options in ([], ["--f1", "--top-k", "3"], ["--missed-rate", "0.1", "--threshold", "0.5"]):
        refused = run(made, *options).exception
        assert isinstance(refused, ArgumentError) and "give one of" in refused.cure
    refused = run(made, "--first-tag-error", "0.5", "--abstain-below", "0.5").exception
    assert isinstance(refused, ArgumentError) and "drop --abstain-below" in refused.cure
    refused = run(made, "--missed-rate", "0.1", "--depth", "2").exception
    assert isinstance(refused, ConfigError) and "cannot be guaranteed" in str(refused)
    assert load_bundle(made / "bundle").decision == before
    bare = tmp_path / "bare"
    bare.mkdir()
    save_bundle(bare / "bundle", tiny_encoder, LABELS, max_length=32, k=4)
    for name in ("documents.jsonl", "gold.jsonl"):
        (bare / name).write_bytes((made / name).read_bytes())
    refused = run(bare, "--f1").exception
    assert isinstance(refused, ConfigError) and "has no calibrator" in str(refused)
    write_rows(bare / "gold.jsonl", [{"uid": "stranger", "labels": ["l-oven"]}])
    add_calibrator(bare / "bundle", Calibrator("human", 25, 100, Isotonic((0.0, 1.0), (0.1, 0.9))))
    assert isinstance(run(bare, "--f1").exception, DataError)
