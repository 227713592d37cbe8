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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle import save_bundle
from ezxmc.calibration import Calibrator
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.errors import TrainingError
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of, recall
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import Targets, build_targets
from ezxmc.models import model_identity, resolve_model
from ezxmc.predict import Predictor, prediction_row
from ezxmc.records import Document, Judgment, Pair, Prediction
from ezxmc.report import RunReport, write_report
from ezxmc.retrieval import BiEncoder, LabelIndex, shortlist
from ezxmc.rundir import RunDir
from ezxmc.runreport import CycleFindings, Findings, assemble
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.training import student_agreement, train_bi_encoder

_EVALUATED = 50  # labels ranked per document where there is gold, for R@k


class Watch(Protocol):
    """Whoever wants to see how far a run is."""

    def stage(self, title: str) -> Callable[[int, int], None]:
        """Begin a stage; the result is called with (done, total)."""

    def say(self, text: str) -> None:
        """A message about something finished."""


class _Unwatched:
    def stage(self, title: str) -> Callable[[int, int], None]:
        return lambda done, total: None

    def say(self, text: str) -> None:
        pass


def pulling(watch: Watch, name: str) -> Callable[[str, int, int], None]:
    """Progress of fetching a model, shown as one stage of `watch` each step."""
    stages: dict[str, Callable[[int, int], None]] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = watch.stage(f"{name}: {stage}")
        stages[stage](done, total)

    return update


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
        return _Run(config, place, store, teacher, watch or _Unwatched()).go()


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
        self.found = Findings(self.catalog)
        self.asked: list[list[int]] = [[] for _ in self.catalog.documents]
        """Label rows the cycles so far asked about, by document."""

    def go(self) -> RunReport:
        started, judged_before = time.monotonic(), self._judging_seconds()
        students: list[Path] = []
        try:
            for number in range(1, self.config.cycles + 1):
                students.append(self.cycle(number, students[-1] if students else None))
            best = self.select(students)
            calibrator = self.calibrate(best)
        finally:
            self.teacher.close()
        self.deliver(best, calibrator)
        self.tag()
        judging = self._judging_seconds() - judged_before
        rest = time.monotonic() - started - self.place.spent - judging
        report = assemble(self.config, self.found, self.place.path, self.teacher, self.store, rest)
        self.place.write("report.json", report.model_dump_json(indent=1))
        write_report(report, self.place.path / "report.html")
        return report

    def _judging_seconds(self) -> float:
        return self.store.totals(self.teacher.fingerprint).seconds

    def cycle(self, number: int, former: Path | None) -> Path:
        """The former student proposes, the teacher judges, a new student learns from all judgments."""
        folder, name = self.place.cycle(number), f"cycle {number}/{self.config.cycles}"
        file, student = folder / "shortlist.jsonl", folder / "student"
        proposed = self.place.stage(
            f"cycle-{number}-shortlist",
            [
                self.catalog.hash,
                self._student_identity(former),
                self.config.shortlist.model_dump(),
                self.config.training.max_length,
                self.config.seed,
                self.asked,
            ],
            [file],
            lambda: self._propose(file, former, self.watch.stage(f"{name}: shortlist")),
        )
        rows = [json.loads(line)["rows"] for line in file.read_text(encoding="utf-8").splitlines()]
        self.asked = [[*old, *new] for old, new in zip(self.asked, rows, strict=True)]
        asked = self._annotate(range(len(rows)), rows, f"{name}: teacher judges")
        # Training needs the memory; the next cycle starts the engine again.
        self.teacher.close()

        judgments = self._judgments()
        trained = self.place.stage(
            f"cycle-{number}-train",
            [
                self.catalog.hash,
                self._student_identity(None),
                self.config.training.model_dump(),
                self.config.seed,
                [[j.key, j.status, j.log_odds] for j in judgments],
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

    def _student_identity(self, student: Path | None) -> str:
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
        lines = (
            {
                "doc": candidates.doc_uid,
                "rows": candidates.labels,
                "labels": [labels[row].uid for row in candidates.labels],
                "scores": [round(score, 4) for score in candidates.scores],
                "sources": candidates.sources,
            }
            for candidates in found
        )
        self.place.write_lines(file, lines)
        return {"candidates": sum(len(candidates.labels) for candidates in found)}

    def _pairs(self, documents: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[Pair]:
        return pairs_of([self.catalog.documents[i] for i in documents], self.catalog.labels, rows)

    def _annotate(
        self, documents: Sequence[int], rows: Sequence[Sequence[int]], title: str
    ) -> AnnotateSummary:
        summary = annotate(
            lambda: self._pairs(documents, rows), self.teacher, self.store, progress=self.watch.stage(title)
        )
        if failed := {kind: n for kind, n in summary.statuses.items() if kind != "ok"}:
            self.watch.say(f"  pairs without a score: {failed}; in documents {summary.problem_docs[:5]} ...")
        self.found.problem_docs.extend(summary.problem_docs)
        return summary

    def _judgments(self) -> list[Judgment]:
        """What is known of the cycles' pairs; the calibration part is kept apart even from label priors."""
        apart = set(self.catalog.to_calibrate)
        mine = [i for i in range(len(self.asked)) if i not in apart]
        pairs = self._pairs(mine, [self.asked[i] for i in mine])
        return list(recall(pairs, self.teacher, self.store))

    def _targets(self, judgments: list[Judgment]) -> Targets:
        return build_targets(judgments, self.config.training)

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
        """The student that agrees best with the teacher on the selection part, all cycles' judgments pooled."""
        if len(students) == 1:
            return students[0]
        documents, targets = self._documents(self.catalog.to_select), self._targets(self._judgments())
        scores = [
            student_agreement(self._encoder(student), documents, self.catalog.labels, targets)
            for student in students
        ]
        # Without a held-out judgment there is nothing to choose by: the last has seen most.
        best = max(range(len(students)), key=lambda i: (scores[i] or 0.0, i))
        for cycle, score in zip(self.found.cycles, scores, strict=True):
            cycle.agreement = score
        self.watch.say(f"the student of cycle {best + 1} agrees best with the teacher")
        return students[best]

    def _search(self, encoder: BiEncoder, documents: list[Document], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        index = LabelIndex(encoder.encode_labels([label.title for label in self.catalog.labels]))
        return index.search(encoder.encode_documents([document.shown for document in documents]), k)

    def calibrate(self, student: Path) -> Calibrator | None:
        """Ask the teacher about what the student itself answers on the part kept apart, and fit."""
        positions, depth = self.catalog.to_calibrate, self.config.inference.calibration_depth
        scores, rows = self._search(self._encoder(student), self._documents(positions), depth)
        self._annotate(positions, rows.tolist(), "calibration: teacher judges")
        pairs = list(self._pairs(positions, rows.tolist()))
        judged = {
            (j.doc_uid, j.label_uid): j.log_odds
            for j in recall(pairs, self.teacher, self.store)
            if j.log_odds is not None
        }
        known = [(pair.doc.uid, pair.label.uid) in judged for pair in pairs]
        kept = [pair for pair, is_known in zip(pairs, known, strict=True) if is_known]
        try:
            self.found.calibrator = Calibrator.fit(
                scores.ravel()[known],
                # The event: the teacher finds "yes" likelier than "no".
                np.array([judged[pair.doc.uid, pair.label.uid] > 0 for pair in kept], dtype=float),
                [pair.doc.uid for pair in kept],
                target="teacher",
                k=depth,
            )
        except TrainingError as error:
            self.watch.say(f"the bundle gives scores, not probabilities: {error}")
        return self.found.calibrator

    def deliver(self, student: Path, calibrator: Calibrator | None) -> None:
        """Write the bundle."""
        save_bundle(
            self.place.path / "bundle",
            student,
            self.catalog.labels,
            max_length=self.config.training.max_length,
            k=self.config.inference.k,
            calibrator=calibrator,
            origin={
                "teacher": json.dumps(self.teacher.description, sort_keys=True),
                "encoder": model_identity(self.config.training.encoder),
            },
            progress=self.watch.stage("bundle: label index"),
        )

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
            _, rows = self._search(self._encoder(None), self.catalog.documents, _EVALUATED)
            self.found.untrained = [
                Prediction(document.uid, tuple(self.catalog.labels[row].uid for row in found), (), ())
                for document, found in zip(self.catalog.documents, rows, strict=True)
            ]

