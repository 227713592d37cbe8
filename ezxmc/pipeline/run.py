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

Judgments are kept by content and stages by their inputs, so the same command goes on after any interruption,
and a changed configuration or catalog redoes only what it changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from ezxmc.bundle.bundle import load_bundle
from ezxmc.bundle.labels import add_labels
from ezxmc.bundle.manifest import (
    MANIFEST,
    Manifest,
    check_bundle_place,
    guarantee_of,
    labels_of,
    own_files,
    writing,
)
from ezxmc.bundle.predict import Predictor, prediction_row, rank_among
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.data.predictions import is_tags
from ezxmc.disk import exchange
from ezxmc.errors import ConfigError, DataError, instance_of
from ezxmc.feedback.annotator import Annotator
from ezxmc.feedback.budget import Budget, in_hash_order
from ezxmc.feedback.database import check_store
from ezxmc.feedback.exchange import merge_shards
from ezxmc.feedback.recall import judgments_of, unused_judgments
from ezxmc.feedback.reviews import ReviewedPairs
from ezxmc.feedback.store import FeedbackStore
from ezxmc.files import check_file, remove_own
from ezxmc.models import resolve_model
from ezxmc.pipeline.cycles import Cycles, fitted
from ezxmc.pipeline.deliver import HeadStage, calibrator_of
from ezxmc.pipeline.findings import RunResults, assemble
from ezxmc.pipeline.people import (
    FORMER,
    LabelEdits,
    carry_exports,
    carry_over,
    outdated,
    peoples_calibrator,
    stays,
)
from ezxmc.pipeline.rundir import CALIBRATING, FRESH, INDEXING, RunDir, check_run_dir
from ezxmc.pipeline.snapshot import CATALOG, Snapshot
from ezxmc.progress import NoProgress, Progress, pulling, rank_and_size
from ezxmc.records import Document, Judgment, Label, Prediction
from ezxmc.report import RunReport, write_report
from ezxmc.report.model import CurvePoint
from ezxmc.report.page import is_page
from ezxmc.retrieval import LabelIndex
from ezxmc.teacher import Teacher, load_teacher

_EVALUATED = 50  # labels ranked per document where there is gold, for R@k
_READ = 1000  # documents, or up to twice as many, on which the share of the text that is read is measured


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


