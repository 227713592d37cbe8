"""From judgments to what is delivered, in a run and in its updates alike.

A student is trained, gets refined label vectors and a bundle, perhaps with a sparse
head, is calibrated on documents kept apart, and tags every document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Refine, add_calibrator, add_head, load_bundle, save_bundle
from ezxmc.bundle.manifest import CALIBRATOR, Manifest, read_manifest
from ezxmc.bundle.predict import Predictor, rank_among
from ezxmc.calibration import Calibrator, Verdict, completed, fit_calibrator, fit_few_shot
from ezxmc.config import RunConfig, TrainingConfig
from ezxmc.errors import TrainingError
from ezxmc.feedback.annotator import Annotator
from ezxmc.feedback.budget import JUDGED_TOP, in_hash_order
from ezxmc.feedback.reviews import ReviewedLists, ReviewedPairs
from ezxmc.feedback.targets import Targets, build_targets, teacher_verdicts
from ezxmc.pipeline.people import peoples_calibrator
from ezxmc.pipeline.people_ranks import MovedRanks, by_review, counted_offsets, peoples_ranks
from ezxmc.pipeline.rundir import ENCODING, RunDir
from ezxmc.progress import Progress
from ezxmc.records import Document, Judgment, Prediction
from ezxmc.report.model import CurvePoint
from ezxmc.retrieval import BiEncoder, LabelIndex
from ezxmc.retrieval.label_offsets import LabelOffsets
from ezxmc.retrieval.sparse_head import SparseHead
from ezxmc.training import cosines_of, refined_label_vectors, train_bi_encoder
from ezxmc.training.dataset import examples
from ezxmc.training.head_fusion import (
    FusionChoice,
    choose_fusion,
    confirmed,
    quality_alone,
    train_head,
)

if TYPE_CHECKING:
    from ezxmc.pipeline.cycles import Cycles, JudgedTops

_BOTH, _PEOPLE = "people and teacher", "people alone"
UNKEYED = {"processes", "revision"}
"""Settings of training that no stage depends on as such: the revision is part of the encoder's identity."""


def keyed(training: TrainingConfig) -> dict[str, Any]:
    """What stages depend on of these settings, with those that are gone as finished runs had them."""
    # Finished runs did not have it.
    without = UNKEYED | ({"encoder_prompts"} if training.encoder_prompts is None else set())
    return training.model_dump(exclude=without) | training.former


