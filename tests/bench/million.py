"""The whole line at 10⁴, 10⁵ and 10⁶ labels: seconds and peak memory of each stage, and how they grow.

    python tests/bench/million.py WORDNET_FOLDER OUT [--labels 10000,100000,1000000] [--documents 100000]
    python tests/bench/million.py WORDNET_FOLDER OUT --labels 10000 --documents 10000,100000

**Synthetic labels.** The 17,138 labels of wordnet (data_cards/wordnet.md) come first, then pairs of
labels that some gloss carries together ("animal: disease"), then random pairs, which no document carries,
as most labels of a million are carried by nobody. Documents are the 64,867 glosses, then two glosses put
together. **Oracle teacher.** Its log-odds are 2 for a gold label, 0 for a pair half of which is right, -2
for any other, plus noise of deviation 1: this measures what the line costs, not how good its tags are.

Each size runs `ezxmc run` (one cycle, 100,000 judgments, the real encoder) in a process of its own, then
`evaluate` on its predictions. Seconds are by the clock and of all threads; the exponent between two sizes is
log(seconds ratio) / log(size ratio): 1 is linear. What takes under two seconds has none.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from ezxmc.records import Judgment, Pair, Status

_SHORTEST = 2.0  # seconds whose growth is looked at


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make(source: Path, out: Path, labels: int, documents: int) -> None:
    """Documents, labels and gold of one size; the same for the same numbers."""
    rng = random.Random(7)
    base, glosses = read(source / "labels.jsonl"), read(source / "documents.jsonl")
    rng.shuffle(base)
    rng.shuffle(glosses)
    carried: dict[str, set[str]] = defaultdict(set)
    for line in (source / "qrels.tsv").open(encoding="utf-8"):
        document, label = line.split()
        carried[document].add(label)
    rows = [(one["uid"], one["content"], carried[one["uid"]]) for one in glosses[:documents]]
    for number in range(documents - len(rows)):
        one, other = rng.sample(glosses, 2)
        both = carried[one["uid"]] | carried[other["uid"]]
        rows.append((f"d{number}", f"{one['content']}\n{other['content']}", both))

    name = {row["uid"]: row["title"].split(", ")[0] for row in base}
    chosen = [{"uid": row["uid"], "title": row["title"], "text": row["content"]} for row in base[:labels]]
    together = Counter(pair for part in carried.values() for pair in itertools.combinations(sorted(part), 2))
    pairs = dict.fromkeys(pair for pair, _ in together.most_common(max(0, labels - len(base))))
    often = [uid for part in carried.values() for uid in sorted(part)]
    while len(chosen) + len(pairs) < labels:
        left, right = rng.choice(often), rng.choice(base)["uid"]
        pairs[min(left, right), max(left, right)] = None
    chosen += [{"uid": f"{a}+{b}", "title": f"{name[a]}: {name[b]}"} for a, b in pairs]
    known = {row["uid"] for row in chosen}

    out.mkdir(parents=True, exist_ok=True)
    write(out / "labels.jsonl", chosen)
    write(out / "documents.jsonl", ({"uid": uid, "text": text} for uid, text, _ in rows))
    with (out / "gold.tsv").open("w", encoding="utf-8") as gold:
        for uid, _, part in rows:
            right = [*part, *("+".join(pair) for pair in itertools.combinations(sorted(part), 2))]
            gold.writelines(f"{uid}\t{label}\n" for label in right if label in known)


class Oracle:
    """A teacher that knows the gold labels. It is no measure of quality."""

    fingerprint = hashlib.sha256(b"oracle of tests/bench/million.py").hexdigest()
    description = {"backend": "oracle", "note": "synthetic: answers from gold, with noise"}  # noqa: RUF012

    def __init__(self, gold: Path) -> None:
        self._gold: dict[str, set[str]] = defaultdict(set)
        for line in gold.open(encoding="utf-8"):
            document, label = line.rstrip("\n").split("\t")
            self._gold[document].update((label, *label.split("+")))

    def key(self, pair: Pair) -> str:
        return hashlib.sha256(f"{pair.doc.uid}\t{pair.label.uid}".encode()).hexdigest()

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        for pair in pairs:
            key, right = self.key(pair), self._gold[pair.doc.uid]
            half = any(part in right for part in pair.label.uid.split("+"))
            log_odds = 2.0 if pair.label.uid in right else 0.0 if half else -2.0
            noise = random.Random(key).gauss(0, 1)
            yield Judgment(
                key, pair.doc.uid, pair.label.uid, Status.OK, log_odds=log_odds + noise, label_mass=1.0
            )

    def close(self) -> None:
        pass


class Clock:
    """Seconds and peak memory by stage; a stage within another is taken off it."""

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        self._open: list[str] = []
        self._since = self._now()
        threading.Thread(target=self._sample, daemon=True).start()

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            if self._open:
                stage = self.stages[self._open[-1]]
                stage[2] = max(stage[2], float(process.memory_info().rss))
            time.sleep(0.05)

    def _turn(self) -> None:
        now = self._now()
        if self._open:
            stage = self.stages[self._open[-1]]
            stage[0] += now[0] - self._since[0]
            stage[1] += now[1] - self._since[1]
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Count a function's time as a stage of this name."""
        inner: Callable[..., Any] = getattr(owner, function)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return inner(*args, **kwargs)

        setattr(owner, function, timed)


