"""What each part of the student's recipe is worth: losses, negatives, start, averaging, targets.

    python tests/bench/recipes.py SETS_FOLDER FOLDER [--only NAME ...]

SETS_FOLDER holds documents.jsonl, labels_faceted.jsonl and qrels.tsv (data_cards/debtags.md). The
judgments are `tests/bench/debtags/judgments.parquet`: the former student learns from the parts `prior`
and `first` and is kept in FOLDER; every recipe then learns from these and `second`, which the former
student proposed. Figures are of the 742 development documents of `tests/bench/debtags/development.txt`,
one seed: they choose, they do not prove.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ezxmc.bench.baselines import METHODS, Task
from ezxmc.bench.benchmark import Benchmark, load_benchmark
from ezxmc.config import TrainingConfig
from ezxmc.feedback.targets import build_targets
from ezxmc.training import train_bi_encoder
from ezxmc.watch import Unwatched

DATA = Path(__file__).parent / "debtags"
SHOWN = ("P@1", "P@3", "P@5", "R@10", "R@50")
LOSSES = ("listwise_kl", "soft_topk", "dcl", "mw", "bce", "triplet_ohnm")
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "no average": {"average": False},
    "warm start": {"encoder": "FORMER"},
    "warm start, no average": {"encoder": "FORMER", "average": False},
    **{name: {"losses": {name: 1}} for name in LOSSES},
    "decoupled_softmax + listwise_kl": {"losses": {"decoupled_softmax": 1, "listwise_kl": 0.5}},
    "all labels negative": {"negatives": "all"},
    "no fusion": {"fusion": 0},
    "no priors": {"prior": "none"},
    "confidence": {"confidence": True},
}


def opened(sets: Path, judgments: Path, proposer: Path | None) -> Benchmark:
    return load_benchmark(
        str(sets / "documents.jsonl"),
        str(sets / "labels_faceted.jsonl"),
        str(sets / "qrels.tsv"),
        judgments=judgments,
        report_judgments=None,
        config=TrainingConfig(),
        proposer=str(proposer) if proposer else None,
        report_share=0,
        report=DATA / "development.txt",
        propensity=(0.55, 1.5),
        watch=Unwatched(),
    )


def parts(folder: Path, *names: str) -> Path:
    table, out = pq.read_table(DATA / "judgments.parquet"), folder / f"{names[-1]}.parquet"
    pq.write_table(table.filter(pc.is_in(table["part"].cast("string"), pc.cast(list(names), "string"))), out)
    return out


def first_student(task: Task, out: Path) -> None:
    judged = {judgment.doc_uid for judgment in task.judgments}
    apart = task.set_apart(sorted(judged), task.config.held_out, 0)
    train_bi_encoder(
        [document for document in task.rest if document.uid in judged - apart],
        task.labels,
        build_targets(task.judgments, task.config, task.context),
        task.config,
        out,
        held_out=[document for document in task.rest if document.uid in apart],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    former = args.folder / "former"
    if not former.exists():
        first_student(opened(args.sets, parts(args.folder, "prior", "first"), None).task, former)
    bench = opened(args.sets, parts(args.folder, "prior", "first", "second"), former)
    print(f"{'':32}  seconds  " + "  ".join(f"{name:>5}" for name in SHOWN))
    for name in args.only:
        changed = {key: str(former) if value == "FORMER" else value for key, value in RECIPES[name].items()}
        task = replace(bench.task, config=TrainingConfig(**changed))
        began = time.perf_counter()
        rows = METHODS["student"].rank(task, 0)
        uids = [None if row is None else [task.labels[label].uid for label in row] for row in rows]
        values, _ = bench.judge.score(uids)
        seconds = time.perf_counter() - began
        print(f"{name:32}  {seconds:7.0f}  " + "  ".join(f"{100 * values[shown]:5.1f}" for shown in SHOWN))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