class Delivery:
    """What a run's cycles and an update have in common.

    Args:
        config: The run's configuration.
        annotator: Asks the teacher, within the budget, about the catalog.
        decided: What people decided; on the calibration part it teaches nothing.
        watch: Sees stages and messages.

    Attributes:
        training: What of the settings a student depends on; how many processes train it does not count.
        verdicts: What people decided that teaches.
        row_of: Rows of the catalog's labels by uid.
        depth: Ranks that are calibrated on.
    """

    def __init__(
        self, config: RunConfig, annotator: Annotator, decided: ReviewedPairs, watch: Progress
    ) -> None:
        self.config, self.annotator, self.decided, self.watch = config, annotator, decided, watch
        self.catalog = annotator.catalog
        self.training = keyed(config.training)
        apart = {self.catalog.documents[i].uid for i in self.catalog.to_calibrate}
        self.verdicts = decided.verdicts_outside(apart)
        self.row_of = {label.uid: row for row, label in enumerate(self.catalog.labels)}
        self.depth = config.inference.calibration_depth

    def content(self, *judgments: Sequence[Judgment]) -> list[list[Any]]:
        """What targets are made of, for the stages that use them."""
        said = [[*pair, yes] for pair, yes in sorted(self.verdicts.items())]
        return [*([j.key, j.status, j.log_odds] for part in judgments for j in part), *said]

    def targets(
        self,
        judgments: Sequence[Judgment],
        context: Sequence[Judgment],
        former: BiEncoder | None = None,
        verdicts: Mapping[tuple[str, str], bool] = MappingProxyType({}),
    ) -> Targets:
        """`build_targets`, fused with what a former student thinks."""
        proposals = None
        if former is not None:
            proposals = cosines_of(former, self.catalog.documents, self.catalog.labels)
        return build_targets(judgments, self.config.training, context, proposals, verdicts)

    def train(
        self,
        place: RunDir,
        stage: str,
        inputs: list[Any],
        student: Path,
        targets: Callable[[], tuple[Targets, Targets | None]],
        *,
        base: Path | str,
        former: Path | None,
        held_out: Sequence[Document],
        title: str = "training",
    ) -> dict[str, Any]:
        """Train a student, unless that is done: `base` trained on, and averaged with `former`.

        `targets` gives what it learns, and what its epochs are compared by on `held_out`; place, stage and
        inputs are as for `RunDir.stage`, which returns `TrainSummary` as a dict.
        """

        def make() -> dict[str, Any]:
            taught, plain = targets()
            bar = self.watch.stage(title)
            done = train_bi_encoder(
                self.annotator.documents(self.catalog.to_train),
                self.catalog.labels,
                taught,
                self.config.training,
                student,
                base=base,
                former=former,
                held_out=held_out,
                held_out_targets=plain,
                teacher=self.annotator.teacher.description,
                seed=self.config.seed,
                progress=lambda done, total, loss: bar(done, total),
            )
            return done.to_dict() | {"plain": True}

        return place.stage(stage, inputs, [student], make, libraries=ENCODING)

    def refine(self, targets: Callable[[], Targets]) -> Refine | None:
        """How a student's label vectors are refined by what it learnt; `None` where they are not."""
        if self.config.training.label_vectors != "refined":
            return None
        return lambda encoder, vectors: refined_label_vectors(
            encoder,
            self.annotator.documents(self.catalog.to_train),
            self.catalog.labels,
            targets(),
            vectors,
            seed=self.config.seed,
        )

    def save(
        self, bundle: Path, student: BiEncoder | Path, origin: dict[str, str], refine: Refine | None
    ) -> Manifest:
        """Write the bundle of a student and the catalog's labels; the calibrator comes later."""
        return save_bundle(
            bundle,
            student,
            self.catalog.labels,
            max_length=self.config.training.max_length,
            k=self.config.inference.k,
            origin=origin,
            refine=refine,
            progress=self.watch.stage("bundle: label index"),
        )

    def counted(
        self,
        bundle: Path,
        documents: Sequence[int],
        predictions: Sequence[Prediction],
        judgments: Sequence[Judgment],
    ) -> tuple[Sequence[Prediction], Sequence[Judgment], LabelOffsets | None]:
        """Ranks by labels' counts, where `counted_offsets` finds that these gain.

        What then comes first of the documents with an answer, the teacher is asked about as well.

        Args:
            bundle: Its folder.
            documents: Positions in the catalog.
            predictions: Of these, by the bundle's student without label offsets.
            judgments: The teacher's of them.

        Returns:
            Predictions and judgments, both as they were where nothing is gained; and the offsets.
        """
        teacher, plain = teacher_verdicts(judgments), replace(load_bundle(bundle), offsets=None)
        offsets = None
        if not peoples_calibrator(bundle):
            offsets = counted_offsets(plain, self.catalog.documents, predictions, teacher, self.watch)
        if offsets is None:
            return predictions, judgments, None
        counting = Predictor(replace(plain, offsets=offsets.on(plain.labels, plain.index)))
        predictions = rank_among(counting, self.annotator.documents(documents), self.row_of, self.depth)
        del plain, counting  # no student is in memory while the teacher works
        answered = {judgment.doc_uid for judgment in judgments}
        order = in_hash_order([p.uid for p in predictions], range(len(documents)))
        known = [i for i in order if predictions[i].uid in answered]
        pairs = (
            [documents[i] for i in known],
            [[self.row_of[uid] for uid in predictions[i].labels] for i in known],
        )
        self.annotator.ask(*pairs, "calibration: teacher judges what counts put first")
        return predictions, [*judgments, *self.annotator.answers(*pairs)], offsets

    def calibrate(
        self,
        bundle: Path,
        predictions: Sequence[Prediction],
        judgments: Sequence[Judgment],
        counted: LabelOffsets | None = None,
    ) -> tuple[Calibrator | None, str, Sequence[CurvePoint]]:
        """`calibrate`, to what people and the teacher said of predictions on documents kept apart.

        Where people reviewed enough of them, ranks follow their decisions too: see `peoples_ranks`.

        Args:
            bundle: Its folder.
            predictions: Of its student with `counted`, and no other label offsets.
            judgments: The teacher's.
            counted: Label offsets by counts, if they gain.

        Returns:
            The calibrator; what people's reviews gave, in words; and by growing numbers of documents.
        """
        reviewed, moved = self.decided.lists(predictions, self.depth), None
        line, teacher = reviewed.line, teacher_verdicts(judgments)
        if reviewed.enough and not peoples_calibrator(bundle):
            by_uid = {document.uid: document for document in self.catalog.documents}
            said, plain = by_review(reviewed, self.decided), replace(load_bundle(bundle), offsets=None)
            some = [by_uid[p.uid] for p in predictions if p.uid in said]
            moved = peoples_ranks(plain, some, said, self.depth, self.watch, counted)
            line = f"{line}; {moved.line}"
        found = calibrate(bundle, predictions, teacher, reviewed, self.depth, self.watch, moved, counted)
        return found, line, moved.curve if moved else ()

    def tags(self, predictor: Predictor, k: int) -> Iterator[Prediction]:
        """Tag every document."""
        documents, bar = self.catalog.documents, self.watch.stage("tagging")
        for done, prediction in enumerate(predictor.stream(documents, k=k), start=1):
            yield prediction
            bar(done, len(documents))


