"""What is promised beside what comes true, in worlds whose law is known.

Each function plays one promise through small and degenerate worlds: few
documents or one, one label, (nearly) all right, (nearly) all wrong, ties,
probabilities that are too sure. `test_promises.py` plays a few draws of it,
`bench/promises.py` many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom

from ezxmc.calibration import Calibrator, JudgedRows, completed, fit_calibrator
from ezxmc.calibration.decisions import Decision
from ezxmc.calibration.guarantees import (
    ReviewedDocuments,
    control_false_tag_rate,
    control_missed_rate,
    control_top_error,
    false_tags,
    missed,
)
from ezxmc.errors import ConfigError
from ezxmc.feedback.reviews import Answer, ReviewedPairs
from ezxmc.metrics import JudgedPairs, Terms, detect_drift, differences, ece_at_k, intervals, nll
from ezxmc.records import Prediction

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One promise in one world.

    Attributes:
        promise: In words.
        world: In words.
        promised: What is realised at most.
        realised: What was.
        draws: That promised something.
        most: What chance allows a kept promise, once in a thousand.
    """

    promise: str
    world: str
    promised: float
    realised: float
    draws: int
    most: float

    @property
    def kept(self) -> bool:
        """Whether it came true."""
        return self.realised <= self.most + 1e-12


def _rate(promise: str, world: str, promised: float, broken: list[bool]) -> Row:
    """A promise about how often something happens at most."""
    draws = len(broken)
    most = float(binom.ppf(0.999, draws, promised)) / max(1, draws)
    return Row(promise, world, promised, float(np.mean(broken)) if broken else 0.0, draws, most)


def _mean(promise: str, world: str, promised: float, found: list[float]) -> Row:
    """A promise about an expectation."""
    error = float(np.std(found)) / np.sqrt(len(found)) if found else 0.0
    return Row(
        promise, world, promised, float(np.mean(found)) if found else 0.0, len(found), promised + 3.3 * error
    )


# Metrics of documents.

_RATES = {"usual": 0.4, "nearly all right": 0.97, "nearly all wrong": 0.02}


def _metrics(rng: np.random.Generator, documents: int, rate: float) -> Terms:
    """P@1 and recalls of one to four right tags, hard documents failing all of them together."""
    right = rng.integers(1, 5, documents)
    ease = rng.beta(4 * rate, 4 * (1 - rate), documents)
    found = rng.binomial(right, ease)
    columns = [rng.random(documents) < ease, found / right, found]
    return Terms(
        ("P@1", "R", "R of all tags"),
        np.column_stack(columns).astype(np.float64),
        np.column_stack([np.ones((documents, 2)), right]).astype(np.float64),
    )


def metric_intervals(draws: int, resamples: int = 200) -> Iterator[Row]:
    """The 95 % intervals of metrics, and of differences of two runs that are equally good."""
    for documents in (2, 3, 7, 20, 60):
        for world, rate in _RATES.items():
            rng = np.random.default_rng(documents)
            out: dict[str, list[bool]] = {"P@1": [], "R": [], "R of all tags": []}
            apart: list[bool] = []
            alarms: list[bool] = []
            for _ in range(draws):
                one = _metrics(rng, documents, rate)
                for name, (low, high) in intervals(one, resamples=resamples).items():
                    out[name].append(not low <= rate <= high)
                # Both runs alike on most documents, as two students are.
                other = _metrics(rng, documents, rate)
                same = rng.random(documents) < 0.5
                other.numerators[same], other.denominators[:] = one.numerators[same], one.denominators
                np.minimum(other.numerators, other.denominators, out=other.numerators)
                gap = differences(one, other, resamples=resamples)["P@1"]
                apart.append(not gap.low <= 0 <= gap.high)
                alarms.append(gap.p <= 0.05)
            where = f"{documents} documents, {world}"
            for name, broken in out.items():
                yield _rate(f"95 % interval of {name}", where, 0.05, broken)
            yield _rate("95 % interval of a difference", where, 0.05, apart)
            yield _rate("p <= .05 of equal runs", where, 0.05, alarms)
    # Runs that are nearly alike: three documents in a hundred part them, most of these for the same one.
    rng, broken = np.random.default_rng(60), []
    for _ in range(draws):
        better, worse = (rng.random(60) < share for share in (0.025, 0.005))
        one = Terms(("P@1",), 1.0 - worse[:, None], np.ones((60, 1)))
        gap = differences(one, replace(one, numerators=1.0 - better[:, None]), resamples=resamples)["P@1"]
        broken.append(not gap.low <= 0.02 <= gap.high)
    yield _rate("95 % interval of a difference", "60 documents, nearly alike", 0.05, broken)


# Probabilities.


def _scored(rng: np.random.Generator, documents: int, depth: int, world: str) -> tuple[Floats, Floats]:
    scores = -np.sort(-rng.normal(0.4, 0.15, (documents, depth)), axis=1)
    if world == "ties":
        scores = np.round(scores, 1)
    slope, offset = {"nearly all right": (0.0, 3.0), "nearly all wrong": (0.0, -3.0)}.get(world, (12.0, -0.5))
    own = rng.normal(0, 1, (documents, 1)) if world == "hard and easy documents" else 0.0
    return scores, np.asarray(expit(slope * (scores - 0.45) + offset + own))


