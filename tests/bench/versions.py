"""Is this version as fast as a former one? The same work by both, turn about, in one run.

    git worktree add OLD 7aef8be
    python tests/bench/versions.py OLD DEBTAGS [--rounds 3] [--only encoding training labels teacher]

Each measurement is a process of its own that imports the package of one checkout; its seconds leave imports
and loading out. encoding: 300 documents by all-MiniLM-L6-v2. training: an epoch on the recorded judgments of
300 documents. labels: an index of 100,000 vectors and 2,000 searches, BM25 over 100,000 titles and 300 texts.
teacher: 24 documents x 14 labels by the 1.5B model, the engine's start left out. What is told is each one's
fastest round and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def encoding(data: Path, models: Path) -> float:
    from ezxmc.data import read_documents
    from ezxmc.retrieval import BiEncoder

    texts = [document.shown for document in read_documents(data / "documents.jsonl")[0][:300]]
    encoder = BiEncoder(models / "all-MiniLM-L6-v2", max_length=256, precision="auto")
    encoder.encode_documents(texts[:32])
    began = time.perf_counter()
    encoder.encode_documents(texts)
    return time.perf_counter() - began


def training(data: Path, models: Path) -> float:
    from ezxmc.config import TrainingConfig
    from ezxmc.data import read_documents, read_labels
    from ezxmc.feedback.targets import build_targets
    from ezxmc.records import Judgment, Status
    from ezxmc.training import train_bi_encoder

    documents, _ = read_documents(data / "documents.jsonl")
    tags, _ = read_labels(data / "labels_faceted.jsonl")
    lines = (data / "judgments.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = set(list(dict.fromkeys(row["doc"] for row in rows))[:300])
    asked = [
        Judgment(str(i), row["doc"], row["label"], Status.OK, row["log_odds"], row["mass"])
        for i, row in enumerate(rows)
        if row["doc"] in chosen
    ]
    config = TrainingConfig(epochs=1, prior="estimated", encoder=str(models / "all-MiniLM-L6-v2"))
    with tempfile.TemporaryDirectory() as folder:
        part = [document for document in documents if document.uid in chosen]
        done = train_bi_encoder(part, tags, build_targets(asked, config), config, Path(folder) / "student")
    return done.seconds


def labels(data: Path, models: Path) -> float:
    import numpy as np

    from ezxmc.data import read_documents
    from ezxmc.records import Label
    from ezxmc.retrieval.index import LabelIndex

    try:
        from ezxmc.retrieval.shortlist import LexicalIndex
    except ImportError:
        from ezxmc.retrieval.lexical import LexicalIndex
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(102_000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [document.shown for document in read_documents(data / "documents.jsonl")[0][:300]]
    words = sorted({word for text in texts for word in text.split()})
    titles = [" ".join(rng.choice(words, 3)) for _ in range(100_000)]
    named = [Label(str(i), title) for i, title in enumerate(titles)]
    began = time.perf_counter()
    LabelIndex.build(vectors[:100_000]).search(vectors[100_000:], 10)
    LexicalIndex(named).search(texts, 28)
    return time.perf_counter() - began


def teacher(data: Path, models: Path) -> float:
    from ezxmc.data import read_documents, read_labels
    from ezxmc.records import Pair

    try:
        from ezxmc.teacher.vllm import VllmTeacher
    except ImportError:
        from ezxmc.teacher.vllm_local import VllmTeacher
    try:
        from ezxmc.config.teacher import VllmTeacherConfig
    except ImportError:
        from ezxmc.config import VllmTeacherConfig
    documents, _ = read_documents(data / "documents.jsonl")
    tags, _ = read_labels(data / "labels_faceted.jsonl")
    config = VllmTeacherConfig(model="Qwen2.5-Coder-1.5B-Instruct", prompt="software")
    asks = VllmTeacher(config)
    list(asks.score([Pair(documents[-1], tag) for tag in tags[:14]]))
    pairs = [Pair(document, tag) for i, document in enumerate(documents[:24]) for tag in tags[i : i + 14]]
    began = time.perf_counter()
    assert len(list(asks.score(pairs))) == len(pairs)
    seconds = time.perf_counter() - began
    asks.close()
    return seconds


WORK: dict[str, Callable[[Path, Path], float]] = {
    "encoding": encoding,
    "training": training,
    "labels": labels,
    "teacher": teacher,
}


def measured(checkout: Path, name: str, data: Path) -> float:
    """Seconds of one measurement by the package of a checkout."""
    env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, str(Path(__file__).resolve()), str(checkout), str(data), "--child", name]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd="/")
    if done.returncode:
        raise SystemExit(f"{name} by {checkout}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(WORK), choices=list(WORK))
    parser.add_argument("--child", choices=list(WORK), help=argparse.SUPPRESS)
    options = parser.parse_args()
    data, new = options.data.resolve(), Path(__file__).parents[2]
    if options.child:
        models = Path(os.environ.get("EZXMC_HOME") or "~/.cache/ezxmc").expanduser() / "models"
        print(json.dumps(WORK[options.child](data, models)))
        return
    for name in options.only:
        found: dict[str, list[float]] = {"old": [], "new": []}
        for _ in range(options.rounds):
            found["old"].append(measured(options.old, name, data))
            found["new"].append(measured(new, name, data))
        old, fresh = min(found["old"]), min(found["new"])
        row: dict[str, Any] = {"old": round(old, 2), "new": round(fresh, 2), "ratio": round(fresh / old, 3)}
        print(json.dumps({"what": name} | row | {"all": found}), flush=True)


if __name__ == "__main__":
    main()
