"""BM25 over many labels: `LexicalIndex`, which looks at postings only, against bm25s' own search.

    python tests/bench/lexical.py WORDNET_FOLDER [--labels 1000000] [--documents 500]

Labels and documents are those of million.py. Both are one process and one thread of Python; bm25s' with
its default numpy backend scores every label for every document.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import bm25s
import numpy as np
from million import make

from ezxmc.data import read_documents, read_labels
from ezxmc.retrieval.shortlist import LexicalIndex, terms

_DEPTH = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="documents.jsonl, labels.jsonl, qrels.tsv")
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(given.source, Path(folder), given.labels, given.documents)
        labels, _ = read_labels(Path(folder) / "labels.jsonl")
        documents, _ = read_documents(Path(folder) / "documents.jsonl")
    texts = [document.shown for document in documents]
    theirs = bm25s.BM25()
    theirs.index([terms(label.title) for label in labels], show_progress=False)
    ours = LexicalIndex(labels)

    queries = [list(dict.fromkeys(terms(text))) for text in texts]
    started = time.perf_counter()
    rows, scores = theirs.retrieve(queries, k=_DEPTH, show_progress=False)
    wanted = time.perf_counter() - started
    started = time.perf_counter()
    found = ours.search(texts, _DEPTH)
    took = time.perf_counter() - started
    same = sum(
        np.allclose(np.sort(theirs.get_scores(query)[mine]), np.sort(score[score > 0]), atol=1e-3)
        for query, mine, score in zip(queries[:100], found, scores, strict=False)
    )
    print(f"{len(labels):,} labels, {len(texts):,} documents, {_DEPTH} best; seconds for all documents")
    print(f"bm25s {wanted:.2f}   LexicalIndex {took:.3f}   {wanted / took:.0f} times")
    print(f"documents of the first {min(100, len(texts))} with the same scores: {same}; rows {rows.shape}")


if __name__ == "__main__":
    main()
