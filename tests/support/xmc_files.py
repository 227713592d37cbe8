"""Benchmark files as their publishers write them, for readers to be held against."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from ezxmc.records import Document, Label


def write_sparse(path: Path, rows: list[list[tuple[int, float]]], columns: int) -> None:
    """`trn_X_Y.txt`: a header, then `column:value` by spaces."""
    lines = (" ".join(f"{column}:{value!r}" for column, value in sorted(row)) for row in rows)
    path.write_text("\n".join([f"{len(rows)} {columns}", *lines]) + "\n")


def write_pairs(path: Path, pairs: Iterable[tuple[int, int]]) -> None:
    """`filter_labels_test.txt`: a document and a label a line."""
    path.write_text("".join(f"{document} {label}\n" for document, label in pairs))


def write_label_text(path: Path, labels: Iterable[Label]) -> None:
    """`lbl.json.gz`: rows like documents with empty targets."""
    _write_rows(path, ((label.uid, label.title, label.text, []) for label in labels))


def write_raw_text(path: Path, rows: Iterable[tuple[Document, list[int]]]) -> None:
    """`trn.json.gz`: documents with the numbers of their labels."""
    _write_rows(path, ((one.uid, one.title, one.text, columns) for one, columns in rows))


def _write_rows(path: Path, rows: Iterable[tuple[str, str, str, list[int]]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="\n") as out:
        for uid, title, text, columns in rows:
            row = {"uid": uid, "title": title, "content": text, "target_ind": columns}
            out.write(json.dumps({**row, "target_rel": [1.0] * len(columns)}, ensure_ascii=False) + "\n")
