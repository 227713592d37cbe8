"""What `tests/bench/methods.py` needs for a student of two cycles, from recorded judgments.

    python tests/bench/former.py DOCUMENTS LABELS GOLD JUDGMENTS OUT --report UIDS \\
        --first PART ... --then PART ...

JUDGMENTS is a Parquet file with a column `part`. OUT/student is the former student, who learns from the
parts `--first` names and proposed those `--then` names: for `--proposer`. OUT/judgments.parquet holds all
of these parts: for `--judgments`. Gold is read to find the documents outside the report part, not learned
from. The tables of the data cards:

    debtags   labels_faceted.jsonl, tests/bench/debtags/judgments.parquet, tests/bench/debtags/report.txt,
              --first prior first --then second
    wordnet   files of tests/bench/wordnet/sample.py, tests/bench/wordnet/judgments.parquet,
              --first "cycle 1" --then "cycle 2"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmark import Benchmark, load_benchmark
from task import Task

from ezxmc.config import TrainingConfig
from ezxmc.feedback.targets import build_targets
from ezxmc.progress import NoProgress
from ezxmc.training import train_bi_encoder

SHOWN = ("P@1", "P@3", "P@5", "R@10", "R@50")
HEADS = "  ".join(f"{name:>5}" for name in SHOWN)


def opened(
    documents: Path, labels: Path, gold: Path, report: Path, judgments: Path, proposer: Path | None = None
) -> Benchmark:
    """A benchmark on recorded judgments, as the command opens it by default."""
    return load_benchmark(
        str(documents),
        str(labels),
        str(gold),
        judgments=judgments,
        report_judgments=None,
        config=TrainingConfig(),
        proposer=str(proposer) if proposer else None,
        report_share=0,
        report=report,
        propensity=(0.55, 1.5),
        watch=NoProgress(),
    )


def parts(judgments: Path, names: list[str], out: Path) -> Path:
    """Some parts of the judgments, in a file of their own."""
    table = pq.read_table(judgments)
    known = pc.is_in(table["part"].cast("string"), pc.cast(names, "string"))
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.filter(known), out)
    return out


def recorded(
    sets: Path, folder: Path, dataset: str = "debtags", part: str = "development"
) -> tuple[tuple[Path, Path, Path, Path], Path, Path]:
    """Files for `opened`, figures being of `part`, and judgments of the first cycle and of both."""
    data = Path(__file__).parent / dataset
    if dataset == "debtags":
        names, uids = ("documents.jsonl", "labels_faceted.jsonl", "qrels.tsv"), data / f"{part}.txt"
        asked, then = ["prior", "first"], ["second"]
    else:
        of = {"development": "train.jsonl", "report": "all.jsonl"}
        names, uids = (of[part], "labels.jsonl", "qrels.tsv"), sets / f"{part}.txt"
        asked, then = ["cycle 1"], ["cycle 2"]
    documents, labels, gold = (sets / name for name in names)
    first = parts(data / "judgments.parquet", asked, folder / "first.parquet")
    both = parts(data / "judgments.parquet", [*asked, *then], folder / "second.parquet")
    return (documents, labels, gold, uids), first, both


def first_student(task: Task, out: Path) -> None:
    """Train on a task's judgments without a former student; a share of the documents selects the epoch."""
    judged = {judgment.doc_uid for judgment in task.judgments}
    apart = task.set_apart(sorted(judged), task.config.held_out, 0)
    train_bi_encoder(
        [document for document in task.rest if document.uid in judged - apart],
        task.labels,
        build_targets(task.judgments, task.config, task.context),
        task.config,
        out,
        held_out=[document for document in task.rest if document.uid in apart],
    )


def figures(bench: Benchmark, rows: Sequence[Sequence[int] | None]) -> str:
    """SHOWN of a ranking, in %, aligned with `HEADS`."""
    uids = [None if row is None else [bench.task.labels[label].uid for label in row] for row in rows]
    values, _ = bench.judge.score(uids)
    return "  ".join(f"{100 * values[name]:5.1f}" for name in SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("documents", "labels", "gold", "judgments", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--report", type=Path, required=True, help="uids reported on, one a line")
    parser.add_argument("--first", nargs="+", required=True, metavar="PART")
    parser.add_argument("--then", nargs="+", required=True, metavar="PART")
    args = parser.parse_args()
    first = parts(args.judgments, args.first, args.out / "first.parquet")
    bench = opened(args.documents, args.labels, args.gold, args.report, first)
    first_student(bench.task, args.out / "student")
    parts(args.judgments, [*args.first, *args.then], args.out / "judgments.parquet")


if __name__ == "__main__":
    main()
