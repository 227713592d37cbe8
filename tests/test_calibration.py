"""Calibration: against scikit-learn, as properties, and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from ezxmc.calibration import Calibrator
from ezxmc.errors import BundleError, TrainingError


def sample(n: int, seed: int = 0, slope: float = 6.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 1, size=n)
    hits = rng.random(n) < 1 / (1 + np.exp(-slope * (scores - 0.5)))
    return scores, hits.astype(float), [f"d{i // 10}" for i in range(n)]


def fitted(n: int = 400) -> Calibrator:
    return Calibrator.fit(*sample(n), target="teacher", k=10)


def test_it_equals_scikit_learn() -> None:
    scores, hits, _ = sample(400)
    reference = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(scores, hits)
    probe = np.linspace(-1, 2, 500)
    np.testing.assert_allclose(fitted().transform(probe), reference.predict(probe), atol=1e-12)


def test_probabilities_come_true_on_new_documents() -> None:
    calibrator = Calibrator.fit(*sample(5000), target="human", k=10)
    scores, hits, _ = sample(5000, seed=1)
    probabilities = calibrator.transform(scores)
    for low in np.arange(0, 1, 0.2):
        inside = (probabilities >= low) & (probabilities < low + 0.2)
        assert abs(probabilities[inside].mean() - hits[inside].mean()) < 0.06
    assert calibrator.ece_cross_fitted is not None and calibrator.ece_cross_fitted < 0.03


def test_the_error_is_estimated_on_other_documents() -> None:
    # One document's pairs all hit and the next's all miss, at the same scores:
    # an estimate that saw the document itself would look better than chance.
    groups = [f"d{i // 10}" for i in range(200)]
    scores = np.array([i // 10 + (i % 10) / 100 for i in range(200)])
    hits = np.array([float((i // 10) % 2) for i in range(200)])
    calibrator = Calibrator.fit(scores, hits, groups, target="teacher", k=10)
    probabilities = calibrator.transform(scores)
    inside = abs(probabilities.mean() - hits.mean())
    assert calibrator.ece_cross_fitted is not None and calibrator.ece_cross_fitted > inside + 0.05
    assert sum(one.n for one in calibrator.reliability) == 200
    alone = Calibrator.fit(scores, hits, ["d"] * 200, target="teacher", k=10)
    assert alone.ece_cross_fitted is None and alone.reliability == ()


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=20, max_size=60),
    st.lists(st.floats(-2, 2), min_size=1, max_size=20),
)
def test_any_fit_is_monotone_and_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[float, float]], probe: list[float]
) -> None:
    scores, hits = zip(*pairs, strict=True)
    calibrator = Calibrator.fit(scores, hits, [i % 7 for i in range(len(pairs))], target="teacher", k=3)
    values = calibrator.transform(sorted(probe))
    assert (np.diff(values) >= 0).all() and values.min() >= 0 and values.max() <= 1
    path = tmp_path_factory.mktemp("c") / "calibrator.json"
    calibrator.save(path)
    assert Calibrator.load(path) == calibrator


def test_the_shape_is_kept() -> None:
    assert fitted().transform(np.zeros((3, 5), dtype=np.float32)).shape == (3, 5)
    assert fitted().transform(np.zeros((0, 5))).shape == (0, 5)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    fitted().save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert {name: content[name] for name in ("version", "kind", "target", "k", "n")} == {
        "version": 1,
        "kind": "isotonic",
        "target": "teacher",
        "k": 10,
        "n": 400,
    }


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
        {"version": 99},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    good = fitted().to_dict() | {"x": [0.1, 0.9], "y": [0.2, 0.8]}
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps(good))
    assert Calibrator.load(path).transform([0.5]) == pytest.approx(0.5)
    path.write_text(json.dumps(good | change))
    with pytest.raises(BundleError, match=r"calibrator\.json"):
        Calibrator.load(path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_no_calibrator_at_all(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "calibrator.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"calibrator\.json"):
        Calibrator.load(path)


def test_refusals() -> None:
    scores, hits, groups = sample(30)
    with pytest.raises(TrainingError, match="19 judged pairs"):
        Calibrator.fit(scores[:19], hits[:19], groups[:19], target="teacher", k=5)
    with pytest.raises(TrainingError, match="aligned"):
        Calibrator.fit(scores, hits[:-1], groups, target="teacher", k=5)
    for bad in (np.nan, 1.5, -0.1):
        with pytest.raises(TrainingError, match="finite"):
            Calibrator.fit(scores, np.r_[hits[:-1], bad], groups, target="teacher", k=5)
