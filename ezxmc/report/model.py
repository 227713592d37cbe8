"""What a run report holds: the schema of `report.json`.

Shares, metrics and probabilities are fractions in [0, 1]; the page shows them in percent. Times are seconds,
sizes bytes. A part that is `None` (or an empty list) is not on the page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from ezxmc.errors import RowProblem
from ezxmc.metrics import ReliabilityBin


class Part(BaseModel):
    """A part of a report."""

    # A diverged loss (NaN) must survive the round trip and not kill the report.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class RowSummary(Part):
    """How reading one input went; takes `ezxmc.data.RowReport.to_dict()`.

    Attributes:
        rows: Rows read.
        kept: Of these, usable.
        bad: Rows left out.
        warnings: Rows kept in spite of a fault.
        counts: Problems by kind, exact.
        problems: The first problems.
        notes: What was done about rows that were not as expected.
        columns: The columns that serve as each field, and those unread.
    """

    rows: int
    kept: int
    bad: int = 0
    warnings: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    problems: list[RowProblem] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    columns: dict[str, list[str]] = Field(default_factory=dict)


class DataSummary(Part):
    """The inputs of the run."""

    documents: RowSummary
    labels: RowSummary
    gold: RowSummary | None = None
    judgments: RowSummary | None = None
    """Of a teacher that replays recorded judgments."""
    repeats: str = ""
    """What documents of equal text mean, in words; empty where there are none."""
    read: float | None = None
    """Share of the documents' characters that the student reads."""

    @property
    def bad(self) -> int:
        """Rows left out, of all inputs."""
        return sum(part.bad for part in (self.documents, self.labels, self.gold, self.judgments) if part)


class TeacherSummary(Part):
    """What the teacher did over all cycles.

    Attributes:
        description: What makes up its fingerprint (model, prompt, engine ...).
        judgments: Judgments in the store that the run used.
        statuses: These by status.
        failures: How many of them are not `ok`.
        sessions: How often the job was started (1 = never interrupted).
        prompt_tokens: Sum of prompt lengths.
        cached_tokens: Of these, supplied by the prefix cache.
        cache_share: cached / prompt tokens.
        computed_per_pair: Tokens computed per pair.
        pairs_per_second: Speed without the engine's start-up.
        seconds: Time spent on judging.
        problem_docs: Some documents with a judgment that is not `ok`.
        warning: What is odd about its answers, with the cure; empty if nothing is.
    """

    description: dict[str, JsonValue] = Field(default_factory=dict)
    judgments: int
    statuses: dict[str, int] = Field(default_factory=dict)
    failures: int = 0
    sessions: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_share: float | None = None
    computed_per_pair: float | None = None
    pairs_per_second: float | None = None
    seconds: float | None = None
    problem_docs: list[str] = Field(default_factory=list)
    warning: str = ""


class BudgetSummary(Part):
    """What the teacher was allowed to cost, and what that left unasked.

    Attributes:
        max_pairs: Judgments at most.
        max_hours: Hours of judging at most.
        documents: Documents a cycle asks about at most.
        unasked_documents: Documents to learn from without a single judgment.
        unasked_pairs: Candidates nobody judged, those of such documents included.
        unspent: `pairs` or `hours` of the limits that cycles without gain left.
    """

    max_pairs: int | None = None
    max_hours: float | None = None
    documents: int | None = None
    unasked_documents: int = 0
    unasked_pairs: int = 0
    unspent: dict[str, float] = Field(default_factory=dict)

    @property
    def line(self) -> str:
        """The same in a sentence."""
        unspent = "".join(
            f" Not spent: {value:,.0f} pairs." if unit == "pairs" else f" Not spent: {value:.2g} hours."
            for unit, value in self.unspent.items()
        )
        if not self.unasked_pairs and not self.unasked_documents:
            return f"The budget was enough: every candidate was judged.{unspent}"
        return (
            f"The budget left {self.unasked_pairs:,} candidates unasked; {self.unasked_documents:,} "
            f"documents were not asked about at all.{unspent}"
        )


