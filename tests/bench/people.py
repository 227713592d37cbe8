"""What fifty reviewed documents do to ranks and probabilities, by what people were shown.

    python tests/bench/people.py BUNDLE DOCUMENTS GOLD --pool UIDS --report UIDS [--counts 20 50 100 200] \\
        [--teacher JUDGMENTS PART]

Of the documents that `--pool` names, so many are drawn, and people's decisions are simulated by gold: on the
ten labels that the bundle puts first (as `ezxmc review export --for calibration` asks), or on all labels (as
a reviewer does who also types what is missing), or on the ten labels of documents half of which are chosen by
what they teach, after the random ones (these do not calibrate). `ezxmc calibrate` takes them,
and the documents that `--report` names are tagged. BUNDLE is without a calibrator, of a student that saw
neither part; it stays.
With `--teacher`, labels' counts are of the gold of all other documents, and what they are worth is chosen by
the answers in PART of a Parquet file, on documents the student was not trained on: a row "0, counts".

The spreads of the priors in `ezxmc/retrieval/label_offsets.py` were chosen on debtags' development documents
with a student of a small run (examples/debian_catalog), not on what is reported.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ezxmc.bundle.bundle import add_calibrator, load_bundle
from ezxmc.bundle.labels import add_labels
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import fit_calibrator
from ezxmc.data.documents import read_documents
from ezxmc.data.gold import read_gold
from ezxmc.metrics.evaluation import evaluate
from ezxmc.pipeline.calibrate import calibrate
from ezxmc.pipeline.people_ranks import Decided, counted_offsets, peoples_ranks, verdicts_of
from ezxmc.progress import NoProgress
from ezxmc.records import Document

SHOWN = ("P@1", "P@3", "P@5", "R@10", "R@50")
KINDS = ("top 10", "all labels", "half chosen")
Floats = NDArray[np.float32]


def figures(
    bundle: Path, documents: list[Document], vectors: Floats, gold: dict[str, set[str]]
) -> list[float]:
    """SHOWN of the documents in percent, and ECE@5 in points; NaN without probabilities."""
    found = Predictor.load(bundle).tag(documents, vectors, k=50)
    made = evaluate(found, gold, precision_ks=(1, 3, 5), recall_ks=(10, 50), ndcg_ks=(), coverage_ks=())
    values = made.values
    return [100 * values.get(name, float("nan")) for name in (*SHOWN, "ECE@5")]


def count_labels(
    bundle: Path,
    documents: dict[str, Document],
    counts: Counter[str],
    judgments: Path,
    part: str,
    depth: int = 10,
) -> None:
    """Put labels' counts into a bundle, and what they are worth by the teacher's answers, if anything."""
    add_labels(bundle, [replace(label, count=counts[label.uid]) for label in load_bundle(bundle).labels])
    table = pq.read_table(judgments)
    rows = zip(*(table[name].to_pylist() for name in ("part", "doc", "label", "log_odds")), strict=True)
    said = {(doc, label): 1 / (1 + math.exp(-odds)) for of, doc, label, odds in rows if of == part}
    asked = [documents[uid] for uid in dict.fromkeys(doc for doc, _ in said) if uid in documents]
    opened = load_bundle(bundle)
    found = Predictor(opened).predict(asked, k=depth)

    def teacher(doc: str, label: str) -> float | None:
        return said.get((doc, label))

    offsets = counted_offsets(opened, asked, found, teacher, NoProgress())
    assert offsets, "counts gain nothing"
    print(f"counts: {offsets.frequency[0]:.4f} a nat, {offsets.gain}", flush=True)
    found = Predictor(replace(opened, offsets=offsets.on(opened.labels, opened.index))).predict(
        asked, k=depth
    )
    calibrator = fit_calibrator(found, teacher, target="teacher", k=depth)
    add_calibrator(bundle, calibrator, offsets=offsets)


_SPREAD = 0.8  # of a label's bias, in nats: see `ezxmc.retrieval.label_offsets`


def teaching_order(
    tops: NDArray[np.int64],
    likely: NDArray[np.float64],
    known: Sequence[int],
    free: Sequence[int],
    count: int,
) -> list[int]:
    """Documents whose decisions tell most about how often labels fit, most first.

    A decision of probability p tells p(1 - p) of information about its label's bias, whose variance is
    1 / (1/0.8² + what is told). Each time the document is taken that lessens the variances most, each label
    weighted by how many documents propose it.

    Args:
        tops: (N, K) labels proposed, of each document.
        likely: (N, K) how probably they fit.
        known: Documents decided on.
        free: Those there are to choose from.
        count: How many, at most.
    """
    often, told = np.bincount(tops.ravel()), likely * (1 - likely)
    information = np.zeros(len(often))
    for i in known:
        information[tops[i]] += told[i]
    left, found = np.array(free, dtype=np.int64), list[int]()
    while len(left) and len(found) < count:
        variance = 1 / (_SPREAD**-2 + information[tops[left]])
        gain = often[tops[left]] * (variance - 1 / (1 / variance + told[left]))
        best = int(gain.sum(axis=1).argmax())
        found.append(int(left[best]))
        information[tops[left[best]]] += told[left[best]]
        left = np.delete(left, best)
    return found


def half_chosen(
    bundle: Path,
    pool: list[Document],
    drawn: list[Document],
    shown: dict[str, set[str]],
    tags: dict[str, set[str]],
) -> None:
    """Calibrate on half of the documents, and fit ranks to as many more that teach most, by what is known."""
    first = drawn[: len(drawn) // 2]
    asked = Path(shutil.copytree(bundle, bundle.with_name("asked")))
    calibrate(
        asked, first, gold={one.uid: tags[one.uid] & shown[one.uid] for one in first}, without_gold="none"
    )
    found = Predictor(asked).predict(pool, k=10)
    row = {label: i for i, label in enumerate(dict.fromkeys(label for one in found for label in one.labels))}
    tops = np.array([[row[label] for label in one.labels] for one in found])
    known = {one.uid for one in first}
    order = teaching_order(
        tops,
        np.array([one.probabilities for one in found]),
        [i for i, one in enumerate(pool) if one.uid in known],
        [i for i, one in enumerate(pool) if one.uid not in known],
        len(drawn) - len(first),
    )
    every = [*first, *(pool[i] for i in order)]
    said = {one.uid: tags[one.uid] & shown[one.uid] for one in every}
    decided = {uid: Decided(frozenset(yes), frozenset(shown[uid] - yes)) for uid, yes in said.items()}
    moved = peoples_ranks(load_bundle(bundle), every, decided, 10)
    verdict = verdicts_of({uid: one for uid, one in decided.items() if uid in known})
    calibrator = fit_calibrator(moved.predictions, verdict, target="human", k=10)
    add_calibrator(bundle, calibrator, offsets=moved.offsets)


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """A parser of a bundle, a set with gold, and which of its documents are what: see `opened`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bundle", "documents", "gold"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--pool", type=Path, required=True, help="uids that may be reviewed, one a line")
    parser.add_argument("--report", type=Path, required=True, help="uids reported on, one a line")
    return parser


