"""A bundle and a store of an earlier version (commit 7aef8be, the small world) serve as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.fakes import FakeTeacher
from support.tinyworld import topical

from ezxmc import FeedbackStore, Predictor
from ezxmc.data import read_documents, read_labels
from ezxmc.records import Document, Pair

FORMER = Path(__file__).parents[1] / "support" / "former"


def test_a_bundle_predicts_the_same() -> None:
    rows = [json.loads(line) for line in (FORMER / "predictions.jsonl").read_text().splitlines()]
    found = Predictor.load(FORMER / "bundle").predict([Document(**row["document"]) for row in rows], k=5)
    for prediction, row in zip(found, rows, strict=True):
        assert list(prediction.labels) == row["labels"]
        assert prediction.scores == pytest.approx(row["scores"], abs=2e-6)
        assert prediction.probabilities == pytest.approx(row["probabilities"], abs=2e-6)


def test_every_answer_of_a_store_is_recalled(tmp_path: Path) -> None:
    # A copy: a store is brought to the present version where it lies.
    store_file = shutil.copy(FORMER / "feedback.sqlite", tmp_path / "feedback.sqlite")
    documents = {one.uid: one for one in read_documents(FORMER / "documents.jsonl")[0]}
    labels = {one.uid: one for one in read_labels(FORMER / "labels.jsonl")[0]}
    teacher = FakeTeacher(topical)
    with FeedbackStore(store_file) as store:
        kept = list(store.judgments())
        assert len(kept) == 268
        for one in kept:
            pair = Pair(documents[one.doc_uid], labels[one.label_uid])
            assert one.key == teacher.key(pair) and one.log_odds == pytest.approx(topical(pair))
        assert store.known([one.key for one in kept]) == {one.key for one in kept}