def calibrate(
    bundle: Path,
    predictions: Sequence[Prediction],
    teacher: Verdict,
    reviewed: ReviewedLists,
    depth: int,
    watch: Progress,
    moved: MovedRanks | None = None,
    counted: LabelOffsets | None = None,
) -> Calibrator | None:
    """Put a calibrator into a bundle: to people where they reviewed enough, else to the teacher.

    Either alone serves where the other's answers cannot be used. What people
    had fitted, even while this was at work, stays.

    Args:
        bundle: Its folder.
        predictions: Of documents kept apart, best label first, ranked with `counted`.
        teacher: The teacher's answers in [0, 1].
        reviewed: What people decided of these documents.
        depth: Ranks used.
        watch: Hears where there is too little to fit on.
        moved: Ranks that follow people's decisions, to be delivered with a calibrator fitted to people.
        counted: Label offsets by counts, to be delivered otherwise.
    """
    if peoples := _peoples(bundle):
        return peoples
    ways: dict[str, Callable[[], Calibrator]] = {}
    if reviewed.enough:
        people = partial(completed, predictions, reviewed, depth)
        ranked = moved.predictions if moved else predictions
        ways[_BOTH] = lambda: fit_few_shot(predictions, teacher, people(), k=depth, ranked=ranked)
        ways[_PEOPLE] = lambda: fit_calibrator(ranked, people(), target="human", k=depth)
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
    offsets = moved.offsets if moved and name in (_BOTH, _PEOPLE) else counted
    add_calibrator(bundle, fitted, offsets=offsets, by_run=True)
    return fitted


def _peoples(bundle: Path) -> Calibrator | None:
    return calibrator_of(bundle) if peoples_calibrator(bundle) else None


def calibrator_of(bundle: Path) -> Calibrator | None:
    """The calibrator in a bundle's folder, if there is one."""
    files = read_manifest(bundle).places(bundle)
    return Calibrator.load(files[CALIBRATOR]) if CALIBRATOR in files else None


@dataclass(frozen=True, slots=True)
class _Ranking:
    """A way to rank labels, on the documents that students are compared on.

    Attributes:
        index: The labels.
        vectors: (N, D) of the documents.
        top: (N, 5) rows of the labels it puts first.
    """

    index: LabelIndex
    vectors: NDArray[np.float32]
    top: NDArray[np.int64]


