"""The calibrator: the choice among curves, the few-shot correction, and the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from ezxmc.calibration import (
    KINDS,
    Calibrator,
    Corrected,
    Isotonic,
    JudgedRows,
    Kind,
    Platt,
    fit_calibrator,
    fit_few_shot,
)
from ezxmc.errors import BundleError, TrainingError
from ezxmc.records import Prediction


def rows(n: int, seed: int = 0, slope: float = 8.0, offset: float = -4.0, rank: float = 0.0) -> JudgedRows:
    """Documents with ten labels whose hits follow a logistic law of score and ln rank."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(0, 1, size=(n, 10)), axis=1)
    p = expit(slope * scores + offset - rank * np.log(np.arange(1, 11)))
    return JudgedRows.of(scores, rng.random(p.shape) < p)


@pytest.fixture(scope="module")
def fitted() -> Calibrator:
    return Calibrator.fit(rows(60), target="teacher")


def test_probabilities_come_true_on_new_documents() -> None:
    new = rows(500, seed=1)
    for kinds in (["isotonic"], ["platt"], ["ranked"], KINDS):
        calibrator = Calibrator.fit(rows(500), target="human", kinds=kinds)
        p = calibrator.transform(new.scores)
        for low in np.arange(0, 1, 0.2):
            inside = (p >= low) & (p < low + 0.2)
            assert abs(p[inside].mean() - new.hits[inside].mean()) < 0.06
        assert calibrator.ece_cross_fitted is not None and calibrator.ece_cross_fitted < 0.03


def test_the_kind_that_foretells_best_is_chosen() -> None:
    assert Calibrator.fit(rows(300, rank=1.5), target="human").kind == "ranked"
    steps = rows(300)
    step = replace(steps, hits=np.where(abs(steps.scores - 0.5) < 0.3, 0.4, (steps.scores > 0.5) * 1.0))
    assert Calibrator.fit(step, target="teacher").kind == "isotonic"
    # Scores that are log-odds already: no curve is better than the one that leaves their zero alone.
    rng = np.random.default_rng(3)
    odds = -np.sort(-rng.normal(0, 3, size=(40, 5)), axis=1)
    plain = Calibrator.fit(JudgedRows.of(odds, rng.random(odds.shape) < expit(odds / 2)), target="human")
    losses = plain.nll_cross_fitted
    assert set(losses) == set(KINDS) and losses[plain.kind] == min(losses.values())
    assert losses["temperature"] <= losses["ranked"]


def test_the_error_is_estimated_on_other_documents() -> None:
    # One document's pairs all hit and the next's all miss, at the same scores:
    # an estimate that saw the document itself would look better than chance.
    scores = np.array([[i - j / 100 for j in range(10)] for i in range(20)])
    judged = JudgedRows.of(scores, np.repeat(np.arange(20) % 2, 10).reshape(20, 10))
    calibrator = Calibrator.fit(judged, target="teacher", kinds=["isotonic"])
    inside = abs(calibrator.transform(scores).mean() - judged.hits.mean())
    assert calibrator.ece_cross_fitted is not None and calibrator.ece_cross_fitted > inside + 0.05
    assert sum(one.n for one in calibrator.reliability) == 200 == calibrator.n
    assert calibrator.documents == 20 and calibrator.k == 10


def test_pairs_nobody_judged_do_not_matter() -> None:
    full = rows(80)
    known = np.random.default_rng(5).random(full.known.shape) < 0.5
    known[:7] = False
    one = Calibrator.fit(replace(full, known=known), target="human")
    other = Calibrator.fit(
        replace(full, known=known, hits=np.where(known, full.hits, np.nan)), target="human"
    )
    assert one == other and one.n == known.sum() and one.documents == 73


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_reviewed_documents_correct_the_teacher(kind: Kind) -> None:
    asked, reviewed, new = rows(400, offset=-1), rows(100, seed=1, rank=0.3), rows(2000, seed=2, rank=0.3)
    teacher = Calibrator.fit(asked, target="teacher", kinds=[kind])
    both = Calibrator.correct([teacher], reviewed)
    assert both.target == "both" and both.kind == "corrected" and both.n == 1000

    def error(calibrator: Calibrator) -> float:
        return float(abs(calibrator.transform(new.scores).mean() - new.hits.mean()))

    assert error(teacher) > 0.2 and error(both) < 0.03
    assert both.ece_uncorrected is not None and both.ece_cross_fitted is not None
    assert both.ece_uncorrected > 0.2 > 0.06 > both.ece_cross_fitted
    # Corrected anew it starts from the teacher, not from the correction.
    assert Calibrator.correct([both], reviewed).curve == both.curve


