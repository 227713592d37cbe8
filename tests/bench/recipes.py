"""What each part of the student's recipe is worth: losses, negatives, start, averaging, targets.

    python tests/bench/recipes.py SETS_FOLDER FOLDER [--only NAME ...] [--former NAME] [--seed N]
    python tests/bench/recipes.py SAMPLE FOLDER --dataset wordnet ...

SETS_FOLDER holds documents.jsonl, labels_faceted.jsonl and qrels.tsv (data_cards/debtags.md), SAMPLE what
`tests/bench/wordnet/sample.py` makes. The judgments are recorded ones: a former student learns from those
of the first cycle and is kept in FOLDER; every recipe then learns from these and from the second cycle's,
which a former student proposed. Figures are of development documents (742 of debtags, 2,000 of wordnet),
one seed at a time: they choose, they do not prove. `--report` gives those of the report documents, of what
was chosen before.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from former import HEADS, figures, first_student, opened, recorded
from methods import METHODS

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
    "decoupled_softmax + 0.1 bce": {"losses": {"decoupled_softmax": 1, "bce": 0.1}},
    "all labels negative": {"negatives": "all"},
    "no fusion": {"fusion": 0},
    "no priors": {"prior": "none"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--dataset", choices=("debtags", "wordnet"), default="debtags")
    parser.add_argument("--former", choices=RECIPES, default="default", help="what the former student is by")
    parser.add_argument("--report", action="store_true", help="figures of the report documents")
    parser.add_argument("--seed", type=int, default=0, help="of the recipes; the former student stays")
    args = parser.parse_args()
    part = "report" if args.report else "development"
    files, first, both = recorded(args.sets, args.folder, args.dataset, part)
    former = args.folder / f"former {args.former} {part}"
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
