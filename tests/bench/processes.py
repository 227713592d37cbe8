"""Training in one process and in several on the same processor cores: documents per second.

    python tests/bench/processes.py                                 2 processes of 1 thread, 1 of 2 threads
    OMP_NUM_THREADS=16 python tests/bench/processes.py --processes 4 --documents 2000

Documents are random words, 60 on average, of a small vocabulary, with three positives and three negatives
each among 300 labels. Loading, tokenising and selection are no part of the time; the summary of
`train_bi_encoder` gives it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from ezxmc.config import TrainingConfig
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.records import Document, Label
from ezxmc.training import train_bi_encoder

_WORDS = ["apple", "river", "stone", "cloud", "music", "paper", "engine", "garden", "silver", "window"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    documents = [
        Document(str(row), "", " ".join(rng.choice(_WORDS, size=rng.integers(20, 100))))
        for row in range(asked.documents)
    ]
    labels = [Label(str(row), " ".join(rng.choice(_WORDS, size=3))) for row in range(300)]
    found = []
    for document in documents:
        judged = tuple(map(str, rng.choice(len(labels), size=6, replace=False)))
        chances = np.linspace(0.9, 0.1, 6)
        found.append(DocumentTargets(document.uid, judged, chances, judged[:3], judged[3:]))
    targets = Targets(found, PriorCorrection({}, 0.0), 0, 0, 0, 0)
    for processes in (1, asked.processes):
        config = TrainingConfig(
            encoder=asked.encoder, epochs=1, batch_size=asked.batch_size, processes=processes
        )
        with tempfile.TemporaryDirectory() as folder:
            summary = train_bi_encoder(documents, labels, targets, config, Path(folder, "student"))
        print(
            f"{processes} processes, {max(1, torch.get_num_threads() // processes)} threads each: "
            f"{summary.samples_per_second:.1f} documents/s, loss {summary.losses[0]:.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
