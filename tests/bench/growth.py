"""A catalog that grows twice: what updates ask and keep, against a run from cold and against no rehearsal.

    python tests/bench/growth.py SETS_FOLDER FOLDER [--documents 1200]

SETS_FOLDER holds documents.jsonl, labels_faceted.jsonl and qrels.tsv (data_cards/debtags.md). Day 0 has
70 % of the documents and 85 % of the labels; two arrivals bring the rest in halves. The teacher is an
ORACLE made of the gold tags with noise, no LLM: the figures are about growth, not about how well an
LLM tags. Everything is measured against gold on documents no student was trained on: those of day 0
by ranking day 0's labels alone (with the 95 % interval of the paired change), and all so far by the
share of new labels among the first ten.

`no rehearsal` learns from the judgments of its own update only, and its student is always taken;
`nor averaging` does not average the weights with the former student's either.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from ezxmc.bundle.predict import Predictor, rank_among
from ezxmc.config import RunConfig
from ezxmc.data import Catalog, read_gold
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import judgment_key, text_hash
from ezxmc.metrics.evaluation import Evaluation, compare, evaluate
from ezxmc.pipeline.run import run
from ezxmc.pipeline.update import update
from ezxmc.pipeline.update_steps import Update
from ezxmc.records import Judgment, Pair, Status

DAYS = ((0.70, 0.85), (0.85, 0.925), (1.0, 1.0))
"""Share of documents and of labels that are there on each day."""
SHOWN = ("P@1", "P@5", "R@10")
COLUMNS = ("pairs asked", "seconds", *(f"old {name}" for name in SHOWN), "new R@10", "old P@5 since day 0")


def unit(*parts: str) -> float:
    """A number in [0, 1) that belongs to these strings."""
    return int(text_hash(*parts)[:13], 16) / 16**13


class GoldOracle:
    """Answers ±2 nats by the gold tags, plus a logistic error that belongs to the pair: 12 % are wrong."""

    fingerprint = text_hash("gold oracle")
    description: ClassVar[dict[str, Any]] = {"backend": "gold oracle, no LLM"}

    def __init__(self, gold: dict[str, set[str]]) -> None:
        self.gold = gold

    def key(self, pair: Pair) -> str:
        return judgment_key(self.fingerprint, pair.doc.shown, pair.label.title)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        for pair in pairs:
            u = min(max(unit("oracle", self.key(pair)), 1e-9), 1 - 1e-9)
            z = (2.0 if pair.label.uid in self.gold.get(pair.doc.uid, ()) else -2.0) + math.log(u / (1 - u))
            yield Judgment(
                self.key(pair), pair.doc.uid, pair.label.uid, Status.OK, log_odds=z, label_mass=1.0
            )

    def close(self) -> None:
        pass


@dataclass
class World:
    """The days' files and what is right."""

    folder: Path
    gold: dict[str, set[str]]
    documents: list[list[str]]
    labels: list[list[str]]
    max_length: int
    first: Evaluation | None = None
    """Of day 0."""

    def config(self, run_dir: str, day: int, **changes: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "run_dir": str(self.folder / run_dir),
            "cycles": 1,
            "data": {name: str(self.folder / f"{name}{day}.jsonl") for name in ("documents", "labels")},
            "training": {"held_out": 0.3, "max_length": self.max_length, **changes.pop("training", {})},
            "update": changes,
        }
        return RunConfig.model_validate(settings)


