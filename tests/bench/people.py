"""What fifty reviewed documents do to ranks and probabilities, by what people were shown.

    python tests/bench/people.py BUNDLE DOCUMENTS GOLD --pool UIDS --report UIDS [--counts 20 50 100 200]

Of the documents that `--pool` names, so many are drawn, and people's decisions are simulated by gold: on the
ten labels that the bundle puts first (as `ezxmc review export --for calibration` asks), or on all labels (as
a reviewer does who also types what is missing). `ezxmc calibrate` takes them, and the documents that
`--report` names are tagged. BUNDLE is without a calibrator, of a student that saw neither part; it stays.

The spreads of the priors in `ezxmc/retrieval/label_offsets.py` were chosen on debtags' development documents
with a student of a small run (examples/debian_catalog), not on what is reported.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from ezxmc.bundle.bundle import load_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.data.documents import read_documents
from ezxmc.data.gold import read_gold
from ezxmc.metrics.evaluation import evaluate
from ezxmc.pipeline.calibrate import calibrate
from ezxmc.records import Document

SHOWN = ("P@1", "P@3", "P@5", "R@10", "R@50")


def figures(bundle: Path, documents: list[Document], gold: dict[str, set[str]]) -> list[float]:
    """SHOWN of the documents in percent, and ECE@5 in points; NaN without probabilities."""
    found = Predictor.load(bundle).predict(documents, k=50)
    made = evaluate(found, gold, precision_ks=(1, 3, 5), recall_ks=(10, 50), ndcg_ks=(), coverage_ks=())
    values = made.values
    return [100 * values.get(name, float("nan")) for name in (*SHOWN, "ECE@5")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "documents", "gold"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--pool", type=Path, required=True, help="uids that may be reviewed, one a line")
    parser.add_argument("--report", type=Path, required=True, help="uids reported on, one a line")
    parser.add_argument("--counts", nargs="+", type=int, default=[20, 50, 100, 200])
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    by_uid = {document.uid: document for document in read_documents(args.documents)[0]}
    tags, _ = read_gold(args.gold)
    pool, report = (
        [by_uid[uid] for uid in file.read_text(encoding="utf-8").split("\n") if uid in by_uid]
        for file in (args.pool, args.report)
    )
    gold = {document.uid: tags.get(document.uid, set()) for document in report}
    print(f"{'reviewed':24}  seconds  " + "  ".join(f"{name:>10}" for name in (*SHOWN, "ECE@5")))
    plain = figures(args.bundle, report, gold)
    print(f"{'0':24}  {'':7}  " + "  ".join(f"{value:10.1f}" for value in plain), flush=True)
    shown = {one.uid: set(one.labels) for one in Predictor(args.bundle).predict(pool, k=10)}
    for count in args.counts:
        for kind in ("top 10", "all labels"):
            every, seconds = [], []
            for draw in range(args.draws):
                drawn = random.Random(draw).sample(pool, count)
                said = {
                    one.uid: tags.get(one.uid, set()) & shown[one.uid] if kind == "top 10" else tags[one.uid]
                    for one in drawn
                }
                with tempfile.TemporaryDirectory() as folder:
                    bundle = Path(shutil.copytree(args.bundle, Path(folder, "bundle")))
                    began = time.perf_counter()
                    calibrate(bundle, drawn, gold=said, without_gold="none")
                    seconds.append(time.perf_counter() - began)
                    every.append(figures(bundle, report, gold))
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
