"""How many documents a calibrator is worth: its error and how much that varies, by documents judged.

    python tests/bench/calibration_size.py DOCUMENTS LABELS JUDGMENTS [--encoder ENCODER] [--draws 200]
    ... --gold QRELS

JUDGMENTS are recorded answers (doc, label, log_odds) on ENCODER's top 10 of each document. Per draw some of
these documents calibrate and 300 others, the same for all sizes, tell the error: probabilities against the
teacher's own share of "yes", in points. "added" is what too few documents cost: the error less that of a
calibrator fitted to the 300 documents themselves. "rank" is the mean distance of one probability from what
that calibrator says. "worst" is the 95th percentile over draws.

On debtags with faceted titles, judgments.jsonl (Qwen2.5-Coder-1.5B-Instruct), all-MiniLM-L6-v2, 100 draws:

| documents | pairs | ECE@1 | ECE@5 | ECE@10 | worst ECE@5 | worst ECE@10 |
|---|---|---|---|---|---|---|
| 10 | 100 | 8.0 ± 4.8 | 4.8 ± 2.5 | 4.1 ± 2.1 | 9.5 | 8.4 |
| 25 | 250 | 5.7 ± 3.1 | 3.6 ± 1.7 | 2.9 ± 1.4 | 7.0 | 5.7 |
| 50 | 500 | 4.2 ± 1.7 | 2.5 ± 1.0 | 2.1 ± 0.9 | 4.2 | 3.9 |
| 100 | 1,000 | 3.6 ± 1.2 | 2.1 ± 0.7 | 1.7 ± 0.6 | 3.2 | 2.6 |
| 150 | 1,500 | 3.3 ± 1.1 | 1.9 ± 0.6 | 1.5 ± 0.5 | 3.0 | 2.4 |
| 200 | 2,000 | 3.2 ± 0.9 | 1.9 ± 0.6 | 1.4 ± 0.4 | 2.8 | 2.3 |
| 300 | 3,000 | 3.3 ± 0.9 | 1.9 ± 0.5 | 1.4 ± 0.4 | 2.8 | 2.2 |

The calibrator of the 300 tested documents themselves has about 1.5 at 5 and 0.9 at 10. So 150 documents, the
default of `budget.calibration`, are within
.1 of what 300 reach; 100 lose .2 to .3, 50 lose .6 to .9 and scatter twice as much.

With --gold QRELS it measures how many documents are worth asking to choose between students. Of the 700
judged documents, in hash order, 250 are learnt from and 450 may select; quality by people is of 800 that
nobody judged. Nine students: untrained, after 1 to 4 epochs on the 250, after 1 to 4 on 125 of them. Per
draw, with replacement, the agreement (nDCG@5) on some of the 450 picks. The columns say how often it picks
the better of two, in %: the one that agrees better on all 450, or that is better by people. "close" are
the 21 of 36 pairs less than 2 points of R@10 apart. "lost" is what the best by people of all nine has more
than the one picked among all nine, in points. Same data, 2,000 draws, 9 minutes on one core:

| documents | teacher | close | R@10 | close | P@5 | close | R@10 lost | P@5 lost |
|---|---|---|---|---|---|---|---|---|
| 10 | 73.6 | 62.0 | 65.6 | 48.3 | 67.7 | 51.8 | 1.13 | .43 |
| 25 | 78.8 | 67.2 | 67.7 | 48.2 | 70.7 | 53.3 | 1.05 | .34 |
| 50 | 82.7 | 71.6 | 69.2 | 48.5 | 73.1 | 55.1 | 1.02 | .30 |
| 100 | 87.6 | 79.1 | 69.0 | 47.1 | 74.0 | 55.7 | 1.05 | .27 |
| 150 | 90.2 | 83.2 | 68.8 | 46.6 | 74.2 | 55.9 | 1.04 | .24 |
| 200 | 91.8 | 85.9 | 68.5 | 46.1 | 74.2 | 55.8 | 1.04 | .22 |
| 300 | 93.5 | 88.9 | 68.2 | 45.4 | 74.4 | 56.1 | 1.04 | .20 |
| 400 | 94.9 | 91.2 | 67.6 | 44.5 | 74.3 | 56.0 | 1.02 | .18 |

What the teacher prefers takes longer to find than its probabilities: 300 documents, twice
`budget.calibration`, pick it among close students in 89 % of the draws, 150 in 83 %, and 100 more bring 2
points. People's tags are another judge: beyond 50 documents they gain .1 points of P@5 and nothing in R@10,
so nobody needs more than these 300.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from ezxmc.calibration import Calibrator, JudgedRows
from ezxmc.config import TrainingConfig
from ezxmc.data import RowReport, iter_rows, read_documents, read_gold, read_labels
from ezxmc.feedback.budget import in_hash_order
from ezxmc.feedback.targets import build_targets
from ezxmc.metrics import ece_at_k, precision_at_k, recall_at_k
from ezxmc.models import resolve_model
from ezxmc.records import Judgment, Status
from ezxmc.retrieval import BiEncoder, LabelIndex
from ezxmc.training.dataset import examples
from ezxmc.training.step import Stepper
from ezxmc.training.student import ndcg

Floats = NDArray[np.float64]
DEPTH, TESTED, SIZES = 10, 300, (10, 25, 50, 100, 150, 200, 300, 400)
LEARNT, TOLD, EPOCHS = 250, 800, 4
CLOSE = 2.0  # points of R@10 between two students that are hard to tell apart


def judged_rows(args: argparse.Namespace) -> tuple[Floats, Floats]:
    """(N, 10) scores and the teacher's answers, of the documents whose every top label was judged."""
    answers: dict[str, dict[str, float]] = defaultdict(dict)
    for _, _, row in iter_rows(args.judgments, RowReport()):
        answers[row["doc"]][row["label"]] = float(expit(row["log_odds"]))
    documents = [document for document in read_documents(args.documents)[0] if document.uid in answers]
    labels = read_labels(args.labels)[0]
    encoder = BiEncoder(resolve_model(args.encoder, kind="encoder"))
    titles = encoder.encode_labels([label.title for label in labels])
    scores = encoder.encode_documents([document.shown for document in documents]) @ titles.T
    top = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    said = np.array(
        [
            [answers[document.uid].get(labels[row].uid, np.nan) for row in rows]
            for document, rows in zip(documents, top, strict=True)
        ]
    )
    whole = np.isfinite(said).all(axis=1)
    return np.take_along_axis(scores, top, axis=1)[whole].astype(np.float64), said[whole]


