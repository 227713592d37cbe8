"""From what a run found to what its report shows."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ezxmc.calibration import Calibrator
from ezxmc.config import RunConfig
from ezxmc.data import Catalog, RowReport
from ezxmc.data.catalog import repeated
from ezxmc.feedback.annotate import AnnotateSummary
from ezxmc.feedback.store import FeedbackStore, StoreTotals
from ezxmc.feedback.targets import doubt, teacher_verdicts
from ezxmc.metrics import (
    GROUPS,
    RankingMetrics,
    ReliabilityBin,
    encode,
    frequency_groups,
    recall_by_document,
)
from ezxmc.metrics.evaluation import compare, constant_answer, evaluate
from ezxmc.pipeline.tagreport import disagreements, examples, thresholds, unused
from ezxmc.records import Document, Judgment, Label, Prediction
from ezxmc.report import (
    BudgetSummary,
    CalibrationSummary,
    CostSummary,
    CycleSummary,
    DataSummary,
    EvaluationSummary,
    Histogram,
    RowSummary,
    RunReport,
    ShortlistSummary,
    TeacherSummary,
    TrainingSummary,
)
from ezxmc.report import ReliabilityBin as ReportBin
from ezxmc.retrieval import BiEncoder, LabelIndex
from ezxmc.teacher import Teacher

_VERSIONS = ("ezxmc", "torch", "transformers", "sentence-transformers", "faiss-cpu")
_GOLD_NOTE = (
    "Gold tags served this comparison only: neither teacher nor student saw one. Catalogs are rarely tagged "
    "completely, so a part of the suggestions counted as wrong is right: compare the columns rather than "
    "read either as absolute."
)


@dataclass(slots=True)
class CycleFindings:
    """Results of one cycle's stages, every document's candidates, and agreement if cycles were compared."""

    proposed: dict[str, Any]
    listed: list[list[int]]
    asked: AnnotateSummary
    trained: dict[str, Any]
    agreement: float | None = None
    agreed: str = ""
    """How that was found."""
    compared: str = ""
    """Which student so far agrees best, and how sure that is, in words."""


@dataclass(slots=True)
class Findings:
    """What a run found so far.

    Attributes:
        catalog: Its inputs.
        cycles: One entry a cycle.
        problem_docs: Documents with judgments that hold no score.
        unasked_documents: Documents to learn from that the budget left without a judgment.
        unasked_pairs: Candidates the budget left unasked.
        judgments: All that the teacher said about the catalog's texts.
        head: What became of the sparse head, in words; empty if none was wanted.
        calibrator: The bundle's, if it has one.
        decision: What the bundle's decision promises, in words; empty if it has none.
        people: What of people's work in the bundle stays, and what does not fit it any more, in words.
        predictions: One per document, in order.
        untrained: The same by the untrained encoder, where there is gold.
        by_cycle: Of several cycles, what each one's student puts first, of the documents with gold that
            no student was trained on.
    """

    catalog: Catalog
    cycles: list[CycleFindings] = field(default_factory=list)
    problem_docs: list[str] = field(default_factory=list)
    unasked_documents: int = 0
    unasked_pairs: int = 0
    judgments: list[Judgment] = field(default_factory=list)
    head: str = ""
    calibrator: Calibrator | None = None
    decision: str = ""
    people: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    untrained: list[Prediction] = field(default_factory=list)
    by_cycle: list[list[Prediction]] = field(default_factory=list)


def assemble(
    config: RunConfig, found: Findings, run_dir: Path, teacher: Teacher, store: FeedbackStore, rest: float
) -> RunReport:
    """Everything `report.html` shows.

    Args:
        config: The run's configuration.
        found: What it found.
        run_dir: Measured for its size.
        teacher: Whose judgments these are.
        store: Where they are.
        rest: Seconds of this session spent on neither stages nor judging.
    """
    catalog = found.catalog
    totals = store.totals(teacher.fingerprint)
    apart = {catalog.documents[i].uid for i in (*catalog.to_select, *catalog.to_calibrate)}
    k, judgments = config.inference.k, found.judgments
    return RunReport(
        title=f"ezxmc run: {'/'.join(Path(config.run_dir).parts[-2:])}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.model_dump(mode="json"),
        data=data_summary(catalog, teacher),
        teacher=_teacher(teacher, totals, found),
        budget=_budget(config, found, totals),
        log_odds_histogram=_histogram([j.log_odds for j in judgments]),
        label_mass_histogram=_histogram([j.label_mass for j in judgments], (0.0, 1.0)),
        shortlist=[
            ShortlistSummary(
                cycle=number,
                documents=cycle.proposed["documents"],
                candidates=cycle.proposed["candidates"],
                size=config.shortlist.size,
                recall=_shortlist_recall(cycle.listed, catalog),
            )
            for number, cycle in enumerate(found.cycles, start=1)
        ],
        cycles=[
            _cycle(number, cycle, fused=number > 1 and config.training.fusion > 0)
            for number, cycle in enumerate(found.cycles, start=1)
        ],
        skipped_cycles=config.cycles - len(found.cycles),
        head=found.head,
        decision=found.decision,
        people=found.people,
        calibration=_calibration(found.calibrator),
        evaluation=_evaluation(found, {d.uid for d in catalog.documents}),
        held_out=_evaluation(found, apart, found.by_cycle),
        thresholds=thresholds(catalog, found.predictions, k),
        examples=examples(catalog, found.predictions, k),
        disagreements=disagreements(catalog, found.predictions, teacher_verdicts(judgments)),
        unused=unused(catalog, found.predictions, k),
        cost=CostSummary(
            seconds=_seconds(found, totals, rest),
            peak_memory=max(
                resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            * 1024,
            disk=sum(file.stat().st_size for file in run_dir.rglob("*") if file.is_file()),
        ),
        versions={name: version(name) for name in _VERSIONS},
    )


def data_summary(catalog: Catalog, teacher: Teacher) -> DataSummary:
    """How reading a catalog went, and the recorded judgments of a teacher that replays some."""
    recorded = getattr(teacher, "report", None)
    return DataSummary(
        documents=RowSummary(**catalog.document_rows.to_dict()),
        labels=RowSummary(**catalog.label_rows.to_dict()),
        gold=RowSummary(**catalog.gold_rows.to_dict()) if catalog.gold_rows else None,
        judgments=RowSummary(**recorded.to_dict()) if isinstance(recorded, RowReport) else None,
        repeats=repeated(catalog.repeats, catalog.divided) if catalog.repeats else "",
    )


def _teacher(teacher: Teacher, totals: StoreTotals, found: Findings) -> TeacherSummary:
    return TeacherSummary(
        description=teacher.description,
        judgments=totals.judgments,
        statuses=totals.statuses,
        failures=totals.judgments - totals.statuses.get("ok", 0),
        sessions=totals.sessions,
        prompt_tokens=totals.prompt_tokens,
        cached_tokens=totals.cached_tokens,
        cache_share=totals.cache_share,
        computed_per_pair=totals.computed_per_pair,
        pairs_per_second=totals.pairs_per_second,
        seconds=totals.seconds,
        problem_docs=list(dict.fromkeys(found.problem_docs)),
        warning=doubt(found.judgments) or "",
    )


def _budget(config: RunConfig, found: Findings, totals: StoreTotals) -> BudgetSummary | None:
    limits = config.budget.model_dump(include={"max_pairs", "max_hours", "documents"})
    if not any(limits.values()):
        return None
    unspent: dict[str, float] = {}
    if len(found.cycles) < config.cycles:
        if config.budget.max_pairs is not None:
            unspent["pairs"] = max(0, config.budget.max_pairs - totals.judgments)
        if config.budget.max_hours is not None:
            unspent["hours"] = max(0.0, config.budget.max_hours - totals.seconds / 3600)
    return BudgetSummary(
        **limits,
        unasked_documents=found.unasked_documents,
        unasked_pairs=found.unasked_pairs,
        unspent=unspent,
    )


def _histogram(values: Iterable[float | None], within: tuple[float, float] | None = None) -> Histogram | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    counts, edges = np.histogram(known, bins=40, range=within)
    return Histogram(edges=edges.tolist(), counts=counts.tolist())


def _shortlist_recall(listed: Sequence[Sequence[int]], catalog: Catalog) -> float | None:
    """Share of each document's gold labels that the teacher was to be asked about, on average."""
    known = [
        ([catalog.labels[row].uid for row in found], right)
        for document, found in zip(catalog.documents, listed, strict=True)
        if found and (right := catalog.gold.get(document.uid))
    ]
    if not known:
        return None
    lists, gold = zip(*known, strict=True)
    return float(np.mean(recall_by_document(lists, gold, max(map(len, lists)))))


