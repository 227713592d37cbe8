"""What does each part of a shortlist add? Recall of the gold labels at several sizes.

    python tests/bench/shortlists.py DEBTAGS --labels labels_faceted.jsonl
    python tests/bench/shortlists.py WORDNET --names     "whole, unit" as a title and an alias
    python tests/bench/shortlists.py DEBTAGS --labels labels_faceted.jsonl --encoder runs/x/cycles/1/student
    python tests/bench/shortlists.py FRENCH --gold gold.tsv     of examples/debian_catalog --language fr
    python tests/bench/shortlists.py FRENCH --own-titles        BM25: a document's title by its text

FOLDER holds documents.jsonl, qrels.tsv (or --gold) and the labels (data_cards/). The sample is drawn by hash
of uids.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.config import ShortlistConfig
from ezxmc.data import read_documents, read_gold, read_labels
from ezxmc.hashing import text_hash
from ezxmc.models import resolve_model
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder, LexicalIndex, shortlist

SIZES = (5, 8, 10, 14, 20, 50)
DENSE = ShortlistConfig(size=max(SIZES), explore=0, lexical=False, centre=0, descriptions=0)
WAYS: dict[str, dict[str, Any]] = {
    "dense": {},
    "+ BM25": {"lexical": True},
    "+ centre": {"centre": 0.5},
    "+ descriptions": {"descriptions": 0.5},
    "centre, descriptions": {"centre": 0.5, "descriptions": 0.5},
    "BM25, centre": {"lexical": True, "centre": 0.5},
    "all": {"lexical": True, "centre": 0.5, "descriptions": 0.5},
}


class Remembering:
    """Encodes every text once."""

    def __init__(self, encoder: BiEncoder) -> None:
        self.encoder, self.vectors = encoder, {}

    def encode_documents(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        self.vectors |= dict(zip(new, self.encoder.encode_documents(new), strict=True))
        return np.stack([self.vectors[text] for text in texts])

    encode_labels = encode_documents


def recall(
    documents: Sequence[Document],
    labels: Sequence[Label],
    encoder: Remembering,
    config: ShortlistConfig,
    gold: dict[str, set[str]],
) -> dict[str, float]:
    """R@k in percent, the mean over documents."""
    found = [found.labels for found in shortlist(documents, labels, encoder, config)]
    return recalls(documents, labels, found, gold)


def recalls(
    documents: Sequence[Document],
    labels: Sequence[Label],
    found: Sequence[Sequence[int]],
    gold: dict[str, set[str]],
) -> dict[str, float]:
    """The same of labels found by their rows."""
    hits = []
    for document, rows in zip(documents, found, strict=True):
        right = np.isin([labels[row].uid for row in rows], list(gold[document.uid]))
        hits.append([right[:k].sum() / len(gold[document.uid]) for k in SIZES])
    return {f"R@{k}": 100 * float(value) for k, value in zip(SIZES, np.mean(hits, axis=0), strict=True)}


def row(name: str, values: dict[str, float], seconds: float) -> None:
    print(f"{name:24}{''.join(f'{value:8.1f}' for value in values.values())}{seconds:8.1f}", flush=True)


def bm25(documents: Sequence[Document], labels: Sequence[Label], gold: dict[str, set[str]]) -> None:
    started = time.monotonic()
    found = LexicalIndex(labels).search([document.shown for document in documents], max(SIZES))
    row("BM25 alone", recalls(documents, labels, found, gold), time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", default="labels.jsonl")
    parser.add_argument("--gold", default="qrels.tsv")
    parser.add_argument("--own-titles", action="store_true", help="labels are the titles of all documents")
    parser.add_argument("--sample", type=int, default=500, help="documents with gold, default 500")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2")
    parser.add_argument("--most", type=int, help="labels: the sample's gold ones and others up to so many")
    parser.add_argument("--names", action="store_true", help="a title's parts between commas become aliases")
    parser.add_argument("--way", action="append", help="name=settings as JSON, instead of the listed ways")
    asked = parser.parse_args()
    documents, _ = read_documents(asked.folder / "documents.jsonl")
    head = f"{'':24}" + "".join(f"{f'R@{k}':>8}" for k in SIZES) + f"{'s':>8}"
    if asked.own_titles:
        told = [document for document in documents if document.title and document.text]
        print(f"{len(told):,} documents and titles\n{head}")
        titles = [Label(document.uid, document.title) for document in told]
        bm25([replace(one, title="") for one in told], titles, {one.uid: {one.uid} for one in told})
        return
    labels, _ = read_labels(asked.folder / asked.labels)
    if asked.names:
        split = [label.title.split(", ") for label in labels]
        labels = [
            replace(label, title=first, aliases=tuple(rest))
            for label, (first, *rest) in zip(labels, split, strict=True)
        ]
    gold, _ = read_gold(asked.folder / asked.gold, labels={label.uid for label in labels})
    tagged = sorted(
        (d for d in documents if gold.get(d.uid)), key=lambda d: text_hash("bench shortlists", d.uid)
    )[: asked.sample]
    if asked.most:
        wanted = set().union(*(gold[d.uid] for d in tagged))
        labels.sort(key=lambda label: (label.uid not in wanted, text_hash("bench shortlists", label.uid)))
        del labels[max(asked.most, len(wanted)) :]
    encoder = Remembering(BiEncoder(resolve_model(asked.encoder, kind="encoder"), max_length=256))
    ways = WAYS
    if asked.way:
        ways = {way.partition("=")[0]: json.loads(way.partition("=")[2]) for way in asked.way}
    print(f"{len(tagged):,} documents, {len(labels):,} labels\n{head}")
    bm25(tagged, labels, gold)
    for name, settings in ways.items():
        started = time.monotonic()
        values = recall(tagged, labels, encoder, DENSE.model_copy(update=settings), gold)
        row(name, values, time.monotonic() - started)


if __name__ == "__main__":
    main()
