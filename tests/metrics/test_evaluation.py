"""Predictions read back and scored against gold."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ezxmc.cli import predict as command
from ezxmc.data import RowReport
from ezxmc.data.predictions import read_predictions
from ezxmc.errors import ArgumentError, DataError
from ezxmc.metrics import (
    Terms,
    brier,
    evaluation,
    frequency_groups,
    intervals,
    inverse_propensities,
    nll,
    psp_at_k,
)
from ezxmc.metrics.evaluation import compare, constant_answer, evaluate
from ezxmc.pipeline.steps import evaluate_files
from ezxmc.records import Prediction


def predict(uid: str, labels: str, probabilities: tuple[float, ...] = ()) -> Prediction:
    return Prediction(uid, tuple(labels), tuple(labels), tuple(0.5 for _ in labels), probabilities)


@pytest.mark.parametrize("k", [1, 2])
def test_no_constant_answer_has_more_labels_right_than_the_most_frequent(k: int) -> None:
    gold = {"1": {"b", "c"}, "2": {"c"}, "3": {"a", "b"}, "4": {"c", "d"}, "5": set[str](), "6": {"b"}}
    # b and c are in three documents each; of equals the first by name is answered.
    assert [one.labels for one in constant_answer(gold, 3)] == [("b", "c", "a")] * len(gold)

    def right(labels: str) -> float:
        answers = [predict(uid, labels) for uid in gold]
        return evaluate(answers, gold, precision_ks=[k], calibration_ks=()).values[f"P@{k}"]

    best = evaluate(constant_answer(gold, k), gold, precision_ks=[k], calibration_ks=()).values[f"P@{k}"]
    assert best == max(map(right, map("".join, permutations("abcd", k)))) > right("ad"[:k])


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
    assert result.rows()[0] == ("P@1", "0.6667", "0.0962 to 0.9911 (rough: 3 documents)")
    assert list(result.counts().values()) == [3, 1, 1, 1, 0]


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


def test_brier_and_nll_are_those_of_the_pooled_pairs_and_have_intervals() -> None:
    rng = np.random.default_rng(0)
    right = {f"d{n}": {"a"} for n in range(300)}
    chances = np.sort(rng.random((300, 2)), axis=1)[:, ::-1]
    some = [
        predict(f"d{n}", "ab"[:: rng.choice([1, -1])], tuple(row)) for n, row in enumerate(chances.tolist())
    ]
    hits = np.array([[label == "a" for label in p.labels] for p in some])
    found = evaluate(some, right, calibration_ks=(1, 2))
    for k in (1, 2):
        assert found.values[f"Brier@{k}"] == pytest.approx(brier(chances[:, :k], hits[:, :k]))
        assert found.values[f"NLL@{k}"] == pytest.approx(nll(chances[:, :k], hits[:, :k]))
    loss = ((chances - hits) ** 2).sum(axis=1, keepdims=True)
    by_document = Terms(("Brier",), loss, np.full((300, 1), 2.0))
    assert found.intervals["Brier@2"] == pytest.approx(intervals(by_document)["Brier"])
    sure = evaluate([predict("d0", "a", (1.0,)), predict("d1", "b", (1.0,))], {"d0": ["a"], "d1": ["a"]})
    assert sure.values["NLL@1"] == pytest.approx(nll([1, 1], [1, 0]))
    other = evaluate([replace(p, probabilities=(0.5, 0.5)) for p in some], right, calibration_ks=(1, 2))
    assert compare(found, other)["Brier@2"].value == pytest.approx(found.values["Brier@2"] - 0.25)


def test_documents_that_nothing_fits_count_where_probabilities_and_tags_do() -> None:
    """16 % fit nothing; the probabilities are true, so no error may be found in them."""
    rng = np.random.default_rng(0)
    n = 4_000
    chances = rng.beta(4, 1, n)
    hits = rng.random(n) < chances
    predictions = [predict(f"d{i}", "a", (float(p),)) for i, p in enumerate(chances)]
    gold = {f"d{i}": ["a"] if hit else [] for i, hit in enumerate(hits)}
    found = evaluate(predictions, gold, calibration_ks=(1,), threshold=0.5)
    assert 0.15 < (~hits).mean() < 0.25 and found.n_fitting_nothing == (~hits).sum()
    assert found.values["ECE@1"] < 0.02 and found.values["ACE@1"] < 0.02
    assert found.values["Brier@1"] == pytest.approx(brier(chances, hits))
    assert found.values["NLL@1"] == pytest.approx(nll(chances, hits))
    kept = chances >= 0.5
    f1 = 2 * (kept & hits).sum() / (kept.sum() + hits.sum())
    assert found.values["micro-F1"] == found.values["macro-F1"] == pytest.approx(f1)
    left_out = evaluate(predictions, {uid: labels for uid, labels in gold.items() if labels}, threshold=0.5)
    assert left_out.values["ECE@1"] > 0.15
    # No ranking of such a document is right or wrong.
    assert found.n_documents == hits.sum() and found.missing == ()
    assert {name: found.values[name] for name in ("P@1", "P@5", "nDCG@5", "coverage@5")} == {
        name: left_out.values[name] for name in ("P@1", "P@5", "nDCG@5", "coverage@5")
    }
    with pytest.raises(DataError, match="4,000 and 3,"):
        compare(found, left_out)
    absent = evaluate(predictions[1:], {**gold, "d0": []}, calibration_ks=(1,))
    assert absent.missing == () and sum(one.n for one in absent.reliability[1]) == n - 1


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


def many(seed: int, documents: int = 50) -> tuple[list[Prediction], dict[str, set[str]]]:
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij"))
    found = [predict(f"d{n}", "".join(rng.permutation(letters)[:6])) for n in range(documents)]
    rng = np.random.default_rng(7)  # the same gold for every seed
    return found, {f"d{n}": set(rng.permutation(letters)[: rng.integers(1, 4)]) for n in range(documents)}


def test_training_gold_gives_propensities_and_slices() -> None:
    found, gold = many(0)
    train = {f"t{n}": set("abcdefghij"[: 1 + n % 9]) for n in range(40)} | {"none": set[str]()}
    counts = {label: sum(label in labels for labels in train.values()) for label in "abcdefghij"}
    assert counts["j"] == 0, "a label of no training document"
    result = evaluate(found, gold, train_gold=train, propensity=(0.6, 2.6))
    inverse = inverse_propensities(counts, 40, a=0.6, b=2.6)
    ranked = [p.labels for p in found]
    for k in (1, 3, 5):
        assert result.values[f"PSP@{k}"] == pytest.approx(psp_at_k(ranked, list(gold.values()), inverse, k))
    group = frequency_groups(counts)
    for name in ("head", "torso", "tail"):
        parts = [{x for x in labels if group[x] == name} for labels in gold.values()]
        hits = [len(set(top[:5]) & part) / 5 for top, part in zip(ranked, parts, strict=True) if part]
        assert result.values[f"P@5 {name}"] == pytest.approx(np.mean(hits))
    assert "R@10 tail" not in result.values, "deeper than any prediction"
    assert set(result.values) - set(evaluate(found, gold).values) == {
        *("PSP@1", "PSP@3", "PSP@5", "PSnDCG@5", "P@5 head", "P@5 torso", "P@5 tail")
    }
    with pytest.raises(DataError, match="3 training documents"):
        evaluate(found, gold, train_gold={"t": {"a"}})


def test_a_threshold_gives_f1() -> None:
    found = [predict("1", "abc", (0.9, 0.5, 0.49)), predict("2", "ax", (0.5, 0.1)), predict("3", "")]
    result = evaluate(found, {"1": [*"ac"], "2": ["b"], "3": ["a"], "4": ["d"]}, threshold=0.5)
    # Tags: 1 a b, 2 a. Right: 1 a. Gold: a c, b, a, d.
    assert result.values["micro-F1"] == pytest.approx(2 * 1 / (3 + 5))
    assert result.values["macro-F1"] == pytest.approx((2 * 1 / (2 + 2) + 0 + 0 + 0) / 4)
    assert "micro-F1" in result.intervals and "macro-F1" not in result.intervals
    with pytest.raises(DataError, match="'2' has no probabilities"):
        evaluate([found[0], predict("2", "a")], {"1": ["a"], "2": ["a"]}, threshold=0.5)


def test_filtered_pairs_count_nowhere() -> None:
    found = [predict("1", "xab", (0.9, 0.8, 0.3)), predict("2", "xb", (0.7, 0.6))]
    gold = {"1": ["x", "b"], "2": ["b"], "3": ["y"]}
    out = {"1": ["x", "never"], "3": ["y"], "9": ["x"]}
    result = evaluate(found, gold, filtered=out, recall_ks=(2,), calibration_ks=(1,))
    without = [predict("1", "ab", (0.8, 0.3)), predict("2", "xb", (0.7, 0.6))]
    plain = evaluate(without, {"1": ["b"], "2": ["b"]}, recall_ks=(2,), calibration_ks=(1,))
    assert result.values == plain.values and result.reliability == plain.reliability
    assert (result.n_filtered, plain.n_filtered) == (3, 0), "one predicted pair and two of gold"
    assert result.n_documents == 2, "a document all of whose gold is filtered is left out"


def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    first, gold = many(1)
    second, _ = many(2)
    whole, gaps = evaluate(first, gold), compare(evaluate(first, gold), evaluate(second, gold))
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    part = evaluate(reversed(first), gold)
    assert part.values == pytest.approx(whole.values)
    assert {n: ends[0] for n, ends in part.intervals.items()} == pytest.approx(
        {n: ends[0] for n, ends in whole.intervals.items()}
    )
    again = compare(part, evaluate(second, gold))
    assert {n: gap.low for n, gap in again.items()} == pytest.approx({n: gap.low for n, gap in gaps.items()})
    assert gaps["P@5"].value == pytest.approx(whole.values["P@5"] - evaluate(second, gold).values["P@5"])
    assert set(gaps) == set(whole.intervals) and "coverage@5" not in gaps
    with pytest.raises(DataError, match="same gold"):
        compare(whole, evaluate(first[:9], {uid: gold[uid] for uid in ("d1", "d2")}))


def lines(predictions: list[Prediction]) -> str:
    def row(p: Prediction) -> dict[str, Any]:
        return {"uid": p.uid, "tags": [{"label": x, "score": 0.5, "probability": 0.5} for x in p.labels]}

    return "\n".join(json.dumps(row(p)) for p in predictions)


def test_command(tmp_path: Path) -> None:
    first, gold = many(1)
    second, _ = many(2)
    (tmp_path / "p.jsonl").write_text(lines(first))
    (tmp_path / "q.jsonl").write_text(lines(second))
    pairs = [f"{uid}\t{label}" for uid, labels in gold.items() for label in sorted(labels)]
    (tmp_path / "g.tsv").write_text("\n".join(pairs))
    (tmp_path / "f.tsv").write_text("d0\ta\nbroken\n")
    app = typer.Typer()
    command.register(app)

    def ezxmc(*options: object) -> Any:
        given = [tmp_path / "p.jsonl", tmp_path / "g.tsv", *options]
        return CliRunner().invoke(app, ["evaluate", *map(str, given)])

    more = ("--train-gold", tmp_path / "g.tsv", "--threshold", 0.5, "--compare", tmp_path / "q.jsonl")
    done = ezxmc(*more, "--propensity", 0.5, 0.4, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = evaluate(
        (Prediction(p.uid, p.labels, p.titles, p.scores, (0.5,) * 6) for p in first),
        gold,
        train_gold=gold,
        propensity=(0.5, 0.4),
        threshold=0.5,
    )
    assert found["values"] == pytest.approx(expected.values)
    assert found["values"].keys() >= {"PSP@5", "PSnDCG@5", "P@5 tail", "micro-F1", "macro-F1", "coverage@5"}
    gap = found["compare"]["differences"]["P@1"]
    assert gap["value"] == pytest.approx(found["values"]["P@1"] - found["compare"]["values"]["P@1"])
    assert gap["low"] <= gap["value"] <= gap["high"] and 0 < gap["p"] <= 1
    assert set(found["rows"]) == {"gold", "train_gold", "predictions", "compare"}
    shown = ezxmc(*more[-2:])
    assert shown.exit_code == 0 and "difference" in shown.stdout and f"{gap['value']:+.4f}" in shown.stdout
    assert "rough" not in shown.stdout
    (tmp_path / "g.tsv").write_text("\n".join(pair for pair in pairs if pair < "d2"))
    few = len({pair.split("\t")[0] for pair in pairs if pair < "d2"})
    for options in ((), more[-2:]):
        told = " ".join(ezxmc(*options).stdout.split())
        assert few < 20 and f"(rough: {few} documents)" in told, told
    (tmp_path / "g.tsv").write_text("\n".join(pairs))
    filtered = ezxmc("--filter", tmp_path / "f.tsv", "--json")
    assert filtered.exit_code == 3, "the broken row of the filter"
    assert json.loads(filtered.stdout)["rows"]["filter"]["counts"] == {"field_count": 1}
    (tmp_path / "g.tsv").write_text("\n".join(pair for pair in pairs if not pair.startswith("d0\t")))
    left_out, counted = ezxmc("--json"), ezxmc("--json", "--without-gold", "none")
    assert "1 of" in left_out.stderr and "('d0'): unreviewed, left out" in left_out.stderr
    assert "('d0'): reviewed, and nothing fits" in counted.stderr
    sides = [json.loads(done.stdout) for done in (left_out, counted)]
    assert [(one["n_fitting_nothing"], one["n_without_gold"]) for one in sides] == [(0, 1), (1, 0)]
    assert sides[0]["values"]["P@1"] == sides[1]["values"]["P@1"]
    judged = [sum(one["n"] for one in side["reliability"]["1"]) for side in sides]
    assert judged[1] == judged[0] + 1
    assert ezxmc("--threshold", 2).exit_code == 2
    for wrong in (
        ("--propensity", 0.5, 0.4),
        ("--train-gold", tmp_path / "g.tsv", "--propensity", 0.5, 0),
    ):
        refused = ezxmc(*wrong).exception
        assert isinstance(refused, ArgumentError) and "--propensity" in refused.cure
    (tmp_path / "g.tsv").write_text("\n".join(pairs))
    names = [str(tmp_path / name) for name in ("p.jsonl", "g.tsv", "q.jsonl", "f.tsv")]
    by_python = evaluate_files(
        *names[:2], train_gold=names[1], compared=names[2], filtered=names[3], threshold=0.5
    )
    by_command = json.loads(ezxmc(*more, "--filter", names[3], "--json").stdout)
    assert json.loads(json.dumps(by_python.to_dict())) == by_command


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


@given(rows=st.lists(st.dictionaries(st.sampled_from(["uid", "tags", "error"]), values), max_size=4))
def test_any_json_is_kept_or_reported(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = RowReport()
    kept = list(read_predictions(path, report))
    assert report.kept == len(kept)
    assert report.rows == len(rows)
