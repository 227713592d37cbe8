"""A finished run follows its catalog: asks what is new, learns from all, keeps what it knew.

1. What is new, edited, renamed or gone is found by uid and content.
2. The former student's probabilities are tested on some new documents (`ezxmc.metrics.calibration`).
3. The teacher is asked about new documents, new labels, and labels that drifted; nothing twice.
4. The student is trained on from its weights, on old and new judgments together. This rehearsal
   is what keeps old labels (Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal",
   Connection Science 7, 1995); averaging with the former weights (`training.average`) helps it.
5. Former and new student are compared on old documents and labels. A student that is
   significantly worse is not taken: the former one then gets the new labels by their titles.
6. Only when all is made does it take the place of what was.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ezxmc.bundle.manifest import HEAD, STUDENT, read_manifest
from ezxmc.bundle.predict import Predictor
from ezxmc.config import BudgetConfig, RunConfig
from ezxmc.data import Catalog
from ezxmc.errors import ConfigError, DataError
from ezxmc.feedback.annotator import Annotator
from ezxmc.feedback.budget import Budget
from ezxmc.feedback.exchange import merge_shards
from ezxmc.feedback.recall import unused_judgments
from ezxmc.feedback.reviews import ReviewedPairs
from ezxmc.feedback.store import FeedbackStore
from ezxmc.metrics import Drift
from ezxmc.pipeline.compare import compare_and_calibrate, probe
from ezxmc.pipeline.findings import data_summary, training_summary
from ezxmc.pipeline.people import stays
from ezxmc.pipeline.run import check_places, refuse_torchrun
from ezxmc.pipeline.rundir import BUNDLE, History, RunDir
from ezxmc.pipeline.snapshot import CATALOG, Changes, Snapshot
from ezxmc.pipeline.update_pairs import DRIFTING
from ezxmc.pipeline.update_steps import CatalogChange, Update
from ezxmc.progress import NoProgress, Progress, pulling
from ezxmc.report.model import Window
from ezxmc.report.update import UpdateReport, write_update
from ezxmc.teacher import Teacher, load_teacher

_RENAMED_SHOWN = 50


def update(
    config: RunConfig, *, plan: bool = False, teacher: Teacher | None = None, watch: Progress | None = None
) -> UpdateReport:
    """Bring a finished run up to date with its documents and labels, or go on with an update.

    Documents keep the parts they serve (training, selection, calibration), and new ones
    join a text that is known. Interrupted at any point, the same call goes on.

    Args:
        config: The run's configuration; documents and labels may be other files now.
        plan: Only say what is new and what would be asked; nothing is written.
        teacher: Used instead of the configured one; closed at the end.
        watch: Sees stages and messages.

    Returns:
        What `updates/N/report.html` shows. With nothing new, nothing is asked or written.

    Raises:
        ConfigError: The run directory cannot be used, another process uses it,
            or the split's settings or the teacher are not those of the run.
        DataError: There is no finished run, or the catalog cannot be read.
        TeacherError: The LLM engine failed; the judgments so far are kept.
    """
    refuse_torchrun()
    run_dir = Path(config.run_dir)
    if not (run_dir / "feedback.sqlite").exists():
        raise DataError(f"{run_dir} holds no finished run", "run `ezxmc run CONFIG` first, without --update")
    check_places(config)
    watch = watch or NoProgress()
    run = RunDir(run_dir)
    with run.locked(), FeedbackStore(run_dir / "feedback.sqlite") as store:
        merge_shards(store)
        asked = teacher or load_teacher(
            config.teacher, cluster=config.cluster, progress=pulling(watch, "teacher"), say=watch.say
        )
        try:
            return _Session(config, run, store, asked, watch).go(plan)
        finally:
            asked.close()


class _Session:
    """The state of one update."""

    def __init__(
        self, config: RunConfig, run: RunDir, store: FeedbackStore, teacher: Teacher, watch: Progress
    ) -> None:
        self.config, self.run, self.store, self.teacher, self.watch = config, run, store, teacher, watch
        self.history = History(run)
        self.history.finish_pending(watch.say)
        former = Snapshot.load(run.path / CATALOG)
        split = config.seed, config.training.held_out
        if split != (former.seed, former.held_out):
            raise ConfigError(
                f"seed and training.held_out were {former.seed} and {former.held_out}, and are "
                f"{split[0]} and {split[1]}: documents kept apart so far would be trained on",
                "set them back, or run in full without --update",
            )
        if not store.totals(teacher.fingerprint).judgments:
            raise ConfigError(
                f"nothing is known of this teacher: {unused_judgments(store, teacher)}",
                "set the teacher and its prompt back, or run in full without --update",
            )
        self.catalog = Catalog.load(
            config.data, config.training.held_out, config.seed, watch.say, former=former.placing
        )
        now = Snapshot.of(self.catalog, *split, former)
        self.grown = CatalogChange(former, now, Changes.between(former, self.catalog))

    def go(self, plan: bool) -> UpdateReport:
        started, changes = time.monotonic(), self.grown.changes
        titles = {uid: title for uid, (title, _) in self.grown.former.labels.items()}
        renamed = [self.catalog.labels[row] for row in changes.renamed_labels[:_RENAMED_SHOWN]]
        whole = Budget.of(self.config, self.catalog)
        report = UpdateReport(
            title=f"ezxmc update: {self.run.path.name}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            planned=plan,
            data=data_summary(self.catalog, self.teacher),
            changes=changes.counts(),
            renamed=[(titles[label.uid], label.title) for label in renamed],
            full_run=whole.most,
            windows=self._windows(),
        )
        if not changes.any:
            return report
        if plan:
            work = self._work(0)
            report.selected, report.check = work.selection(()).counts(), work.check_pairs
            report.probe = len(work.probed) * work.depth
            if report.probe and self.config.update.max_pairs is None:
                # What drifted is not known before the probe: as much again at most.
                report.selected[DRIFTING] = self.config.update.probe
            return report
        place = self.history.open()
        Update.check(place)
        report.number = int(place.path.name)
        report.title += f", update {report.number}"
        before = place.stage(
            "begin",
            self.grown.former.hash,
            [],
            lambda: {"judged": self.store.judged(self.teacher.fingerprint)},
        )
        work = self._work(before["judged"])
        self._do(work, place, report)
        report.asked = self.store.judged(self.teacher.fingerprint) - before["judged"]
        report.seconds = time.monotonic() - started
        place.write("report.json", report.model_dump_json(indent=1))
        write_update(report, place.path / "report.html")
        place.write_lines(place.path / CATALOG, self.grown.now.rows())
        place.write("config.yaml", self.config.dump())
        self.history.complete(place, work.student.bundle.manifest)
        return report

    def _work(self, judged: int) -> Update:
        most = self.config.update.max_pairs
        limit = BudgetConfig(max_pairs=None if most is None else judged + most)
        budget = Budget(limit, [document.uid for document in self.catalog.documents])
        annotator = Annotator(self.catalog, self.teacher, self.store, budget, self.watch)
        decided = ReviewedPairs.load(self.store.path, self.catalog.documents, self.catalog.labels)
        student = Predictor(self.run.path / BUNDLE)
        return Update(self.config, student, self.grown, annotator, decided, self.watch)

    def _do(self, work: Update, place: RunDir, report: UpdateReport) -> None:
        groups = {label.uid: label.parent for label in self.catalog.labels if label.parent}
        drift = probe(work) if self.grown.changes.unseen else None
        report.probe = len(work.probed) * work.depth
        if drift:
            report.drift = self._titled(drift)
            report.windows.append(_window(report, report.drift))
        report.selected = work.ask(place, drift.drifting(groups) if drift else ())
        if any(report.selected.values()):
            bundle, trained = work.learn(place)
            report.training, report.check = training_summary(trained), work.check_pairs
            found, calibrator = compare_and_calibrate(work, bundle, compared=True)
            report.forgetting = found
            if found and found.worse and not self.config.update.accept_loss:
                report.student = "kept: the new one is worse on old labels"
                bundle = work.keep(place)
                _, calibrator = compare_and_calibrate(work, bundle, compared=False)
            else:
                report.student = "trained"
                work.take_over(bundle)
            report.ece = calibrator.ece_cross_fitted if calibrator else None
            self._gone(work, bundle)
        else:
            bundle = work.keep(place)
        work.notes += stays(bundle, named=self.run.path / BUNDLE)
        work.tag(bundle, place)
        work.notes += [*place.lines(), *filter(None, [work.reviews])]
        report.unasked, report.notes = work.annotator.unasked_pairs, work.notes

    def _gone(self, work: Update, bundle: Path) -> None:
        """Tell what was made for the former student or its probabilities."""
        lost = set(work.student.bundle.manifest.files) - set(read_manifest(bundle).files)
        if work.student.bundle.head is not None and not read_manifest(bundle).file(HEAD):
            work.notes.append("The former bundle's sparse head is gone: a run without --update trains one.")
        if any(name.startswith(f"{STUDENT}/onnx/") for name in lost):
            work.notes.append("The former student's exported forms are gone: `ezxmc export` makes them.")

    def _windows(self) -> list[Window]:
        for path in reversed(self.history.reports):
            try:
                return [Window.model_validate(one) for one in json.loads(path.read_bytes())["windows"]]
            except (OSError, ValueError, KeyError, TypeError):
                self.watch.say(f"{path} cannot be read: its window is left out of the history of drift")
        return []

    def _titled(self, drift: Drift) -> Drift:
        """With titles in place of labels' uids, as a page shows it."""
        titles = {label.uid: label.title for label in self.catalog.labels}
        return replace(
            drift, parts=tuple(replace(part, name=titles.get(part.name, part.name)) for part in drift.parts)
        )


def _window(report: UpdateReport, drift: Drift) -> Window:
    return Window(
        number=report.number,
        created=report.created,
        documents=drift.documents,
        ece=drift.ece,
        error=drift.overall.error,
        half_width=drift.overall.half_width,
        drifted=drift.found,
    )
