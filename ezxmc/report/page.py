"""The report page: numbers to sentences, sentences and figures to one HTML file.

And the page of two runs side by side: quality, cost, and the settings that differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ezxmc.files import write_file
from ezxmc.metrics import FEW
from ezxmc.report import figures
from ezxmc.report.model import EvaluationSummary, RowSummary, RunReport
from ezxmc.report.story import duration, headline, number, percent, size, story
from ezxmc.text import cut

# The page stays small and readable however large the run was.
_DEEP = re.compile(r"(ECE|ACE|Brier|NLL)@(\d+)")
_WIDE = '<div class="wide">'
_HEAD = 1_000
_GENERATOR = b'<meta name="generator" content="ezxmc">'
_FORMER_PAGE = re.compile(rb'<meta name="color-scheme" content="light dark">\s*<title>ezxmc[^<]*</title>')
_MOST = {"examples": 30, "open": 3, "problems": 20, "problem_docs": 50, "config": 20_000}


def write_report(data: RunReport, path: Path) -> None:
    """Write the run's page: one HTML file, no script, nothing loaded from elsewhere.

    Args:
        data: What to show; parts that are `None` or empty are left out.
        path: The file, a former report is replaced in one step; its folder is made if missing.

    Raises:
        ConfigError: Something that is no page of ezxmc is in its place.
        DataError: It cannot be written.
    """
    replace_page(path, render_report(data))


def replace_page(path: Path, html: str) -> None:
    """Write a page in one step; its folder is made if missing.

    Raises:
        ConfigError: Something that is no page of ezxmc is in its place.
        DataError: It cannot be written.
    """
    # A lone surrogate in a user's text must not cost the whole report.
    write_file(path, html.encode("utf-8", "replace"), "a report", made=is_page)


def is_page(path: Path) -> bool:
    """Whether a file is a page that ezxmc wrote, of this version or before pages named their maker."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return _GENERATOR in head or _FORMER_PAGE.search(head) is not None


def render_report(data: RunReport) -> str:
    """The page as a string; every text of the user is escaped."""
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=data,
            most=_MOST,
            few=FEW,
            story=story(data),
            headline=headline(data),
            quality=_quality_rows(data.evaluation),
            quality_held_out=_quality_rows(data.held_out),
            errors=_error_rows(data.evaluation),
            inputs=_inputs(data),
            figures=_figures(data),
        )
    )


def environment() -> Environment:
    """The templates, escaping everything they are given."""
    made = Environment(
        loader=PackageLoader("ezxmc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "size": size,
        "yaml": _yaml,
        "commands": _commands,
        "truncate": _truncate,
    }
    return made


def _truncate(text: str, most: int) -> str:
    """The beginning of a long text, its last word whole where spaces part words."""
    begun = cut(text, most, "")
    return text if begun == text else f"{begun.rsplit(' ', 1)[0]}…"


def _quality_rows(evaluation: EvaluationSummary | None) -> list[dict[str, str]]:
    """Table rows: metric, before, after, change, and whether the change is good."""
    if evaluation is None:
        return []
    rows = []
    for metric in dict.fromkeys([*evaluation.before, *evaluation.after]):
        if _DEEP.fullmatch(metric) and metric not in evaluation.before:
            continue  # of probabilities, which the untrained encoder has none of: `_error_rows`
        before, after = evaluation.before.get(metric), evaluation.after.get(metric)
        nats = metric.upper().startswith("NLL")
        row = {
            "metric": metric,
            "before": metric_cell(before, nats),
            "after": metric_cell(after, nats),
            "interval": _range(evaluation.after_intervals.get(metric), nats, signed=False),
            "constant": metric_cell(evaluation.constant.get(metric), nats),
            "change": "",
            "change_interval": _range(evaluation.change_intervals.get(metric), nats, signed=True),
            "verdict": "",
        }
        if before is not None and after is not None:
            change = after - before
            row["change"] = change_cell(change, nats)
            if change:
                better = (change < 0) == figures.lower_is_better(metric)
                row["verdict"] = "good" if better else "bad"
        rows.append(row)
    return rows


def _range(ends: tuple[float, float] | None, nats: bool, *, signed: bool) -> str:
    if ends is None:
        return ""
    return " to ".join(change_cell(end, nats, sign="+" if signed else "") for end in ends)


def _error_rows(evaluation: EvaluationSummary | None) -> tuple[list[str], list[list[str]]]:
    """Errors of the student's probabilities: a column for each depth, a row for each metric."""
    table: dict[str, dict[str, str]] = {}
    for metric, value in (evaluation.after if evaluation else {}).items():
        if found := _DEEP.fullmatch(metric):
            table.setdefault(found[1], {})[found[2]] = metric_cell(value, found[1] == "NLL")
    depths = list(dict.fromkeys(depth for cells in table.values() for depth in cells))
    return depths, [[name, *(cells.get(depth, "–") for depth in depths)] for name, cells in table.items()]


def metric_cell(value: float | None, nats: bool) -> str:
    """A metric as a table shows it: in percent, or in nats."""
    if value is None:
        return "–"
    return f"{value:.3f}" if nats else percent(value)


def change_cell(value: float, nats: bool, sign: str = "+") -> str:
    """A change of a metric, or an end of an interval: in points, or in nats."""
    return f"{value:{sign}.3f}" if nats else f"{100 * value:{sign}.1f}"


def _inputs(data: RunReport) -> list[tuple[str, RowSummary]]:
    if data.data is None:
        return []
    parts = (
        ("documents", data.data.documents),
        ("labels", data.data.labels),
        ("gold", data.data.gold),
        ("recorded judgments", data.data.judgments),
    )
    return [(name, part) for name, part in parts if part is not None]


def _figures(data: RunReport) -> dict[str, Markup]:
    """The SVGs; they hold numbers and metric names, which matplotlib escapes."""
    rounds = [(cycle.number, cycle.training) for cycle in data.cycles if cycle.training]
    drawn = {
        "progress": figures.progress(found) if (found := headline(data)[0]) else "",
        "quality": figures.quality(data.evaluation) if data.evaluation else "",
        "reliability": figures.reliability({0: data.calibration.bins}, "reliability")
        if data.calibration
        else "",
        "reliability_gold": (
            figures.reliability(data.evaluation.reliability, "reliability-gold") if data.evaluation else ""
        ),
        "thresholds": figures.thresholds(data.thresholds),
        "log_odds": figures.log_odds(data.log_odds_histogram) if data.log_odds_histogram else "",
        "label_mass": figures.label_mass(data.label_mass_histogram) if data.label_mass_histogram else "",
        "training": figures.training(rounds),
        "learning": figures.learning(data.people_curve),
    }
    # In a narrow window a figure scrolls rather than shrink until nobody can read it; panels stack.
    alone = {"progress": '<div class="panels">'}
    return {
        name: Markup(f"{alone.get(name, _WIDE)}{svg}</div>" if svg else "") for name, svg in drawn.items()
    }


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _commands(text: str) -> Markup:
    """A text, escaped: what stands between backticks as code, and no line between a number and its %."""
    whole = str(escape(text)).replace(" %", "\u00a0%")
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", whole))


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
