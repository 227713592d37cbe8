"""The last stage of a run where `head` is enabled: a sparse head in the bundle, if it earns its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import add_head, load_bundle
from ezxmc.config import RunConfig
from ezxmc.errors import TrainingError
from ezxmc.feedback.budget import JUDGED_TOP
from ezxmc.pipeline.cycles import Cycles, JudgedTops
from ezxmc.progress import Progress
from ezxmc.retrieval import LabelIndex
from ezxmc.retrieval.sparse_head import SparseHead
from ezxmc.training.dataset import examples
from ezxmc.training.head_fusion import (
    FusionChoice,
    agreement_without_head,
    choose_fusion_on,
    confirmed,
    quality_alone,
    train_head,
)

Search = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Vectors and a depth to scores and label rows."""


class HeadStage:
    """Trains a head on a run's judgments and puts it into the run's bundle.

    Args:
        config: The run's configuration.
        cycles: Done.
        student: The one in the bundle.
        bundle: Where the bundle is, or will be.

    Attributes:
        inputs: What the stage depends on beside the bundle.
    """

    def __init__(self, config: RunConfig, cycles: Cycles, student: Path, bundle: Path) -> None:
        self.config, self.cycles, self.student, self.bundle = config, cycles, student, bundle
        content, self._targets = cycles.head_targets(student)
        self.inputs: list[Any] = [config.head.model_dump(), content]

    def run(self, save: Callable[[Path], Any], watch: Progress) -> dict[str, Any]:
        """Train and weigh; the head goes into the bundle if held-out documents call for it.

        Args:
            save: Writes the bundle with a student: called again where the head changed the student.
            watch: Sees training, and told the outcome.

        Returns:
            `told`, the outcome in words; the fusion and the agreement it was chosen by, if one was trained.
        """
        try:
            head, choice, alone, fused = self._train(save, watch)
        except TrainingError as error:
            watch.say(told := f"no head: {error}")
            return {"told": told}
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

    def _train(
        self, save: Callable[[Path], Any], watch: Progress
    ) -> tuple[SparseHead, FusionChoice, _Ranking, _Ranking]:
        """The head, its weight by what is judged, and both rankings; no student stays in memory."""
        catalog, inquiry, config = self.cycles.catalog, self.cycles.inquiry, self.config
        taught, plain = self._targets()
        apart = inquiry.documents(catalog.to_select), catalog.labels, plain
        texts = [document.shown for document in inquiry.documents(self.cycles.budget.selecting)]
        opened, beat = load_bundle(self.bundle), None
        alone = _Ranking.of(opened.index, opened.encoder.encode_documents(texts), opened.index.search)
        if config.head.fine_tune:
            beat = agreement_without_head(opened.encoder, *apart, opened.index)
        head = train_head(
            opened.encoder,
            inquiry.documents(catalog.to_train),
            catalog.labels,
            taught,
            opened.index,
            config.head,
            precision=config.training.precision,
            seed=config.seed,
            progress=watch.stage("head: training"),
        )
        if config.head.fine_tune:
            tuned = self.bundle.with_name("head") / "student"
            opened.encoder.save(tuned)
            save(tuned)
            opened = load_bundle(self.bundle)
        choice = choose_fusion_on(head, opened.encoder, *apart, opened.index, beat=beat)
        vectors = opened.encoder.encode_documents(texts)
        search = partial(replace(head, fusion=choice.fusion).search, opened.index)
        return head, choice, alone, _Ranking.of(opened.index, vectors, search)

    def _confirmed(
        self, choice: FusionChoice, head: SparseHead, alone: _Ranking, fused: _Ranking, found: JudgedTops
    ) -> FusionChoice:
        """The choice, by documents on which both rankings' first labels are judged."""
        documents = self.cycles.inquiry.documents(found.documents)
        pool = examples(documents, self.cycles.catalog.labels, self.cycles.plain_targets(found.judgments))
        row = {i: place for place, i in enumerate(self.cycles.budget.selecting)}
        rows = [row[i] for i in found.documents]
        beat = quality_alone(alone.index, alone.vectors[rows], pool)
        return confirmed(choice, head, fused.index, fused.vectors[rows], pool, beat)


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

    @classmethod
    def of(cls, index: LabelIndex, vectors: NDArray[np.float32], search: Search) -> _Ranking:
        """Search with the vectors of all documents."""
        top = search(vectors, JUDGED_TOP)[1] if len(vectors) else np.empty((0, 0), dtype=np.int64)
        return cls(index, vectors, top)
