"""The debtags development data: rows, parts and figures."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ezxmc.hashing import text_hash
from ezxmc.records import Document, Judgment, Label, Status
from ezxmc.retrieval import BiEncoder, LabelIndex

DEBTAGS = Path(os.environ.get("EZXMC_DEBTAGS", Path(__file__).parents[3] / "shared" / "data" / "debtags"))


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEBTAGS / name).read_text(encoding="utf-8").splitlines()]


def judgments() -> list[Judgment]:
    return [
        Judgment("0" * 64, row["doc"], row["label"], Status.OK, row["log_odds"], row["mass"])
        for row in rows("judgments.jsonl")
    ]


def catalog() -> tuple[list[Document], list[Label], dict[str, set[str]]]:
    """Documents, labels, and gold of these labels."""
    documents = [Document(row["uid"], row["title"], row["content"]) for row in rows("documents.jsonl")]
    labels = [Label(row["uid"], row["title"]) for row in rows("labels_faceted.jsonl")]
    known = {label.uid for label in labels}
    gold: dict[str, set[str]] = defaultdict(set)
    for line in (DEBTAGS / "qrels.tsv").read_text(encoding="utf-8").splitlines():
        document, label = line.split("\t")[:2]
        if label in known:
            gold[document].add(label)
    return documents, labels, gold


def share(uid: str) -> float:
    """A document's place in [0, 1), by its uid alone."""
    return int(text_hash("probe", uid)[:8], 16) / 2**32


def figures(
    model: str | Path, length: int, documents: list[Document], labels: list[Label], gold: dict[str, set[str]]
) -> dict[str, float]:
    encoder = BiEncoder(model, max_length=length)
    index = LabelIndex(encoder.encode_labels([label.title for label in labels]))
    _, found = index.search(encoder.encode_documents([document.shown for document in documents]), 50)
    hits = np.array(
        [[labels[row].uid in gold[d.uid] for row in best] for d, best in zip(documents, found, strict=True)]
    )
    sizes = np.array([len(gold[document.uid]) for document in documents])
    precision = {f"P@{k}": 100 * float(hits[:, :k].mean()) for k in (1, 3, 5)}
    return precision | {f"R@{k}": 100 * float((hits[:, :k].sum(axis=1) / sizes).mean()) for k in (10, 50)}
