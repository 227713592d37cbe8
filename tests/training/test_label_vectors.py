"""Refined label vectors, the student's own opinion, and the bundle that carries them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from ezxmc.bundle.bundle import load_bundle, save_bundle
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder
from ezxmc.training import cosines_of, label_vectors, refined_label_vectors

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, LABELS = 16, [Label(f"l{i}", f"label {i}") for i in range(8)]
DOCUMENTS = [Document(f"d{i:03}", "", str(i)) for i in range(120)]


class Drawn:
    """An encoder whose document vectors are given."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.vectors[[int(text) for text in texts]]


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def world() -> tuple[BiEncoder, Targets, NDArray[np.float32], NDArray[np.bool_]]:
    """Six labels, true on one side of a plane of their own, five of them judged; two nobody judged."""
    rng = np.random.default_rng(0)
    documents = unit(rng.normal(size=(len(DOCUMENTS), WIDTH)))
    truth = documents @ unit(rng.normal(size=(6, WIDTH))).T > 0.1
    judged = []
    for i, document in enumerate(DOCUMENTS[:80]):
        order = np.array([j for j in np.argsort(~truth[i], kind="stable") if j != i % 6])
        p = np.where(truth[i][order], 0.95, 0.05)
        names = tuple(f"l{j}" for j in order)
        count = int(truth[i][order].sum())
        judged.append(DocumentTargets(document.uid, names, p, names[:count], names[count:]))
    targets = Targets(judged, PriorCorrection({}, 0.0), 400, 0, 0, 0)
    return cast(BiEncoder, Drawn(documents)), targets, unit(rng.normal(size=(8, WIDTH))), truth


def area(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Chance that a true pair scores above a false one."""
    right, wrong = scores[truth], scores[~truth]
    return float((right[:, None] > wrong[None]).mean())


def test_judgments_move_the_vectors_of_judged_labels() -> None:
    encoder, targets, titles, truth = world()
    refined = refined_label_vectors(encoder, DOCUMENTS[:80], LABELS, targets, titles)
    unseen = encoder.encode_documents([document.text for document in DOCUMENTS[80:]])
    before, after = (area(unseen @ vectors[:6].T, truth[80:]) for vectors in (titles, refined))
    assert before < 0.7 and after > 0.9
    np.testing.assert_array_equal(refined[6:], titles[6:], "a label nobody judged keeps its title's vector")
    assert refined.dtype == np.float32 and refined.shape == titles.shape


def test_the_same_seed_gives_the_same_vectors() -> None:
    encoder, targets, titles, _ = world()
    a, b, c = (
        refined_label_vectors(encoder, DOCUMENTS[:80], LABELS, targets, titles, seed=s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-6


def test_shifts_are_those_of_a_solver_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loss in float64 and scipy's L-BFGS, over labels with 1, 4, 16 and 64 judgments."""
    monkeypatch.setattr(label_vectors, "_UNJUDGED_WEIGHT", 0.0)  # drawn at random
    rng = np.random.default_rng(0)
    documents, titles = (rng.normal(size=(rows, WIDTH)) / WIDTH**0.5 for rows in (64, 4))
    counts = np.array([1, 4, 16, 64])
    pairs = [(row, label) for label, count in enumerate(counts) for row in range(count)]
    rows, columns = np.array(pairs).T
    wanted, scale, zero = rng.uniform(size=len(rows)), 8.0, -2.0

    def loss(flat: NDArray[np.float64]) -> float:
        shifts = flat.reshape(4, WIDTH)
        z = scale * (documents[rows] * (titles + shifts)[columns]).sum(axis=1) + zero
        cross_entropy = np.logaddexp(0, z) - wanted * z
        held = ((shifts**2).sum(axis=1) / np.sqrt(counts)).sum()
        return float(cross_entropy.mean() + 10 / len(rows) * held)

    solved = minimize(loss, np.zeros(4 * WIDTH), method="L-BFGS-B", options={"maxfun": 10**6})
    assert solved.success
    tensors = [torch.from_numpy(a).float() for a in (documents, titles)]
    places = [torch.from_numpy(a) for a in (rows, columns)]
    found = label_vectors._shifts(
        *tensors, *places, torch.from_numpy(wanted).float(), torch.tensor(scale), torch.tensor(zero)
    )
    np.testing.assert_allclose(found.numpy(), solved.x.reshape(4, WIDTH), atol=2e-3)


def test_blocks_of_labels_are_fitted_as_well_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, targets, titles, truth = world()
    whole = refined_label_vectors(encoder, DOCUMENTS[:80], LABELS, targets, titles)
    monkeypatch.setattr(label_vectors, "_LABELS_AT_ONCE", 2)
    parts = refined_label_vectors(encoder, DOCUMENTS[:80], LABELS, targets, titles)
    assert np.abs(parts - whole).max() > 1e-3, "they were fitted apart"
    unseen = encoder.encode_documents([document.text for document in DOCUMENTS[80:]])
    assert area(unseen @ parts[:6].T, truth[80:]) > 0.9, "scores of labels of different blocks compare"
    np.testing.assert_array_equal(parts[6:], titles[6:])


def test_without_judgments_the_titles_stay() -> None:
    encoder, _, titles, _ = world()
    nothing = Targets([], PriorCorrection({}, 0.0), 0, 0, 0, 0)
    assert refined_label_vectors(encoder, DOCUMENTS, LABELS, nothing, titles) is titles


def test_an_encoders_opinion_is_its_cosines(tiny_encoder: Path) -> None:
    encoder = BiEncoder(tiny_encoder, max_length=32)
    documents = [Document("a", "", "red apples"), Document("b", "Green", "pears and plums")]
    labels = [Label("x", "fruit"), Label("y", "colour")]
    pairs = [("b", "y"), ("a", "x"), ("b", "x"), ("b", "y")]
    left = encoder.encode_documents([document.shown for document in documents])
    right = encoder.encode_labels([label.title for label in labels])
    expected = [(left @ right.T)["ab".index(doc), "xy".index(tag)] for doc, tag in pairs]
    found = cosines_of(encoder, documents, labels)(pairs)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_bundle_indexes_the_refined_vectors(tiny_encoder: Path, tmp_path: Path) -> None:
    def doubled(encoder: BiEncoder, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors * 2

    save_bundle(tmp_path / "bundle", tiny_encoder, LABELS, max_length=32, k=3, refine=doubled)
    bundle = load_bundle(tmp_path / "bundle")
    query = bundle.encoder.encode_labels([LABELS[4].title])
    scores, rows = bundle.index.search(query, 1)
    assert rows[0, 0] == 4 and scores[0, 0] == pytest.approx(2.0, abs=1e-4)
