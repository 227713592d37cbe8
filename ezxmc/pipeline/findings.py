"""From what a run found to what its report shows: figures, and what its tags look like."""

from __future__ import annotations

import bisect
import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from ezxmc.calibration import Calibrator
from ezxmc.config import RunConfig
from ezxmc.data import Catalog, RowReport
from ezxmc.data.catalog import repeated
from ezxmc.data.forest import Forest
from ezxmc.feedback.annotate import AnnotateSummary
from ezxmc.feedback.store import FeedbackStore, StoreTotals
from ezxmc.feedback.targets import doubt, teacher_verdicts
from ezxmc.metrics import GROUPS, RankingMetrics, encode, frequency_groups, recall_by_document
from ezxmc.metrics.evaluation import compare, constant_answer, evaluate
from ezxmc.records import Judgment, Prediction
from ezxmc.report.model import (
    BudgetSummary,
    CalibrationSummary,
    CostSummary,
    CurvePoint,
    CycleSummary,
    DataSummary,
    DisagreementEntry,
    EvaluationSummary,
    ExampleDocument,
    ExampleTag,
    Histogram,
    RowSummary,
    RunReport,
    ShortlistSummary,
    TeacherSummary,
    ThresholdRow,
    TrainingSummary,
    UnusedLabels,
)
from ezxmc.teacher import Teacher
from ezxmc.text import cut, fold

_VERSIONS = ("ezxmc", "torch", "transformers", "sentence-transformers", "faiss-cpu")
_GOLD_NOTE = (
    "Gold tags served this comparison only: neither teacher nor student saw one. Catalogs are rarely tagged "
    "completely, so a part of the suggestions counted as wrong is right: compare the columns rather than "
    "read either as absolute."
)
_EXAMPLES, _DISAGREEMENTS, _UNUSED = 30, 10, 60
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(slots=True)
class CycleResults:
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
    kept: bool = False


@dataclass(slots=True)
class RunResults:
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
        people: What of people's work stays, and what does not fit any more, in words; `curve`: its worth.
        predictions: One per document, in order.
        read: Share of the documents' characters that the bundle's student reads.
        untrained: The same by the untrained encoder, where there is gold.
        by_cycle: What each cycle's student puts first, of documents with gold that none was trained on.
    """

    catalog: Catalog
    cycles: list[CycleResults] = field(default_factory=list)
    problem_docs: list[str] = field(default_factory=list)
    unasked_documents: int = 0
    unasked_pairs: int = 0
    judgments: list[Judgment] = field(default_factory=list)
    head: str = ""
    calibrator: Calibrator | None = None
    decision: str = ""
    people: list[str] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    read: float | None = None
    untrained: list[Prediction] = field(default_factory=list)
    by_cycle: list[list[Prediction]] = field(default_factory=list)


def assemble(
    config: RunConfig, found: RunResults, run_dir: Path, teacher: Teacher, store: FeedbackStore, rest: float
) -> RunReport:
    """Everything `report.html` shows; `rest`: seconds of this session spent on neither stages nor judging."""
    catalog = found.catalog
    totals = store.totals(teacher.fingerprint)
    apart = {catalog.documents[i].uid for i in (*catalog.to_select, *catalog.to_calibrate)}
    k, judgments = config.inference.k, found.judgments
    return RunReport(
        title=f"ezxmc run: {'/'.join(Path(config.run_dir).parts[-2:])}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.model_dump(mode="json"),
        data=data_summary(catalog, teacher).model_copy(update={"read": found.read}),
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
        people_curve=found.curve,
        calibration=CalibrationSummary(
            target=calibrator.target,
            n=calibrator.n,
            ece_cross_fitted=calibrator.ece_cross_fitted,
            bins=calibrator.reliability,
        )
        if (calibrator := found.calibrator)
        else None,
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


def _teacher(teacher: Teacher, totals: StoreTotals, found: RunResults) -> TeacherSummary:
    known = TeacherSummary.model_validate(totals, from_attributes=True)
    return known.model_copy(
        update={
            "description": teacher.description,
            "failures": totals.judgments - totals.statuses.get("ok", 0),
            "problem_docs": list(dict.fromkeys(found.problem_docs)),
            "warning": doubt(found.judgments) or "",
        }
    )


def _budget(config: RunConfig, found: RunResults, totals: StoreTotals) -> BudgetSummary | None:
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


def _cycle(number: int, cycle: CycleResults, *, fused: bool) -> CycleSummary:
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
        kept=cycle.kept,
    )


def training_summary(trained: Mapping[str, Any]) -> TrainingSummary:
    """Of a training stage's result: `TrainSummary` as a dict."""
    names = ("losses", "selection", "best_epoch", "samples_per_second", "seconds")
    return TrainingSummary(
        epochs=len(trained["losses"]),
        selection_metric="agreement with the teacher (nDCG@5)",
        **{name: trained[name] for name in names},
    )


def _evaluation(
    found: RunResults, documents: Collection[str], by_cycle: Sequence[Sequence[Prediction]] = ()
) -> EvaluationSummary | None:
    """Both encoders on those of `documents` that have gold, and what stands beside them."""
    gold = {uid: labels for uid, labels in found.catalog.gold.items() if uid in documents}
    if not any(gold.values()):
        return None
    student, untrained = ([p for p in part if p.uid in gold] for part in (found.predictions, found.untrained))
    forest = Forest.of(found.catalog.labels)
    after, before = (evaluate(part, gold, forest=forest) for part in (student, untrained))
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
        reliability=after.reliability,
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