def errors(p: Floats, said: Floats) -> list[float]:
    """ECE@1, @5, @10, in points."""
    return [100 * ece_at_k(p[:, :k], said[:, :k]) for k in (1, 5, 10)]


def students(args: argparse.Namespace) -> tuple[Floats, Floats]:
    """Of every student (S, N) nDCG@5 on the documents that may select, and (S, 2) R@10 and P@5 by people."""
    documents, labels = read_documents(args.documents)[0], read_labels(args.labels)[0]
    known, titles = {label.uid for label in labels}, [label.title for label in labels]
    gold = {uid: known & set(tags) for uid, tags in read_gold(args.gold)[0].items()}
    judgments = [
        Judgment("0" * 64, row["doc"], row["label"], Status.OK, row["log_odds"], row["mass"])
        for _, _, row in iter_rows(args.judgments, RowReport())
    ]
    judged = {judgment.doc_uid for judgment in judgments}
    uids = [document.uid for document in documents]
    order = [documents[i] for i in in_hash_order(uids, range(len(uids)))]
    asked = [document for document in order if document.uid in judged]
    learnt, apart = asked[:LEARNT], asked[LEARNT:]
    told = [document for document in order if document.uid not in judged and gold.get(document.uid)][:TOLD]
    config = TrainingConfig(epochs=EPOCHS)
    selecting = examples(apart, labels, build_targets(judgments, config))
    by_teacher, by_people = [], []

    def measure(encoder: BiEncoder) -> None:
        named = encoder.encode_labels(titles)
        rows = encoder.encode_documents([document.shown for document in apart])
        by_teacher.append([ndcg(named[e.labels] @ rows[e.document], e.probabilities) for e in selecting])
        _, found = LabelIndex(named).search(encoder.encode_documents([d.shown for d in told]), 10)
        ranked = [[labels[row].uid for row in best] for best in found]
        right = [gold[document.uid] for document in told]
        by_people.append([100 * recall_at_k(ranked, right, 10), 100 * precision_at_k(ranked, right, 5)])
        print(f"student {len(by_teacher)}: {np.mean(by_teacher[-1]):.4f}, {by_people[-1]}", flush=True)

    for seed, some in enumerate((learnt, learnt[: LEARNT // 2])):
        encoder = BiEncoder(resolve_model(args.encoder, kind="encoder"), max_length=config.max_length)
        if not seed:
            measure(encoder)
        pool = [e for e in examples(some, labels, build_targets(judgments, config)) if e.positives]
        torch.manual_seed(seed)
        stepper = Stepper(encoder, [d.shown for d in some], titles, pool, config, np.random.default_rng(seed))
        for _ in range(EPOCHS):
            list(stepper.epoch())
            measure(encoder)
    return np.array(by_teacher), np.array(by_people)


def selection(args: argparse.Namespace) -> None:
    """How often the better of two students is picked, and what the choice among all costs."""
    by_teacher, by_people = students(args)
    rng, truth = np.random.default_rng(0), (by_teacher.mean(axis=1), *by_people.T)
    pairs = np.array(list(combinations(range(len(by_teacher)), 2))).T
    close = np.abs(np.subtract(*by_people[pairs, 0])) < CLOSE
    print(f"{by_teacher.shape[1]} documents select, {len(by_teacher)} students, {close.sum()} pairs close")
    for size in SIZES:
        drawn = rng.integers(by_teacher.shape[1], size=(args.draws, size))
        means = by_teacher[:, drawn].mean(axis=2)
        picked = means[pairs[0]] > means[pairs[1]]
        cells = []
        for value in truth:
            right = picked == (value[pairs[0]] > value[pairs[1]])[:, None]
            cells += [f"{100 * right.mean():.1f}", f"{100 * right[close].mean():.1f}"]
        lost = by_people.max(axis=0) - by_people[means.argmax(axis=0)]
        print(" | ".join([str(size), *cells, *(f"{one:.2f}" for one in lost.mean(axis=0))]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("documents", "labels", "judgments"):
        parser.add_argument(name)
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--gold", help="people's tags: measure what selects instead of what calibrates")
    args = parser.parse_args()
    if args.gold:
        selection(args)
        return
    scores, said = judged_rows(args)
    rng = np.random.default_rng(0)

    def fitted(rows: NDArray[np.int64], tested: NDArray[np.int64]) -> Floats:
        return Calibrator.fit(JudgedRows.of(scores[rows], said[rows]), target="teacher").transform(
            scores[tested]
        )

    found: dict[int, list[list[float]]] = defaultdict(list)
    for _ in range(args.draws):
        order = rng.permutation(len(scores))
        tested, pool = order[:TESTED], order[TESTED:]
        ideal = fitted(tested, tested)
        floor = errors(ideal, said[tested])
        for size in (size for size in SIZES if size <= len(pool)):
            p = fitted(pool[:size], tested)
            values = errors(p, said[tested])
            found[size].append([*values, *np.subtract(values, floor), 100 * float(np.abs(p - ideal).mean())])
    print(f"{len(scores)} documents with {DEPTH} answers each, {args.draws} draws")
    names = ("ECE@1", "ECE@5", "ECE@10", "added@1", "added@5", "added@10", "rank")
    print("documents | pairs | " + " | ".join(names) + " | worst ECE@5 | worst ECE@10")
    for size, values in found.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
        worst = [f"{np.quantile(np.array(values)[:, column], 0.95):.1f}" for column in (1, 2)]
        print(" | ".join([str(size), str(size * DEPTH), *cells, *worst]))


if __name__ == "__main__":
    main()
