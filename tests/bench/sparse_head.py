"""The sparse head: what it costs beside a dense one, and what it adds to the bi-encoder on wordnet.

    python tests/bench/sparse_head.py cost --labels 100_000 1_000_000
    python tests/bench/sparse_head.py wordnet WORDNET_FOLDER BUNDLE --report report.txt --cache vectors.npz \\
        [--documents 12_000] [--seeds 3] [--sources judgments self shortlists gold] [--parts]

`cost`: training memory per label counted, peak memory of a process and seconds of a step measured; a dense
layer is torch's Linear with Adam, measured where it takes under 4 GB.

`wordnet`: P@k on the documents of `report.txt`, read by the evaluation alone. Every head is trained on the
same document vectors of the bundle's student, and fused by what its source says of 1,000 documents kept apart
(of `judgments` and `self`: by the teacher's judgments of a fifth of the judged documents). Sources:

    judgments   the LLM's judgments of tests/bench/wordnet, all there are: about 6 labels a document
    self        what the student finds most probable of each document, as probable as the judgments make it
    shortlists  gold verdicts on the student's 20 nearest labels: a teacher that never errs, but sees no more
    gold        all gold labels: what plenty of labels is worth, not what this project has

`--parts` also leaves out, one at a time, what the sparse head is made of.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import read_judgments
from numpy.typing import NDArray
from scipy.sparse import csc_array
from sklearn.linear_model import LogisticRegression

from ezxmc.bundle.bundle import load_bundle
from ezxmc.config import HeadConfig, TrainingConfig
from ezxmc.data import read_documents, read_gold
from ezxmc.feedback.targets import build_targets
from ezxmc.metrics import precision_at_k, recall_at_k
from ezxmc.retrieval import LabelIndex, SparseHead
from ezxmc.training.dataset import Example, examples
from ezxmc.training.head import RowAdagrad, fit_head, judged_pairs
from ezxmc.training.head_fusion import choose_fusion
from ezxmc.training.head_loss import sparse_bce

WIDTH, BATCH, STEPS = 384, 64, 3
LARGEST = 4e9
APART, NEAR, SURE = 1_000, 20, 10
JUDGMENTS = Path(__file__).parent / "wordnet" / "judgments.parquet"
PARTS: dict[str, dict[str, Any]] = {
    "fan-in 64": {"fan_in": 64},
    "fan-in 16": {"fan_in": 16},
    "fixed connections": {"rewire": 0},
    "random start": {"start": "random"},
    "random start, fixed connections": {"start": "random", "rewire": 0},
    "no auxiliary": {"auxiliary": 0},
    "random start, no auxiliary": {"start": "random", "auxiliary": 0},
    "unjudged count in full": {"unjudged": 1},
    "unjudged count .03": {"unjudged": 0.03},
    "labels with 3 positives": {"least_positives": 3},
}


# Cost


def bytes_per_label(fan_in: int) -> int:
    """Columns, weights, their gradient; bias, its gradient, two sums of squares."""
    return fan_in * (2 + 4 + 4) + 4 * 4


def dense_bytes_per_label() -> int:
    """Weights and bias, gradient, Adam's two moments."""
    return (WIDTH + 1) * 4 * 4