def opened(
    args: argparse.Namespace,
) -> tuple[dict[str, Document], dict[str, set[str]], list[Document], list[Document]]:
    """All documents by uid, gold, the pool, and what is reported on."""
    by_uid = {document.uid: document for document in read_documents(args.documents)[0]}
    tags, _ = read_gold(args.gold)
    pool, report = (
        [by_uid[uid] for uid in file.read_text(encoding="utf-8").split("\n") if uid in by_uid]
        for file in (args.pool, args.report)
    )
    return by_uid, tags, pool, report


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[20, 50, 100, 200])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    parser.add_argument("--teacher", nargs=2, metavar=("JUDGMENTS", "PART"))
    args = parser.parse_args()
    by_uid, tags, pool, report = opened(args)
    gold = {document.uid: tags.get(document.uid, set()) for document in report}
    print(f"{'reviewed':24}  seconds  " + "  ".join(f"{name:>10}" for name in (*SHOWN, "ECE@5")))
    vectors = Predictor.load(args.bundle).encode(report)
    plain = figures(args.bundle, report, vectors, gold)
    print(f"{'0':24}  {'':7}  " + "  ".join(f"{value:10.1f}" for value in plain), flush=True)
    held = tempfile.TemporaryDirectory()
    if args.teacher:
        args.bundle = Path(shutil.copytree(args.bundle, Path(held.name, "counted")))
        apart = {document.uid for document in (*pool, *report)}
        counts = Counter(label for uid in by_uid.keys() - apart for label in tags.get(uid, ()))
        count_labels(args.bundle, by_uid, counts, Path(args.teacher[0]), args.teacher[1])
        found = figures(args.bundle, report, vectors, gold)
        print(f"{'0, counts':24}  {'':7}  " + "  ".join(f"{value:10.1f}" for value in found), flush=True)
    shown = {one.uid: set(one.labels) for one in Predictor(args.bundle).predict(pool, k=10)}
    for count in args.counts:
        for kind in args.kinds:
            every, seconds = [], []
            for draw in range(args.draws):
                drawn = random.Random(draw).sample(pool, count)
                said = {
                    one.uid: tags.get(one.uid, set()) & shown[one.uid]
                    if kind != "all labels"
                    else tags[one.uid]
                    for one in drawn
                }
                with tempfile.TemporaryDirectory() as folder:
                    bundle = Path(shutil.copytree(args.bundle, Path(folder, "bundle")))
                    began = time.perf_counter()
                    if kind == "half chosen":
                        half_chosen(bundle, pool, drawn, shown, tags)
                    else:
                        calibrate(bundle, drawn, gold=said, without_gold="none")
                    seconds.append(time.perf_counter() - began)
                    every.append(figures(bundle, report, vectors, gold))
                    assert load_bundle(bundle).calibrator
            columns = [
                f"{statistics.fmean(column):5.1f} ± {statistics.pstdev(column):3.1f}"[:12]
                for column in zip(*every, strict=True)
            ]
            print(
                f"{f'{count}, {kind}':24}  {statistics.fmean(seconds):7.0f}  "
                + "  ".join(f"{column:>10}" for column in columns),
                flush=True,
            )


if __name__ == "__main__":
    main()
