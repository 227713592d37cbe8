"""The whole line, resumable: shortlist → annotate → train, in cycles, then calibrate, index, tag, report.

    run_dir/config.yaml         the configuration, frozen
    run_dir/feedback.sqlite     every judgment
    run_dir/cycles/N/           shortlist.jsonl, student/
    run_dir/stages/             what is done, and with which inputs
    run_dir/bundle/             the deliverable; what people change in it stays
    run_dir/former/             calibrators and decisions of people that a new student outdated
    run_dir/predictions.jsonl   every document's tags
    run_dir/catalog.jsonl       which texts these were, for `--update`
    run_dir/report.html         what happened (report.json: the same as data)

Judgments are kept by content and stages by their inputs, so the same command
goes on after any interruption, and a changed configuration or catalog redoes
only what it changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ezxmc.bundle.bundle import Refine, add_calibrator, save_bundle
from ezxmc.bundle.labels import add_labels
from ezxmc.bundle.manifest import (
    CALIBRATOR,
    MANIFEST,
    Manifest,
    check_bundle_place,
    guarantee_of,
    labels_of,
    own_files,
    read_manifest,
    writing,
)
from ezxmc.bundle.predict import Predictor, prediction_row, rank_among
from ezxmc.calibration import Calibrator, Verdict, completed, fit_calibrator, fit_few_shot
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.data.predictions import is_tags
from ezxmc.disk import exchange
from ezxmc.errors import ConfigError, DataError, TrainingError, instance_of
from ezxmc.feedback.budget import Annotator, Budget, in_hash_order
from ezxmc.feedback.database import check_store
from ezxmc.feedback.recall import judgments_of
from ezxmc.feedback.reviews import Decided, ReviewedLists
from ezxmc.feedback.shards import merge_shards
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.feedback.teachers import unused_judgments
from ezxmc.files import check_file, remove_own
from ezxmc.launcher import rank_and_size
from ezxmc.models import resolve_model
from ezxmc.pipeline.cycles import Cycles
from ezxmc.pipeline.findings import Findings, assemble, rank_by_titles
from ezxmc.pipeline.head_stage import HeadStage
from ezxmc.pipeline.people import FORMER, LabelEdits, carry_exports, carry_over, outdated, peoples_calibrator
from ezxmc.pipeline.rundir import CALIBRATING, FRESH, INDEXING, RunDir, check_run_dir
from ezxmc.pipeline.snapshot import CATALOG, Snapshot
from ezxmc.progress import NoProgress, Progress, pulling
from ezxmc.records import Document, Judgment, Label, Prediction
from ezxmc.report import RunReport, write_report
from ezxmc.report.page import is_page
from ezxmc.teacher import Teacher, load_teacher

_EVALUATED = 50  # labels ranked per document where there is gold, for R@k


def run(config: RunConfig, *, teacher: Teacher | None = None, watch: Progress | None = None) -> RunReport:
    """Tag a catalog from cold, or go on with a run that was interrupted.

    Args:
        config: The whole configuration.
        teacher: Used instead of the configured one; closed at the end.
        watch: Sees stages and messages.

    Returns:
        What `report.html` shows.

    Raises:
        ConfigError: The run directory cannot be used, holds what no run made (`check_places`), another
            process uses it, or torchrun started this one into a job of several.
        DataError: No usable document or label, or a bad row under `strict`.
        ModelError: A model cannot be fetched or loaded.
        TeacherError: The LLM engine failed; the judgments so far are kept.
        TrainingError: The judgments give nothing to learn from.

    Example:
        >>> report = run(RunConfig.load("config.yaml"))
        >>> report.data.documents.kept
        60
    """
    instance_of(config, RunConfig, "config", "read one: RunConfig.load('ezxmc.yaml')")
    refuse_torchrun()
    config = config.as_begun()
    check_places(config)
    place = RunDir(config.run_dir)
    with place.locked(), FeedbackStore(place.path / "feedback.sqlite") as store:
        place.write("config.yaml", config.dump())
        merge_shards(store)
        return _Run(config, place, store, teacher, watch or NoProgress()).go()


def check_places(config: RunConfig) -> None:
    """Whether a run's outputs may be written, before any work.

    Raises:
        ConfigError: Something that no run made, or an input, would be replaced.
    """
    place, data, teacher = Path(config.run_dir), config.data, config.teacher
    inputs = [data.documents, data.labels, data.gold, config.training.encoder]
    inputs += [getattr(teacher, name, None) for name in ("judgments", "prompt")]
    check_run_dir(place, inputs)
    check_bundle_place(place / "bundle")
    check_file(place / "predictions.jsonl", "a file of tags", made=is_tags)
    check_file(place / "report.html", "a report", made=is_page)
    check_store(place / "feedback.sqlite", inputs)


def refuse_torchrun() -> None:
    """Raise ConfigError where torchrun started this process into a job of several."""
    if rank_and_size()[1] > 1:
        raise ConfigError(
            "a run is one process: under torchrun each would ask the teacher",
            "set training.processes, and give the command without torchrun",
        )


def calibrate(
    bundle: Path,
    predictions: Sequence[Prediction],
    teacher: Verdict,
    reviewed: ReviewedLists,
    depth: int,
    watch: Progress,
) -> Calibrator | None:
    """Put a calibrator into a bundle: to people where they reviewed enough, else to the teacher.

    Either alone serves where the other's answers cannot be used. What people
    had fitted, even while this was at work, stays.

    Args:
        bundle: Its folder.
        predictions: Of documents kept apart, best label first.
        teacher: The teacher's answers in [0, 1].
        reviewed: What people decided of these documents.
        depth: Ranks used.
        watch: Told where there is too little to fit on.
    """
    if peoples := _peoples(bundle):
        return peoples
    ways: dict[str, Callable[[], Calibrator]] = {}
    if reviewed.enough:
        people = partial(completed, predictions, reviewed, depth)
        ways["people and teacher"] = lambda: fit_few_shot(predictions, teacher, people(), k=depth)
        ways["people alone"] = lambda: fit_calibrator(predictions, people(), target="human", k=depth)
    ways["the teacher"] = lambda: fit_calibrator(predictions, teacher, target="teacher", k=depth)
    failed: list[str] = []
    for name, fit in ways.items():
        try:
            fitted = fit()
            break
        except TrainingError as error:
            failed.append(f"{name}: {error}")
    else:
        watch.say(f"the bundle gives scores, not probabilities: {'; '.join(failed)}")
        return None
    for line in failed:
        watch.say(f"probabilities could not be fitted to {line}")
    if peoples := _peoples(bundle):
        return peoples
    add_calibrator(bundle, fitted, by_run=True)
    return fitted


def _peoples(bundle: Path) -> Calibrator | None:
    files = read_manifest(bundle).places(bundle)
    return Calibrator.load(files[CALIBRATOR]) if peoples_calibrator(bundle) else None


class _Run:
    """The state of one run."""

    def __init__(
        self, config: RunConfig, place: RunDir, store: FeedbackStore, teacher: Teacher | None, watch: Progress
    ) -> None:
        self.config, self.place, self.store, self.watch = config, place, store, watch
        self.former = self.seen_before()
        places = self.former.placing if self.former else {}
        self.catalog = Catalog.load(
            config.data, config.training.held_out, config.seed, watch.say, former=places
        )
        self.teacher = teacher or load_teacher(
            config.teacher, cluster=config.cluster, progress=pulling(watch, "teacher"), say=watch.say
        )
        untrained = resolve_model(
            config.training.encoder,
            kind="encoder",
            revision=config.training.revision,
            progress=pulling(watch, "encoder"),
        )
        budget = Budget.of(config, self.catalog)
        self.inquiry = Annotator(self.catalog, self.teacher, store, budget, watch)
        self.decided = Decided.load(store.path, self.catalog.documents, self.catalog.labels)
        if self.decided.answers or self.decided.elsewhere:
            watch.say(self.decided.line)
        self.cycles = Cycles(config, place, self.inquiry, untrained, self.decided, watch)
        self.bundle_inputs: list[Any] = []
        self.found = Findings(self.catalog, self.cycles.findings)

    def seen_before(self) -> Snapshot | None:
        """The catalog as the run, or an update of it, left it; `None` where it was never finished."""
        file = self.place.path / CATALOG
        try:
            return Snapshot.load(file) if file.exists() else None
        except DataError as error:
            self.watch.say(f"what people changed in the bundle's labels cannot all be told: {error.message}")
            return None

    def go(self) -> RunReport:
        started, judged_before = time.monotonic(), self.inquiry.seconds()
        if unused := unused_judgments(self.store, self.teacher):
            self.watch.say(unused)
        try:
            self.deliver(self.cycles.run())
            self.calibrate()
        finally:
            self.teacher.close()
        for line in self.place.lines():
            self.watch.say(line)
        self.tell_of_people()
        self.tag()
        self.cycles.forget_vectors()
        judging = self.inquiry.seconds() - judged_before
        rest = time.monotonic() - started - self.place.spent - judging
        apart = self.inquiry.budget.idle.union(self.catalog.to_calibrate)
        self.found.unasked_documents = sum(not r for i, r in enumerate(self.cycles.asked) if i not in apart)
        self.found.unasked_pairs = self.cycles.unasked_pairs + self.inquiry.unasked_pairs
        self.found.problem_docs = self.inquiry.problem_docs
        self.found.judgments = self.recall()
        report = assemble(self.config, self.found, self.place.path, self.teacher, self.store, rest)
        if report.budget:
            self.watch.say(report.budget.line)
        snapshot = Snapshot.of(self.catalog, self.config.seed, self.config.training.held_out)
        self.place.write_lines(self.place.path / CATALOG, snapshot.rows())
        self.place.write("report.json", report.model_dump_json(indent=1))
        write_report(report, self.place.path / "report.html")
        return report

    def deliver(self, student: Path) -> None:
        """Write the bundle, with what people changed in the former one; the calibrator comes later."""
        bundle, fresh = self.place.path / "bundle", self.place.path / FRESH
        origin = {
            "teacher": json.dumps(self.teacher.description, sort_keys=True),
            "encoder": self.cycles.identity(None),
        }

        judged: list[Any] | None = None
        refine: Refine | None = None
        if self.config.training.label_vectors == "refined":
            judged, refine = self.cycles.refinement(student)

        def save(student: Path = student) -> Manifest:
            return save_bundle(
                fresh,
                self.cycles.encoder(student),
                self.catalog.labels,
                max_length=self.config.training.max_length,
                k=self.config.inference.k,
                origin=origin,
                refine=refine,
                progress=self.watch.stage("bundle: label index"),
            )

        head = HeadStage(self.config, self.cycles, student, fresh) if self.config.head.enabled else None

        def make() -> dict[str, Any]:
            made = save().model_dump()
            if head:
                made["head"] = head.run(save, self.watch)
            self.replace_bundle(fresh, bundle)
            return made

        # The split decides what the calibrator in it may be fitted on.
        inputs = [
            self.cycles.catalog_hash,
            self.cycles.identity(student),
            self.config.inference.model_dump(),
            self.cycles.training,
            self.config.seed,
            origin,
            judged,
            *(head.inputs if head else ()),
        ]
        made = self.place.stage("bundle", inputs, [bundle / MANIFEST], make, libraries=INDEXING)
        self.bundle_inputs = inputs
        self.found.head = made.get("head", {}).get("told", "")
        self.inquiry.budget.compared += made.get("head", {}).get("pairs", 0)
        self.cycles.forget_vectors()
        # What is only told of a label (its parent) is no reason to make all of it anew.
        there, edits = self.labels_in(bundle)
        rest = [label for label in self.catalog.labels if label.uid not in edits.others]
        if told := [label for label in rest if label.uid in there and there[label.uid] != label]:
            add_labels(bundle, told)

    def replace_bundle(self, fresh: Path, bundle: Path) -> None:
        """Put a new bundle in the place of the former; what people made for that goes on or is put aside."""
        with ExitStack() as held:
            check_bundle_place(bundle)
            if (bundle / MANIFEST).exists():
                # Whoever changes it waits, and then changes the new one.
                held.enter_context(writing(bundle))
                self.labels_in(bundle)[1].apply(fresh)
                carry_over(bundle, fresh, self.place.path / FORMER)
                if not carry_exports(bundle, fresh):
                    lost = "the former student's exported forms are gone: `ezxmc export` makes them"
                    self.found.people.append(lost)
            # The record of the calibrator is of the former bundle.
            self.place.forget("calibrate")
            exchange(fresh, bundle)
        remove_own(fresh, set(own_files(fresh) or ()).__contains__)

    def labels_in(self, bundle: Path) -> tuple[dict[str, Label], LabelEdits]:
        """The labels a bundle answers, by uid, and what of them is people's work."""
        labels = labels_of(bundle)
        edits = LabelEdits.between(labels, self.former, self.catalog.labels)
        return {label.uid: label for label in labels}, edits

    def tell_of_people(self) -> None:
        """Say what in the bundle is people's, and what of theirs does not fit it any more."""
        bundle = self.place.path / "bundle"
        files = read_manifest(bundle).places(bundle)
        self.found.calibrator = Calibrator.load(files[CALIBRATOR]) if CALIBRATOR in files else None
        self.found.people += self.labels_in(bundle)[1].lines()
        if why := peoples_calibrator(bundle):
            self.found.people.append(
                f"the bundle's calibrator stays, because {why}: `ezxmc calibrate {bundle}` fits another"
            )
        if (guarantee := guarantee_of(bundle)) is not None:
            self.found.decision = guarantee
            self.found.people.append("the bundle's decision stays")
            self.watch.say(f"decision: {self.found.decision}")
        self.found.people += outdated(bundle, self.place.path / FORMER)
        for line in self.found.people:
            self.watch.say(line)

    def calibrate(self) -> None:
        """Fit a calibrator, once for a bundle, the budget, and what people decided on the part kept apart."""
        apart = {self.catalog.documents[i].uid for i in self.catalog.to_calibrate}
        said = sorted([*pair, answer] for pair, answer in self.decided.answers.items() if pair[0] in apart)
        inputs = [self.bundle_inputs, self.config.budget.model_dump(), said]
        if said:
            inputs.append("partly decided documents are completed")  # not so in records of former releases
        made = self.place.stage(
            "calibrate",
            inputs,
            [self.place.path / "bundle" / MANIFEST],
            self._calibrate,
            libraries=CALIBRATING,
        )
        if not made["whole"]:
            self.place.forget("calibrate")
        if told := made.get("reviewed"):
            self.found.people.append(told)

    def _calibrate(self) -> dict[str, Any]:
        """Ask the teacher about what the student itself answers on the part kept apart, and fit.

        Where people have decided on enough of these documents, they correct it.

        Returns:
            `whole`: whether nothing was left that another session might ask; `reviewed`: what
            people's reviews gave, in words.
        """
        bundle = self.place.path / "bundle"
        if peoples_calibrator(bundle):
            return {"whole": True}
        depth = self.config.inference.calibration_depth
        part = self.catalog.to_calibrate
        row = {label.uid: i for i, label in enumerate(self.catalog.labels)}
        # Of labels that people added the teacher knows nothing.
        predictions = rank_among(Predictor(bundle), self.inquiry.documents(part), row, depth)
        rows = [[row[uid] for uid in found.labels] for found in predictions]
        # Where a budget ends, the calibrator is fitted on a random part of its documents.
        order = in_hash_order([found.uid for found in predictions], range(len(part)))
        calibrating = self.inquiry.budget.calibrating
        asked = order[:calibrating]
        left = self.inquiry.unasked_pairs, len(self.inquiry.problem_docs)
        done = self.inquiry.ask(
            [part[i] for i in asked], [rows[i] for i in asked], "calibration: teacher judges"
        )
        # Labels that a cycle asked about mislead, for the student does not rank all of them first: whole
        # documents count, some of them asked when more were wanted, and none that is whole by chance.
        whole = []
        for place, i in enumerate(order):
            if len(self.inquiry.judged(part[i], rows[i])) == len(rows[i]):
                whole.append(i)
            elif done.stopped or place >= calibrating:
                break
        teacher = teacher_verdicts(self.inquiry.answers([part[i] for i in whole], [rows[i] for i in whole]))
        reviewed = self.decided.lists(predictions, depth)
        calibrate(bundle, predictions, teacher, reviewed, depth, self.watch)
        all_asked = left == (self.inquiry.unasked_pairs, len(self.inquiry.problem_docs))
        return {"whole": all_asked, "reviewed": reviewed.line}

    def recall(self) -> list[Judgment]:
        """All that is known of the catalog's texts; what the store holds of others is told."""
        recalled = judgments_of(
            self.catalog.documents,
            self.catalog.labels,
            self.store,
            self.teacher.fingerprint,
            key=self.teacher.key,
        )
        for line in recalled.lines():
            self.watch.say(line)
        return recalled.judgments

    def tag(self) -> None:
        """Tag every document with the bundle, as a user would; rank by the untrained encoder to compare."""
        predictor = Predictor.load(self.place.path / "bundle")
        bar, keep = self.watch.stage("tagging"), self.config.inference.k
        k = max(_EVALUATED, keep) if self.catalog.gold else keep
        for done, prediction in enumerate(predictor.stream(self.catalog.documents, k=k), start=1):
            self.found.predictions.append(prediction)
            bar(done, len(self.catalog.documents))
        self.place.write_lines(
            self.place.path / "predictions.jsonl", (prediction_row(p, keep) for p in self.found.predictions)
        )
        if self.catalog.gold:
            self.found.untrained = self._rank(None, self.catalog.documents, "untrained encoder")
            apart = (*self.catalog.to_select, *self.catalog.to_calibrate)
            known = [d for d in self.inquiry.documents(apart) if self.catalog.gold.get(d.uid)]
            cycles = len(self.cycles.findings)
            if known and cycles > 1:
                self.found.by_cycle = [
                    self._rank(self.place.cycle(number) / "student", known, f"cycle {number}")
                    for number in range(1, cycles + 1)
                ]

    def _rank(self, student: Path | None, documents: Sequence[Document], name: str) -> list[Prediction]:
        """The first labels of documents by their titles: of a cycle's student, or where training started."""
        encoder, bar = self.cycles.encoder(student).faster(), self.watch.stage(f"evaluation: {name}")
        return rank_by_titles(encoder, documents, self.catalog.labels, _EVALUATED, bar)