def one_step(kind: str, labels: int) -> None:
    """Print seconds of a step and the bytes this process took more than before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(BATCH, WIDTH), dim=1)
    right = torch.randint(labels, (BATCH, 5))
    row = torch.arange(BATCH).repeat_interleave(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = dense_step(x, right, labels) if kind == "dense" else sparse_step(x, row, right, labels, int(kind))
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": sorted(seconds)[STEPS // 2], "bytes": peak}))


def dense_step(x: torch.Tensor, right: torch.Tensor, labels: int) -> Callable[[], None]:
    layer = torch.nn.Linear(WIDTH, labels)
    optimizer = torch.optim.Adam(layer.parameters())

    def step() -> None:
        optimizer.zero_grad()
        logits = layer(x)
        loss = torch.nn.functional.softplus(logits).sum() - logits.gather(1, right).sum()
        (loss / BATCH).backward()
        optimizer.step()

    return step


def sparse_step(
    x: torch.Tensor, row: torch.Tensor, right: torch.Tensor, labels: int, fan_in: int
) -> Callable[[], None]:
    columns = torch.randint(WIDTH // fan_in, (labels, fan_in), dtype=torch.int16)
    columns += torch.arange(0, WIDTH, WIDTH // fan_in, dtype=torch.int16)[:fan_in]
    weights, bias = torch.zeros(labels, fan_in, requires_grad=True), torch.zeros(labels, requires_grad=True)
    optimizer = RowAdagrad([weights, bias], lr=0.1)
    targets = csc_array(
        (np.ones(right.numel(), dtype=np.float32), (row.numpy(), right.flatten().numpy())),
        shape=(len(x), labels),
    )

    def step() -> None:
        optimizer.zero_grad()
        sparse_bce(x, columns, weights, bias, targets, 1.0, bfloat16=True).backward()
        optimizer.step()

    return step


def cost(sizes: Sequence[int]) -> None:
    print(f"{BATCH} documents a step, {WIDTH} dimensions, one thread; bytes per label counted:")
    dense = dense_bytes_per_label()
    for fan_in in (16, 32, 64):
        print(
            f"  fan-in {fan_in}: {bytes_per_label(fan_in)}, dense {dense}, "
            f"{dense / bytes_per_label(fan_in):.1f} times as many"
        )
    for labels in sizes:
        for kind in ("dense", "32", "64"):
            name = "dense" if kind == "dense" else f"fan-in {kind}"
            if kind == "dense" and labels * dense > LARGEST:
                print(
                    f"{labels:>9,} labels, {name}: {labels * dense / 1e9:.2f} GB counted, not run", flush=True
                )
                continue
            command = [sys.executable, __file__, "step", kind, str(labels)]
            told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"{labels:>9,} labels, {name}: {told['bytes'] / 1e9:.3f} GB more at the peak, "
                f"{told['seconds']:.2f} s a step",
                flush=True,
            )


# Quality


@dataclass(frozen=True)
class World:
    """Vectors of a student, and who is who.

    Attributes:
        index: Label vectors.
        train: (N, D) of the documents to learn from, and their uids.
        apart: Of the documents to weigh heads by.
        report: Of the documents to report on.
        gold: Right label rows by uid.
        judged: The LLM's judgments, `document` a row of `llm`.
        llm: (n, D) of the documents it judged.
    """

    index: LabelIndex
    train: tuple[NDArray[np.float32], list[str]]
    apart: tuple[NDArray[np.float32], list[str]]
    report: tuple[NDArray[np.float32], list[str]]
    gold: dict[str, set[int]]
    judged: list[Example]
    llm: NDArray[np.float32]


def opened(folder: Path, bundle: Path, listed: Path, cache: Path, count: int) -> World:
    made = load_bundle(bundle, precision="auto")
    documents, _ = read_documents(str(folder / "documents.jsonl"))
    by_uid = {document.uid: document for document in documents}
    rows = {label.uid: row for row, label in enumerate(made.labels)}
    right, _ = read_gold(str(folder / "qrels.tsv"), documents=by_uid.keys(), labels=rows.keys())
    with (folder / "split.tsv").open(encoding="utf-8") as lines:
        part_of = dict(csv.reader(lines, delimiter="\t"))
    # As in wordnet/sample.py: its 12,000 come first.
    order = sorted(by_uid, key=lambda uid: hashlib.sha256(f"wordnet4{uid}".encode()).hexdigest())
    uids = [uid for uid in order if part_of[uid] == "train"]
    train, apart = uids[: min(count, len(uids) - APART)], uids[-APART:]
    report = [uid for uid in listed.read_text(encoding="utf-8").split() if right.get(uid)]
    tags = {label.uid: label for label in made.labels}
    judgments, _ = read_judgments(JUDGMENTS, by_uid, tags)
    wanted = list(dict.fromkeys([*train, *apart, *report, *(j.doc_uid for j in judgments)]))
    known = dict(np.load(cache)) if cache.exists() else {}
    if missing := [uid for uid in wanted if uid not in known]:
        encoded = made.encoder.encode_documents([by_uid[uid].shown for uid in missing])
        known.update(zip(missing, encoded, strict=True))
        np.savez(cache, **known)

    def vectors(some: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([known[uid] for uid in some])

    judged = sorted({judgment.doc_uid for judgment in judgments})
    targets = build_targets(judgments, TrainingConfig())
    return World(
        LabelIndex(made.index.vectors(np.arange(made.index.total))),
        (vectors(train), train),
        (vectors(apart), apart),
        (vectors(report), report),
        {uid: {rows[label] for label in found} for uid, found in right.items()},
        examples([by_uid[uid] for uid in judged], made.labels, targets),
        vectors(judged),
    )


Lesson = tuple[NDArray[np.float32], list[Example], NDArray[np.float32], list[Example]]
"""Document vectors and judgments to train on; the same to weigh by."""


def lesson(world: World, source: str) -> Lesson:
    fold = len(world.judged) // 5
    apart, rest = world.judged[:fold], world.judged[fold:]
    if source == "judgments":
        return world.llm, rest, world.llm, apart
    if source == "self":
        return world.train[0], confident(world, rest), world.llm, apart
    near = [verdicts(world, part) for part in (world.train, world.apart)]
    if source == "shortlists":
        return world.train[0], near[0], world.apart[0], near[1]
    return (
        world.train[0],
        [right(world, i, uid) for i, uid in enumerate(world.train[1])],
        world.apart[0],
        near[1],
    )


def right(world: World, row: int, uid: str) -> Example:
    labels = np.array(sorted(world.gold.get(uid, ())), dtype=np.int64)
    return Example(row, labels, np.ones(len(labels)), len(labels), 0)


def verdicts(world: World, part: tuple[NDArray[np.float32], list[str]]) -> list[Example]:
    found = []
    for row, (uid, labels) in enumerate(zip(part[1], world.index.search(part[0], NEAR)[1], strict=True)):
        true = np.array([label in world.gold.get(uid, ()) for label in labels])
        order = np.argsort(~true, kind="stable")
        found.append(
            Example(
                row, labels[order], np.where(true[order], 0.95, 0.05), int(true.sum()), int((~true).sum())
            )
        )
    return found


def confident(world: World, judged: Sequence[Example]) -> list[Example]:
    """Pseudo-labels of the student: its best labels with the probability the judgments give their scores."""
    scores = np.concatenate([world.index.vectors(e.labels) @ world.llm[e.document] for e in judged])
    p = np.concatenate([e.probabilities for e in judged])
    curve = LogisticRegression(C=1e6).fit(
        np.tile(scores, 2)[:, None], np.repeat([1, 0], len(p)), sample_weight=np.concatenate([p, 1 - p])
    )
    s, rows = world.index.search(world.train[0], SURE)
    told = curve.predict_proba(s.reshape(-1, 1))[:, 1].reshape(s.shape)
    return [
        Example(row, labels, sure, int((sure >= 0.5).sum()), 0)
        for row, (labels, sure) in enumerate(zip(rows, told, strict=True))
    ]


def trained(world: World, taught: Lesson, config: HeadConfig, seed: int) -> SparseHead:
    vectors, pool, apart, told = taught
    pool = [example for example in pool if len(example.labels)]
    x = torch.from_numpy(vectors[[example.document for example in pool]])
    head = fit_head(
        lambda members: x[torch.from_numpy(members)],
        judged_pairs(pool, config.least_positives),
        world.index.vectors,
        config,
        device=torch.device("cpu"),
        seed=seed,
    )
    return replace(head, fusion=choose_fusion(head, world.index, apart, told).fusion)


def measured(world: World, rows: NDArray[np.int64]) -> list[float]:
    ranked = [[str(row) for row in found] for found in rows]
    gold = [{str(row) for row in world.gold[uid]} for uid in world.report[1]]
    return [100 * precision_at_k(ranked, gold, k) for k in (1, 3, 5)] + [100 * recall_at_k(ranked, gold, 10)]


def line(name: str, runs: Sequence[Sequence[float]], rest: str = "") -> None:
    table = np.array(runs)
    spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
    cells = " ".join(f"{m:5.1f} ±{s:3.1f}" for m, s in zip(table.mean(axis=0), spread, strict=True))
    print(f"{name:<52} {cells}  {rest}", flush=True)


def wordnet(arguments: argparse.Namespace) -> None:
    world = opened(arguments.folder, arguments.bundle, arguments.report, arguments.cache, arguments.documents)
    print(f"{len(world.report[1]):,} documents reported on, {world.index.size:,} labels: P@1 P@3 P@5 R@10")
    line("bi-encoder", [measured(world, world.index.search(world.report[0], 10)[1])])
    for source in arguments.sources:
        taught = lesson(world, source)
        pairs = sum(len(example.labels) for example in taught[1])
        print(f"{source}: {len(taught[1]):,} documents, {pairs:,} pairs", flush=True)
        kinds: dict[str, dict[str, Any]] = {"dense": {"fan_in": WIDTH, "rewire": 0}, "sparse": {}}
        if arguments.parts:
            kinds.update(PARTS)
        for name, settings in kinds.items():
            started, alone, fused, weights = time.process_time(), [], [], []
            for seed in range(arguments.seeds):
                head = trained(world, taught, HeadConfig(**settings), seed)
                alone.append(measured(world, head.best(world.report[0], 10)))
                fused.append(measured(world, head.search(world.index, world.report[0], 10)[1]))
                weights.append(head.fusion.weight)
            seconds = (time.process_time() - started) / arguments.seeds
            line(f"  {name}: head alone", alone, f"{len(head.rows):,} labels, {seconds:.0f} s")
            line(f"  {name}: fused", fused, f"weight {' '.join(map(str, weights))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    costs = commands.add_parser("cost")
    costs.add_argument("--labels", type=int, nargs="+", default=[100_000, 1_000_000])
    step = commands.add_parser("step")
    step.add_argument("kind")
    step.add_argument("labels", type=int)
    quality = commands.add_parser("wordnet")
    quality.add_argument("folder", type=Path)
    quality.add_argument("bundle", type=Path)
    quality.add_argument("--report", type=Path, required=True)
    quality.add_argument("--cache", type=Path, required=True)
    quality.add_argument("--documents", type=int, default=12_000)
    quality.add_argument("--seeds", type=int, default=3)
    quality.add_argument("--sources", nargs="+", default=["judgments", "self", "shortlists", "gold"])
    quality.add_argument("--parts", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "cost":
        cost(arguments.labels)
    elif arguments.command == "step":
        one_step(arguments.kind, arguments.labels)
    else:
        torch.set_num_threads(1)
        wordnet(arguments)


if __name__ == "__main__":
    main()
