"""Files → a task for the methods, and a judge that scores and compares their rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from task import Task

from ezxmc.config import TrainingConfig
from ezxmc.data import RowReport, iter_rows, read_documents, read_gold, read_labels, split_documents
from ezxmc.errors import DataError
from ezxmc.feedback.recall import judgments_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import context_of
from ezxmc.hashing import json_hash, text_hash
from ezxmc.metrics import (
    Frequencies,
    RankingMetrics,
    Terms,
    differences,
    encode,
    precision_by_document,
    recall_by_document,
)
from ezxmc.progress import Progress
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.teacher.base import ReplayTeacher

PAIRED = {
    "P@1": (precision_by_document, 1),
    "P@5": (precision_by_document, 5),
    "R@10": (recall_by_document, 10),
}
"""Metrics kept document by document, for intervals and for the human equivalent."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """Scores rankings against gold no method has seen.

    Attributes:
        gold: Right labels of each document to report on, none empty.
        frequencies: Of every label, counted outside the report part.
    """

    gold: Sequence[set[str]]
    frequencies: Frequencies

    @classmethod
    def of(
        cls, gold: Sequence[set[str]], counts: Mapping[str, int], documents: int, a: float, b: float
    ) -> Judge:
        """A judge with propensities and groups of the gold outside the report part.

        Args:
            gold: Right labels of each document to report on.
            counts: Gold documents of every label outside the report part.
            documents: Gold documents there.
            a: See `inverse_propensity`.
            b: See `inverse_propensity`.
        """
        return cls(gold, Frequencies.of(counts, documents, a, b))

    def score(
        self, ranked: Sequence[Sequence[str] | None]
    ) -> tuple[dict[str, float], dict[str, list[float | None]]]:
        """Metrics of a ranking; documents ranked `None` are left out.

        P@5 and R@10 of a group count the gold labels of that group only, in
        the ranking over all labels; documents without one are left out.

        Returns:
            Means by metric, in [0, 1], and `PAIRED` by document (`None` where left out).
        """
        kept = [i for i, labels in enumerate(ranked) if labels is not None]
        lists = [list(labels) for labels in ranked if labels is not None]
        gold = [self.gold[i] for i in kept]
        known = self.frequencies
        metrics = RankingMetrics(coverage_ks=(), inverse=known.inverse, group=known.group)
        metrics.update(*encode(lists, gold, dict(known.ids)))
        by_document = {}
        for name, (metric, k) in PAIRED.items():
            column: list[float | None] = [None] * len(ranked)
            for i, value in zip(kept, metric(lists, gold, k).tolist(), strict=True):
                column[i] = round(value, 5)
            by_document[name] = column
        return metrics.result().values, by_document


def difference(first: _Floats, second: _Floats) -> dict[str, Any]:
    """Mean of `first − second` over the documents both have, and its 95% interval (`differences`).

    Args:
        first: (N,) one value a document; NaN where it has none.
        second: The same documents.

    Returns:
        `mean`, `low`, `high` and `documents`; without common documents only the last, 0.
    """
    both = ~np.isnan(first - second)
    count = int(both.sum())
    if not count:
        return {"documents": 0}
    runs = [Terms(("mean",), run[both, None], np.ones((count, 1))) for run in (first, second)]
    found = differences(*runs)["mean"]
    return {"mean": found.value, "low": found.low, "high": found.high, "documents": count}


def human_equivalent(quality: float, curve: Mapping[int, float]) -> tuple[str, float]:
    """How many human-labelled documents give a supervised model the same quality.

    Between two points of its learning curve quality is linear in ln n; a point
    below an earlier one counts as that one.

    Args:
        quality: Of the model compared.
        curve: Quality of the supervised model by number of documents; not empty.

    Returns:
        ("=", documents), or ("<", fewest) or (">", most) beyond the curve's ends.
    """
    sizes = np.array(sorted(curve), dtype=np.float64)
    values = np.maximum.accumulate([curve[int(size)] for size in sizes])
    if quality < values[0]:
        return "<", float(sizes[0])
    if quality > values[-1]:
        return ">", float(sizes[-1])
    # np.interp needs rising points: of equal ones the smallest number of documents counts.
    first = np.unique(values, return_index=True)[1]
    return "=", float(np.exp(np.interp(quality, values[first], np.log(sizes[first]))))


_SQLITE = b"SQLite format 3\0"
_FEWEST = 3  # documents with gold on either side; propensities need as many


@dataclass(frozen=True)
class Benchmark:
    """A task, and what only the evaluation knows.

    Attributes:
        task: For the methods.
        judge: With the gold of the documents reported on.
        hashes: Of the task's parts, by the names methods need them by, and "texts".
        seconds_per_judgment: The teacher's speed, if its store tells.
        bad_rows: Rows of the inputs left out.
    """

    task: Task
    judge: Judge
    hashes: dict[str, str]
    seconds_per_judgment: float | None
    bad_rows: int

    @property
    def counts(self) -> dict[str, int]:
        """Sizes, for people."""
        task = self.task
        return {
            "labels": len(task.labels),
            "documents reported on": len(task.report),
            "other documents": len(task.rest),
            "of these with gold labels": len(task.gold),
            "of these judged": len({judgment.doc_uid for judgment in (*task.judgments, *task.context)}),
            "judgments of shortlists": len(task.judgments),
            "judgments for the labels' priors": len(task.context),
            "judgments of documents reported on": len(task.report_judgments),
        }


def load_benchmark(
    documents: str,
    labels: str,
    gold: str,
    *,
    judgments: Path | None,
    report_judgments: Path | None,
    config: TrainingConfig,
    proposer: str | None,
    report_share: float,
    report: Path | None,
    propensity: tuple[float, float],
    watch: Progress,
) -> Benchmark:
    """Read and divide a catalog.

    The report part are documents with gold, none of them judged in `judgments`: those listed in `report`, or
    else those whose uid's hash falls into `report_share` (`split_documents`, seed 0).

    Args:
        documents: See examples/tutorial, Input files.
        labels: Likewise.
        gold: Likewise.
        judgments: A feedback store (its newest teacher counts), or recorded judgments.
        report_judgments: The same, of documents reported on.
        config: How the student is trained.
        proposer: Encoder to fuse with the teacher: the former student that proposed the judged pairs.
        report_share: In [0, 1].
        report: A file of uids, one a line.
        propensity: A and B of `inverse_propensities`.
        watch: Told how reading went.

    Raises:
        DataError: A file cannot be read, or too few documents have gold on one of the two sides.
    """
    docs, doc_rows = read_documents(documents)
    tags, tag_rows = read_labels(labels)
    by_uid, tag_of = {document.uid: document for document in docs}, {label.uid: label for label in tags}
    right, gold_rows = read_gold(
        gold, documents=by_uid.keys(), labels={label.uid: label.title for label in tags}
    )
    for name, rows in (("documents", doc_rows), ("labels", tag_rows), ("gold", gold_rows)):
        rows.tell(watch.say, name)
    right = {uid: found for uid, found in right.items() if found}
    asked, seconds = read_judgments(judgments, by_uid, tag_of) if judgments else ([], None)
    judged = {judgment.doc_uid for judgment in asked}
    share = split_documents([uid for uid in by_uid if uid in right], report_share, 0)[1]
    if report is not None:
        listed = set(_lines(report))
        share = [uid for uid in by_uid if uid in right and uid in listed]
    reported = [uid for uid in share if uid not in judged]
    apart = set(reported)
    known = {uid: found for uid, found in right.items() if uid not in apart}
    if min(len(reported), len(known)) < _FEWEST:
        raise DataError(
            f"{len(reported)} unjudged documents with gold to report on and {len(known)} others are too few",
            "change --report-share, or judge fewer of the documents",
        )
    context = context_of(asked, len(tags))
    everywhere = {judgment.doc_uid for judgment in context}
    # Where all documents are judged on all labels, these are shortlists too.
    shortlists = [judgment for judgment in asked if judgment.doc_uid not in everywhere] or asked
    answers = read_judgments(report_judgments, by_uid, tag_of)[0] if report_judgments else []
    task = Task(
        labels=tags,
        report=[by_uid[uid] for uid in reported],
        rest=[document for document in docs if document.uid not in apart],
        gold=known,
        judgments=shortlists,
        context=context,
        report_judgments=[judgment for judgment in answers if judgment.doc_uid in apart],
        config=config,
        proposer=proposer,
        watch=watch,
    )
    a, b = propensity
    judge = Judge.of([right[uid] for uid in reported], task.gold_counts(), len(known), a, b)
    hashes = _hashes(task, right, reported, propensity)
    return Benchmark(task, judge, hashes, seconds, doc_rows.bad + tag_rows.bad + gold_rows.bad)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give a text file, one uid a line") from error


def read_judgments(
    source: Path, documents: Mapping[str, Document], labels: Mapping[str, Label]
) -> tuple[list[Judgment], float | None]:
    """Judgments of known documents and labels, and seconds per judgment where the file tells.

    Args:
        source: A feedback store, of which the newest teacher's are taken, or
            JSONL or Parquet that `ReplayTeacher` reads.
        documents: By uid.
        labels: By uid.

    Raises:
        DataError: The file is missing, or holds no judgment, or hardly any about these texts.
        StoreError: The store cannot be opened.
    """
    if not source.is_file():
        raise DataError(
            f"no judgments at {source}", "give a feedback.sqlite, or JSONL with doc, label, log_odds"
        )
    with source.open("rb") as handle:
        is_store = handle.read(len(_SQLITE)) == _SQLITE
    if is_store:
        with FeedbackStore(source) as store:
            fingerprint = store.newest_teacher()
            if fingerprint is None:
                raise DataError(f"{source} holds no judgment", "annotate first")
            found = judgments_of(list(documents.values()), list(labels.values()), store, fingerprint)
            speed = store.totals(fingerprint).pairs_per_second
        return found.of_these_texts(str(source)).judgments, 1 / speed if speed else None
    pairs = {
        (str(row.get("doc")), str(row.get("label"))): None for _, _, row in iter_rows(source, RowReport())
    }
    known = (Pair(documents[d], labels[x]) for d, x in pairs if d in documents and x in labels)
    return list(ReplayTeacher(source).score(known)), None


def _hashes(
    task: Task, gold: Mapping[str, set[str]], report: list[str], propensity: tuple[float, float]
) -> dict[str, str]:
    def of(judgments: list[Judgment]) -> str:
        return text_hash(*sorted(f"{j.doc_uid}\n{j.label_uid}\n{j.log_odds}" for j in judgments))

    texts = (part for d in (*task.rest, *task.report) for part in (d.uid, d.shown))
    names = (part for label in task.labels for part in (label.uid, label.title, *label.aliases))
    settings = json_hash([task.config.encoder, task.config.max_length, propensity])
    # PSP and the groups depend on all gold, whatever a method uses.
    everything = json_hash({uid: sorted(found) for uid, found in gold.items()})
    return {
        "texts": text_hash(*texts, *names, settings, everything, *report),
        "gold": text_hash(*task.gold),
        "judgments": of([*task.judgments, *task.context]),
        "report_judgments": of(list(task.report_judgments)),
        "training": json_hash([task.config.model_dump(), task.proposer]),
    }