def make_world(sets: Path, folder: Path, documents: int, max_length: int) -> World:
    def rows(name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (sets / name).open(encoding="utf-8")]
        return sorted(found, key=lambda row: unit("growth", row["uid"]))

    docs, labels = rows("documents.jsonl")[:documents], rows("labels_faceted.jsonl")
    labels = [{**row, "parent": row["uid"].split("::")[0]} for row in labels]
    for day, (some, many) in enumerate(DAYS):
        for name, every, share in (("documents", docs, some), ("labels", labels, many)):
            kept = every[: round(share * len(every))]
            (folder / f"{name}{day}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    uids = [[row["uid"] for row in every] for every in (docs, labels)]
    counts = [[one[: round(day[i] * len(one))] for day in DAYS] for i, one in enumerate(uids)]
    gold, _ = read_gold(
        str(sets / "qrels.tsv"),
        documents={row["uid"] for row in docs},
        labels={row["uid"] for row in labels},
    )
    return World(folder, gold, *counts, max_length)


def measured(world: World, run_dir: str, day: int) -> list[str]:
    """Metrics of a bundle on documents never trained on, in percent."""
    config = world.config(run_dir, day)
    catalog = Catalog.load(config.data, config.training.held_out, config.seed)
    old, first = set(world.labels[0]), set(world.documents[0])
    apart = [catalog.documents[i] for i in sorted([*catalog.to_select, *catalog.to_calibrate])]
    predictor = Predictor(Path(config.run_dir) / "bundle")

    def gold_of(documents: Collection[str], labels: Collection[str]) -> dict[str, set[str]]:
        return {uid: found for uid in documents if (found := world.gold.get(uid, set()) & set(labels))}

    early = [document for document in apart if document.uid in first]
    ranked = rank_among(predictor, early, old, 10)
    kept = evaluate(ranked, gold_of([d.uid for d in early], old), recall_ks=(5, 10))
    shown = [f"{100 * kept.values[name]:.1f}" for name in SHOWN]
    new = set(world.labels[day]) - old
    if world.first is None or not new:
        world.first = kept
        return shown
    gap = compare(kept, world.first)["P@5"]
    late = gold_of([document.uid for document in apart], new)
    found = [p for p in predictor.predict(apart, k=10) if p.uid in late]
    fresh = f"{100 * evaluate(found, late, recall_ks=(10,)).values['R@10']:.1f}"
    return [*shown, fresh, f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"]


def asked(run_dir: str, world: World) -> int:
    with FeedbackStore(world.folder / run_dir / "feedback.sqlite") as store:
        return store.judged(GoldOracle.fingerprint)


def show(name: str, cells: Iterable[str]) -> None:
    print(f"{name:34}" + "".join(f"  {cell:>11}" for cell in cells))
    sys.stdout.flush()


def follow(world: World, name: str, rehearsal: bool, training: dict[str, Any]) -> None:
    """Both arrivals, from a copy of day 0."""
    shutil.copytree(world.folder / "day0", world.folder / name)
    learnt = Update.learnt
    for day in (1, 2):
        config = world.config(name, day, training=training, accept_loss=not rehearsal)
        with FeedbackStore(world.folder / name / "feedback.sqlite") as store:
            before = {judgment.key for judgment in store.judgments()}

        def only_new(work: Update, judgments: Any, also: Any = ()) -> list[Judgment]:
            found = learnt(work, judgments, also)
            return found if rehearsal else [j for j in found if j.key not in before]  # noqa: B023

        began = time.perf_counter()
        with mock.patch.object(Update, "learnt", only_new):
            report = update(config, teacher=GoldOracle(world.gold))
        seconds = time.perf_counter() - began
        cells = [f"{report.asked:,}", f"{seconds:.0f}", *measured(world, name, day)]
        show(f"{name}, arrival {day}", cells)
        if rehearsal:
            for sentence in report.sentences():
                print(f"    {sentence}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a document the student reads")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    logging.disable(logging.DEBUG)
    world = make_world(args.sets, args.folder.resolve(), args.documents, args.max_length)
    show("", COLUMNS)
    for name, day in (("day0", 0), ("from cold, all of it", 2)):
        began = time.perf_counter()
        run(world.config(name, day), teacher=GoldOracle(world.gold))
        seconds = time.perf_counter() - began
        show(name, [f"{asked(name, world):,}", f"{seconds:.0f}", *measured(world, name, day)])
    follow(world, "update", True, {})
    follow(world, "no rehearsal", False, {})
    follow(world, "no rehearsal nor averaging", False, {"average": False})


if __name__ == "__main__":
    main()
