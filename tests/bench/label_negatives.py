"""A training step against every label: the naive graph and the gradient cache.

Each way runs one step of all-MiniLM-L6-v2 in a process of its own, after a tiny
step that is not timed, and tells seconds and peak memory, the imports' included.
Documents and labels are repeated, with a number each time, until there are enough.

    python tests/bench/label_negatives.py --documents documents.jsonl --labels labels.jsonl \\
        --step naive,64,2000 --step cached,64,2000 --step cached,256,100000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ezxmc.data import read_documents, read_labels
from ezxmc.models import resolve_model
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.training.losses import Scored, combined
from ezxmc.training.step import Embedder, all_label_step

POSITIVES = 3
JUDGED = 14


def enough(texts: Sequence[str], count: int) -> list[str]:
    return [
        text if number < len(texts) else f"{text} {number // len(texts)}"
        for number, text in enumerate(islice(cycle(texts), count))
    ]


def known(rows: int, columns: int) -> dict[str, Tensor]:
    """Judgments at random: a few of each document, the first of them positive; all else is negative."""
    rng = np.random.default_rng(0)
    positives, probabilities = torch.zeros(2, rows, columns)
    judged = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        picks = torch.from_numpy(rng.choice(columns, JUDGED, replace=False))
        judged[row, picks] = True
        probabilities[row, picks] = torch.linspace(0.95, 0.05, JUDGED)
        positives[row, picks[:POSITIVES]] = probabilities[row, picks[:POSITIVES]]
    return {
        "positives": positives,
        "negatives": positives == 0,
        "probabilities": probabilities,
        "judged": judged,
    }


def step(way: str, documents: list[str], labels: list[str], options: argparse.Namespace) -> dict[str, Any]:
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = BiEncoder(
        resolve_model("all-MiniLM-L6-v2", kind="encoder"), max_length=options.max_length, device="cpu"
    )
    started = time.perf_counter()
    embed = Embedder(model, [*documents, *labels], "float32")
    tokenising = time.perf_counter() - started
    loss = combined({options.loss: 1.0}, 0.05)

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(embed(texts), dim=1)

    def once(rows: int, columns: int) -> float:
        masks = known(rows, columns)

        def loss_of(scores: Tensor) -> Tensor:
            return loss(Scored(scores, **masks))

        if way == "cached":
            return all_label_step(encode, documents[:rows], labels[:columns], loss_of, chunk=options.chunk)
        value = loss_of(encode(documents[:rows]) @ encode(labels[:columns]).T)
        value.backward()
        return value.item()

    once(2, JUDGED)
    model.model.zero_grad()
    started, used = time.perf_counter(), time.process_time()
    value = once(len(documents), len(labels))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    gradients = [parameter.grad for parameter in model.model.parameters() if parameter.grad is not None]
    return {
        "way": way,
        "documents": len(documents),
        "labels": len(labels),
        "tokens": sum(map(embed.length, documents)) + sum(map(embed.length, labels)),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "CPU seconds": round(used, 1),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "of these imports": imports // 1024,
        "tokenising, s (once per training)": round(tokenising, 1),
        "loss": value,
        "gradient norm": torch.stack([gradient.norm() for gradient in gradients]).norm().item(),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--documents", type=Path, required=True)
    arguments.add_argument("--labels", type=Path, required=True)
    arguments.add_argument(
        "--step", action="append", required=True, metavar="WAY,DOCUMENTS,LABELS", help="naive or cached"
    )
    arguments.add_argument("--loss", default="decoupled_softmax")
    arguments.add_argument("--chunk", type=int, default=256, help="labels encoded at once")
    arguments.add_argument("--max-length", type=int, default=64, help="tokens of a document")
    options = arguments.parse_args()
    texts = [document.shown for document in read_documents(options.documents)[0]]
    titles = [label.title for label in read_labels(options.labels)[0]]
    for one in options.step:
        way, rows, columns = one.split(",")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            work = pool.submit(step, way, enough(texts, int(rows)), enough(titles, int(columns)), options)
            print(json.dumps(work.result()), flush=True)


if __name__ == "__main__":
    main()