def probabilities(draws: int) -> Iterator[Row]:
    """Stated on new documents: right on average, no certainties, and their error is not played down."""
    for world in ("usual", "ties", "hard and easy documents", "nearly all right", "nearly all wrong"):
        for documents, depth in ((2, 10), (20, 1), (20, 10)):
            rng = np.random.default_rng(documents + depth)
            scores, law = _scored(np.random.default_rng(99), 400, depth, world)
            hits = np.random.default_rng(98).random(law.shape) < law
            ignorant = nll(np.full(law.size, hits.mean()), hits.ravel())
            off, losses, played_down = [], [], []
            for _ in range(draws):
                known, true = _scored(rng, documents, depth, world)
                said = rng.random(true.shape) < true
                if not said.any():  # refused: every probability would be 0
                    continue
                found = Calibrator.fit(JudgedRows.of(known, said), target="human")
                stated = found.transform(scores)
                off.append(float(stated.mean() - law.mean()))
                losses.append(nll(stated.ravel(), hits.ravel()))
                assert found.ece_cross_fitted is not None
                played_down.append(ece_at_k(stated.ravel(), law.ravel()) - found.ece_cross_fitted)
            where = f"{documents} documents, {depth} labels each, {world}"
            # One right of the fewest pairs that are fitted is as little as can be stated.
            bias = 0.03 if len(off) == draws else 0.09
            yield _mean("mean probability less the rate", where, bias, off)
            yield _mean("the rate less the mean probability", where, 0.06, [-gap for gap in off])
            if len(off) == draws:
                yield _mean("true error less the stated one (ECE)", where, 0.01, played_down)
            worst = max(losses, default=0.0)
            yield Row("worst loss less that of the rate, nats", where, 0.6, worst - ignorant, len(off), 0.6)


_LABELS, _TOP = 60, 10