def _cycle(number: int, cycle: CycleFindings, *, fused: bool) -> CycleSummary:
    training = training_summary(cycle.trained)
    if fused and "plain" not in cycle.trained:
        # Of a release that chose epochs by what it taught.
        training.selection_metric = "agreement with the teacher and the former student (nDCG@5)"
    return CycleSummary(
        number=number,
        pairs_new=cycle.asked.asked,
        pairs_known=cycle.asked.known,
        training=training,
        held_out={} if cycle.agreement is None else {cycle.agreed: cycle.agreement},
        compared=cycle.compared,
    )


def training_summary(trained: Mapping[str, Any]) -> TrainingSummary:
    """Of a training stage's result: `TrainSummary` as a dict."""
    return TrainingSummary(
        epochs=len(trained["losses"]),
        losses=list(trained["losses"]),
        selection=list(trained["selection"]),
        selection_metric="agreement with the teacher (nDCG@5)",
        best_epoch=trained["best_epoch"],
        samples_per_second=trained["samples_per_second"],
        seconds=trained["seconds"],
    )


def _calibration(calibrator: Calibrator | None) -> CalibrationSummary | None:
    if calibrator is None:
        return None
    return CalibrationSummary(
        target=calibrator.target,
        n=calibrator.n,
        ece_cross_fitted=calibrator.ece_cross_fitted,
        bins=report_bins(calibrator.reliability),
    )