class Histogram(Part):
    """Counts between consecutive edges: `len(edges) == len(counts) + 1`."""

    edges: list[float]
    counts: list[int]

    @model_validator(mode="after")
    def _aligned(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.counts)} counts need {len(self.counts) + 1} edges")
        return self


class ShortlistSummary(Part):
    """One cycle's candidates: `size` wanted per document, `candidates` in all.

    `recall` is the share of the documents' gold labels among their candidates.
    """

    cycle: int
    documents: int
    candidates: int
    size: int
    recall: float | None = None


class TrainingSummary(Part):
    """One training round.

    Attributes:
        epochs: Epochs trained.
        losses: Mean loss of each epoch.
        selection: Score on held-out documents after each epoch; one longer
            than `losses` when it opens with the score before training.
        selection_metric: What that score is.
        best_epoch: The epoch kept (0 = the weights before training).
        samples_per_second: Documents trained on per second.
        seconds: Wall time.
    """

    epochs: int
    losses: list[float] = Field(default_factory=list)
    selection: list[float] = Field(default_factory=list)
    selection_metric: str = "agreement with the teacher"
    best_epoch: int | None = None
    samples_per_second: float | None = None
    seconds: float | None = None


class CycleSummary(Part):
    """One shortlist -> annotate -> train round.

    Attributes:
        number: From 1.
        pairs_new: Pairs the teacher was asked about in this cycle.
        pairs_known: Pairs already in the store.
        training: The training round.
        held_out: The student against the teacher on documents never trained on.
        compared: After this cycle, which student agrees best with the teacher, and how sure that is.
        kept: Whether its student is the bundle's; unknown in reports of former releases.
    """

    number: int
    pairs_new: int
    pairs_known: int = 0
    training: TrainingSummary | None = None
    held_out: dict[str, float] = Field(default_factory=dict)
    compared: str = ""
    kept: bool = False


def _former_bin(value: Any) -> Any:
    """Earlier releases said `count` where it is `n`."""
    if isinstance(value, dict) and "count" in value:
        return {"n" if name == "count" else name: one for name, one in value.items()}
    return value


Bins = list[Annotated[ReliabilityBin, BeforeValidator(_former_bin)]]
"""A reliability diagram: what was stated, what came true."""


class CalibrationSummary(Part):
    """How far the stated probabilities can be believed.

    Attributes:
        target: `teacher`: the share of its answer the LLM gives to "yes". `human`: a hit is a
            tag a person gave; `both`: the same, the curve being the teacher's, corrected by people.
        n: (document, tag) pairs the calibrator was fitted on.
        ece_cross_fitted: Expected calibration error on pairs not fitted on.
        bins: The reliability diagram.
    """

    target: Literal["teacher", "human", "both"]
    n: int
    ece_cross_fitted: float | None = None
    bins: Bins = Field(default_factory=list)


class EvaluationSummary(Part):
    """Quality against gold, the untrained encoder (`before`) and the student (`after`).

    Attributes:
        before: Metric name to value, such as `P@1`.
        after: The same for the student.
        documents: Documents evaluated on.
        before_intervals: Ends of the 95 % bootstrap intervals of `before`, where there are any.
        after_intervals: The same of `after`.
        change_intervals: The same of after minus before, by document.
        note: What the reader must know about this gold.
        groups: R@10 before and after by how often people gave the labels: head, torso, tail,
            a third of all gold tags each.
        reliability: Reliability diagrams of the student's top k probabilities against this gold, by k.
        constant: The same metrics of answering this gold's most frequent tags for every document.
        cycles: The same of each cycle's student by the tags' titles alone; the bundle answers by
            refined vectors. Known of several cycles, on documents never trained on.
        teacher: The same of the teacher's own order of what it judged; known where it judged
            enough of every document.
    """

    before: dict[str, float]
    after: dict[str, float]
    documents: int
    before_intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    after_intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    change_intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    note: str = ""
    groups: dict[str, tuple[float, float]] = Field(default_factory=dict)
    reliability: dict[int, Bins] = Field(default_factory=dict)
    constant: dict[str, float] = Field(default_factory=dict)
    cycles: list[dict[str, float]] = Field(default_factory=list)
    teacher: dict[str, float] = Field(default_factory=dict)