class _Run:
    """The state of one run."""

    def __init__(
        self, config: RunConfig, place: RunDir, store: FeedbackStore, teacher: Teacher | None, watch: Progress
    ) -> None:
        self.place, self.store, self.watch = place, store, watch
        self.former = self.seen_before()
        places = self.former.placing if self.former else {}
        self.catalog = Catalog.load(
            config.data, config.training.held_out, config.seed, watch.say, former=places
        )
        config = self.config = fitted(config, self.catalog.documents, watch)
        place.write("config.yaml", config.dump())
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
        self.annotator = Annotator(self.catalog, self.teacher, store, budget, watch)
        self.decided = ReviewedPairs.load(store.path, self.catalog.documents, self.catalog.labels)
        if self.decided.answers or self.decided.elsewhere:
            watch.say(self.decided.line)
        self.cycles = Cycles(config, place, self.annotator, untrained, self.decided, watch)
        self.bundle_inputs: list[Any] = []
        self.found = RunResults(self.catalog, self.cycles.findings)

    def seen_before(self) -> Snapshot | None:
        """The catalog as the run, or an update of it, left it; `None` where it was never finished."""
        file = self.place.path / CATALOG
        try:
            return Snapshot.load(file) if file.exists() else None
        except DataError as error:
            self.watch.say(f"what people changed in the bundle's labels cannot all be named: {error.message}")
            return None

    def go(self) -> RunReport:
        started, judged_before = time.monotonic(), self.annotator.seconds()
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
        judging = self.annotator.seconds() - judged_before
        rest = time.monotonic() - started - self.place.spent - judging
        apart = self.annotator.budget.idle.union(self.catalog.to_calibrate)
        self.found.unasked_documents = sum(not r for i, r in enumerate(self.cycles.asked) if i not in apart)
        self.found.unasked_pairs = self.cycles.unasked_pairs + self.annotator.unasked_pairs
        self.found.problem_docs = self.annotator.problem_docs
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
        bundle, fresh, head = self.place.path / "bundle", self.place.path / FRESH, self.config.head
        origin = {
            "teacher": json.dumps(self.teacher.description, sort_keys=True),
            "encoder": self.cycles.identity(None),
        }
        content, targets = self.cycles.material(student)
        refine = self.cycles.refine(lambda: targets(True))

        def save(student: Path = student) -> Manifest:
            return self.cycles.save(fresh, self.cycles.encoder(student), origin, refine)

        def make() -> dict[str, Any]:
            made = save().model_dump()
            if head.enabled:
                made["head"] = HeadStage(self.cycles, student, fresh, targets).run(save)
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
            content if refine else None,
            *((head.model_dump(), content) if head.enabled else ()),
        ]
        made = self.place.stage("bundle", inputs, [bundle / MANIFEST], make, libraries=INDEXING)
        self.bundle_inputs = inputs
        self.found.head = made.get("head", {}).get("told", "")
        self.annotator.budget.compared += made.get("head", {}).get("pairs", 0)
        self.cycles.forget_vectors()
        # What is only noted of a label (its parent) is no reason to make all of it again.
        there, edits = self.labels_in(bundle)
        rest = [label for label in self.catalog.labels if label.uid not in edits.others]
        if noted := [label for label in rest if label.uid in there and there[label.uid] != label]:
            add_labels(bundle, noted)

    def replace_bundle(self, fresh: Path, bundle: Path) -> None:
        """Put a new bundle in the place of the former; what people made for that goes on or is put aside."""
        with ExitStack() as held:
            check_bundle_place(bundle)
            if (bundle / MANIFEST).exists():
                # A process that changes it waits, and then changes the new one.
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
        self.found.calibrator, self.found.decision = calibrator_of(bundle), guarantee_of(bundle) or ""
        lines = self.labels_in(bundle)[1].lines(), stays(bundle), outdated(bundle, self.place.path / FORMER)
        self.found.people += chain(*lines)
        for line in self.found.people:
            self.watch.say(line)

    def calibrate(self) -> None:
        """Fit a calibrator, once for a bundle, the budget, and what people decided on the part kept apart."""
        apart = {self.catalog.documents[i].uid for i in self.catalog.to_calibrate}
        said = sorted([*pair, answer] for pair, answer in self.decided.answers.items() if pair[0] in apart)
        inputs = [self.bundle_inputs, self.config.budget.model_dump(), said]
        if said:
            inputs.append("partly decided documents are completed")  # not so in records of former releases
        if counts := [label.count for label in self.catalog.labels if label.count is not None]:
            inputs.append(counts)
        made = self.place.stage(
            "calibrate",
            inputs,
            [self.place.path / "bundle" / MANIFEST],
            self._calibrate,
            libraries=CALIBRATING,
        )
        if not made["whole"]:
            self.place.forget("calibrate")
        if line := made.get("reviewed"):
            self.found.people.append(line)
        self.found.curve = [CurvePoint.model_validate(point) for point in made.get("curve", ())]

    def _calibrate(self) -> dict[str, Any]:
        """Ask the teacher about what the student itself answers on the part kept apart, and fit.

        Where people have decided on enough of these documents, they correct it.

        Returns:
            `whole`: whether nothing was left that another session might ask; `reviewed`: what
            people's reviews gave, in words; `curve`: the same by growing numbers of documents.
        """
        bundle = self.place.path / "bundle"
        if peoples_calibrator(bundle):
            return {"whole": True}
        part, row = self.catalog.to_calibrate, self.cycles.row_of
        # Of labels that people added the teacher knows nothing.
        predictions = rank_among(
            Predictor(replace(load_bundle(bundle), offsets=None)),  # no name holds it while the teacher works
            self.annotator.documents(part),
            row,
            self.cycles.depth,
        )
        # Where a budget ends, the calibrator is fitted on a random part of its documents.
        order = in_hash_order([found.uid for found in predictions], range(len(part)))
        documents = [part[i] for i in order]
        rows = [[row[uid] for uid in predictions[i].labels] for i in order]
        left = self.annotator.unasked_pairs, len(self.annotator.problem_docs)
        # Labels that a cycle asked about mislead, for the student does not rank all of them first: whole
        # documents count, some of them asked when more were wanted, and none that is whole by chance.
        whole = self.annotator.ask_whole(
            documents, rows, "calibration: teacher judges", most=self.annotator.budget.calibrating
        )
        answers = self.annotator.answers([documents[i] for i in whole], [rows[i] for i in whole])
        counted = self.cycles.counted(bundle, part, predictions, answers)
        _, reviewed, curve = self.cycles.calibrate(bundle, *counted)
        all_asked = left == (self.annotator.unasked_pairs, len(self.annotator.problem_docs))
        return {"whole": all_asked, "reviewed": reviewed, "curve": [point.model_dump() for point in curve]}

    def recall(self) -> list[Judgment]:
        """All that is known of the catalog's texts; what the store holds of others is reported."""
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
        keep = self.config.inference.k
        k = max(_EVALUATED, keep) if self.catalog.gold else keep
        predictor = Predictor.load(self.place.path / "bundle")
        self.found.predictions = list(self.cycles.tags(predictor, k))
        spread = self.catalog.documents[:: max(1, len(self.catalog.documents) // _READ)]
        self.found.read = predictor.bundle.encoder.share_read([document.shown for document in spread])
        self.place.write_lines(
            self.place.path / "predictions.jsonl", (prediction_row(p, keep) for p in self.found.predictions)
        )
        if self.catalog.gold:
            self.found.untrained = self._rank(None, self.catalog.documents, "untrained encoder")
            apart = (*self.catalog.to_select, *self.catalog.to_calibrate)
            known = [d for d in self.annotator.documents(apart) if self.catalog.gold.get(d.uid)]
            cycles = len(self.cycles.findings)
            if known and cycles > 1:
                self.found.by_cycle = [
                    self._rank(self.place.cycle(number) / "student", known, f"cycle {number}")
                    for number in range(1, cycles + 1)
                ]

    def _rank(self, student: Path | None, documents: Sequence[Document], name: str) -> list[Prediction]:
        """The first labels of documents by an encoder alone: neither refined vectors nor a head.

        Args:
            student: A cycle's student; `None`: the encoder that training started from.
            documents: N documents.
            name: For the progress bar.
        """
        encoder, labels = self.cycles.encoder(student).faster(), self.catalog.labels
        bar = self.watch.stage(f"evaluation: {name}")
        vectors = encoder.encode_labels([label.title for label in labels])
        queries = encoder.encode_documents([document.shown for document in documents], progress=bar)
        _, rows = LabelIndex.for_once(vectors, queries).search(queries, _EVALUATED)
        return [
            Prediction(document.uid, tuple(labels[row].uid for row in found), (), ())
            for document, found in zip(documents, rows, strict=True)
        ]