class HeadStage:
    """Trains a sparse head on a run's judgments; it goes into the run's bundle if it earns its place.

    Args:
        cycles: Done.
        student: The one in the bundle.
        bundle: Where the bundle is, or will be.
        targets: Of the student, fused with the former student's opinion or the teacher's alone.
    """

    def __init__(
        self, cycles: Cycles, student: Path, bundle: Path, targets: Callable[[bool], Targets]
    ) -> None:
        self.config, self.cycles, self.student, self.bundle = cycles.config, cycles, student, bundle
        self._targets = targets

    def run(self, save: Callable[[Path], Any]) -> dict[str, Any]:
        """Train and weigh; the head goes into the bundle if held-out documents call for it.

        `save` writes the bundle with a student: again where the head changed the student.

        Returns:
            `told`, the outcome in words; the fusion and the agreement it was chosen by, if one was trained.
        """
        watch = self.cycles.watch
        try:
            head, choice, alone, fused = self._train(save)
        except TrainingError as error:
            watch.say(line := f"no head: {error}")
            return {"told": line}
        pairs = 0
        if choice.fusion.weight:
            title = "head: teacher judges what is answered with and without it"
            found = self.cycles.judge_tops([alone.top, fused.top], title)
            choice, pairs = self._confirmed(choice, head, alone, fused, found), found.pairs
        watch.say(choice.line)
        if choice.fusion.weight:
            add_head(self.bundle, replace(head, fusion=choice.fusion))
        elif self.config.head.fine_tune:
            save(self.student)
        return {
            "told": choice.line,
            **asdict(choice.fusion),
            "documents": choice.documents,
            "agreement": choice.agreement,
            "pairs": pairs,
        }

    def _train(self, save: Callable[[Path], Any]) -> tuple[SparseHead, FusionChoice, _Ranking, _Ranking]:
        """The head, its weight by what is judged, and both rankings; no student stays in memory."""
        catalog, annotator, config = self.cycles.catalog, self.cycles.annotator, self.config
        taught, plain = self._targets(True), self._targets(False)
        apart = annotator.documents(catalog.to_select)
        shown, pool = [document.shown for document in apart], examples(apart, catalog.labels, plain)
        texts = [document.shown for document in annotator.documents(self.cycles.budget.selecting)]

        def ranking(index: LabelIndex, encoder: BiEncoder, search: Callable[..., Any]) -> _Ranking:
            vectors = encoder.encode_documents(texts)
            top = search(vectors, JUDGED_TOP)[1] if len(vectors) else np.empty((0, 0), dtype=np.int64)
            return _Ranking(index, vectors, top)

        opened, baseline = load_bundle(self.bundle), None
        alone = ranking(opened.index, opened.encoder, opened.index.search)
        if config.head.fine_tune:
            baseline = quality_alone(opened.index, opened.encoder.encode_documents(shown), pool)
        head = train_head(
            opened.encoder,
            annotator.documents(catalog.to_train),
            catalog.labels,
            taught,
            opened.index,
            config.head,
            precision=config.training.precision,
            seed=config.seed,
            progress=self.cycles.watch.stage("head: training"),
        )
        if config.head.fine_tune:
            tuned = self.bundle.with_name("head") / "student"
            opened.encoder.save(tuned)
            save(tuned)
            opened = load_bundle(self.bundle)
        vectors = opened.encoder.encode_documents(shown)
        choice = choose_fusion(head, opened.index, vectors, pool, beat=baseline)
        search = partial(replace(head, fusion=choice.fusion).search, opened.index)
        return head, choice, alone, ranking(opened.index, opened.encoder, search)

    def _confirmed(
        self, choice: FusionChoice, head: SparseHead, alone: _Ranking, fused: _Ranking, found: JudgedTops
    ) -> FusionChoice:
        """The choice, by documents on which both rankings' first labels are judged."""
        documents = self.cycles.annotator.documents(found.documents)
        pool = examples(documents, self.cycles.catalog.labels, self.cycles.plain_targets(found.judgments))
        row = {i: place for place, i in enumerate(self.cycles.budget.selecting)}
        rows = [row[i] for i in found.documents]
        baseline = quality_alone(alone.index, alone.vectors[rows], pool)
        return confirmed(choice, head, fused.index, fused.vectors[rows], pool, baseline)
