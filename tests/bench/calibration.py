"""What a probability means: calibrators on documents they were not fitted on, against gold and teacher.

    python tests/bench/calibration.py DOCUMENTS LABELS GOLD STUDENT STORE REPORT [--beside UIDS]

REPORT lists documents the student was not trained on, a uid a line; STORE holds the teacher's judgments of
the student's top 10 of each. Per split 200 of them are drawn: the teacher judged all of these, and people
(the gold) reviewed the first 50, 100 or all 200, which means they decided on each one's top 10. Every method
is tried on the other documents, those of --beside among them, which no split draws and the teacher need not
have judged: the more there are, the less chance adds to an error. Errors are in points, NLL in nats, mean and
standard deviation over splits. The rows "noise" draw the hits from the probabilities above them: what a
perfect calibrator would show on so many pairs.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from ezxmc.calibration import KINDS, Calibrator, JudgedRows
from ezxmc.data import read_documents, read_gold, read_labels
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.metrics import ace_at_k, brier, ece_at_k, nll
from ezxmc.retrieval import BiEncoder

Floats = NDArray[np.float64]
Table = dict[str, list[list[float]]]
DEPTH, ASKED, REVIEWED, SHIFTS = 10, 200, (50, 100, 200), (0.0, -2.0, 2.0)
COLUMNS = ("ECE@1", "ECE@3", "ECE@5", "ECE@10", "ACE@5", "Brier@5", "NLL@5")


class Data:
    """Scores of the top 10, gold, and the teacher's answers where there are any."""

    def __init__(self, args: argparse.Namespace) -> None:
        if not args.scores.exists():
            _encode(args)
        kept = np.load(args.scores)
        self.scores = kept["scores"].astype(np.float64)
        pairs = list(zip(kept["documents"].tolist(), kept["labels"].tolist(), strict=True))
        gold = read_gold(args.gold)[0]
        with FeedbackStore(args.store) as store:
            verdict = teacher_verdicts(store.judgments(store.newest_teacher()))
        self.gold = np.array([[float(x in gold.get(doc, ())) for x in top] for doc, top in pairs])
        self.teacher = np.array([[verdict(doc, x) for x in top] for doc, top in pairs], dtype=np.float64)
        self.known = np.isfinite(self.teacher)
        drawn = set(_uids(args.report))
        self.drawn = np.flatnonzero([doc in drawn for doc, _ in pairs])
        self.beside = np.flatnonzero([doc not in drawn for doc, _ in pairs])

    def people(self, rows: NDArray[np.int64]) -> JudgedRows:
        return JudgedRows.of(self.scores[rows], self.gold[rows])

    def asked(self, rows: NDArray[np.int64], shift: float = 0.0) -> JudgedRows:
        """The teacher's answers, as if the wording of its prompt moved every log-odds by `shift`."""
        answers = expit(logit(np.clip(self.teacher[rows], 1e-9, 1 - 1e-9)) + shift)
        return JudgedRows.of(self.scores[rows], answers, self.known[rows])


def _uids(*files: Path | None) -> list[str]:
    return [uid for file in files if file for uid in file.read_text().split()]


def _encode(args: argparse.Namespace) -> None:
    tried, gold = set(_uids(args.report, args.beside)), read_gold(args.gold)[0]
    docs = [d for d in read_documents(args.documents)[0] if d.uid in tried and gold.get(d.uid)]
    labels = read_labels(args.labels)[0]
    encoder = BiEncoder(args.student)
    vectors = encoder.encode_labels([label.title for label in labels])
    scores = encoder.encode_documents([document.shown for document in docs]) @ vectors.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    np.savez(
        args.scores,
        scores=np.take_along_axis(scores, rows, axis=1),
        labels=np.array([label.uid for label in labels])[rows],
        documents=np.array([document.uid for document in docs]),
    )


def errors(p: Floats, hits: Floats) -> list[float]:
    eces = [ece_at_k(p[:, :k], hits[:, :k]) for k in (1, 3, 5, 10)]
    top, right = p[:, :5], hits[:, :5]
    return [100 * e for e in (*eces, ace_at_k(top, right), brier(top, right))] + [nll(top, right)]


