"""What a run will cost, from counting, tokenising, and a short measured probe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ezxmc.config import RunConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import Catalog
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.database import check_store
from ezxmc.feedback.exchange import merge_shards
from ezxmc.feedback.probe import ProbeFigures, Speed, Tokens, count_tokens, earlier_speed, probe
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import context_documents
from ezxmc.hashing import text_hash
from ezxmc.models import resolve_model
from ezxmc.models.teachers import machine, teacher_models
from ezxmc.pipeline.cycles import fitted
from ezxmc.pipeline.estimate import COMPARISON, PRIORS, PartPlan, Plan, TeacherCost
from ezxmc.pipeline.rundir import RunDir
from ezxmc.pipeline.snapshot import Snapshot
from ezxmc.progress import NoProgress, Progress, pulling
from ezxmc.records import Pair
from ezxmc.retrieval import BiEncoder, candidate_row, shortlist
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.training.adapters import is_large, is_recomputed
from ezxmc.training.step import configured_schedule

PROBE_PAIRS = 512
"""Four steps of vLLM at 128 sequences; the first warms up and does not count."""
_SHORTLISTS, _TOKENISED = 500, 2000  # documents sampled
# Of one judgment, measured on 100,000: key, numbers, status, SQLite's own.
_ROW_BYTES = 80
# A uid is kept once, and once more in its index.
_UID_COPIES = 2
# float32 weights are there already; gradients and Adam's two moments come on top.
_TRAINED_PARAMETER = 12
_LARGE_LEARN = 50  # of so many weights of a large encoder one
# What one layer keeps of one token for its backward pass, per hidden unit.
_ACTIVATION = 72
_RECOMPUTED = 4  # a layer's input alone
_ASSUMED = 100e12  # operations per second of a GPU, where nothing was measured
_COMPLETE = 0.99  # share of a cycle's pairs known from which later parts may be known too


def plan(
    config: RunConfig,
    *,
    teacher: Teacher | None = None,
    probe_pairs: int = PROBE_PAIRS,
    watch: Progress | None = None,
) -> Plan:
    """Say what a run would cost before it is started.

    Pairs are counted (those that compare students and calibrate at most: what the cycles asked is not asked
    again); tokens are those of a sample of documents. Times come from asking the teacher some real pairs of
    the run's first cycle, whose judgments are kept in the run's store. Training and tagging are not timed.

    Args:
        config: The run's configuration.
        teacher: Used instead of the configured one; closed at the end.
        probe_pairs: Pairs to ask, in whole documents; 0 asks nothing, starts no engine and writes nothing.
        watch: Sees stages and messages.

    Raises:
        ConfigError: The run directory cannot be used, or another process uses it.
        DataError: No usable document or label, or a bad row under `strict`.
        ModelError: A model cannot be fetched or loaded.
        TeacherError: The LLM engine failed.
    """
    watch, config = watch or NoProgress(), config.as_begun()
    if probe_pairs:
        check_store(Path(config.run_dir, "feedback.sqlite"))
    catalog = Catalog.load(
        config.data,
        config.training.held_out,
        config.seed,
        watch.say,
        former=Snapshot.places(Path(config.run_dir)),
    )
    config = fitted(config, catalog.documents, watch)
    teacher = teacher or load_teacher(
        config.teacher, cluster=config.cluster, progress=pulling(watch, "teacher"), say=watch.say
    )
    try:
        with _store(config, bool(probe_pairs)) as store:
            return _Planner(config, catalog, teacher, store, watch).go(probe_pairs)
    finally:
        teacher.close()


@contextmanager
def _store(config: RunConfig, writes: bool) -> Iterator[FeedbackStore | None]:
    file = Path(config.run_dir, "feedback.sqlite")
    if writes:
        with RunDir(config.run_dir).locked(), FeedbackStore(file) as store:
            merge_shards(store)
            yield store
    elif file.exists():
        with FeedbackStore(file) as store:
            yield store
    else:
        yield None


class _Planner:
    """The state of one plan."""

    def __init__(
        self,
        config: RunConfig,
        catalog: Catalog,
        teacher: Teacher,
        store: FeedbackStore | None,
        watch: Progress,
    ) -> None:
        self.config, self.catalog, self.teacher = config, catalog, teacher
        self.store, self.watch = store, watch
        self.notes: list[str] = []
        width = min(config.shortlist.size, len(catalog.labels))
        budget = Budget.of(config, catalog)
        # Of every document, the ranks of its shortlist that are asked about.
        self.cycles = []
        for number in range(1, config.cycles + 1):
            chosen = set(budget.documents(number))
            rows = [range(width if i in chosen else 0) for i in range(len(catalog.documents))]
            self.cycles.append(budget.allocate(number, rows))
        self.budget, budget.compared = budget, budget.comparing
        self.calibration = budget.kept_to_calibrate
        self.calibrating, self.idle = min(budget.calibrating, len(catalog.to_calibrate)), budget.idle
        self.context = context_documents(
            catalog.documents, catalog.to_train, budget.prior // len(catalog.labels)
        )
        uids = [document.uid for document in catalog.documents]
        order = sorted(range(len(uids)), key=lambda i: text_hash("plan", uids[i]))
        self.sample = [i for i in order if self.cycles[0].rows[i]]
        """Positions of documents cycle 1 asks about, in random order."""
        self.shortlist_bytes = 0.0  # of one document
        self.probed: list[Pair] = []

    def go(self, probe_pairs: int) -> Plan:
        catalog = self.catalog
        encoder = BiEncoder(
            resolve_model(
                self.config.training.encoder,
                kind="encoder",
                revision=self.config.training.revision,
                progress=pulling(self.watch, "encoder"),
            ),
            max_length=self.config.training.max_length,
            prompts=self.config.training.encoder_prompts,
        )
        job = self._job(encoder)
        measured = self._probe(job, probe_pairs) if probe_pairs and self.store else None
        speed = self._speed(measured)
        tokens = count_tokens(
            self.teacher,
            [catalog.documents[i] for i in self.sample[:_TOKENISED]],
            [pair for pairs in job for pair in pairs],
            self.probed,
            measured,
        )
        parts = [self._part(*counts, tokens, speed) for counts in self._counts(job)]
        teachers, basis = self._teachers(parts, tokens, speed)
        recorded = getattr(self.teacher, "report", None)
        apart = self.idle.union(catalog.to_calibrate)
        return Plan(
            documents=len(catalog.documents),
            labels=len(catalog.labels),
            parts=parts,
            unasked_documents=sum(not row for i, row in enumerate(self.cycles[0].rows) if i not in apart),
            unasked_pairs=sum(cycle.unasked_pairs for cycle in self.cycles),
            probe=measured,
            speed=speed,
            memory={"teacher": measured.memory_bytes if measured else None}
            | {"training": self._memory(encoder)},
            disk=self._disk(encoder, sum(part.pairs for part in parts)),
            teachers=teachers,
            notes=[*self.notes, *self._notes(), *self._beyond_hours(parts, speed), *basis],
            bad_rows=sum(report.bad for report in (*catalog.rows.values(), recorded) if report),
        )

    def _job(self, encoder: BiEncoder) -> list[list[Pair]]:
        """Of some documents, the pairs that cycle 1 asks."""
        documents, labels = self.catalog.documents, self.catalog.labels
        sample = self.sample[:_SHORTLISTS]
        if len(sample) < len(self.sample):
            self.notes.append(
                f"tokens and what is known are those of {len(sample):,} of {len(self.sample):,} documents"
            )
        found = shortlist(
            [documents[i] for i in sample],
            labels,
            encoder,
            self.config.shortlist,
            background=documents,
            seed=self.config.seed,
            progress=self.watch.stage(f"shortlists of {len(sample):,} documents"),
        )
        rows = (json.dumps(candidate_row(candidates, labels)) for candidates in found)
        self.shortlist_bytes = sum(map(len, rows)) / max(1, len(sample))
        return [
            [Pair(documents[i], labels[candidates.labels[rank]]) for rank in self.cycles[0].rows[i]]
            for i, candidates in zip(sample, found, strict=True)
        ]

    def _probe(self, job: list[list[Pair]], most: int) -> ProbeFigures | None:
        assert self.store is not None
        for pairs in job:
            if len(self.probed) >= most:
                break
            known = self.store.known([self.teacher.key(pair) for pair in pairs])
            self.probed += [pair for pair in pairs if self.teacher.key(pair) not in known]
        judged = self.store.judged(self.teacher.fingerprint)
        if self.config.budget.max_pairs is not None:
            del self.probed[max(0, self.config.budget.max_pairs - judged) :]
        left = sum(map(len, self.cycles[0].rows)) - judged
        found = probe(
            self.probed,
            self.teacher,
            self.store,
            expected=max(left, len(self.probed)),
            progress=self.watch.stage(f"probe: teacher judges {len(self.probed):,} pairs"),
        )
        if found and not found.steady:
            self.notes.append(f"{found.pairs:,} pairs in one step: start-up and speed are not told apart")
        return found

    def _speed(self, measured: ProbeFigures | None) -> Speed | None:
        if measured:
            return Speed(measured.pairs_per_second, measured.computed_per_second, measured.startup_seconds)
        totals = self.store.totals(self.teacher.fingerprint) if self.store else None
        speed = earlier_speed(totals) if totals else None
        if totals and speed:
            self.notes.append(f"speed of {totals.judgments:,} earlier judgments; engine starts come on top")
        return speed

    def _counts(self, job: list[list[Pair]]) -> Iterator[tuple[str, int, int, int]]:
        """Name, documents, pairs and known pairs of each part."""
        keys = [self.teacher.key(pair) for pairs in job for pair in pairs]
        stored = self.store.judged(self.teacher.fingerprint) if self.store else 0
        share = len(self.store.known(keys)) / len(keys) if self.store and keys else 0.0
        whole = len(job) == len(self.sample)
        left = stored
        if self.context:
            pairs = len(self.context) * len(self.catalog.labels)
            known = sum(map(len, map(self._known, self.context)))
            left -= known
            yield PRIORS, len(self.context), pairs, known
        for number, cycle in enumerate(self.cycles, start=1):
            pairs = sum(map(len, cycle.rows))
            known = 0
            if number == 1:
                # The probe's documents are among the sampled ones: a share of few is no share of all.
                known = round(share * pairs) if whole else min(round(share * pairs), stored)
            elif share > _COMPLETE:
                known = min(pairs, left)
            left -= known
            yield f"cycle {number}", len(cycle.order), pairs, known
        if pairs := self.budget.comparing:
            known = min(pairs, max(0, left)) if share > _COMPLETE else 0
            left -= known
            yield COMPARISON, len(self.budget.selecting), pairs, known
        known = min(self.calibration, max(0, left)) if share > _COMPLETE else 0
        yield "calibration", self.calibrating, self.calibration, known

    def _known(self, document: int) -> set[str]:
        """Keys of what is judged of a document and all labels."""
        doc = self.catalog.documents[document]
        keys = [self.teacher.key(Pair(doc, label)) for label in self.catalog.labels]
        return self.store.known(keys) if self.store else set()

    def _part(
        self, name: str, documents: int, pairs: int, known: int, tokens: Tokens | None, speed: Speed | None
    ) -> PartPlan:
        asked = pairs - known
        # The priors are asked by the engine that cycle 1 goes on with.
        starts = 0 if name == PRIORS or not asked else self.budget.comparisons if name == COMPARISON else 1
        computed = tokens.computed(asked, documents * asked / pairs) if tokens and pairs else None
        return PartPlan(
            name,
            documents,
            pairs,
            known,
            prompt_tokens=tokens.prompts(asked) if tokens else None,
            computed_tokens=computed,
            seconds=speed.seconds(asked, computed, starts) if speed else None,
            starts=starts,
        )

    def _memory(self, encoder: BiEncoder) -> int:
        """About the peak of a training round, in bytes: this process, and what training adds.

        Documents are taken to fill the encoder's `max_length`.
        """
        schedule = configured_schedule(self.config.training, len(self.catalog.to_train))
        parameters: int = sum(weights.numel() for weights in encoder.model.parameters())
        if is_large(encoder.model):
            parameters //= _LARGE_LEARN
        layers: int = getattr(encoder.model[0].model.config, "num_hidden_layers", 0)
        tokens = schedule.batch_size * encoder.max_length
        kept = _RECOMPUTED if is_recomputed(encoder.model, encoder.max_length) else _ACTIVATION
        added: int = parameters * _TRAINED_PARAMETER + tokens * layers * encoder.dimension * kept
        return psutil.Process().memory_info().rss + added

    def _disk(self, encoder: BiEncoder, pairs: int) -> dict[str, int]:
        """Bytes the run directory will hold, by what takes them."""
        documents, labels, cycles = self.catalog.documents, self.catalog.labels, self.config.cycles
        uids = sum(len(document.uid) for document in documents) + sum(len(label.uid) for label in labels)
        student = sum(weights.numel() * weights.element_size() for weights in encoder.model.parameters())
        return {
            "judgments": pairs * _ROW_BYTES + uids * _UID_COPIES,
            "students": cycles * student,
            "bundle": student + len(labels) * encoder.dimension * 4,
            "shortlists": round(cycles * len(documents) * self.shortlist_bytes),
        }

    def _teachers(
        self, parts: list[PartPlan], tokens: Tokens | None, speed: Speed | None
    ) -> tuple[list[TeacherCost], list[str]]:
        """What the run would take with other models on this machine, and a note on what the times rest on.

        A pair takes 2 operations per active parameter and token.
        """
        config = self.config.teacher
        if not isinstance(config, VllmTeacherConfig) or self.config.cluster:
            return [], []
        table, here = teacher_models(), machine()
        # What this teacher has judged, another is asked again.
        computed = sum(tokens.computed(part.pairs, part.documents) for part in parts) if tokens else None
        own = next((model for model in table if model.model == config.model), None)
        rate = 0.0  # operations a second
        if speed and speed.computed and own:
            rate = speed.computed * 2 * own.active
            basis = f"times are scaled from the measured speed of {own.model} by active parameters"
            if here.usable:
                basis += "; a larger one is faster than that on a GPU that this one leaves idle"
        elif here.usable:
            rate = _ASSUMED
            basis = f"none of them was measured on this GPU: times assume {rate / 1e12:.0f} TFLOP/s"
        else:
            basis = "none of them was measured here, so there are no times"
        costs = [
            TeacherCost(
                model.model,
                model.licence,
                round(model.needs),
                here.runs(model, config.gpu_memory),
                computed * 2 * model.active / rate if computed is not None and rate else None,
            )
            for model in table
        ]
        note = "other teachers: an estimate, all pairs asked again, starts and downloads aside"
        return costs, [f"{note}; {basis}"]

    def _notes(self) -> Iterator[str]:
        """That what calibrates and selects is limited, where it is, and that cycles may be fewer."""
        apart, least = len(self.catalog.to_calibrate), self.config.patience + 1
        if self.calibrating < apart:
            yield (
                f"{self.calibrating:,} of {apart:,} documents kept apart calibrate: at most "
                f"budget.calibration ({self.config.budget.calibration:,}), and a third of what the cycles ask"
            )
        if idle := len(self.idle - set(self.catalog.to_calibrate)):
            yield f"{idle:,} of {len(self.catalog.to_select):,} documents that could select do not"
        if least < self.config.cycles:
            yield f"cycles without gain end the run: it may do {least} of {self.config.cycles}"

    def _beyond_hours(self, parts: list[PartPlan], speed: Speed | None) -> list[str]:
        """What a limit of hours will leave unasked."""
        hours, asked = self.config.budget.max_hours, sum(part.asked for part in parts)
        if hours is None or not self.store or not speed or not asked:
            return []
        judging = sum((part.seconds or 0.0) - speed.startup * part.starts for part in parts)
        left = hours * 3600 - self.store.judging_seconds(self.teacher.fingerprint)
        if judging <= left:
            return []
        reached = max(0, round(asked * left / judging))
        return [
            f"budget.max_hours ends the judging after about {reached:,} more pairs; as budget.max_pairs "
            "the same number is spread over more documents, which teaches more"
        ]
