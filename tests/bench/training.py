"""Training speed and quality: ezxmc's loop against the stock SentenceTransformerTrainer.

    python tests/bench/training.py SETS_FOLDER                  602 documents, 2 epochs
    python tests/bench/training.py SETS_FOLDER --documents 300 --epochs 1 --report 0

SETS_FOLDER holds documents.jsonl, labels_faceted.jsonl, qrels.tsv and judgments.jsonl
(data_cards/debtags.md).

Both sides learn from the same judgments with the same loss: decoupled softmax over two sampled positives
per document, in-batch and judged negatives, known positives masked, each title embedded once a batch
(`DistillationLoss`; its own losses would give the stock trainer neither masks nor that). Epochs, batch
size, AdamW, peak rate, warm-up, weight decay, gradient norm and text length are the same too. What differs
is the loop: order of the documents, padding, tokenising in each step, dropout, precision. Time is from the
loaded model to the last step, tokenising included; loading, selection and saving are not. Quality is of the
last epoch, on documents nobody judged.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.debtags import share

from ezxmc.config import TrainingConfig
from ezxmc.data import read_documents, read_gold, read_labels
from ezxmc.feedback.targets import Targets, build_targets
from ezxmc.metrics import precision_at_k, recall_at_k
from ezxmc.models import resolve_model
from ezxmc.records import Document, Judgment, Label, Status
from ezxmc.retrieval import BiEncoder, LabelIndex
from ezxmc.training import DistillationLoss, targets_dataset
from ezxmc.training.dataset import Example, examples
from ezxmc.training.step import Stepper


@dataclass(frozen=True)
class Task:
    """What both sides learn, and what they are measured on."""

    documents: list[Document]
    labels: list[Label]
    targets: Targets
    pool: list[Example]
    report: list[Document]
    gold: dict[str, set[str]]
    config: TrainingConfig

    @classmethod
    def read(cls, data: Path, config: TrainingConfig, documents: int | None, report: int | None) -> Task:
        labels, _ = read_labels(data / "labels_faceted.jsonl")
        known = {label.uid for label in labels}
        gold = {uid: known & set(tags) for uid, tags in read_gold(data / "qrels.tsv")[0].items()}
        lines = (data / "judgments.jsonl").read_text(encoding="utf-8").splitlines()
        judgments = [
            Judgment("0" * 64, row["doc"], row["label"], Status.OK, row["log_odds"], row["mass"])
            for row in map(json.loads, lines)
        ]
        judged = {judgment.doc_uid for judgment in judgments}
        everything, _ = read_documents(data / "documents.jsonl")
        train = [d for d in everything if d.uid in judged and share(d.uid) >= 1 / 7][:documents]
        unseen = [d for d in everything if d.uid not in judged and gold.get(d.uid) and share(d.uid) < 0.2]
        targets = build_targets(judgments, config)
        pool = [e for e in examples(train, labels, targets) if e.positives]
        return cls(train, labels, targets, pool, unseen[:report], gold, config)

    def encoder(self) -> BiEncoder:
        path = resolve_model(self.config.encoder, kind="encoder")
        return BiEncoder(path, max_length=self.config.max_length)

    def quality(self, encoder: BiEncoder) -> dict[str, float]:
        if not self.report:
            return {}
        index = LabelIndex(encoder.encode_labels([label.title for label in self.labels]))
        _, found = index.search(encoder.encode_documents([d.shown for d in self.report]), 10)
        ranked = [[self.labels[row].uid for row in best] for best in found]
        gold = [self.gold[document.uid] for document in self.report]
        return {"P@1": 100 * precision_at_k(ranked, gold, 1), "R@10": 100 * recall_at_k(ranked, gold, 10)}


class Clock:
    """Wall and processor seconds since it was made: the latter still mean something on a busy machine."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.processor


Trained = tuple[tuple[float, float], BiEncoder]


def ours(task: Task, seed: int) -> Trained:
    encoder = task.encoder()
    torch.manual_seed(seed)
    clock = Clock()
    texts, titles = [d.shown for d in task.documents], [label.title for label in task.labels]
    stepper = Stepper(encoder, texts, titles, task.pool, task.config, np.random.default_rng(seed))
    for _ in range(stepper.plan.epochs):
        list(stepper.epoch())
    return clock.read(), encoder


def stock(task: Task, seed: int) -> Trained:
    encoder = task.encoder()
    learnt = task.documents, task.labels, task.targets
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=task.config.epochs,
            per_device_train_batch_size=task.config.batch_size,
            learning_rate=task.config.learning_rate,
            weight_decay=0.01,
            warmup_steps=0.1,
            max_grad_norm=1.0,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock = Clock()
        SentenceTransformerTrainer(
            model=encoder.model,
            args=arguments,
            train_dataset=targets_dataset(*learnt, "documents"),
            loss=DistillationLoss(encoder.model, *learnt, task.config, seed=seed),
        ).train()
        return clock.read(), encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, help="train on so many; default: all 602")
    parser.add_argument("--report", type=int, help="measure quality on so many; default: all 1,040")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="ours")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    config = TrainingConfig(
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        precision=asked.precision,
    )
    task = Task.read(asked.data, config, asked.documents, asked.report)
    passed = asked.epochs * len(task.pool)
    print(f"{len(task.pool)} documents x {asked.epochs} epochs, {torch.get_num_threads()} threads")
    print("untrained ", shown_figures(task.quality(task.encoder())))
    for seed in range(asked.seeds):
        took = {}
        for name, train in (("ezxmc", ours), ("stock", stock)):
            took[name], encoder = train(task, seed)
            wall, processor = took[name]
            figures = {"documents/s": passed / wall, "per processor second": passed / processor}
            figures |= task.quality(encoder)
            print(f"{name}, seed {seed}", shown_figures(figures), flush=True)
        wall, processor = (theirs / own for theirs, own in zip(took["stock"], took["ezxmc"], strict=True))
        print(f"ratio {wall:.2f} by the clock, {processor:.2f} by processor time", flush=True)


def shown_figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
