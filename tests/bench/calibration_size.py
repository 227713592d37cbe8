"""How many documents a calibrator is worth: its error and how much that varies, by documents judged.

    python tests/bench/calibration_size.py DOCUMENTS LABELS JUDGMENTS [--encoder ENCODER] [--draws 200]

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
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ezxmc.calibration import Calibrator, JudgedRows
from ezxmc.data import RowReport, iter_rows, read_documents, read_labels
from ezxmc.metrics import ece_at_k
from ezxmc.models import resolve_model
from ezxmc.retrieval import BiEncoder

Floats = NDArray[np.float64]
DEPTH, TESTED, SIZES = 10, 300, (10, 25, 50, 100, 150, 200, 300, 400)


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("documents", "labels", "judgments"):
        parser.add_argument(name)
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2")
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
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
