"""A run whose inner traffic a test can look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from support.fakes import FakeTeacher
from support.tinyworld import topical

from ezxmc.config import RunConfig
from ezxmc.pipeline import deliver
from ezxmc.pipeline import run as pipeline
from ezxmc.report import RunReport


@dataclass
class Spy:
    """A run's report, its teacher, and what went into targets and training."""

    config: RunConfig
    teacher: FakeTeacher
    report: RunReport
    targets: list[set[tuple[str, str]]] = field(default_factory=list)
    context: list[set[tuple[str, str]]] = field(default_factory=list)
    trained: list[set[str]] = field(default_factory=list)
    bases: list[Path] = field(default_factory=list)
    formers: list[Path | None] = field(default_factory=list)
    selected: list[set[str]] = field(default_factory=list)
    judges: list[Any] = field(default_factory=list)
    """Targets that the epochs of each training were to be compared by, if not those it learnt from."""
    plain: list[Any] = field(default_factory=list)
    """Targets in which a former student had no say."""
    fused: list[bool] = field(default_factory=list)
    """Of each time targets were built, whether a former student had a say."""

    @property
    def place(self) -> Path:
        return Path(self.config.run_dir)

    def predictions(self) -> str:
        return (self.place / "predictions.jsonl").read_text(encoding="utf-8")


class Messages:
    """A watch that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []
        self.ended: dict[str, tuple[int, int]] = {}

    def stage(self, title: str) -> Callable[[int, int], None]:
        return lambda done, total: self.ended.__setitem__(title, (done, total))

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, text: str) -> None:
        self.shown.append(text)


def spied(config: Path, teacher: FakeTeacher | None = None, watch: Messages | None = None) -> Spy:
    settings = RunConfig.load(config)
    spy = Spy(settings, teacher or FakeTeacher(topical), RunReport(title="", created=""))
    build, train = deliver.build_targets, deliver.train_bi_encoder

    def build_targets(
        judgments: Any, config: Any, context: Any, proposals: Any = None, verdicts: Any = MappingProxyType({})
    ) -> Any:
        spy.targets.append({(judgment.doc_uid, judgment.label_uid) for judgment in judgments})
        spy.context.append({(judgment.doc_uid, judgment.label_uid) for judgment in context})
        spy.fused.append(proposals is not None)
        built = build(judgments, config, context, proposals, verdicts)
        if proposals is None:
            spy.plain.append(built)
        return built

    def train_bi_encoder(documents: Any, *args: Any, held_out: Any, **options: Any) -> Any:
        spy.trained.append({d.uid for d in documents})
        spy.selected.append({d.uid for d in held_out})
        spy.bases.append(Path(options["base"]))
        spy.formers.append(options["former"])
        spy.judges.append(options["held_out_targets"])
        return train(documents, *args, held_out=held_out, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "build_targets", build_targets)
        patch.setattr(deliver, "train_bi_encoder", train_bi_encoder)
        spy.report = pipeline.run(settings, teacher=spy.teacher, watch=watch)
    return spy