def test_the_correction_finds_the_law_and_leaves_what_is_right() -> None:
    judged = rows(3000, slope=16.0, offset=-10.0)
    found = Corrected.fit(Platt(8.0, -4.0), judged)  # 2 (8 s − 4) − 2
    assert (found.slope, found.rank, found.offset) == pytest.approx((2, 0, -2), abs=0.2)
    ranked = Corrected.fit(Platt(8.0, -4.0), rows(3000, rank=0.7))
    assert (ranked.slope, ranked.rank, ranked.offset) == pytest.approx((1, 0.7, 0), abs=0.2)
    right = replace(judged, hits=Platt(8.0, -4.0).transform(judged.scores))
    same = Corrected.fit(Platt(8.0, -4.0), right)
    assert (same.slope, same.rank, same.offset) == pytest.approx((1, 0, 0), abs=1e-3)
    # Twenty pairs that all hit ask for infinity; the prior does not give it.
    few = replace(judged, known=np.arange(30000).reshape(3000, 10) < 20, hits=np.ones_like(judged.hits))
    corrected = Corrected.fit(Platt(8.0, -4.0), few)
    assert max(corrected.slope, corrected.rank, corrected.offset) < 10
    sure = Corrected(Isotonic((0.0, 1.0), (0.0, 1.0)), 1.0, 0.0, 0.0).transform([1.0, 0.0])
    assert 0 < sure[1] < sure[0] < 1


def test_the_zero_point_of_the_teacher_drops_out() -> None:
    rng = np.random.default_rng(8)
    asked, reviewed = rows(300, rank=0.5), rows(150, seed=1)
    odds = 6 * asked.scores - 3 - 0.4 * np.log(np.arange(1, 11)) + rng.normal(0, 0.3, asked.scores.shape)
    found = {}
    for shift in (-2.0, 0.0, 2.0):
        answers = replace(asked, hits=expit(odds + shift))
        teachers = [Calibrator.fit(answers, target="teacher", kinds=[kind]) for kind in ("platt", "ranked")]
        found[shift] = Calibrator.correct(teachers, reviewed).transform(reviewed.scores)
        raw = teachers[0].transform(reviewed.scores)
        assert abs(logit(raw).mean() - logit(found[0.0]).mean() - shift) < 1 if 0.0 in found else True
    assert abs(found[-2.0] - found[0.0]).max() < 0.02 and abs(found[2.0] - found[0.0]).max() < 0.02


def test_nothing_to_correct() -> None:
    human = Calibrator.fit(rows(30), target="human", kinds=["platt"])
    with pytest.raises(TrainingError, match=r"no calibrator fitted to the teacher.*\n.*--store"):
        Calibrator.correct([human], rows(30))


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=24, max_size=60),
    st.lists(st.floats(-2, 2), min_size=1, max_size=12),
    st.sampled_from([*KINDS, "corrected"]),
)
def test_any_fit_keeps_the_order_and_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[float, float]],
    probe: list[float],
    kind: str,
) -> None:
    cells = np.array(pairs[: len(pairs) // 4 * 4]).reshape(-1, 4, 2)
    judged = JudgedRows.of(-np.sort(-cells[..., 0], axis=1), cells[..., 1])
    if kind == "corrected":
        calibrator = Calibrator.correct(
            [Calibrator.fit(judged, target="teacher", kinds=["isotonic", "ranked"])], judged
        )
    else:
        calibrator = Calibrator.fit(judged, target="teacher", kinds=[kind])  # type: ignore[list-item]
    row = np.array(sorted(probe, reverse=True))
    values = calibrator.transform(row)
    assert (np.diff(values) <= 1e-12).all() and values.min() >= 0 and values.max() <= 1
    # What comes later in a row changes nothing.
    half = (len(row) + 1) // 2
    np.testing.assert_allclose(calibrator.transform(row[:half]), values[:half], atol=1e-12)
    path = tmp_path_factory.mktemp("c") / "calibrator.json"
    calibrator.save(path)
    assert Calibrator.load(path) == calibrator


def test_the_shape_is_kept(fitted: Calibrator) -> None:
    assert fitted.transform(np.zeros((3, 5), dtype=np.float32)).shape == (3, 5)
    assert fitted.transform(np.zeros((0, 5))).shape == (0, 5)


def test_the_file_says_what_it_is(fitted: Calibrator, tmp_path: Path) -> None:
    fitted.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    expected = {"version": 2, "target": "teacher", "k": 10, "n": 600, "documents": 60}
    assert {name: content[name] for name in expected} == expected
    assert content["curve"]["kind"] == fitted.kind and set(content["nll_cross_fitted"]) == set(KINDS)
    assert {"ezxmc", "scikit-learn", "scipy", "numpy"} == set(content["versions"])


OLD = {
    "target": "teacher",
    "k": 10,
    "n": 297,
    "x": [0.1, 0.9],
    "y": [0.2, 0.8],
    "ece_cross_fitted": 0.01,
    "reliability": [{"low": 0.0, "high": 0.1, "n": 3, "mean_probability": 0.05, "hit_rate": 0.1}],
    "kind": "isotonic",
    "version": 1,
}


def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(OLD))
    found = Calibrator.load(tmp_path / "c.json")
    assert found.curve == Isotonic((0.1, 0.9), (0.2, 0.8)) and found.reliability[0].n == 3
    assert (found.target, found.k, found.n, found.kind, found.version) == ("teacher", 10, 297, "isotonic", 2)
    assert found.transform([0.5]) == pytest.approx(0.5)
    found.save(tmp_path / "new.json")
    assert Calibrator.load(tmp_path / "new.json") == found


@pytest.mark.parametrize(
    "change",
    [
        {"y": [0.5, 0.1]},
        {"y": [0.5, 1.5]},
        {"y": [0.5]},
        {"x": [0.5, 0.5]},
        {"x": [], "y": []},
        {"x": [0.1, None]},
        {"y": [0.1, float("nan")]},
        {"x": [float("-inf"), 0.1]},
        {"ece_cross_fitted": float("nan")},
        {"kind": "platt"},
        {"target": "nobody"},
        {"version": None},
        {"version": 99},
    ],
)
def test_a_damaged_file_of_the_first_format_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps(OLD | change))
    with pytest.raises(BundleError, match=r"calibrator\.json"):
        Calibrator.load(path)


