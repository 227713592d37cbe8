"""The part of wordnet that the methods are compared on: 12,000 documents to learn from, 2,000 to report on.

Of the 12,000, 2,000 that were never judged are named in OUT/development.txt, to choose by.

    python tests/bench/wordnet/sample.py WORDNET_FOLDER OUT
    cp tests/bench/wordnet/run.yaml OUT && ezxmc run OUT/run.yaml
    python tests/bench/methods.py OUT/all.jsonl OUT/labels.jsonl OUT/qrels.tsv --report OUT/report.txt \\
        --judgments OUT/run/feedback.sqlite --proposer OUT/run/cycles/1/student

`tests/bench/wordnet/judgments.parquet` holds the judgments of such a run; with `tests/bench/former.py` they
take its place.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq

LEARN, REPORT, DEVELOPMENT = 12_000, 2_000, 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="documents.jsonl, labels.jsonl, qrels.tsv, split.tsv")
    parser.add_argument("out", type=Path)
    source, out = vars(parser.parse_args()).values()
    out.mkdir(parents=True, exist_ok=True)
    with (source / "split.tsv").open(encoding="utf-8") as lines:
        part_of = dict(csv.reader(lines, delimiter="\t"))
    rows = [json.loads(line) for line in (source / "documents.jsonl").open(encoding="utf-8")]
    rows.sort(key=lambda row: hashlib.sha256(f"wordnet4{row['uid']}".encode()).hexdigest())
    learn = [row for row in rows if part_of[row["uid"]] == "train"][:LEARN]
    report = [row for row in rows if part_of[row["uid"]] == "test"][:REPORT]
    judged = set(pq.read_table(Path(__file__).parent / "judgments.parquet")["doc"].to_pylist())
    free = sorted(row["uid"] for row in learn if row["uid"] not in judged)
    development = random.Random(7).sample(free, DEVELOPMENT)
    for name, some in (("train.jsonl", learn), ("all.jsonl", [*learn, *report])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (out / name).write_text(text, encoding="utf-8")
    for name, uids in (("report.txt", [row["uid"] for row in report]), ("development.txt", development)):
        (out / name).write_text("".join(f"{uid}\n" for uid in uids), encoding="utf-8")
    chosen = {row["uid"] for row in (*learn, *report)}
    pairs = (source / "qrels.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "qrels.tsv").write_text(
        "".join(pair for pair in pairs if pair.split("\t")[0] in chosen), encoding="utf-8"
    )
    shutil.copy(source / "labels.jsonl", out)


if __name__ == "__main__":
    main()