def report_bins(bins: Sequence[ReliabilityBin]) -> list[ReportBin]:
    """Bins as a report holds them."""
    return [
        ReportBin(
            low=one.low,
            high=one.high,
            count=one.n,
            mean_probability=one.mean_probability,
            hit_rate=one.hit_rate,
        )
        for one in bins
    ]


def rank_by_titles(
    encoder: BiEncoder,
    documents: Sequence[Document],
    labels: Sequence[Label],
    depth: int,
    progress: Callable[[int, int], None],
) -> list[Prediction]:
    """The first labels of each document by an encoder alone: neither refined vectors nor a head."""
    vectors = encoder.encode_labels([label.title for label in labels])
    queries = encoder.encode_documents([document.shown for document in documents], progress=progress)
    _, rows = LabelIndex.for_once(vectors, queries).search(queries, depth)
    return [
        Prediction(document.uid, tuple(labels[row].uid for row in found), (), ())
        for document, found in zip(documents, rows, strict=True)
    ]


def _evaluation(
    found: Findings, documents: Collection[str], by_cycle: Sequence[Sequence[Prediction]] = ()
) -> EvaluationSummary | None:
    """Both encoders on those of `documents` that have gold, and what stands beside them."""
    gold = {uid: labels for uid, labels in found.catalog.gold.items() if uid in documents}
    if not any(gold.values()):
        return None
    student, untrained = ([p for p in part if p.uid in gold] for part in (found.predictions, found.untrained))
    after, before = evaluate(student, gold), evaluate(untrained, gold)
    depth = max(len(p.labels) for p in untrained)
    return EvaluationSummary(
        before=before.values,
        after=after.values,
        documents=after.n_documents,
        before_intervals=before.intervals,
        after_intervals=after.intervals,
        change_intervals={name: (gap.low, gap.high) for name, gap in compare(after, before).items()},
        note=_GOLD_NOTE,
        groups=_groups(gold, untrained, student),
        reliability={k: report_bins(bins) for k, bins in after.reliability.items()},
        constant=evaluate(constant_answer(gold, depth), gold, calibration_ks=()).values,
        cycles=[evaluate(part, gold, calibration_ks=()).values for part in by_cycle],
        teacher=_teachers_own(found.judgments, gold),
    )


def _teachers_own(judgments: Iterable[Judgment], gold: Mapping[str, Collection[str]]) -> dict[str, float]:
    """P@k of the teacher's own order of what it judged, for each k of which every document has so many."""
    said: dict[str, dict[str, float]] = {uid: {} for uid, right in gold.items() if right}
    for one in judgments:
        if one.log_odds is not None and one.doc_uid in said:
            said[one.doc_uid][one.label_uid] = one.log_odds
    least = min(map(len, said.values()))
    depths = [k for k in (1, 5) if k <= least]
    if not depths:
        return {}
    order = (
        Prediction(uid, tuple(sorted(row, key=lambda label: -row[label])), (), ())
        for uid, row in said.items()
    )
    found = evaluate(
        order, gold, precision_ks=depths, recall_ks=(), ndcg_ks=(), coverage_ks=(), calibration_ks=()
    )
    return found.values


def _groups(
    gold: Mapping[str, Collection[str]], before: Sequence[Prediction], after: Sequence[Prediction]
) -> dict[str, tuple[float, float]]:
    """R@10 of the labels of each frequency group; documents without one of the group are left out."""
    group = frequency_groups(Counter(label for right in gold.values() for label in right))
    ids = {label: number for number, label in enumerate(group)}
    places = np.array([GROUPS.index(name) for name in group.values()], dtype=np.int8)

    def measured(predictions: Sequence[Prediction]) -> dict[str, float]:
        metrics = RankingMetrics(precision_ks=(), recall_ks=(), ndcg_ks=(), coverage_ks=(), group=places)
        metrics.update(
            *encode([p.labels for p in predictions], [gold[p.uid] for p in predictions], dict(ids))
        )
        return metrics.result().values

    sides = measured(before), measured(after)
    names = [(name, f"R@10 {name}") for name in GROUPS]
    return {name: (sides[0][slice_], sides[1][slice_]) for name, slice_ in names if slice_ in sides[0]}


def _seconds(found: Findings, totals: StoreTotals, rest: float) -> dict[str, float]:
    """Wall seconds by stage; stages done in earlier sessions count with what they took then."""
    return {
        "shortlists": sum(cycle.proposed["wall_seconds"] for cycle in found.cycles),
        "teacher, judging": totals.seconds,
        "training": sum(cycle.trained["wall_seconds"] for cycle in found.cycles),
        "everything else (engine start, calibration, tagging), last session": rest,
    }
