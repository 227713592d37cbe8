"""Parts of a run by themselves, on files: `ezxmc annotate`, `train`, `evaluate`; and a whole one's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ezxmc.bundle.manifest import MANIFEST, guarantee_of
from ezxmc.cluster import RayConfig
from ezxmc.config import BudgetConfig, DataConfig, TrainingConfig
from ezxmc.config.teacher import ReplayTeacherConfig, TeacherConfig
from ezxmc.data import Catalog, RowReport, read_gold, read_labels, read_shortlist
from ezxmc.data.catalog import Rows, Source, WithoutGold, read_inputs, settle_untagged
from ezxmc.data.forest import Forest
from ezxmc.data.predictions import read_predictions
from ezxmc.errors import ArgumentError, DataError
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.database import check_store
from ezxmc.feedback.exchange import merge_shards
from ezxmc.feedback.recall import newest_judgments, unused_judgments
from ezxmc.feedback.reviews import ReviewedPairs
from ezxmc.feedback.store import FeedbackStore, StoreTotals
from ezxmc.feedback.targets import build_targets, context_of, doubt
from ezxmc.files import sole_writer
from ezxmc.metrics.bootstrap import Difference
from ezxmc.metrics.evaluation import Evaluation, compare, evaluate
from ezxmc.progress import NoProgress, Progress, pulling, rank_and_size
from ezxmc.records import Prediction
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.teacher.base import ShardedTeacher
from ezxmc.teacher.check import tell_faults

if TYPE_CHECKING:
    from ezxmc.report import RunReport
    from ezxmc.training import TrainSummary


@dataclass(frozen=True, slots=True)
class Annotated:
    """What `annotate_shortlist` did.

    Attributes:
        store: Where the judgments are.
        summary: Counts, statuses and times of this call.
        unasked: Candidates that the budget left out.
        totals: What all sessions with this teacher cost.
        workers: What each worker of a cluster did.
        rows: How reading each input went, by name.
    """

    store: Path
    summary: AnnotateSummary
    unasked: int
    totals: StoreTotals
    workers: list[dict[str, Any]]
    rows: Rows = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without `rows`."""
        summary = self.summary
        return {
            "wanted": summary.wanted,
            "known": summary.known,
            "asked": summary.asked,
            "unasked_by_budget": self.unasked,
            "statuses": dict(summary.statuses),
            "problems": summary.to_dict()["problems"],
            "seconds": round(summary.seconds, 1),
            "startup_seconds": round(summary.startup_seconds, 1),
            "pairs_per_second": self.totals.pairs_per_second,
            "computed_tokens_per_pair": self.totals.computed_per_pair,
            "cache_share": self.totals.cache_share,
            "store": str(self.store),
            **({"workers": self.workers} if self.workers else {}),
        }


def annotate_shortlist(
    documents: Source,
    labels: Source,
    candidates: str | Path,
    teacher: Teacher | TeacherConfig,
    store: str | Path = "feedback.sqlite",
    *,
    budget: BudgetConfig | None = None,
    cluster: RayConfig | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    watch: Progress | None = None,
) -> Annotated:
    """Ask a teacher about every candidate of a file that the store does not know yet.

    Interrupted, the same call goes on and asks nothing twice.

    Args:
        documents: A file, or a list.
        labels: A file, or a list.
        candidates: What `ezxmc shortlist` or `write_shortlist` wrote of them.
        teacher: Who is asked, or which is to be loaded; the latter is closed at the end.
        store: The feedback store; made if absent.
        budget: Limits; with one on pairs, every document is asked about its first candidates.
        cluster: Where a teacher that is loaded works; by default in this process.
        columns: Columns of the files by the field they serve as.
        strict: Stop at the first bad row.
        watch: Sees stages and messages.

    Raises:
        ConfigError: The store's place is taken by something else.
        DataError: An input holds nothing usable, or the candidates are of other documents and labels.
        StoreError: The store cannot be written.
        TeacherError: The teacher cannot be loaded or does not answer; what it said before is kept.
    """
    watch, store = watch or NoProgress(), Path(store)
    replayed = teacher.judgments if isinstance(teacher, ReplayTeacherConfig) else None
    sources = (documents, labels, candidates, replayed)
    check_store(store, [one for one in sources if isinstance(one, str | Path)])
    (docs, doc_rows), (tags, tag_rows) = read_inputs(documents, labels, columns, strict=strict)
    rows: Rows = {
        "documents": doc_rows,
        "labels": tag_rows,
        "shortlist": (report := RowReport(strict=strict)),
    }
    wanted = read_shortlist(candidates, docs, tags, report)
    if not any(wanted):
        raise DataError(
            f"{candidates} proposes nothing for these documents and labels: {report.summary()}",
            "make it with `ezxmc shortlist` of the same files",
        )
    limits = Budget(budget or BudgetConfig(), [document.uid for document in docs], size=max(map(len, wanted)))
    part = limits.allocate(1, wanted)
    with FeedbackStore(store) as feedback:
        for name, one in (("documents", doc_rows), ("labels", tag_rows), ("shortlist", report)):
            one.tell(watch.say, name)
        if merged := merge_shards(feedback):
            watch.say(f"{merged:,} judgments of workers whose driver was interrupted")
        asked = teacher
        if not isinstance(asked, Teacher):
            asked = load_teacher(asked, cluster=cluster, progress=pulling(watch, "teacher"), say=watch.say)
        try:
            if unused := unused_judgments(feedback, asked):
                watch.say(unused)
            tell_faults(asked, watch.say)
            summary = annotate(
                lambda: pairs_of([docs[i] for i in part.order], tags, [part.rows[i] for i in part.order]),
                asked,
                feedback,
                stop=limits.stop(feedback, asked.fingerprint),
                progress=watch.stage("teacher judges"),
            )
        finally:
            if asked is not teacher:
                asked.close()
        if replayed:
            watch.say(f"{replayed} tells documents and labels by their ids: it must be of these very texts")
        totals = feedback.totals(asked.fingerprint)
    cut = summary.wanted - summary.known - summary.asked if summary.stopped else 0
    workers = asked.workers() if isinstance(asked, ShardedTeacher) else []
    rows["judgments"] = getattr(asked, "report", None)
    return Annotated(store, summary, part.unasked_pairs + cut, totals, workers, rows)


