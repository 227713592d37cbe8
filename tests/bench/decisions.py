"""Decisions with a guarantee, over many random splits of one set of reviewed documents.

The student never saw the documents. In every split some of them calibrate its scores
(isotonic), others are the reviewed documents a decision is fitted to, the rest is new.
A promise with confidence is violated where the rate on all documents that did not
calibrate is above the target (the reviewed ones are a random sample of these); the rate
on the new ones, `new`, adds their own chance. A promise in expectation is judged by the
mean over splits. Every rule without a guarantee stands beside: the most lenient
threshold that looked good enough. MAPIE, where installed, gets the same probabilities:
its `recall` by crc is the missed-label rate, `precision` of the first label the first-tag
error; its multi-label `precision` counts an unanswered document as wholly false, which
asks for more than the false-tag rate.

    python tests/bench/decisions.py --student STUDENT --documents documents.jsonl \\
        --labels labels.jsonl --gold gold.tsv --only report.txt --scores scores.npz

`--scores` keeps the similarities; a second call with it encodes nothing.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import binom
from sklearn.isotonic import IsotonicRegression

from ezxmc.calibration.decisions import Decision
from ezxmc.calibration.guarantees import (
    GRID,
    ReviewedDocuments,
    control_false_tag_rate,
    control_missed_rate,
    control_top_error,
    false_tags,
    maximise_f1,
    missed,
    rates,
)
from ezxmc.errors import ConfigError

F1_DEPTH = 20
Keep = Callable[[np.ndarray], np.ndarray]


@dataclass
class Tally:
    """What one rule did over the splits."""

    refused: int = 0
    violations: int = 0
    new: list[float] = field(default_factory=list)
    tags: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    above: int = 0

    def add(
        self,
        keep: Keep | None,
        name: str,
        target: float | None,
        whole: ReviewedDocuments,
        fresh: ReviewedDocuments,
    ) -> None:
        if keep is None:
            self.refused += 1
            return
        measured = rates(fresh, keep(fresh.probabilities))
        risk = getattr(measured, name)
        self.tags.append(measured.tags)
        self.answered.append(measured.answered)
        if risk is not None:
            self.new.append(risk)
        if target is not None:
            real = getattr(rates(whole, keep(whole.probabilities)), name)
            self.violations += bool(real is not None and real > target)
            self.above += bool(risk is not None and risk > target)

    def row(self, target: float | None) -> dict[str, float | int | None]:
        def mean(values: list[float]) -> float | None:
            return round(float(np.mean(values)), 4) if values else None

        facts: dict[str, float | int | None] = {
            "mean realised": mean(self.new),
            "standard error": round(float(np.std(self.new) / np.sqrt(len(self.new))), 4)
            if self.new
            else None,
            "tags kept": mean(self.tags),
            "answered": mean(self.answered),
        }
        if target is not None:
            facts |= {"refused": self.refused, "violations": self.violations, "new above target": self.above}
        return facts


def similarities(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (N, L), which labels are right (N, L), and how many are right in all (N,)."""
    if options.scores and options.scores.is_file():
        kept = np.load(options.scores, allow_pickle=False)
        return kept["scores"], kept["gold"], kept["gold_total"]
    from ezxmc.data import read_documents, read_gold, read_labels
    from ezxmc.retrieval import BiEncoder

    tags = read_gold(options.gold)[0]
    only = set(options.only.read_text(encoding="utf-8").split()) if options.only else set(tags)
    documents = [one for one in read_documents(options.documents)[0] if one.uid in only and one.uid in tags]
    labels = read_labels(options.labels)[0]
    encoder = BiEncoder(options.student, max_length=256)
    vectors = encoder.encode_labels([label.title for label in labels])
    scores = encoder.encode_documents([document.shown for document in documents]) @ vectors.T
    right = np.array([[label.uid in tags[document.uid] for label in labels] for document in documents])
    total = np.array([len(tags[document.uid]) for document in documents])
    if options.scores:
        np.savez(options.scores, scores=scores, gold=right, gold_total=total)
    return scores, right, total


def attempt(fit: Callable[..., Decision], *arguments: object, **named: object) -> Keep | None:
    try:
        return fit(*arguments, **named).keep
    except ConfigError:
        return None


def at(threshold: float | None) -> Keep | None:
    return None if threshold is None else lambda p: p >= threshold


def first(threshold: float | None) -> Keep | None:
    if threshold is None:
        return None
    return lambda p: (p >= threshold) & (np.arange(p.shape[1]) == 0)


def plug_in(losses: Callable[[float], np.ndarray], thresholds: np.ndarray, target: float) -> float | None:
    """The last of the thresholds with a mean loss of at most `target`."""
    good = [t for t in thresholds if len(found := losses(float(t))) and found.mean() <= target]
    return float(good[-1]) if good else None