def _seconds(found: RunResults, totals: StoreTotals, rest: float) -> dict[str, float]:
    """Wall seconds by stage; stages done in earlier sessions count with what they took then."""
    return {
        "shortlists": sum(cycle.proposed["wall_seconds"] for cycle in found.cycles),
        "teacher, judging": totals.seconds,
        "training": sum(cycle.trained["wall_seconds"] for cycle in found.cycles),
        "everything else (engine start, calibration, tagging), last session": rest,
    }


def examples(catalog: Catalog, predictions: Sequence[Prediction], k: int) -> list[ExampleDocument]:
    """Documents spread over the catalog, those with gold first, each with its first k tags."""
    titles = {label.uid: label.title for label in catalog.labels}
    gold = catalog.gold
    pool = sorted(zip(predictions, catalog.documents, strict=True), key=lambda both: both[0].uid not in gold)
    pool = pool[: len(gold)] if gold else pool
    return [
        ExampleDocument(
            uid=one.uid,
            title=document.title,
            text=cut(document.text, 500, ""),
            tags=[
                ExampleTag(title=title, probability=p)
                for title, p in zip(one.titles[:k], one.probabilities or repeat(None), strict=False)
            ],
            gold=sorted((titles[uid] for uid in gold[one.uid]), key=fold) if one.uid in gold else None,
        )
        for one, document in pool[:: max(1, len(pool) // _EXAMPLES)][:_EXAMPLES]
    ]


def thresholds(catalog: Catalog, predictions: Sequence[Prediction], k: int) -> list[ThresholdRow]:
    """What a threshold on the first k probabilities would keep; empty where there are none.

    Precision and recall are micro averages over the documents with gold, those
    that nothing fits included, with at most k tags each.
    """
    if not all(prediction.probabilities for prediction in predictions):
        return []
    gold = catalog.gold
    tagged = [prediction for prediction in predictions if prediction.uid in gold]
    right = sum(len(gold[prediction.uid]) for prediction in tagged)
    hit = sorted(
        probability
        for prediction in tagged
        for label, probability in zip(prediction.labels[:k], prediction.probabilities[:k], strict=True)
        if label in gold[prediction.uid]
    )
    pairs, judged = _probabilities(predictions, k), _probabilities(tagged, k)
    best = sorted(prediction.probabilities[0] for prediction in predictions)
    rows = []
    for threshold in _THRESHOLDS:
        kept, hits, tried = _above(pairs, threshold), _above(hit, threshold), _above(judged, threshold)
        rows.append(
            ThresholdRow(
                threshold=threshold,
                tags_per_document=kept / len(predictions),
                answered=_above(best, threshold) / len(predictions),
                stated=float(np.mean(pairs[-kept:])) if kept else None,
                precision=hits / tried if tried else None,
                recall=hits / right if right else None,
            )
        )
    return rows


def _probabilities(predictions: Iterable[Prediction], k: int) -> list[float]:
    return sorted(p for prediction in predictions for p in prediction.probabilities[:k])


def _above(ascending: Sequence[float], threshold: float) -> int:
    return len(ascending) - bisect.bisect_left(ascending, threshold)


def disagreements(
    catalog: Catalog, predictions: Sequence[Prediction], verdict: Callable[[str, str], float | None]
) -> list[DisagreementEntry]:
    """The pairs where the student's probability and the teacher's answer lie furthest apart.

    Returns:
        At most ten where the student says more, then ten where the teacher does, the widest first;
        one pair a document.
    """
    found = []
    for document, prediction in zip(catalog.documents, predictions, strict=True):
        pairs = zip(prediction.labels, prediction.titles, prediction.probabilities, strict=False)
        asked = [
            (p, said, title) for uid, title, p in pairs if (said := verdict(prediction.uid, uid)) is not None
        ]
        for p, said, title in asked and {max(asked, key=_gap), min(asked, key=_gap)}:
            name = cut(document.title or document.text, 200, "")
            entry = DisagreementEntry(uid=document.uid, title=name, label=title, student=p, teacher=said)
            found.append(entry)
    found.sort(key=lambda one: one.student - one.teacher)
    more = [one for one in reversed(found) if one.student > one.teacher][:_DISAGREEMENTS]
    return more + [one for one in found if one.student < one.teacher][:_DISAGREEMENTS]


def _gap(asked: tuple[float, float, str]) -> float:
    return asked[0] - asked[1]


def unused(catalog: Catalog, predictions: Iterable[Prediction], k: int) -> UnusedLabels:
    """Labels among no document's first k."""
    used = {uid for prediction in predictions for uid in prediction.labels[:k]}
    never = [label for label in catalog.labels if label.uid not in used]
    wanted = {uid for right in catalog.gold.values() for uid in right}
    return UnusedLabels(
        k=k,
        count=len(never),
        labels=len(catalog.labels),
        with_gold=sum(label.uid in wanted for label in never) if catalog.gold else None,
        titles=[label.title for label in never[:_UNUSED]],
    )
