"""A data set of our own with its card."""

from __future__ import annotations

import json
from pathlib import Path


def own(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    documents = [("a", "One", "x y"), ("b", "one", " X  Y"), ("c", "Two", ""), ("d", "", "three")]
    rows = [{"uid": uid, "title": title, "text": text} for uid, title, text in documents]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = [("l0", "Boat"), ("l1", "boat "), ("l2", "Sea"), ("l3", "Sky")]
    labels = [{"uid": uid, "title": title} for uid, title in titles]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (folder / "gold.tsv").write_text("a\tl0\na\tl2\nb\tl0\nd\tl0\nd\tl9\nd\tl2\n")
    return folder