def mapie(
    name: str, reviewed: ReviewedDocuments, targets: list[float], confidence: float
) -> list[float | None]:
    """The thresholds MAPIE chooses: for `top_error` kept from there on, else strictly above."""
    from mapie.risk_control import BinaryClassificationController, MultiLabelClassificationController

    p, hits = reviewed.probabilities, reviewed.hits
    wanted = [1 - target for target in targets]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "top_error":
            both = np.stack([1 - p[:, 0], p[:, 0]], axis=1)
            found = []
            for level in wanted:
                binary = BinaryClassificationController(
                    lambda rows: rows, "precision", level, confidence, list_predict_params=np.sort(GRID)
                )
                found.append(binary.calibrate(both, hits[:, 0].astype(int)).best_predict_param)
            return found
        if name == "missed":
            # Labels beyond the candidates stand in columns of their own, of no probability.
            beyond = reviewed.gold - hits.sum(axis=1)
            widest = int(beyond.max())
            p = np.hstack([p, np.zeros((len(p), widest))])
            hits = np.hstack([hits, np.arange(widest) < beyond[:, None]])
            several = MultiLabelClassificationController(
                lambda rows: rows, "recall", "crc", wanted, predict_params=np.geomspace(0.001, 0.98, 49)
            )
        else:
            several = MultiLabelClassificationController(
                lambda rows: rows, "precision", "ltt", wanted, confidence, predict_params=np.sort(GRID)
            )
        some = hits.any(axis=1)
        several.calibrate(p[some], hits[some].astype(int))
        # Where no threshold will do, it answers the lowest or none.
        return [
            None
            if np.isnan(chosen) or (name == "missed" and several.r_hat_plus[0] >= target)
            else float(chosen)
            for chosen, target in zip(several.best_predict_param, targets, strict=True)
        ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("student", "documents", "labels", "gold", "only", "scores"):
        arguments.add_argument(f"--{name}", type=Path)
    arguments.add_argument("--splits", type=int, default=200)
    arguments.add_argument("--depth", type=int, default=100, help="candidates per document")
    arguments.add_argument("--calibrating", type=int, default=200, help="documents")
    arguments.add_argument("--reviewed", type=int, default=300, help="documents")
    arguments.add_argument("--missed", default="0.2,0.3", help="targets")
    arguments.add_argument("--false-tags", default="0.4,0.5", help="targets")
    arguments.add_argument("--top-error", default="0.3,0.35", help="targets")
    arguments.add_argument("--confidence", type=float, default=0.9)
    arguments.add_argument("--mapie-splits", type=int, default=200, help="MAPIE is slow: so many of them")
    options = arguments.parse_args()
    scores, right, total = similarities(options)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : options.depth]
    scores = np.take_along_axis(scores, order, axis=1).astype(np.float64)
    hits = np.take_along_axis(right, order, axis=1)
    try:
        import mapie as _  # noqa: F401

        mapie_splits = options.mapie_splits
    except ImportError:
        mapie_splits = 0
    targets = {
        "missed": [float(t) for t in options.missed.split(",")],
        "false_tags": [float(t) for t in options.false_tags.split(",")],
        "top_error": [float(t) for t in options.top_error.split(",")],
    }
    confidence = options.confidence
    tallies: dict[tuple[str, float | None, str], Tally] = defaultdict(Tally)
    for seed in range(options.splits):
        shuffled = np.random.default_rng(seed).permutation(len(scores))
        fit, rest = shuffled[: options.calibrating], shuffled[options.calibrating :]
        isotonic = IsotonicRegression(out_of_bounds="clip").fit(scores[fit].ravel(), hits[fit].ravel())
        p = isotonic.predict(scores[rest].ravel()).reshape(len(rest), -1)
        whole = ReviewedDocuments(p, hits[rest], total[rest])
        n = options.reviewed
        reviewed = ReviewedDocuments(p[:n], hits[rest[:n]], total[rest[:n]])
        fresh = ReviewedDocuments(p[n:], hits[rest[n:]], total[rest[n:]])
        q = reviewed.probabilities

        def tally(name: str, target: float | None, rule: str, keep: Keep | None) -> None:
            tallies[name, target, rule].add(keep, name, target, whole, fresh)  # noqa: B023

        for target in targets["missed"]:
            tally("missed", target, "ezxmc", attempt(control_missed_rate, reviewed, target))
            levels = np.unique(q[reviewed.hits])
            looks = plug_in(lambda t: missed(reviewed, q >= t), levels, target)  # noqa: B023
            tally("missed", target, "no guarantee", at(looks))
        for target in targets["false_tags"]:
            ours = attempt(control_false_tag_rate, reviewed, target, confidence=confidence)
            tally("false_tags", target, "ezxmc", ours)
            looks = plug_in(lambda t: false_tags(reviewed, q >= t), GRID, target)  # noqa: B023
            tally("false_tags", target, "no guarantee", at(looks))
        for target in targets["top_error"]:
            ours = attempt(control_top_error, reviewed, target, confidence=confidence)
            tally("top_error", target, "ezxmc", ours)
            looks = plug_in(lambda t: 1.0 - reviewed.hits[q[:, 0] >= t, 0], GRID, target)  # noqa: B023
            tally("top_error", target, "no guarantee", first(looks))
        if seed < mapie_splits:
            for name, wanted in targets.items():
                found = mapie(name, reviewed, wanted, confidence)
                for target, chosen in zip(wanted, found, strict=True):
                    above = None if chosen is None else float(np.nextafter(chosen, 2))
                    tally(name, target, "MAPIE", first(chosen) if name == "top_error" else at(above))
        shallow = ReviewedDocuments(q[:, :F1_DEPTH], reviewed.hits[:, :F1_DEPTH], reviewed.gold)
        for rule, decision in {
            "best expected micro F1": maximise_f1(shallow),
            "best expected document F1": maximise_f1(shallow, per_document=True),
            "top 3": Decision.top_k(3),
            "top 5": Decision.top_k(5),
            "threshold 0.5": Decision.at_threshold(0.5, depth=options.depth),
        }.items():
            for name in ("f1", "document_f1"):
                tally(name, None, rule, decision.keep)
    allowed = int(binom.ppf(0.999, options.splits, 1 - confidence))
    facts = {"documents": len(scores), "splits": options.splits, "confidence": confidence}
    print(json.dumps({**facts, "reached at most": f"{allowed} violations of {options.splits}"}))
    for (name, target, rule), one in tallies.items():
        print(json.dumps({"rate": name, "target": target, "rule": rule, **one.row(target)}), flush=True)


if __name__ == "__main__":
    main()