def one(folder: Path, judgments: int) -> dict[str, Any]:
    """Run the line on one size."""
    from ezxmc.config import RunConfig
    from ezxmc.data import Catalog, RowReport, read_gold
    from ezxmc.data.predictions import read_predictions
    from ezxmc.metrics.evaluation import evaluate
    from ezxmc.pipeline import run as pipeline
    from ezxmc.retrieval import BiEncoder, LabelIndex
    from ezxmc.retrieval import shortlist as lexical

    clock = Clock()
    for owner, function, name in (
        (Catalog, "load", "reading"),
        (BiEncoder, "encode_labels", "encoding labels"),
        (BiEncoder, "encode_documents", "encoding documents"),
        (lexical.LexicalIndex, "__init__", "shortlist: BM25 index"),
        (lexical.LexicalIndex, "search", "shortlist: BM25 search"),
        (LabelIndex, "build", "building the label index"),
        (LabelIndex, "search", "searching the label index"),
        (pipeline.Cycles, "_shortlists", "shortlist: the rest"),
        (pipeline.Annotator, "ask", "asking the teacher (oracle)"),
        (pipeline.Cycles, "_targets", "targets"),
        (pipeline.Cycles, "train", "training"),
        (pipeline._Run, "deliver", "bundle: refined vectors, files"),
        (pipeline._Run, "calibrate", "calibration: the rest"),
        (pipeline._Run, "tag", "predicting: the rest"),
        (pipeline, "assemble", "report"),
        (pipeline, "run", "everything else"),
    ):
        clock.watch(owner, function, name)
    config = RunConfig.model_validate(
        {
            "run_dir": str(folder / "run"),
            "cycles": 1,
            "data": {"documents": str(folder / "documents.jsonl"), "labels": str(folder / "labels.jsonl")},
            "teacher": {"kind": "replay", "judgments": "answered by the oracle"},
            "budget": {"max_pairs": judgments},
            "shortlist": {"size": 8},
        }
    )
    pipeline.run(config, teacher=Oracle(folder / "gold.tsv"))
    with clock.stage("evaluating"):
        gold, _ = read_gold(folder / "gold.tsv")
        measured = evaluate(read_predictions(folder / "run" / "predictions.jsonl", RowReport()), gold).values
    peak = max(stage[2] for stage in clock.stages.values())
    return {"stages": dict(clock.stages), "peak": peak, "P@1": measured["P@1"], "R@5": measured["R@5"]}


def show(found: dict[tuple[int, int], dict[str, Any]]) -> None:
    sizes = list(found)
    names = list(dict.fromkeys(name for one in found.values() for name in one["stages"]))
    heads = [f"{labels:,} x {documents:,}" for labels, documents in sizes]
    print(f"{'labels x documents':30}" + "".join(f"{head:>30}" for head in heads) + "   exponents")
    print(f"{'':30}" + f"{'s':>12} {'cpu s':>8} {'GB':>8}" * len(sizes))
    for name in names:
        cells = [one["stages"].get(name, [0.0, 0.0, 0.0]) for one in found.values()]
        line = "".join(f"{clock:12.1f} {cpu:8.0f} {peak / 1e9:8.2f}" for clock, cpu, peak in cells)
        growth = [
            f"{math.log(b[1] / a[1]) / math.log(math.prod(large) / math.prod(small)):.2f}"
            for a, b, small, large in zip(cells, cells[1:], sizes, sizes[1:], strict=False)
            if a[1] > _SHORTEST and math.prod(large) != math.prod(small)
        ]
        print(f"{name:30}{line}   {', '.join(growth)}")
    for head, one in zip(heads, found.values(), strict=True):
        total = [sum(stage[i] for stage in one["stages"].values()) for i in (0, 1)]
        print(
            f"{head}: {total[0]:,.0f} s, {total[1]:,.0f} cpu s, "
            f"peak {one['peak'] / 1e9:.1f} GB, P@1 {one['P@1']:.3f}, R@5 {one['R@5']:.3f} (oracle)"
        )


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="documents.jsonl, labels.jsonl, qrels.tsv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=numbers, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--documents", type=numbers, default=[100_000])
    parser.add_argument("--judgments", type=int, default=100_000)
    parser.add_argument("--one", action="store_true", help="run what OUT holds, and print what it took")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.out, given.judgments)))
        return
    found = {}
    for labels, documents in itertools.product(given.labels, given.documents):
        folder = given.out / f"{labels}x{documents}"
        if not (folder / "gold.tsv").exists():
            make(given.source, folder, labels, documents)
        command = [sys.executable, __file__, str(given.source), str(folder), "--one"]
        told = subprocess.run(
            [*command, "--judgments", str(given.judgments)], check=True, stdout=subprocess.PIPE, text=True
        )
        found[labels, documents] = json.loads(told.stdout.splitlines()[-1])
        (folder / "result.json").write_text(told.stdout.splitlines()[-1], encoding="utf-8")
        show(found)


if __name__ == "__main__":
    main()