@pytest.mark.parametrize(
    "curve",
    [
        {"kind": "platt", "slope": -1.0, "offset": 0.0},
        {"kind": "platt", "slope": 1.0},
        {"kind": "platt", "slope": 1.0, "offset": float("nan")},
        {"kind": "temperature", "temperature": 0.0},
        {"kind": "temperature", "temperature": float("inf")},
        {"kind": "ranked", "best": 1.0, "margin": -1.0, "rank": 0.0, "offset": 0.0},
        {"kind": "ranked", "best": 1.0, "margin": 1.0, "rank": -1.0, "offset": 0.0},
        {"kind": "corrected", "slope": 1.0, "rank": 0.0, "offset": 0.0},
        {
            "kind": "corrected",
            "slope": 1.0,
            "rank": -1.0,
            "offset": 0.0,
            "shape": {"kind": "platt", "slope": 1, "offset": 0},
        },
        {"kind": "from the future"},
        {},
    ],
)
def test_a_damaged_curve_is_refused(fitted: Calibrator, tmp_path: Path, curve: dict[str, object]) -> None:
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps(fitted.to_dict() | {"curve": curve}))
    with pytest.raises(BundleError, match=r"(?s)calibrator\.json cannot be used.*cure"):
        Calibrator.load(path)


def test_a_newer_file_says_so(fitted: Calibrator, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(fitted.to_dict() | {"version": 3, "curve": "unknown"}))
    with pytest.raises(BundleError, match=r"has format 3, this ezxmc knows 2\n.*upgrade"):
        Calibrator.load(tmp_path / "c.json")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_no_calibrator_at_all(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "calibrator.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"calibrator\.json"):
        Calibrator.load(path)


def test_refusals() -> None:
    good = rows(3)
    with pytest.raises(TrainingError, match="19 judged pairs"):
        JudgedRows.of(good.scores, good.hits, np.arange(30).reshape(3, 10) < 19)
    with pytest.raises(TrainingError, match="aligned"):
        JudgedRows.of(good.scores, good.hits[:, :5])
    with pytest.raises(TrainingError, match="best first"):
        JudgedRows.of(good.scores[:, ::-1], good.hits)
    for bad in (np.nan, 1.5, -0.1):
        hits = good.hits.copy()
        hits[1, 1] = bad
        with pytest.raises(TrainingError, match="finite"):
            JudgedRows.of(good.scores, hits)
    with pytest.raises(TrainingError, match="all of one document"):
        Calibrator.fit(JudgedRows.of(np.linspace(1, 0, 30)[None], np.ones((1, 30))), target="human")


def predictions(documents: int, labels: int = 3) -> list[Prediction]:
    names = tuple("abcdefgh"[:labels])
    return [
        Prediction(f"d{i}", names, names, tuple(0.9 - i / 1000 - j / 10 for j in range(labels)))
        for i in range(documents)
    ]


def test_predictions_and_verdicts_become_rows() -> None:
    def teacher(doc: str, label: str) -> float | None:
        return {"a": 0.9, "b": 0.7}.get(label)

    def human(doc: str, label: str) -> float | None:
        return float(label == "a") if int(doc[1:]) < 25 else None

    both = fit_few_shot(predictions(40), teacher, human, k=3)
    assert (both.target, both.n, both.documents, both.k) == ("both", 75, 25, 3)
    p = both.transform([0.9, 0.8, 0.7])
    assert p[0] > 0.8 and p[1] < 0.2 and p[2] <= p[1]
    one = fit_few_shot(predictions(40), teacher, human, k=2, kinds=["platt"])
    assert list(one.nll_cross_fitted) == ["corrected platt"] and one.n == 50
    # Fewer labels than ranks asked for: all there are.
    assert fit_calibrator(predictions(40), human, target="human", k=9).k == 3
    with pytest.raises(TrainingError, match=r"from 2 to 3 labels.*\n.*without a threshold"):
        fit_calibrator([*predictions(40), *predictions(1, labels=2)], human, target="human", k=9)
