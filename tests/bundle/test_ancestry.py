"""Tagging with labels in a hierarchy: probabilities agree along every path, tags are as deep as asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tinyworld import document, label_rows, write_rows

from ezxmc.bundle.bundle import add_calibrator, save_bundle
from ezxmc.bundle.labels import Ancestry, add_labels, remove_labels
from ezxmc.bundle.predict import Predictor
from ezxmc.bundle.tagging import TaggingOptions, tag_file
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.decisions import Decision
from ezxmc.errors import ConfigError, DataError
from ezxmc.pipeline.decide import decide
from ezxmc.records import Document, Label, Prediction

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENTS = [Document(**document(number)) for number in range(40)]
ROWS = label_rows()
# A chain of four, and all others below its first.
ABOVE = {row["uid"]: ROWS[0 if i > 3 else i - 1]["uid"] for i, row in enumerate(ROWS) if i}
TREE = [Label(row["uid"], row["title"], parent=ABOVE.get(row["uid"])) for row in ROWS]


def above(uid: str) -> list[str]:
    return [ABOVE[uid], *above(ABOVE[uid])] if uid in ABOVE else []


def calibrated(path: Path, encoder: Path, labels: list[Label]) -> Path:
    save_bundle(path, encoder, labels, max_length=32, k=4)
    found = Predictor.load(path).predict(DOCUMENTS, k=len(labels))
    scores = np.unique([score for prediction in found for score in prediction.scores])
    curve = Isotonic(tuple(scores.tolist()), tuple(np.linspace(0.05, 0.95, len(scores)).tolist()))
    add_calibrator(path, Calibrator("teacher", 25, 100, curve))
    return path


@pytest.fixture(scope="module")
def paths(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None
) -> tuple[Path, Path]:
    """Of the labels in a hierarchy, and of the same as groups, which is flat."""
    folder = tmp_path_factory.mktemp("trees")
    flat = [replace(label, parent=label.parent and f"group {label.parent}") for label in TREE]
    return calibrated(folder / "tree", tiny_encoder, TREE), calibrated(folder / "flat", tiny_encoder, flat)


def told(found: list[Prediction]) -> list[dict[str, float]]:
    return [dict(zip(one.labels, one.probabilities, strict=True)) for one in found]


def test_probabilities_agree_along_every_path(paths: tuple[Path, Path]) -> None:
    tree, flat = map(Predictor, paths)
    raised = 0
    for ours, plain in zip(tree.predict(DOCUMENTS, k=8), flat.predict(DOCUMENTS, k=8), strict=True):
        assert (ours.labels, ours.scores) == (plain.labels, plain.scores)
        given = dict(zip(plain.labels, plain.probabilities, strict=True))
        expected = {
            uid: max(p for other, p in given.items() if uid in (other, *above(other))) for uid in given
        }
        assert dict(zip(ours.labels, ours.probabilities, strict=True)) == expected
        raised += expected != given
    assert raised > 5


def test_leaves_and_ancestors(paths: tuple[Path, Path]) -> None:
    tree, flat = map(Predictor, paths)
    every = told(tree.predict(DOCUMENTS, k=len(TREE)))
    kept, leaves, closed = (
        told(tree.predict(DOCUMENTS, k=8, threshold=0.7, **how))
        for how in ({}, {"leaves": True}, {"with_ancestors": True})
    )
    fewer = more = 0
    for tags, specific, whole, known in zip(kept, leaves, closed, every, strict=True):
        inner = {up for uid in tags for up in above(uid)}
        assert specific == {uid: p for uid, p in tags.items() if uid not in inner}
        assert whole.keys() == tags.keys() | inner
        assert {uid: whole[uid] for uid in tags} == tags
        for uid in whole:
            assert all(whole[up] >= whole[uid] for up in above(uid))
            # Brought from beyond the first eight, it is as probable as there, or as what it was brought by.
            assert whole[uid] == pytest.approx(
                max([p for one, p in whole.items() if uid in above(one)] + [whole[uid]])
            )
            assert whole[uid] <= known[uid] + 1e-9
        fewer, more = fewer + (specific != tags), more + (whole != tags)
    assert fewer > 5
    assert more > 5
    plain = flat.predict(DOCUMENTS, k=8, threshold=0.7)
    assert flat.predict(DOCUMENTS, k=8, threshold=0.7, leaves=True) == plain
    assert flat.predict(DOCUMENTS, k=8, threshold=0.7, with_ancestors=True) == plain


def test_without_a_calibrator_tags_bring_their_ancestors(paths: tuple[Path, Path]) -> None:
    bare = Predictor(replace(Predictor(paths[0]).bundle, calibrator=None))
    for plain, closed in zip(
        bare.predict(DOCUMENTS, k=2), bare.predict(DOCUMENTS, k=2, with_ancestors=True), strict=True
    ):
        assert set(closed.labels) == {*plain.labels, *(up for uid in plain.labels for up in above(uid))}
        assert list(closed.scores) == sorted(closed.scores, reverse=True)
        assert closed.probabilities == ()


def test_a_decision_looks_at_what_it_was_proved_on(paths: tuple[Path, Path], tmp_path: Path) -> None:
    tree, flat = map(Predictor, paths)
    rule = Decision.at_threshold(0.7, depth=8)
    ours, plain = (one.predict(DOCUMENTS, decision=rule) for one in (tree, flat))
    assert [one.labels for one in ours] == [one.labels for one in plain]
    gold = {one.uid: set(one.labels[:1]) for one in plain}
    rules = []
    for path in paths:
        shutil.copytree(path, copy := tmp_path / path.name)
        rules.append(decide(copy, DOCUMENTS, gold, threshold=0.7, depth=8, without_gold="none"))
    proved, expected = (rule.reviewed.probabilities for rule in rules)
    assert (proved == expected).all()
    for how in ({"leaves": True}, {"with_ancestors": True}):
        with pytest.raises(ConfigError, match="a decision chooses"):
            tree.predict(DOCUMENTS, decision=rule, **how)
    with pytest.raises(ConfigError, match="without the labels above them, or with them"):
        tree.predict(DOCUMENTS, leaves=True, with_ancestors=True)


def test_files(paths: tuple[Path, Path], tmp_path: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [document(number) for number in range(40)])
    for how in ("leaves", "with_ancestors"):
        options = TaggingOptions(str(paths[0]), precision="float32", threshold=0.7, **{how: True})
        tag_file(options, source, tmp_path / f"{how}.jsonl")
        rows = map(json.loads, (tmp_path / f"{how}.jsonl").read_text().splitlines())
        expected = Predictor(paths[0]).predict(DOCUMENTS, threshold=0.7, **{how: True})
        assert [[tag["label"] for tag in row["tags"]] for row in rows] == [
            list(one.labels) for one in expected
        ]


def test_labels_that_come_and_go_keep_their_places(tmp_path: Path, tiny_encoder: Path) -> None:
    path = tmp_path / "bundle"
    save_bundle(path, tiny_encoder, TREE[:6], max_length=32, k=4)
    with pytest.raises(DataError, match="circle"):
        add_labels(path, [replace(TREE[0], parent=TREE[3].uid)])
    add_labels(path, [Label("new", "fjord", parent=TREE[3].title), replace(TREE[1], title="yeast")])
    found = Predictor(path)
    rows = found.bundle.rows()
    assert found.ancestry is not None
    (brought,) = found.ancestry.brought(np.array([[rows["new"]]]), np.array([[True]]))
    assert [found.bundle.labels[row].uid for row in brought] == [TREE[i].uid for i in (3, 2, 1, 0)]
    remove_labels(path, [TREE[2].uid])
    (brought,) = Predictor(path).ancestry.brought(np.array([[rows["new"]]]), np.array([[True]]))  # type: ignore[union-attr]
    assert [found.bundle.labels[row].uid for row in brought] == [TREE[3].uid]


def test_a_circle_in_a_former_bundle_is_flat(paths: tuple[Path, Path]) -> None:
    bundle = Predictor(paths[0]).bundle
    labels = [replace(label, parent=TREE[i - 1].uid) for i, label in enumerate(bundle.labels)]
    assert Ancestry.of(replace(bundle, labels=labels)) is None
