"""Hierarchical metrics, held against sets in plain Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tinyworld import write_rows
from typer.testing import CliRunner

from ezxmc.cli import predict as command
from ezxmc.data.forest import Forest
from ezxmc.metrics import streaming
from ezxmc.metrics.evaluation import evaluate
from ezxmc.records import Label, Prediction

LABELS = 12
# Labels beyond the forest's are known to nobody but gold or predictions.
UIDS = st.integers(0, LABELS + 2).map(str)


def above_of(parents: list[int], uid: str) -> set[str]:
    """A label and all above it."""
    found = {uid}
    row = int(uid)
    while row < LABELS and parents[row] >= 0:
        row = parents[row]
        found.add(str(row))
    return found


def with_all_above(parents: list[int], uids: list[str]) -> set[str]:
    return set().union(*(above_of(parents, uid) for uid in uids))


def naive(
    parents: list[int], chosen: dict[str, list[str]], gold: dict[str, set[str]]
) -> tuple[float | None, float | None, float | None]:
    both = ours = theirs = 0
    for uid, labels in gold.items():
        predicted, right = with_all_above(parents, chosen[uid]), with_all_above(parents, sorted(labels))
        both, ours, theirs = both + len(predicted & right), ours + len(predicted), theirs + len(right)
    return (
        both / ours if ours else None,
        both / theirs if theirs else None,
        2 * both / (ours + theirs) if ours + theirs else None,
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[int], list[Prediction], dict[str, set[str]]]:
    parents = [draw(st.integers(-1, row - 1)) for row in range(LABELS)]
    parents[1] = 0
    predictions, gold = [], {}
    for number in range(draw(st.integers(1, 6))):
        labels = draw(st.lists(UIDS, max_size=7, unique=True))
        probabilities = draw(st.lists(st.floats(0, 1), min_size=len(labels), max_size=len(labels)))
        predictions.append(Prediction(str(number), tuple(labels), (), (), tuple(probabilities)))
        gold[str(number)] = draw(st.sets(UIDS, max_size=4))
    gold["0"] |= {"3"}
    return parents, predictions, gold


@settings(max_examples=60)
@given(worlds(), st.booleans(), st.booleans())
def test_as_with_sets(
    world: tuple[list[int], list[Prediction], dict[str, set[str]]], chunks: bool, slices: bool
) -> None:
    parents, predictions, gold = world
    labels = [Label(str(i), str(i), parent=None if up < 0 else str(up)) for i, up in enumerate(parents)]
    forest = Forest.of(labels)
    assert forest is not None
    train = {str(i): [str(i), "14"] for i in range(9)} if slices else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ezxmc.metrics.evaluation._CHUNK", 2 if chunks else 4_096)
        patch.setattr(streaming, "ROWS", 3 if chunks else 10_000)
        found = evaluate(predictions, gold, forest=forest, threshold=0.5, train_gold=train).values
        flat = evaluate(predictions, gold, threshold=0.5, train_gold=train).values
    expected = dict(flat)
    ranked = {p.uid: list(p.labels) for p in predictions}
    some = {uid: right for uid, right in gold.items() if right}
    for k in (1, 3, 5):
        top = {uid: row[:k] for uid, row in ranked.items()}
        expected |= zip((f"hP@{k}", f"hR@{k}", f"hF1@{k}"), naive(parents, top, some), strict=True)
    kept = {
        p.uid: [uid for uid, p_yes in zip(p.labels, p.probabilities, strict=True) if p_yes >= 0.5]
        for p in predictions
    }
    expected |= zip(("hP", "hR", "hF1"), naive(parents, kept, gold), strict=True)
    for level in range(1, LABELS + 1):
        deep = [
            uid in right
            for document, right in some.items()
            for uid in ranked[document][:5]
            if int(uid) < LABELS and len(above_of(parents, uid)) == level
        ]
        if deep:
            expected[f"P@5 level {level}"] = sum(deep) / len(deep)
    assert found == pytest.approx({name: value for name, value in expected.items() if value is not None})


def test_a_sibling_is_half_right() -> None:
    labels = [Label("a", "A"), Label("b", "B", parent="a"), Label("c", "C", parent="a")]
    found = evaluate(
        [Prediction("d", ("b",), ("B",), (0.9,))], {"d": ["c"]}, forest=Forest.of(labels), calibration_ks=()
    )
    assert (found.values["P@1"], found.values["hP@1"], found.values["hR@1"]) == (0, 0.5, 0.5)
    assert found.values["P@5 level 2"] == 0


def test_command(tmp_path: Path) -> None:
    labels = [
        {"uid": "a", "title": "A"},
        {"uid": "b", "title": "B", "parent": "A"},
        {"uid": "c", "title": "C", "parent": "a"},
    ]
    rows = [{"uid": "d", "tags": [{"label": "b", "title": "B", "score": 0.9, "probability": 0.8}]}]
    predicted = write_rows(tmp_path / "p.jsonl", rows)
    gold = write_rows(tmp_path / "gold.jsonl", [{"uid": "d", "labels": ["c"]}])
    listed = write_rows(tmp_path / "labels.jsonl", labels)
    app = typer.Typer()
    command.register(app)

    def ezxmc(*options: str) -> str:
        done = CliRunner().invoke(
            app, ["evaluate", str(predicted), str(gold), "--threshold", "0.5", *options]
        )
        assert done.exit_code in (0, 3), done.output
        return done.stdout

    shown = ezxmc("--labels", str(listed))
    assert "hF1" in shown
    assert "P@5 level 2" in shown
    assert json.loads(ezxmc("--labels", str(listed), "--json"))["values"]["hF1"] == 0.5
    flat = write_rows(tmp_path / "flat.jsonl", [{**row, "parent": "facet"} for row in labels])
    found = json.loads(ezxmc("--labels", str(flat), "--json"))["values"]
    assert not any(name.startswith("h") or "level" in name for name in found)