def _ranked(
    rng: np.random.Generator, documents: int, errors: tuple[float, float]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Scores of two students that err independently, and what is right."""
    quality = rng.normal(0, 1, (documents, _LABELS)) + rng.normal(0, 0.5, (documents, 1))
    right = rng.random(quality.shape) < expit(2.2 * quality - 3.2)
    one, two = (quality + rng.normal(0, error, quality.shape) for error in errors)
    return one, two, right


def _first_ranks(scores: Floats) -> tuple[list[Prediction], Floats, NDArray[np.int64]]:
    top = np.argsort(-scores, axis=1)[:, :_TOP]
    best = np.take_along_axis(scores, top, axis=1)
    lists = [tuple(map(str, row)) for row in top]
    return [Prediction(str(i), row, row, tuple(best[i])) for i, row in enumerate(lists)], best, top


def reviews(draws: int) -> Iterator[Row]:
    """Stated on new documents after a retraining, by what people said of the former student's lists."""
    worlds = {"like students": (0.7, 0.7), "near students": (0.3, 0.3), "a better student": (0.85, 0.7)}
    for world, errors in worlds.items():
        for skipped in (0.0, 0.1):
            rng, off = np.random.default_rng(7), []
            for _ in range(draws):
                former, present, right = _ranked(rng, 100, errors)
                decided = ReviewedPairs(
                    {
                        (str(i), str(label)): Answer.YES if right[i, label] else Answer.NO
                        for i, row in enumerate(_first_ranks(former)[2])
                        for label in row
                        if rng.random() >= skipped
                    }
                )
                found = _first_ranks(present)[0]
                lists = decided.lists(found, _TOP)
                people = completed(found, lists, _TOP)
                fitted = fit_calibrator(found, people, target="human", k=_TOP, kinds=["ranked"])
                _, other, true = _ranked(rng, 400, errors)
                _, scores, top = _first_ranks(other)
                rate = np.take_along_axis(true, top, axis=1).mean()
                off.append(float(fitted.transform(scores).mean() - rate))
            where = f"100 documents, {world}, {skipped:.0%} skipped"
            # Lists of which half is decided are those on which both agree.
            yield _mean("mean probability by an old review less the rate", where, 0.04, off)
            yield _mean("the rate less the mean probability by an old review", where, 0.03, [-o for o in off])


# Guarantees.


def _reviewed(rng: np.random.Generator, documents: int, depth: int, world: str) -> ReviewedDocuments:
    logits = rng.normal(0.8, 1.5, (documents, 1)) - 0.8 * np.arange(depth)
    logits = logits + rng.normal(0, 0.5, (documents, depth))
    logits = {"nearly all right": 0 * logits + 3.5, "nearly all wrong": 0 * logits - 3.0}.get(world, logits)
    p = -np.sort(-expit(logits), axis=1)
    law = {"too sure": p**1.6, "upside down": 1 - p}.get(world, p)
    if world == "ties":
        p = np.floor(4 * p) / 4 + 0.125
    hits = rng.random(p.shape) < law
    return ReviewedDocuments(p, hits, hits.sum(axis=1) + rng.poisson(0.2, documents))


def _first(reviewed: ReviewedDocuments, kept: NDArray[np.bool_]) -> Floats:
    return np.asarray(1.0 - reviewed.hits[kept.any(axis=1), 0])


_Loss = Callable[[ReviewedDocuments, NDArray[np.bool_]], Floats]
_CONTROLS: dict[str, tuple[Callable[[ReviewedDocuments, float], Decision], _Loss]] = {
    "missed labels": (control_missed_rate, missed),
    "false tags": (control_false_tag_rate, false_tags),
    "wrong first tag": (control_top_error, _first),
}
_OFFER = re.compile(r"(?:gold labels is|lowest that can is) ([\d.]+)")


def guarantees(draws: int) -> Iterator[Row]:
    """`decide`: rates on new documents, and that a target it offers instead of a refused one is taken."""
    target = 0.5
    for world in ("usual", "ties", "nearly all right", "nearly all wrong", "too sure", "upside down"):
        for documents, depth in ((1, 5), (3, 5), (12, 5), (60, 5), (30, 1)):
            new = _reviewed(np.random.default_rng(99), 3_000, depth, world)
            reached = float(missed(new, np.ones_like(new.hits)).mean())
            for name, (control, loss) in _CONTROLS.items():
                rng = np.random.default_rng(documents)
                rates, refused = [], []
                for _ in range(draws):
                    reviewed = _reviewed(rng, documents, depth, world)
                    try:
                        losses = loss(new, control(reviewed, target).keep(new.probabilities))
                        rates.append(float(losses.mean()) if len(losses) else 0.0)
                    except ConfigError as error:
                        if (offer := _OFFER.search(str(error))) and float(offer[1]) < 1:
                            refused.append(_refuses(control, reviewed, float(offer[1])))
                where = f"{documents} documents, {depth} labels each, {world}"
                if name == "missed labels" and reached > target:
                    # Out of reach even for all candidates: what looks otherwise by luck cannot come true.
                    share = len(rates) / draws
                    yield Row(f"{name}, promised though out of reach", where, 0.2, share, draws, 0.2)
                elif name == "missed labels":
                    # In expectation over all draws; those that promise nothing break nothing.
                    kept = [*rates, *[target] * (draws - len(rates))]
                    yield _mean(f"{name}, mean rate", where, target, kept)
                else:
                    # As many documents leave the true rate uncertain by less than .02.
                    broken = [rate > target + 0.02 for rate in rates]
                    yield _rate(f"{name}, above the target", where, 0.1, broken)
                if refused:
                    yield _rate(f"{name}, an offer refused", where, 0.0, refused)


def _refuses(
    control: Callable[[ReviewedDocuments, float], Decision], reviewed: ReviewedDocuments, target: float
) -> bool:
    try:
        control(reviewed, target)
    except ConfigError:
        return True
    return False


# Drift.


def _judged(rng: np.random.Generator, name: str, documents: int, depth: int, world: str) -> JudgedPairs:
    logits = rng.normal(0, 1.5, (documents, depth))
    logits = {"nearly all right": 0 * logits + 4, "nearly all wrong": 0 * logits - 4}.get(world, logits)
    p = -np.sort(-expit(logits), axis=1)
    said = (rng.random(p.shape) < p).astype(np.float64)
    if world == "ties":
        p, said = np.full_like(p, 0.5), (rng.random(p.shape) < 0.5).astype(np.float64)
    labels = [f"l{label}" for _ in range(documents) for label in rng.permutation(4 * depth)[:depth]]
    uids = [f"{name}{i}" for i in range(documents) for _ in range(depth)]
    return JudgedPairs(uids, labels if depth > 1 else ["l"] * documents, p.ravel(), said.ravel())


def drift(draws: int) -> Iterator[Row]:
    """Alarms without drift, and the 95 % interval of the error, of all pairs and of single labels."""
    for world in ("usual", "ties", "nearly all right", "nearly all wrong"):
        for before, now, depth in ((20, 20, 1), (20, 20, 5), (50, 25, 5)):
            alarms, out, labels_out = [], [], []
            for seed in range(draws):
                rng = np.random.default_rng(seed)
                sides = (
                    _judged(rng, name, count, depth, world) for name, count in (("a", before), ("b", now))
                )
                found = detect_drift(*sides, {}, permutations=199, seed=seed)
                assert found is not None
                alarms.append(found.found)
                out.append(abs(found.overall.error) > found.overall.half_width)
                # One label a draw: those of one draw depend on each other.
                for shift in sorted(found.parts, key=lambda part: part.name)[:1]:
                    labels_out.append(abs(shift.error) > shift.half_width)
            where = f"{before} and {now} documents, {depth} labels each, {world}"
            yield _rate("drift where there is none", where, 0.05, alarms)
            yield _rate("95 % interval of the error, all pairs", where, 0.05, out)
            if labels_out:
                yield _rate("95 % interval of the error, a label", where, 0.08, labels_out)
