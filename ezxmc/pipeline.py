"""The whole line, resumable: shortlist → annotate → train, in cycles, then calibrate, index, tag, report.

    run_dir/config.yaml         the configuration, frozen
    run_dir/feedback.sqlite     every judgment
    run_dir/cycles/N/           shortlist.jsonl, student/
    run_dir/stages/             what is done, and with which inputs
    run_dir/bundle/             the deliverable
    run_dir/predictions.jsonl   every document's tags
    run_dir/report.html         what happened (report.json: the same as data)

Judgments are kept by content and stages by their inputs, so the same command
goes on after any interruption, and a changed configuration or catalog redoes
only what it changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ezxmc.bundle import add_calibrator, save_bundle
from ezxmc.calibration import fit_calibrator
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.errors import TrainingError
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of, recall
from ezxmc.feedback.budget import Budget, in_hash_order
from ezxmc.feedback.priors import context_documents, context_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import Targets, build_targets, teacher_verdicts
from ezxmc.feedback.teachers import unused_judgments
from ezxmc.models import model_identity, resolve_model
from ezxmc.predict import Predictor, prediction_row
from ezxmc.records import Document, Judgment, Pair, Prediction
from ezxmc.report import RunReport, write_report
from ezxmc.retrieval import BiEncoder, LabelIndex, candidate_row, shortlist
from ezxmc.rundir import RunDir
from ezxmc.runreport import CycleFindings, Findings, assemble
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.training import held_out_agreement, train_bi_encoder
from ezxmc.watch import Unwatched, Watch, pulling

_EVALUATED = 50  # labels ranked per document where there is gold, for R@k


def run(config: RunConfig, *, teacher: Teacher | None = None, watch: Watch | None = None) -> RunReport:
    """Tag a catalog from cold, or go on with a run that was interrupted.

    Args:
        config: The whole configuration.
        teacher: Used instead of the configured one; closed at the end.
        watch: Sees stages and messages.

    Returns:
        What `report.html` shows.

    Raises:
        ConfigError: The run directory cannot be used, or another process uses it.
        DataError: No usable document or label, or a bad row under `strict`.
        ModelError: A model cannot be fetched or loaded.
        TeacherError: The LLM engine failed; the judgments so far are kept.
        TrainingError: The judgments give nothing to learn from.
    """
    place = RunDir(config.run_dir)
    with place.locked(), FeedbackStore(place.path / "feedback.sqlite") as store:
        place.write("config.yaml", config.dump())
        return _Run(config, place, store, teacher, watch or Unwatched()).go()


class _Run:
    """The state of one run."""

    def __init__(
        self, config: RunConfig, place: RunDir, store: FeedbackStore, teacher: Teacher | None, watch: Watch
    ) -> None:
        self.config, self.place, self.store, self.watch = config, place, store, watch
        self.catalog = Catalog.load(config.data, config.training.held_out, config.seed, watch.say)
        self.teacher = teacher or load_teacher(config.teacher, progress=pulling(watch, "teacher"))
        self.untrained = resolve_model(
            config.training.encoder, kind="encoder", progress=pulling(watch, "encoder")
        )
        self.catalog_hash = self.catalog.hash
        self.found = Findings(self.catalog)
        self.budget = Budget.of(config, self.catalog)
        every = range(len(self.catalog.labels))
        drawn = context_documents(
            self.catalog.documents, self.catalog.to_train, self.budget.prior // len(every)
        )
        self.context = drawn, [every] * len(drawn)
        """Some documents, each with all labels: what the labels' priors are asked on."""
        self.asked: list[list[int]] = [[] for _ in self.catalog.documents]
        """Label rows the cycles so far asked about, by document."""

    def go(self) -> RunReport:
        started, judged_before = time.monotonic(), self._judging_seconds()
        if unused := unused_judgments(self.store, self.teacher):
            self.watch.say(unused)
        students: list[Path] = []
        try:
            for number in range(1, self.config.cycles + 1):
                students.append(self.cycle(number, students[-1] if students else None))
            self.deliver(self.select(students))
            self.calibrate()
        finally:
            self.teacher.close()
        self.tag()
        judging = self._judging_seconds() - judged_before
        rest = time.monotonic() - started - self.place.spent - judging
        apart = set(self.catalog.to_calibrate)
        self.found.unasked_documents = sum(not r for i, r in enumerate(self.asked) if i not in apart)
        report = assemble(self.config, self.found, self.place.path, self.teacher, self.store, rest)
        if report.budget:
            self.watch.say(report.budget.line)
        self.place.write("report.json", report.model_dump_json(indent=1))
        write_report(report, self.place.path / "report.html")
        return report

    def _judging_seconds(self) -> float:
        return self.store.judging_seconds(self.teacher.fingerprint)

    def cycle(self, number: int, former: Path | None) -> Path:
        """The former student proposes, the teacher judges, a new student learns from all judgments."""
        folder, name = self.place.cycle(number), f"cycle {number}/{self.config.cycles}"
        file, student = folder / "shortlist.jsonl", folder / "student"
        proposed = self.place.stage(
            f"cycle-{number}-shortlist",
            [
                self.catalog_hash,
                self._identity(former),
                self.config.shortlist.model_dump(),
                self.config.training.max_length,
                self.config.seed,
                self.asked,
            ],
            [file],
            lambda: self._propose(file, former, self.watch.stage(f"{name}: shortlist")),
        )
        row = {label.uid: i for i, label in enumerate(self.catalog.labels)}
        with file.open(encoding="utf-8") as lines:
            part = self.budget.cut(
                number, [[row[uid] for uid in json.loads(line)["labels"]] for line in lines]
            )
        rows = part.rows
        self._annotate(*self.context, f"{name}: teacher judges label priors")
        asked = self._annotate(part.order, [rows[i] for i in part.order], f"{name}: teacher judges", number)
        self.found.unasked_pairs += part.unasked_pairs
        if asked.stopped:
            # What nobody judged may be proposed again.
            rows = [self._judged(document, row) for document, row in enumerate(rows)]
        self.asked = [[*old, *new] for old, new in zip(self.asked, rows, strict=True)]
        # Training needs the memory; the next cycle starts the engine again.
        self.teacher.close()

        judgments, self.priors = self._judgments(), self._priors()
        trained = self.place.stage(
            f"cycle-{number}-train",
            [
                self.catalog_hash,
                self._identity(None),
                self.config.training.model_dump(),
                self.config.seed,
                [[j.key, j.status, j.log_odds] for j in (*judgments, *self.priors)],
            ],
            [student],
            lambda: self._train(student, judgments, self.watch.stage(f"{name}: training")),
        )
        self.watch.say(
            f"{name}: {asked.asked:,} pairs judged now, {asked.known:,} known before; "
            f"trained at {trained['samples_per_second']:.0f} documents/s"
        )
        self.found.cycles.append(CycleFindings(proposed, asked, trained))
        return student

    def _identity(self, student: Path | None) -> str:
        return model_identity(str(student) if student else self.config.training.encoder)

    def _encoder(self, student: Path | None) -> BiEncoder:
        return BiEncoder(student or self.untrained, max_length=self.config.training.max_length)

    def _propose(
        self, file: Path, former: Path | None, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        labels = self.catalog.labels
        found = shortlist(
            self.catalog.documents,
            labels,
            self._encoder(former),
            self.config.shortlist,
            judged={
                document.uid: {labels[row].uid for row in rows}
                for document, rows in zip(self.catalog.documents, self.asked, strict=True)
            },
            seed=self.config.seed,
            progress=progress,
        )
        self.place.write_lines(file, (candidate_row(candidates, labels) for candidates in found))
        return {"candidates": sum(len(candidates.labels) for candidates in found)}

    def _pairs(self, documents: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[Pair]:
        return pairs_of(self._documents(documents), self.catalog.labels, rows)

    def _judged(self, document: int, rows: Sequence[int]) -> list[int]:
        known = self.store.known(keys := [self.teacher.key(pair) for pair in self._pairs([document], [rows])])
        return [row for row, key in zip(rows, keys, strict=True) if key in known]

    def _annotate(
        self, documents: Sequence[int], rows: Sequence[Sequence[int]], title: str, cycle: int | None = None
    ) -> AnnotateSummary:
        summary = annotate(
            lambda: self._pairs(documents, rows),
            self.teacher,
            self.store,
            stop=self.budget.stop(self.store, self.teacher.fingerprint, cycle),
            progress=self.watch.stage(title),
        )
        if summary.stopped:
            self.found.unasked_pairs += summary.wanted - summary.known - summary.asked
        for kind, found in summary.problems.items():
            number, named = summary.statuses[kind], ", ".join(found.some[:5])
            self.watch.say(f"  {number:,} pairs: {kind}, in {found.count:,} documents: {named} ...")
        self.found.problem_docs.extend(summary.problem_docs)
        return summary

    def _judgments(self) -> list[Judgment]:
        """What is known of the cycles' pairs; the calibration part is kept apart even from label priors."""
        apart = set(self.catalog.to_calibrate)
        mine = [i for i in range(len(self.asked)) if i not in apart]
        pairs = self._pairs(mine, [self.asked[i] for i in mine])
        return list(recall(pairs, self.teacher, self.store))

    def _targets(self, judgments: list[Judgment]) -> Targets:
        return build_targets(judgments, self.config.training, self.priors)

    def _priors(self) -> list[Judgment]:
        # A document that a budget cut short would tell of some labels only.
        judged = recall(self._pairs(*self.context), self.teacher, self.store)
        return context_of(judged, len(self.catalog.labels))

    def _documents(self, positions: Sequence[int]) -> list[Document]:
        return [self.catalog.documents[i] for i in positions]

    def _train(
        self, student: Path, judgments: list[Judgment], progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        return train_bi_encoder(
            self._documents(self.catalog.to_train),
            self.catalog.labels,
            self._targets(judgments),
            self.config.training,
            student,
            base=self.untrained,
            held_out=self._documents(self.catalog.to_select),
            seed=self.config.seed,
            progress=lambda done, total, loss: progress(done, total),
        ).to_dict()

    def select(self, students: list[Path]) -> Path:
        """The student that agrees best with the teacher on the selection part."""
        if len(students) == 1:
            return students[0]
        documents, targets = self._documents(self.catalog.to_select), self._targets(self._judgments())
        scores = [
            held_out_agreement(self._encoder(student), documents, self.catalog.labels, targets)
            for student in students
        ]
        # Without a held-out judgment there is nothing to choose by: the last has seen most.
        best = max(range(len(students)), key=lambda i: (scores[i] or 0.0, i))
        for cycle, score in zip(self.found.cycles, scores, strict=True):
            cycle.agreement = score
        self.watch.say(f"the student of cycle {best + 1} agrees best with the teacher")
        return students[best]

    def deliver(self, student: Path) -> None:
        """Write the bundle; the calibrator comes into it later."""
        bundle = self.place.path / "bundle"
        origin = {
            "teacher": json.dumps(self.teacher.description, sort_keys=True),
            "encoder": self._identity(None),
        }

        def save() -> dict[str, Any]:
            return save_bundle(
                bundle,
                student,
                self.catalog.labels,
                max_length=self.config.training.max_length,
                k=self.config.inference.k,
                origin=origin,
                progress=self.watch.stage("bundle: label index"),
            ).model_dump()

        # The split decides what the calibrator in it may be fitted on.
        inputs = [
            self.catalog_hash,
            self._identity(student),
            self.config.inference.model_dump(),
            self.config.training.model_dump(),
            self.config.seed,
            origin,
        ]
        self.place.stage("bundle", inputs, [bundle / "manifest.json"], save)

    def calibrate(self) -> None:
        """Ask the teacher about what the student itself answers on the part kept apart, and fit."""
        depth = self.config.inference.calibration_depth
        part = self.catalog.to_calibrate
        predictions = Predictor(self.place.path / "bundle").predict(self._documents(part), k=depth)
        row = {label.uid: i for i, label in enumerate(self.catalog.labels)}
        rows = [[row[uid] for uid in found.labels] for found in predictions]
        # Where a budget ends, the calibrator is fitted on a random part of its documents.
        order = in_hash_order([found.uid for found in predictions], range(len(part)))
        self._annotate([part[i] for i in order], [rows[i] for i in order], "calibration: teacher judges")
        judged = recall(self._pairs(part, rows), self.teacher, self.store)
        try:
            self.found.calibrator = fit_calibrator(
                predictions, teacher_verdicts(judged), target="teacher", k=depth
            )
        except TrainingError as error:
            self.watch.say(f"the bundle gives scores, not probabilities: {error}")
        else:
            add_calibrator(self.place.path / "bundle", self.found.calibrator)

    def tag(self) -> None:
        """Tag every document with the bundle, as a user would; rank by the untrained encoder to compare."""
        predictor = Predictor(self.place.path / "bundle")
        bar, keep = self.watch.stage("tagging"), self.config.inference.k
        k = max(_EVALUATED, keep) if self.catalog.gold else keep
        for done, prediction in enumerate(predictor.stream(self.catalog.documents, k=k), start=1):
            self.found.predictions.append(prediction)
            bar(done, len(self.catalog.documents))
        self.place.write_lines(
            self.place.path / "predictions.jsonl", (prediction_row(p, keep) for p in self.found.predictions)
        )
        if self.catalog.gold:
            self.found.untrained = self._rank_untrained()

    def _rank_untrained(self) -> list[Prediction]:
        """Labels of every document by the encoder training started from."""
        encoder, labels = self._encoder(None), self.catalog.labels
        index = LabelIndex(encoder.encode_labels([label.title for label in labels]))
        texts = [document.shown for document in self.catalog.documents]
        bar = self.watch.stage("evaluation: untrained encoder")
        _, rows = index.search(encoder.encode_documents(texts, progress=bar), _EVALUATED)
        return [
            Prediction(document.uid, tuple(labels[row].uid for row in found), (), ())
            for document, found in zip(self.catalog.documents, rows, strict=True)
        ]