class Trials:
    """Results over random splits."""

    def __init__(self, data: Data) -> None:
        self.data, self.rng = data, np.random.default_rng(0)
        self.gold: Table = defaultdict(list)
        self.teacher: Table = defaultdict(list)
        self.zero: dict[float, list[list[float]]] = defaultdict(list)
        self.chosen: Counter[str] = Counter()
        self.meaning: list[Floats] = []

    def split(self) -> None:
        """Fit on some documents, measure on the others."""
        data = self.data
        order = self.rng.permutation(data.drawn)
        first, test = order[:ASKED], np.concatenate([order[ASKED:], data.beside])
        judged = data.known[test].all(axis=1)
        shapes = self.shapes(first)
        auto = Calibrator.fit(data.asked(first), target="teacher")
        self.chosen[f"teacher: {auto.kind}"] += 1
        for name, calibrator in [*zip(KINDS, shapes, strict=True), ("chosen", auto)]:
            p = calibrator.transform(data.scores[test])
            self.teacher[f"teacher, {name}"].append(errors(p[judged], data.teacher[test][judged]))
            self.gold[f"0: teacher, {name}"].append(errors(p, data.gold[test]))
        stated = p
        for n in REVIEWED:
            p = self.review(first[:n], test, shapes)
        columns = (stated, data.teacher[test], data.gold[test], p)
        self.meaning.append(np.stack([column[judged, :5].ravel() for column in columns]))

        rows = data.people(first[:100])
        corrected = [Calibrator.correct(self.shapes(first, shift), rows) for shift in SHIFTS]
        moved = np.stack([calibrator.transform(data.scores[test]) for calibrator in corrected])
        for shift, q in zip(SHIFTS, moved, strict=True):
            self.zero[shift].append(
                [100 * ece_at_k(q[:, :5], data.gold[test][:, :5]), 100 * abs(q - moved[0]).max()]
            )

    def shapes(self, rows: NDArray[np.int64], shift: float = 0.0) -> list[Calibrator]:
        """Each kind fitted to the teacher."""
        asked = self.data.asked(rows, shift)
        return [Calibrator.fit(asked, target="teacher", kinds=[kind]) for kind in KINDS]

    def review(self, rows: NDArray[np.int64], test: NDArray[np.int64], shapes: list[Calibrator]) -> Floats:
        """All methods with these documents reviewed; returns the chosen corrected probabilities."""
        people, scores, n = self.data.people(rows), self.data.scores[test], len(rows)
        found = {kind: Calibrator.fit(people, target="human", kinds=[kind]) for kind in KINDS}
        found["chosen"] = Calibrator.fit(people, target="human")
        found |= {f"corrected {shape.kind}": Calibrator.correct([shape], people) for shape in shapes}
        found["corrected chosen"] = Calibrator.correct(shapes, people)
        for name, calibrator in found.items():
            p = calibrator.transform(scores)
            self.gold[f"{n}: {name}"].append(errors(p, self.data.gold[test]))
            if name.endswith("chosen"):
                losses = calibrator.nll_cross_fitted
                self.chosen[f"{n} {name}: {min(losses, key=losses.__getitem__)}"] += 1
        self.gold[f"{n}: noise"].append(errors(p, (self.rng.random(p.shape) < p).astype(np.float64)))
        return p


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    for name in ("documents", "labels", "gold", "student"):
        parser.add_argument(name)
    parser.add_argument("store", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--scores", type=Path, default=Path("scores.npz"), help="Written once, then read.")
    args = parser.parse_args()
    trials = Trials(Data(args))
    for _ in range(args.splits):
        trials.split()
    show("against the teacher's answers", trials.teacher)
    show("against gold, by documents reviewed", trials.gold)
    print("\nchosen:", ", ".join(f"{name} {count}" for name, count in sorted(trials.chosen.items())))
    print("\nteacher's log-odds moved by | ECE@5 corrected by 100 reviewed | largest change of a probability")
    for shift, values in trials.zero.items():
        error, change = np.mean(values, axis=0)
        print(f"{shift:+.0f} nats | {error:.2f} | {change:.1f} points")
    print("\ntop 5 by teacher-calibrated probability: pairs | its mean | teacher | gold | corrected (200)")
    pooled = np.concatenate(trials.meaning, axis=1)
    place = np.minimum((pooled[0] * 10).astype(int), 9)
    for number in np.unique(place):
        inside = pooled[:, place == number]
        means = " | ".join(f"{value:.3f}" for value in inside.mean(axis=1))
        print(f"{number / 10:.1f} to {(number + 1) / 10:.1f} | {inside.shape[1] / args.splits:.0f} | {means}")


def show(title: str, results: Table) -> None:
    print(f"\n{title}\n{'':34}" + "".join(f"{name:>15}" for name in COLUMNS))
    for name, values in results.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(mean[:-1], spread[:-1], strict=True)]
        cells.append(f"{mean[-1]:.3f} ± {spread[-1]:.3f}")
        print(f"{name:34}" + "".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    main()
