"""The last stage of a run where `head` is enabled: a sparse head in the bundle, if it earns its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ezxmc.bundle import load_bundle
from ezxmc.bundle_head import add_head
from ezxmc.config import RunConfig
from ezxmc.cycles import Cycles
from ezxmc.errors import TrainingError
from ezxmc.training.head import train_head, unaided, weighed
from ezxmc.watch import Watch


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

    def run(self, save: Callable[[Path], Any], watch: Watch) -> dict[str, Any]:
        """Train and weigh; the head goes into the bundle if held-out documents call for it.

        Args:
            save: Writes the bundle with a student: called again where the head changed the student.
            watch: Sees training, and told the outcome.

        Returns:
            `told`, the outcome in words; the fusion and the agreement it was chosen by, if one was trained.
        """
        catalog, inquiry, config = self.cycles.catalog, self.cycles.inquiry, self.config
        taught, plain = self._targets()
        apart = inquiry.documents(catalog.to_select), catalog.labels, plain
        opened, beat = load_bundle(self.bundle), None
        if config.head.fine_tune:
            beat = unaided(opened.encoder, *apart, opened.index)
        try:
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
        except TrainingError as error:
            watch.say(told := f"no head: {error}")
            return {"told": told}
        if config.head.fine_tune:
            tuned = self.bundle.with_name("head") / "student"
            opened.encoder.save(tuned)
            save(tuned)
            opened = load_bundle(self.bundle)
        choice = weighed(head, opened.encoder, *apart, opened.index, beat=beat)
        watch.say(choice.line)
        if choice.fusion.weight:
            add_head(self.bundle, replace(head, fusion=choice.fusion))
        elif config.head.fine_tune:
            save(self.student)
        return {
            "told": choice.line,
            **asdict(choice.fusion),
            "documents": choice.documents,
            "agreement": choice.agreement,
        }
