"""The drift test: its rate of false alarms, its power, and its parts against other computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, false_discovery_control, permutation_test

from ezxmc.calibration import Isotonic, JudgedRows
from ezxmc.calibration.curves import cross_fitted
from ezxmc.metrics import Drift, JudgedPairs, Shift, detect_drift, ece_at_k

K, LABELS = 10, 40
GROUPS = {f"l{i}": f"g{i // 4}" for i in range(LABELS)}


def sample(
    rng: np.random.Generator, documents: int, *, shift: float = 0.0, labels: Any = (), harder: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels, verdicts (N, K); what is a document's own makes its pairs depend on each other."""
    scores = -np.sort(-rng.normal(0.3 - harder, 0.2, (documents, K)), axis=1)
    answered = np.array([rng.permutation(LABELS)[:K] for _ in range(documents)])
    z = 6 * (scores - 0.35) + rng.normal(0, 0.7, (documents, 1)) + rng.normal(0, 1, scores.shape)
    return scores, answered, 1 / (1 + np.exp(-z - shift * np.isin(answered, labels)))


def pairs(name: str, answered: np.ndarray, stated: np.ndarray, verdicts: np.ndarray) -> JudgedPairs:
    uids = [f"{name}{i}" for i in range(len(answered)) for _ in range(K)]
    return JudgedPairs(uids, [f"l{one}" for one in answered.ravel()], stated.ravel(), verdicts.ravel())


def world(seed: int, before: int = 100, now: int = 40, **changes: Any) -> tuple[JudgedPairs, JudgedPairs]:
    """As an update meets it: the former sample is the one the calibrator was fitted on."""
    rng = np.random.default_rng(seed)
    scores, answered, verdicts = sample(rng, before)
    curve = Isotonic.fit(JudgedRows.of(scores, verdicts))
    found = sample(rng, now, **changes)
    return (
        pairs("old", answered, cross_fitted(Isotonic.fit, JudgedRows.of(scores, verdicts)), verdicts),
        pairs("new", found[1], curve.transform(found[0]), found[2]),
    )


def ran(seed: int, **changes: Any) -> Drift:
    found = detect_drift(*world(seed, **changes), GROUPS, level=0.05, permutations=999, seed=seed)
    assert found is not None
    return found


def groups(one: Drift) -> dict[str, Shift]:
    return {part.name: part for part in one.parts if part.kind == "group"}


def rate(runs: list[Drift]) -> float:
    return float(np.mean([one.found for one in runs]))


@pytest.mark.parametrize("harder", [0.0, 0.1], ids=["alike", "other documents, probabilities that hold"])
def test_without_drift_alarms_are_as_rare_as_promised(harder: float) -> None:
    runs = [ran(seed, harder=harder) for seed in range(120)]
    # 120 draws of a rate of 5%: more than this happens to a right test once in a thousand.
    assert rate(runs) <= binom.ppf(0.999, 120, 0.05) / 120
    assert rate(runs) > 0, "a test that never speaks is no test"


def test_a_label_group_that_drifted_is_found_and_named() -> None:
    runs = [ran(seed, shift=-2.0, labels=range(4)) for seed in range(40)]
    assert np.mean([groups(one)["g0"].drifted for one in runs]) >= 0.9
    others = [group for one in runs for name, group in groups(one).items() if name != "g0"]
    assert np.mean([group.drifted for group in others]) < 0.02
    assert all(one.drifting(GROUPS) >= {"l0", "l1", "l2", "l3"} for one in runs if groups(one)["g0"].drifted)


def test_a_drift_of_everything_is_found() -> None:
    assert rate([ran(seed, shift=-1.0, labels=range(LABELS)) for seed in range(40)]) >= 0.95


def test_errors_that_cancel_are_found_by_bands_of_probability() -> None:
    before, now = world(0, before=150, now=80)
    flatter = JudgedPairs(
        now.documents, now.labels, 0.5 + 2 * (now.probabilities - 0.5).clip(-0.25, 0.25), now.verdicts
    )
    shifted = np.where(flatter.probabilities > np.median(flatter.probabilities), -0.12, 0.12)
    crossed = JudgedPairs(now.documents, now.labels, (now.probabilities - shifted).clip(0, 1), now.verdicts)
    found = detect_drift(before, crossed, {}, permutations=999)
    assert found is not None and abs(found.overall.error) < 0.05 and found.overall.drifted


def test_the_parts_are_what_other_computations_give() -> None:
    before, now = world(3, shift=-1.0, labels=range(8))
    found = detect_drift(before, now, GROUPS, permutations=4_999)
    assert found is not None
    assert found.overall.error == pytest.approx(np.mean(now.verdicts - now.probabilities))
    assert found.ece == pytest.approx(ece_at_k(now.probabilities, now.verdicts))
    assert found.overall.pairs == len(now.labels) and found.documents == 40
    # One group by scipy's permutation test, documents as units.
    documents = list(dict.fromkeys([*before.documents, *now.documents]))
    s, m = np.zeros(len(documents)), np.zeros(len(documents))
    for part in (before, now):
        for uid, label, stated, hit in zip(
            *(part.documents, part.labels, part.probabilities, part.verdicts), strict=True
        ):
            if GROUPS[label] == "g0":
                s[documents.index(uid)] += hit - stated
                m[documents.index(uid)] += 1

    def statistic(one: Any, other: Any) -> float:
        means, variances = [], []
        for rows in (np.asarray(one, dtype=int), np.asarray(other, dtype=int)):
            means.append(s[rows].sum() / m[rows].sum())
            variances.append(((s[rows] - means[-1] * m[rows]) ** 2).sum() / m[rows].sum() ** 2)
        return abs(means[0] - means[1]) / np.sqrt(sum(variances))

    order = np.arange(len(documents))
    theirs = permutation_test(
        (order[100:], order[:100]),
        statistic,
        alternative="greater",
        n_resamples=2_000,
        rng=0,
        vectorized=False,
    )
    assert groups(found)["g0"].p == pytest.approx(theirs.pvalue, abs=0.03)
    family = found.parts
    assert [one.drifted for one in family] == (
        false_discovery_control([one.p for one in family]) <= 0.025
    ).tolist()


def test_too_few_documents_are_no_sample() -> None:
    assert detect_drift(*world(0, now=19), GROUPS) is None
    assert detect_drift(*world(0, before=19), GROUPS) is None


def test_a_document_of_both_samples_is_refused() -> None:
    before, _ = world(0)
    with pytest.raises(ValueError, match="different documents"):
        detect_drift(before, before, GROUPS)
