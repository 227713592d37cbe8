"""Predictions read back and scored against gold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezxmc.data import RowReport
from ezxmc.errors import DataError
from ezxmc.evaluation import evaluate, read_predictions
from ezxmc.records import Prediction


def predict(uid: str, labels: str, probabilities: tuple[float, ...] = ()) -> Prediction:
    return Prediction(uid, tuple(labels), tuple(labels), tuple(0.5 for _ in labels), probabilities)


def test_end_to_end(tmp_path: Path) -> None:
    def tag(label: str, probability: float | None) -> dict[str, Any]:
        return {"label": label, "title": label.upper(), "score": 0.5, "probability": probability}

    lines = [
        {"uid": "1", "tags": [tag("a", 0.9), tag("b", 0.4)]},
        {"uid": "2", "tags": [tag("c", 1.0), tag("a", 0.0)]},
        {"uid": "3", "error": "too long"},
        {"uid": "9", "tags": []},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    report = RowReport()
    gold = {"1": {"a", "x"}, "2": {"c"}, "3": {"a"}, "4": set[str]()}
    result = evaluate(read_predictions(path, report), gold, recall_ks=(1, 2, 3), calibration_ks=(2,))

    assert [(problem.line, problem.kind) for problem in report.problems] == [(3, "prediction_error")]
    assert (report.rows, report.kept) == (4, 3)
    assert (result.n_documents, result.missing, result.n_without_gold) == (3, ("3",), 1)
    assert list(result.values) == [
        *("P@1", "P@3", "P@5", "R@1", "R@2", "nDCG@5", "coverage@5"),
        *("ECE@2", "ACE@2", "Brier@2", "NLL@2"),
    ]
    assert result.values["P@1"] == pytest.approx(2 / 3)
    assert result.values["P@5"] == pytest.approx(2 / 5 / 3)
    assert result.values["R@2"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # Pairs (0.9, hit), (0.4, miss), (1.0, hit), (0.0, miss); the last bin holds the two hits.
    assert result.values["ECE@2"] == pytest.approx((2 * 0.05 + 0.4) / 4)
    assert result.values["Brier@2"] == pytest.approx((0.01 + 0.16) / 4)
    assert {k: sum(point.n for point in bins) for k, bins in result.reliability.items()} == {2: 4}
    assert json.loads(json.dumps(result.to_dict()))["values"] == result.values
    assert result.rows()[0] == ("P@1", "0.6667", "0.0000 to 1.0000")
    assert [row[1] for row in result.rows()[-4:]] == ["3", "1", "1", "0"]


def test_without_probabilities_there_is_no_calibration() -> None:
    gold = {"1": ["a"], "2": ["b"]}
    for first in (predict("1", "ab"), predict("1", "ab", (0.5,))):
        result = evaluate([first, predict("2", "b", (0.7,))], gold)
        assert result.reliability == {}
        assert set(result.values) == {"P@1", "P@3", "P@5", "nDCG@5", "coverage@5"}


def test_calibration_takes_the_top_k_only() -> None:
    found = evaluate([predict("1", "abc", (0.8, 0.3, 0.9))], {"1": ["a"]}, calibration_ks=(1, 2, 3, 10))
    assert {k: sum(point.n for point in bins) for k, bins in found.reliability.items()} == {1: 1, 2: 2, 3: 3}
    assert found.values["Brier@1"] == pytest.approx(0.04)
    assert found.values["Brier@2"] == pytest.approx((0.04 + 0.09) / 2)
    assert found.values["Brier@3"] == pytest.approx((0.04 + 0.09 + 0.81) / 3)
    assert "Brier@10" not in found.values


@pytest.mark.parametrize(
    ("predictions", "gold", "message"),
    [
        ([predict("1", "a")], {"1": []}, "no document has a gold label"),
        ([predict("1", "a")], {"2": ["a"]}, "same uids"),
        ([], {"2": ["a"]}, "same uids"),
        ([predict("1", "a"), predict("1", "b")], {"1": ["a"]}, "predicted twice"),
    ],
)
def test_what_cannot_be_scored(
    predictions: list[Prediction], gold: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(predictions, gold)


def test_bad_predictions_are_named(tmp_path: Path) -> None:
    good = {"label": "a", "score": 0.5}
    bad: list[Any] = [
        {"tags": []},
        {"uid": 3, "tags": []},
        {"uid": "x"},
        {"uid": "x", "tags": ["a"]},
        {"uid": "x", "tags": [{"label": "a"}]},
        {"uid": "x", "tags": [good | {"score": float("nan")}]},
        {"uid": "x", "tags": [good | {"score": 10**400}]},
        {"uid": "x", "tags": [good | {"probability": 1.5}]},
        {"uid": "x", "tags": [good, good]},
        {"uid": "x", "tags": [good | {"probability": 0.5}, good | {"label": "b"}]},
    ]
    lines = [*bad, {"uid": "x", "tags": [good]}, {"uid": "x", "tags": []}]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    report = RowReport()
    assert list(read_predictions(path, report)) == [Prediction("x", ("a",), ("a",), (0.5,))]
    assert report.counts == {"bad_prediction": len(bad), "duplicate_uid": 1}
    with pytest.raises(DataError, match=r"p\.jsonl:1: bad_prediction"):
        list(read_predictions(path, RowReport(strict=True)))


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["label", "title", "score", "probability"]), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(["uid", "tags", "error"]), values), max_size=4))
def test_any_json_is_kept_or_reported(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = RowReport()
    kept = list(read_predictions(path, report))
    assert report.kept == len(kept)
    assert report.rows == len(rows)
