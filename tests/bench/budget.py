"""Where does a small budget teach most: few candidates on many documents, or many on few?

Recorded judgments (debtags, 700 documents x 14 ranks) are cut to a quarter in
several ways; every student takes the same number of training steps from the
same start and is measured on the same documents, which were never judged.

    python tests/bench/budget.py                  all ways, two seeds: about 40 minutes on 2 cores
    python tests/bench/budget.py --way 350x7 --seed 0 --json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.debtags import catalog, figures, rows, share

from ezxmc.config import TrainingConfig
from ezxmc.feedback.targets import build_targets
from ezxmc.hashing import text_hash
from ezxmc.models import resolve_model
from ezxmc.records import Judgment, Status
from ezxmc.training import train_bi_encoder
from ezxmc.training.step import schedule_for

_DOCUMENTS = 700


@dataclass(frozen=True)
class Way:
    """`best` ranks and `deeper` ones, drawn from the rest, on `documents` documents."""

    documents: int
    best: float
    deeper: int = 0

    def keep(self, ranked: dict[str, list[Judgment]], seed: int) -> list[Judgment]:
        order = sorted(ranked, key=lambda uid: text_hash(str(seed), uid))[: self.documents]
        kept = []
        for place, uid in enumerate(order):
            best = int(self.best * (place + 1)) - int(self.best * place)
            rest = ranked[uid][best:]
            kept += ranked[uid][:best]
            kept += random.Random(text_hash("deeper", str(seed), uid)).sample(rest, self.deeper)
        return kept


WAYS = {
    "untrained": Way(0, 0),
    "700x3.5": Way(700, 3.5),
    "700x2.5+1": Way(700, 2.5, 1),
    "490x5": Way(490, 5),
    "350x7": Way(350, 7),
    "350x6+1": Way(350, 6, 1),
    "350x4+3": Way(350, 4, 3),
    "175x14": Way(175, 14),
    # As many tokens to compute as 700x3.5, at 127 for a document and 13.4 for a label.
    "550x7": Way(550, 7),
    "385x14": Way(385, 14),
    "all, 700x14": Way(700, 14),
}


def measure(name: str, seed: int) -> dict[str, Any]:
    """One student's figures, in percent."""
    ranked: dict[str, list[Judgment]] = defaultdict(list)
    for row in sorted(rows("judgments.jsonl"), key=lambda row: row["rank"]):
        judgment = Judgment("0" * 64, row["doc"], row["label"], Status.OK, row["log_odds"], row["mass"])
        ranked[row["doc"]].append(judgment)
    documents, labels, gold = catalog()
    report = [d for d in documents if d.uid not in ranked and gold[d.uid] and share(d.uid) < 0.2]

    way, config = WAYS[name], TrainingConfig()
    base = resolve_model(config.encoder, kind="encoder")
    found: dict[str, Any] = {"way": name, "seed": seed, "pairs": 0, "report_documents": len(report)}
    if not way.documents:
        return found | figures(base, report, labels, gold)
    judgments = way.keep(ranked, seed)
    # Fewer documents are seen more often: every way takes the same number of steps.
    config = config.model_copy(
        update={"epochs": round(schedule_for(_DOCUMENTS).epochs * _DOCUMENTS / way.documents)}
    )
    judged = {judgment.doc_uid for judgment in judgments}
    with tempfile.TemporaryDirectory() as folder:
        summary = train_bi_encoder(
            [d for d in documents if d.uid in judged and share(d.uid) >= 1 / 7],
            labels,
            build_targets(judgments, config),
            config,
            Path(folder) / "student",
            base=base,
            held_out=[d for d in documents if d.uid in judged and share(d.uid) < 1 / 7],
            seed=seed,
        )
        after = figures(Path(folder) / "student", report, labels, gold)
    return found | {"pairs": len(judgments), "epochs": config.epochs, "best": summary.best_epoch} | after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--way", choices=WAYS, action="append", help="only these")
    parser.add_argument("--seed", type=int, action="append", help="default: 0 and 1")
    parser.add_argument("--json", action="store_true", help="a JSON line per student")
    asked = parser.parse_args()
    head = ["way", "seed", "pairs", "P@1", "P@3", "P@5", "R@10", "R@50"]
    if not asked.json:
        print("  ".join(f"{name:>11}" for name in head))
    for name in asked.way or WAYS:
        for seed in asked.seed or (0, 1):
            found = measure(name, seed)
            if asked.json:
                print(json.dumps(found), flush=True)
            else:
                cells = [f"{found[key]:.1f}" if "@" in key else str(found[key]) for key in head]
                print("  ".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