class ExampleTag(Part):
    """One predicted tag."""

    title: str
    probability: float | None = None


class ExampleDocument(Part):
    """A document with its predicted tags and, where known, its gold tags' titles."""

    uid: str
    title: str
    text: str = ""
    tags: list[ExampleTag] = Field(default_factory=list)
    gold: list[str] | None = None


class ThresholdRow(Part):
    """What keeping the tags of at least this probability would mean.

    Attributes:
        threshold: The probability.
        tags_per_document: Tags kept, on average.
        answered: Share of documents with a tag at all.
        stated: Mean probability of the tags kept.
        precision: Share of them that people gave too.
        recall: Share of the tags people gave that are kept.
    """

    threshold: float
    tags_per_document: float
    answered: float
    stated: float | None = None
    precision: float | None = None
    recall: float | None = None


class DisagreementEntry(Part):
    """A pair the student and the teacher see differently: their probabilities of "yes"."""

    uid: str
    title: str
    label: str
    student: float
    teacher: float


class UnusedLabels(Part):
    """Labels no document has among its first k.

    Attributes:
        k: Tags looked at per document.
        count: Such labels.
        labels: All labels.
        with_gold: How many of them people gave to some document.
        titles: The first of them.
    """

    k: int
    count: int
    labels: int
    with_gold: int | None = None
    titles: list[str] = Field(default_factory=list)


class CostSummary(Part):
    """Wall seconds per stage, and the peaks of memory and disk in bytes."""

    seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory: int | None = None
    disk: int | None = None


class Window(Part):
    """An update's probe, for the line over all updates."""

    number: int
    created: str
    documents: int
    ece: float
    error: float
    half_width: float
    drifted: bool


class CurvePoint(Part):
    """Ranks by people's decisions on so many documents: P@1 and P@5 of labels decided on, by name.

    `expected`: not measured, but what more documents would bring.
    """

    documents: int
    values: dict[str, float]
    expected: bool = False


class RunReport(Part):
    """Everything `report.html` shows; `report.json` is its dump."""

    title: str
    created: str = Field(description="ISO 8601")
    config: dict[str, JsonValue] = Field(default_factory=dict)
    data: DataSummary | None = None
    teacher: TeacherSummary | None = None
    budget: BudgetSummary | None = None
    log_odds_histogram: Histogram | None = None
    label_mass_histogram: Histogram | None = None
    shortlist: list[ShortlistSummary] = Field(default_factory=list)
    cycles: list[CycleSummary] = Field(default_factory=list)
    skipped_cycles: int = Field(0, description="cycles not done, because those before brought no gain")
    head: str = Field("", description="what became of the sparse head")
    people: list[str] = Field(
        default_factory=list, description="people's work in the bundle: what stays, what no longer fits"
    )
    people_curve: list[CurvePoint] = Field(
        default_factory=list,
        description="what ranks gain by people's decisions on growing numbers of documents",
    )
    calibration: CalibrationSummary | None = None
    evaluation: EvaluationSummary | None = None
    held_out: EvaluationSummary | None = Field(
        default=None, description="the same on the documents the student was not trained on only"
    )
    thresholds: list[ThresholdRow] = Field(default_factory=list)
    decision: str = Field("", description="which tags the bundle keeps, and what is promised of them")
    examples: list[ExampleDocument] = Field(default_factory=list)
    disagreements: list[DisagreementEntry] = Field(default_factory=list)
    unused: UnusedLabels | None = None
    cost: CostSummary | None = None
    versions: dict[str, str] = Field(default_factory=dict)