@dataclass(frozen=True, slots=True)
class Trained:
    """What `train_on_store` did.

    Attributes:
        out: The student's folder.
        summary: How the training went.
        unused_judgments: Judgments in the store that are about other texts.
        rows: How reading each input went, by name.
    """

    out: Path
    summary: TrainSummary
    unused_judgments: int
    rows: Rows = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without `rows`."""
        return {**self.summary.to_dict(), "unused_judgments": self.unused_judgments, "out": str(self.out)}


def train_on_store(
    data: DataConfig,
    store: str | Path,
    out: str | Path = "student",
    *,
    config: TrainingConfig | None = None,
    seed: int = 0,
    watch: Progress | None = None,
) -> Trained:
    """Distil the judgments of a store into a bi-encoder; people's decisions in it override the teacher's.

    What the teacher said about a text counts for that text, whatever its id is now.

    Args:
        data: Where documents and labels are.
        store: A feedback store; its newest teacher's judgments count.
        out: The student's folder.
        config: How to train; of the documents it holds out, half choose the epoch where these are 30, and
            half are left for `calibrate` with the same share and seed.
        seed: Of the split and the training.
        watch: Sees stages and messages.

    Raises:
        ConfigError: `out` is taken by something that is no student.
        DataError: An input cannot be used, or the store's judgments are of other texts.
        StoreError: The store is missing or cannot be read.
        TrainingError: There is nothing to learn from, or training diverged.
    """
    # Only here is torch needed: who asks a server does without.
    from ezxmc.retrieval.encoder import check_student_place

    watch, config, out = watch or NoProgress(), config or TrainingConfig(), Path(out)
    check_student_place(out, [data.documents, data.labels, store, config.encoder])
    # Of the processes that torchrun starts, one writes.
    with sole_writer(out) if rank_and_size()[0] == 0 else nullcontext():
        return _train(data, Path(store), out, config, seed, watch)


def _train(
    data: DataConfig, store: Path, out: Path, config: TrainingConfig, seed: int, watch: Progress
) -> Trained:
    from ezxmc.training import train_bi_encoder

    catalog = Catalog.load(data, config.held_out, seed, watch.say)
    apart = {catalog.documents[i].uid for i in catalog.to_calibrate}
    recalled = newest_judgments(store, catalog.documents, catalog.labels, watch.say)
    judgments = [judgment for judgment in recalled.judgments if judgment.doc_uid not in apart]
    verdicts = ReviewedPairs.load(store, catalog.documents, catalog.labels).verdicts_outside(apart)
    targets = build_targets(judgments, config, context_of(judgments, len(catalog.labels)), verdicts=verdicts)
    if doubtful := doubt(judgments):
        watch.say(doubtful)
    bar = watch.stage("training")
    summary = train_bi_encoder(
        [catalog.documents[i] for i in catalog.to_train],
        catalog.labels,
        targets,
        config,
        out,
        held_out=[catalog.documents[i] for i in catalog.to_select],
        seed=seed,
        progress=lambda done, total, loss: bar(done, total),
    )
    return Trained(out, summary, recalled.unused, catalog.rows)


def finished_run(run_dir: Path) -> RunReport:
    """What a finished run's report holds, with the decision its bundle has by now.

    Raises:
        DataError: The run is not finished, or its report is damaged.
        BundleError: The bundle's manifest is damaged.
    """
    from ezxmc.report import RunReport  # it loads what draws

    try:
        data = RunReport.model_validate_json((run_dir / "report.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{run_dir} holds no finished run", "finish it with `ezxmc run CONFIG`") from None
    except ValidationError as error:
        raise DataError(f"{run_dir / 'report.json'} is damaged: {error}", "run `ezxmc run` again") from None
    bundle = run_dir / "bundle"
    if (bundle / MANIFEST).exists():
        data.decision = guarantee_of(bundle) or ""
    return data


@dataclass(frozen=True, slots=True)
class EvaluatedFiles:
    """What `evaluate_files` found.

    Attributes:
        evaluation: Of the predictions.
        other: Of those they were compared with, if any.
        differences: The former minus the latter, by metric.
        rows: How reading each file went, by the argument it was given as.
    """

    evaluation: Evaluation
    other: Evaluation | None
    differences: dict[str, Difference]
    rows: dict[str, RowReport]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        found = self.evaluation.to_dict()
        if self.other:
            gaps = {name: asdict(gap) for name, gap in self.differences.items()}
            found["compare"] = {**self.other.to_dict(), "differences": gaps}
        return {**found, "rows": {name: report.to_dict() for name, report in self.rows.items()}}


def evaluate_files(
    predictions: str,
    gold: str,
    *,
    train_gold: str | None = None,
    propensity: tuple[float, float] | None = None,
    threshold: float | None = None,
    filtered: str | None = None,
    labels: str | None = None,
    compared: str | None = None,
    without_gold: WithoutGold = "unreviewed",
    watch: Progress | None = None,
) -> EvaluatedFiles:
    """`evaluate` for files of predictions and gold, which are read with care and told about.

    Args:
        predictions: What `ezxmc predict` wrote; "-" is standard input.
        gold: People's tags, see `read_gold`. They are held against the labels that were predicted, or
            against all with `labels`.
        train_gold: Gold of training documents: adds PSP, PSnDCG, and head, torso and tail.
        propensity: A and B of PSP; (0.55, 1.5) if not given. Needs `train_gold`.
        threshold: Adds F1 of the tags at least this probable.
        filtered: A file of pairs that count neither as predicted nor as gold.
        labels: The label list: gold of others is left out and told. By default, what was predicted. A
            hierarchy adds hierarchical metrics.
        compared: Predictions of another run, subtracted document by document.
        without_gold: What predicted documents are that `gold` has no label for.
        watch: Told how reading each file went.

    Raises:
        ArgumentError: `propensity` is not above 0, or there is no `train_gold`; or as for `evaluate`.
        DataError: A file cannot be read or holds nothing usable, or as for `evaluate`.

    Example:
        >>> found = evaluate_files("tags.jsonl", "gold.tsv")
        >>> found.evaluation.n_documents
        60
    """
    if propensity and train_gold is None:
        raise ArgumentError("propensities are of training documents", "--propensity needs --train-gold")
    if propensity and min(propensity) <= 0:
        raise ArgumentError(f"propensity is {propensity}", "--propensity takes two numbers above 0")
    watch = watch or NoProgress()
    rows: dict[str, RowReport] = {}
    titles: dict[str, str] = {}
    forest = None
    if labels is not None:
        known, rows["labels"] = read_labels(labels)
        titles, forest = {label.uid: label.title for label in known}, Forest.of(known)
    # Gold is held against what was predicted, so that is read first; standard input only once.
    sources = {"predictions": predictions} | ({} if compared is None else {"compare": compared})
    held: dict[str, list[Prediction]] = {}
    seen: dict[str, None] = {}
    for name, source in sources.items():
        rows[name] = RowReport()
        for one in read_predictions(source, rows[name]):
            if source == "-":
                held.setdefault(name, []).append(one)
            seen[one.uid] = None
            if labels is None:
                titles.update(zip(one.labels, one.titles, strict=True))
        if not rows[name].kept:
            summary = rows[name].summary()
            raise DataError(f"{source} holds no prediction: {summary}", "give what `ezxmc predict` wrote")
    pairs = {}
    for name, file in (("gold", gold), ("train_gold", train_gold), ("filter", filtered)):
        if file is not None:
            pairs[name], rows[name] = read_gold(
                file,
                documents=None if name == "train_gold" else seen,
                labels=titles,
                more_documents=True,
                more_labels=labels is None,
                refuse=name == "gold",
            )
    for name, report in rows.items():
        if report.counts or report.notes:
            report.tell(watch.say, name)
    settle_untagged(pairs["gold"], seen, gold, without_gold, watch.say)

    def stream(name: str) -> Iterable[Prediction]:
        return held[name] if name in held else read_predictions(sources[name], RowReport())

    found = {
        name: evaluate(
            stream(name),
            pairs["gold"],
            train_gold=pairs.get("train_gold"),
            propensity=propensity or (0.55, 1.5),
            threshold=threshold,
            filtered=pairs.get("filter", {}),
            forest=forest,
        )
        for name in sources
    }
    first, other = found["predictions"], found.get("compare")
    return EvaluatedFiles(first, other, compare(first, other) if other else {}, rows)
