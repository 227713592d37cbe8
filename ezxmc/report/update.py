"""The page of an update: what came, what drifted, what was asked, what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from markupsafe import Markup
from pydantic import Field

from ezxmc.metrics import Drift
from ezxmc.report import figures
from ezxmc.report.model import DataSummary, Part, TrainingSummary, Window
from ezxmc.report.page import change_cell, environment, metric_cell, replace_page
from ezxmc.report.story import number, percent


class KeptMetric(Part):
    """A measure of agreement with the teacher on old documents and labels.

    Attributes:
        former: Of the former student.
        new: Of the new one.
        low: Lower end of the 95% interval of the change; `None` where there is none.
        high: Upper end.
        p: Of no change.
    """

    former: float
    new: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


class Comparison(Part):
    """Both students on old documents never trained on, old labels alone.

    Attributes:
        documents: Documents compared on.
        primary: The metric that decides.
        metrics: By name.
        worse: Whether the new student is significantly worse.
    """

    documents: int
    primary: str
    metrics: dict[str, KeptMetric]
    worse: bool


class UpdateReport(Part):
    """What an update did; with `planned`, what it would do.

    Attributes:
        title: Of the page.
        created: When, ISO 8601.
        number: Of the update, from 1; 0: there was nothing to update.
        planned: Nothing was asked or changed.
        data: How reading went.
        changes: What is new, changed or gone since the last time, counted.
        renamed: Former and present titles of some renamed labels.
        probe: Pairs of the drift probe.
        selected: Pairs to learn from, by why they are asked; those known already included.
        check: Pairs that calibrate and compare, at most; those known already included.
        asked: Pairs the teacher was asked, over all sessions of the update.
        full_run: Pairs a run from cold would ask of this catalog, at most.
        unasked: Selected pairs the budget left.
        drift: `None` if it was not tested.
        student: Whose weights the bundle has now.
        forgetting: `None` if no student was trained or nothing could be compared.
        training: The round of training.
        ece: Of the new calibrator, cross-fitted.
        windows: Of all updates so far, this one included.
        notes: What a reader must know.
        seconds: Wall time of this session.
    """

    title: str
    created: str
    number: int = 0
    planned: bool = False
    data: DataSummary
    changes: dict[str, int]
    renamed: list[tuple[str, str]] = Field(default_factory=list)
    probe: int = 0
    selected: dict[str, int] = Field(default_factory=dict)
    check: int = 0
    asked: int = 0
    full_run: int = 0
    unasked: int = 0
    drift: Drift | None = None
    student: Literal["trained", "kept: the new one is worse on old labels", "kept: nothing to learn"] = (
        "kept: nothing to learn"
    )
    forgetting: Comparison | None = None
    training: TrainingSummary | None = None
    ece: float | None = None
    windows: list[Window] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    seconds: float = 0.0

    def sentences(self) -> list[str]:
        """The update in a few sentences."""
        changed = [f"{number(count)} {name}" for name, count in self.changes.items() if count]
        if not changed:
            return ["Nothing has changed since the last time: nothing was asked, nothing was trained."]
        said = [f"Since the last time: {', '.join(changed)}."]
        if self.planned:
            pairs = self.probe + sum(self.selected.values()) + self.check
            said.append(
                f"An update would ask at most {number(pairs)} pairs ({number(self.probe)} of them to test "
                f"for drift, {number(self.check)} to calibrate and compare); a run from cold would ask "
                f"up to {number(self.full_run)}."
            )
            return [*said, *self.notes]
        share = f" ({percent(self.asked / self.full_run, 0)} of a run)" if self.full_run else ""
        said.append(
            f"The teacher was asked {number(self.asked)} pairs{share}; a run from cold would ask up to "
            f"{number(self.full_run)}."
        )
        if self.unasked:
            said.append(f"The budget left {number(self.unasked)} selected pairs unasked.")
        if self.drift:
            said.append(self._drift(self.drift))
        said.append(f"Student: {self.student}.")
        if self.forgetting:
            said.append(self._forgetting(self.forgetting))
        return [*said, *self.notes]

    def _drift(self, drift: Drift) -> str:
        names = [part.name for part in drift.parts if part.drifted]
        if not drift.found:
            return (
                f"No drift was found: on {number(drift.documents)} new documents the stated probabilities "
                f"are off by {100 * drift.ece:.1f} points (before: {100 * drift.ece_before:.1f})."
            )
        where = f", of {', '.join(names[:5])}" if names else ""
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (
            f"Calibration has drifted{where}{more}: on new documents the teacher's share of yes is "
            f"{change_cell(drift.overall.error, False)} points off what is stated, all labels together "
            f"(before: {change_cell(drift.overall.error_before, False)}; p = {number(drift.overall.p)})."
        )

    def _forgetting(self, found: Comparison) -> str:
        one = found.metrics[found.primary]
        reach = f" (95 % interval of the change {_reach(one)} points)" if _reach(one) else ""
        verdict = "significantly worse" if found.worse else "not significantly worse"
        return (
            f"On {number(found.documents)} old documents and old labels the new student is {verdict}: "
            f"{found.primary} {percent(one.former)} before, {percent(one.new)} now{reach}."
        )


def write_update(data: UpdateReport, path: Path) -> None:
    """Write the page of an update, as `write_report` does that of a run."""
    replace_page(path, render_update(data))


def render_update(data: UpdateReport) -> str:
    """The page as a string; every text of the user is escaped."""
    drawn = {
        "drift": figures.drift(data.drift) if data.drift else "",
        "windows": figures.windows(data.windows),
    }
    return (
        environment()
        .get_template("update.html.j2")
        .render(
            report=data,
            summary=data.sentences(),
            shown=figures.SHOWN,
            kept=[_kept(name, one) for name, one in data.forgetting.metrics.items()]
            if data.forgetting
            else [],
            figures={name: Markup(svg) for name, svg in drawn.items()},
            points=lambda value: change_cell(value, False),
        )
    )


def _reach(one: KeptMetric) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{change_cell(one.low, False)} to {change_cell(one.high, False)}"


def _kept(name: str, one: KeptMetric) -> dict[str, str]:
    return {
        "name": name,
        "former": metric_cell(one.former, False),
        "new": metric_cell(one.new, False),
        "change": change_cell(one.new - one.former, False),
        "interval": _reach(one),
        "p": "" if one.p is None else number(one.p),
    }
