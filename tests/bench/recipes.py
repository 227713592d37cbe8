"""What each part of the student's recipe is worth: losses, negatives, start, averaging, targets.

    python tests/bench/recipes.py SETS_FOLDER FOLDER [--only NAME ...] [--former NAME] [--seed N]

SETS_FOLDER holds documents.jsonl, labels_faceted.jsonl and qrels.tsv (data_cards/debtags.md). The
judgments are `tests/bench/debtags/judgments.parquet`: the former student learns from the parts `prior`
and `first` and is kept in FOLDER; every recipe then learns from these and `second`, which a former student
proposed. Figures are of the 742 development documents of `tests/bench/debtags/development.txt`, one seed
at a time: they choose, they do not prove. `--report` gives those of the 1,040 report documents, of what
was chosen before.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from former import HEADS, figures, first_student, opened, recorded

from ezxmc.bench.baselines import METHODS
from ezxmc.config import TrainingConfig

LOSSES = ("listwise_kl", "soft_topk", "dcl", "mw", "bce", "triplet_ohnm")
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "no average": {"average": False},
    "warm start": {"encoder": "FORMER"},
    "warm start, no average": {"encoder": "FORMER", "average": False},
    **{name: {"losses": {name: 1}} for name in LOSSES},
    "decoupled_softmax + listwise_kl": {"losses": {"decoupled_softmax": 1, "listwise_kl": 0.5}},
    "decoupled_softmax + bce": {"losses": {"decoupled_softmax": 1, "bce": 1}},
    "all labels negative": {"negatives": "all"},
    "no fusion": {"fusion": 0},
    "no priors": {"prior": "none"},
    "confidence": {"confidence": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--former", choices=RECIPES, default="default", help="what the former student is by")
    parser.add_argument("--report", action="store_true", help="figures of the report documents")
    parser.add_argument("--seed", type=int, default=0, help="of the recipes; the former student stays")
    args = parser.parse_args()
    files, first, both = recorded(args.sets, args.folder, "report" if args.report else "development")
    former = args.folder / f"former {args.former}"
    if not former.exists():
        task = opened(*files, first).task
        first_student(replace(task, config=TrainingConfig(**RECIPES[args.former])), former)
    bench = opened(*files, both, former)
    print(f"{'':32}  seconds  " + HEADS, flush=True)
    for name in args.only:
        changed = {key: str(former) if value == "FORMER" else value for key, value in RECIPES[name].items()}
        task = replace(bench.task, config=TrainingConfig(**changed))
        began = time.perf_counter()
        rows = METHODS["student"].rank(task, args.seed)
        seconds = time.perf_counter() - began
        print(f"{name:32}  {seconds:7.0f}  " + figures(bench, rows), flush=True)


if __name__ == "__main__":
    main()
