"""Two runs side by side: quality, cost, and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ezxmc.report.model import EvaluationSummary, RunReport
from ezxmc.report.page import change_cell, environment, metric_cell, replace_page
from ezxmc.report.story import number, percent

Row = dict[str, Any]


def compared(first: RunReport, second: RunReport) -> dict[str, list[Row]]:
    """What sets two runs apart, as tables of rows with `name`, `first` and `second`.

    Returns:
        `quality`, `held_out` (metrics of both students), `groups` (their R@10), `cost`, and
        `settings`, only those that differ. A value a run does not have is `None`.
    """
    return {
        "quality": _pairs(_metrics(first.evaluation), _metrics(second.evaluation)),
        "held_out": _pairs(_metrics(first.held_out), _metrics(second.held_out)),
        "groups": _pairs(_groups(first.evaluation), _groups(second.evaluation)),
        "cost": _pairs(_cost(first), _cost(second)),
        "settings": [
            row
            for row in _pairs(dict(_flat(first.config)), dict(_flat(second.config)))
            if row["first"] != row["second"]
        ],
    }


def write_comparison(first: RunReport, second: RunReport, path: Path) -> None:
    """Write the page of two runs, as `write_report` does that of one."""
    replace_page(path, render_comparison(first, second))


def render_comparison(first: RunReport, second: RunReport) -> str:
    """The page as a string; every text of the user is escaped."""
    tables = compared(first, second)
    for name in ("quality", "held_out", "groups"):
        tables[name] = [_worded(row) for row in tables[name]]
    return environment().get_template("compare.html.j2").render(first=first, second=second, **tables)


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    names = dict.fromkeys([*first, *second])
    return [{"name": name, "first": first.get(name), "second": second.get(name)} for name in names]


def _worded(row: Row) -> Row:
    """A row of metrics for people, with the change from the first run to the second."""
    nats = row["name"].startswith("NLL")
    one, other = row["first"], row["second"]
    return {
        "name": row["name"],
        "first": metric_cell(one, nats),
        "second": metric_cell(other, nats),
        "change": "" if None in (one, other) else change_cell(other - one, nats),
    }


def _metrics(evaluation: EvaluationSummary | None) -> dict[str, float]:
    return evaluation.after if evaluation else {}


def _groups(evaluation: EvaluationSummary | None) -> dict[str, float]:
    return {name: after for name, (_, after) in evaluation.groups.items()} if evaluation else {}


def _cost(report: RunReport) -> dict[str, str]:
    rows: dict[str, str] = {"cycles": str(len(report.cycles))}
    if report.teacher:
        rows["judgments"] = number(report.teacher.judgments)
        rows["prompt tokens"] = number(report.teacher.prompt_tokens)
    if report.cost:
        rows |= {
            f"seconds, {stage}": number(round(seconds)) for stage, seconds in report.cost.seconds.items()
        }
        if report.cost.peak_memory is not None:
            rows["peak memory, GB"] = number(report.cost.peak_memory / 1e9)
    if report.calibration and report.calibration.ece_cross_fitted is not None:
        rows[f"ECE against {report.calibration.target}, cross-fitted"] = percent(
            report.calibration.ece_cross_fitted
        )
    return rows


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)
