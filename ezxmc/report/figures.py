"""Figures as inline SVG that follow the page's light or dark colours.

They hold numbers and metric names only, never text of documents or labels.
In the figures of drift labels are numbers, whose names stand in the page's table.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ezxmc.metrics import Drift, ReliabilityBin
from ezxmc.report.model import CurvePoint, EvaluationSummary, Histogram, ThresholdRow, TrainingSummary, Window

# matplotlib knows no CSS: it draws in these colours, which are then replaced.
INK, MUTED, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
_CSS = {INK: "currentColor", MUTED: "var(--muted)", FIRST: "var(--first)", SECOND: "var(--second)"}
STYLE = {
    "svg.fonttype": "none",  # real text: small, readable by screen readers
    "svg.hashsalt": "ezxmc",  # the same data gives the same bytes
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_NAMED = 4  # stages whose names stand side by side in a panel
PANELS = {
    "P@1": "first tag right (P@1)",
    "P@5": "first 5 tags right (P@5)",
    "R@10": "tags found in 10 (R@10)",
}
"""What the opening shows, in words."""


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name counts errors."""
    return metric.upper().startswith(("ECE", "ACE", "BRIER", "NLL"))


def progress(evaluation: EvaluationSummary) -> str:
    """A small panel each for P@1, P@5 and R@10: from the untrained encoder through the cycles to the end.

    They stand side by side or one below the other, as the window has room. Empty without these figures.
    """
    stages = [evaluation.before, *evaluation.cycles, evaluation.after]
    several = "" if len(stages) > _NAMED else "cycle "
    names = ["untrained", *(f"{several}{n}" for n in range(1, len(stages) - 1)), "student"]
    drawn = ""
    for metric, title in PANELS.items():
        heights = [100 * stage[metric] for stage in stages if metric in stage]
        if len(heights) < len(stages):
            continue
        others = ((evaluation.constant.get(metric), "--", FIRST), (evaluation.teacher.get(metric), ":", INK))
        with rc_context(STYLE):
            figure, axes = axes_of(2.9, 2.4)
            for value, dashes, color in others:
                if value is not None:
                    axes.axhline(100 * value, linestyle=dashes, color=color, linewidth=1.8)
            axes.plot(range(len(stages)), heights, color=SECOND, marker="o", linewidth=2)
            for place in (0, len(stages) - 1):
                axes.annotate(
                    f"{heights[place]:.0f}",
                    (place, heights[place]),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    weight="bold",
                )
            top = max([*heights, *(100 * value for value, *_ in others if value is not None)])
            axes.set_ylim(0, max(1.0, 1.18 * top))
            axes.set_xlim(-0.35, len(stages) - 0.65)
            axes.set_xticks(range(len(stages)), names)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_title(f"{title}, %", fontsize=10)
            axes.grid(axis="x", visible=False)
            drawn += svg(figure, f"progress-{metric[0]}{metric[2:]}", f"{title}, in percent, after each step")
    return drawn


def quality(evaluation: EvaluationSummary) -> str:
    """Bars of the metrics where more is better, before and after; empty if there are none."""
    names = [
        m
        for m in evaluation.after
        if m in evaluation.before and not lower_is_better(m) and not m.startswith("coverage")
    ]
    if not names:
        return ""
    with rc_context(STYLE):
        figure, axes = axes_of(6.8, 3.0)
        places = range(len(names))
        sides = (
            (-0.2, evaluation.before, evaluation.before_intervals, FIRST, "untrained encoder"),
            (0.2, evaluation.after, evaluation.after_intervals, SECOND, "student"),
        )
        for shift, values, intervals, color, label in sides:
            middle = [p + shift for p in places]
            heights = [100 * values[m] for m in names]
            axes.bar(middle, heights, 0.38, color=color, label=label)
            ends = [intervals.get(m, (values[m], values[m])) for m in names]
            reach = [
                [abs(100 * end[side] - top) for end, top in zip(ends, heights, strict=True)]
                for side in (0, 1)
            ]
            axes.errorbar(middle, heights, yerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        axes.set_xticks(list(places), names)
        axes.set_ylabel("%")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return svg(figure, "quality", "Quality before and after training, in percent")


def reliability(diagrams: Mapping[int, Sequence[ReliabilityBin]], name: str) -> str:
    """What was said against what came true, a diagram for each k; a dot's area follows its bin's share.

    Args:
        diagrams: Bins by depth k of the pairs; 0 is not named.
        name: Of the figure.
    """
    drawn = {k: bins for k, bins in diagrams.items() if bins}
    if not drawn:
        return ""
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    with rc_context(STYLE):
        figure, grid = axes_of(*((4.6, 4.2) if len(drawn) == 1 else (6.8, 3.3 * rows)), columns, rows)
        every = [grid] if len(drawn) == 1 else list(grid.flat)
        for axes in every[len(drawn) :]:
            axes.remove()
        for axes, (k, found) in zip(every, drawn.items(), strict=False):
            _diagram(axes, "came true, %")
            _dots(axes, found, 20, 160, color=SECOND)
            if k:
                axes.set_title("first tag" if k == 1 else f"first {k} tags", fontsize=10)
        return svg(figure, name, "Reliability diagram: stated probability against the rate of hits")


def _diagram(axes: Any, true: str) -> None:
    """The frame of a reliability diagram, and the line where stated and true agree."""
    axes.plot([0, 100], [0, 100], "--", color=MUTED, linewidth=1)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("stated probability, %")
    axes.set_ylabel(true)


def _dots(axes: Any, bins: Sequence[ReliabilityBin], least: float, more: float, **style: Any) -> None:
    most = max((one.n for one in bins), default=1)
    stated, true = [100 * one.mean_probability for one in bins], [100 * one.hit_rate for one in bins]
    axes.plot(stated, true, color=style["color"], alpha=0.6)
    axes.scatter(stated, true, s=[least + more * one.n / most for one in bins], zorder=3, **style)


def log_odds(histogram: Histogram) -> str:
    """Histogram of the teacher's log-odds, with the zero line."""
    return _histogram(
        histogram,
        '← no     log-odds of "yes", nats     yes →',
        "logodds",
        "the teacher's log-odds",
        zero=True,
    )


def label_mass(histogram: Histogram) -> str:
    """Histogram of the probability the teacher put on the allowed answers."""
    return _histogram(
        histogram, "probability of the allowed answers", "labelmass", "the probability of the allowed answers"
    )


def _histogram(histogram: Histogram, axis: str, name: str, of: str, *, zero: bool = False) -> str:
    if not sum(histogram.counts):
        return ""
    with rc_context(STYLE):
        figure, axes = axes_of(6.4, 2.6)
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=FIRST)
        if zero:
            axes.axvline(0, color=INK, linewidth=1, linestyle="--")
        axes.set_xlabel(axis)
        axes.set_ylabel("pairs")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return svg(figure, name, f"Histogram of {of}")


def thresholds(rows: list[ThresholdRow]) -> str:
    """Precision and recall over the threshold; empty without gold."""
    if not any(row.recall is not None for row in rows):
        return ""
    with rc_context(STYLE):
        figure, axes = axes_of(6.4, 3.0)
        for name, color, marker in (("precision", SECOND, "o"), ("recall", FIRST, "s")):
            known = [(row.threshold, value) for row in rows if (value := getattr(row, name)) is not None]
            places, values = zip(*known, strict=True)
            axes.plot(
                [100 * p for p in places], [100 * v for v in values], color=color, marker=marker, label=name
            )
        axes.set_xlabel("keep tags from this probability, %")
        axes.set_ylabel("%")
        axes.set_ylim(0, 102)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return svg(figure, "thresholds", "Precision and recall over the threshold, in percent")


def training(rounds: list[tuple[int, TrainingSummary]]) -> str:
    """Held-out score and loss over the epochs of all cycles, one after the other."""
    if not any(one.losses or one.selection for _, one in rounds):
        return ""
    with rc_context(STYLE):
        figure, (left, right) = axes_of(6.8, 2.8, columns=2)
        for cycle, one in rounds:
            # Cycles differ by dash, score and loss by colour.
            style: dict[str, Any] = {
                "linestyle": ("-", "--", ":", "-.")[(cycle - 1) % 4],
                "marker": "o",
                "markersize": 4,
                "label": f"cycle {cycle}",
            }
            first = 0 if len(one.selection) == len(one.losses) + 1 else 1
            left.plot(range(first, first + len(one.selection)), _finite(one.selection), color=SECOND, **style)
            right.plot(range(1, 1 + len(one.losses)), _finite(one.losses), color=FIRST, **style)
        left.set_title("held-out score", fontsize=10)
        right.set_title("training loss", fontsize=10)
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(rounds) > 1:
            left.legend(fontsize=8)
        return svg(figure, "training", "Training: held-out score and loss per epoch")


def learning(points: Sequence[CurvePoint]) -> str:
    """P@1 and P@5 over the documents people decided on, dashed what more would bring; or nothing."""
    if not points:
        return ""
    with rc_context(STYLE):
        figure, axes = axes_of(6.4, 2.8)
        for name, color, marker in (("P@1", FIRST, "s"), ("P@5", SECOND, "o")):
            places = [point.documents for point in points]
            heights = [100 * point.values[name] for point in points]
            known = sum(not point.expected for point in points)
            axes.plot(places[:known], heights[:known], color=color, marker=marker, label=name)
            axes.plot(places[known - 1 :], heights[known - 1 :], "--", color=color)
            axes.plot(places[known:], heights[known:], marker, color=color, fillstyle="none")
        axes.set_xlabel("documents that people decided on (dashed: expected)")
        axes.set_ylabel("%")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return svg(figure, "learning", "Quality over the documents that people decided on, in percent")


def _finite(values: list[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def axes_of(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure of this size in inches, and its axes."""
    # No pyplot: it keeps global state and would pick a window system.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def svg(figure: Any, name: str, label: str) -> str:
    """The figure as an <svg> element: no prolog, no metadata, ids unique on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    for drawn, css in _CSS.items():
        text = text.replace(drawn, css)
    # The view box scales; fixed widths would overflow a phone.
    head, rest = text.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    style = f' style="max-width:{width.group(1)}pt"' if width else ""
    return f'{head} role="img" aria-label="{label}"{style}>{rest}'


SHOWN = 15
"""Labels and groups that are drawn and listed."""


def drift(found: Drift) -> str:
    """Left both reliability diagrams, right the mean signed errors of the most suspicious parts."""
    with rc_context(STYLE):
        figure, (left, right) = axes_of(6.8, 3.6, columns=2)
        _diagram(left, "the teacher says yes, %")
        for bins, color, marker, name in (
            (found.reliability_before, FIRST, "s", "before"),
            (found.reliability, SECOND, "o", "new documents"),
        ):
            _dots(left, bins, 15, 100, color=color, marker=marker, label=name)
        left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
        rows = [found.overall, *found.parts[:SHOWN]]
        for place, row in enumerate(rows):
            color = SECOND if row.drifted else MUTED
            right.errorbar(
                [100 * row.error],
                [place],
                xerr=[100 * row.half_width],
                fmt="o" if row.drifted else ".",
                color=color,
                ecolor=color,
                capsize=2,
            )
            right.plot([100 * row.error_before], [place], "|", color=INK, markersize=9)
        right.axvline(0, color=MUTED, linewidth=1, linestyle="--")
        right.set_yticks(range(len(rows)), ["all", *map(str, range(1, len(rows)))])
        right.invert_yaxis()
        right.set_xlabel("error, points (tick: before)")
        right.grid(axis="y", visible=False)
        return svg(figure, "drift", "Calibration before and on new documents, as a whole and by label")


def windows(found: Sequence[Window]) -> str:
    """Mean signed error and calibration error of each update's probe; empty for fewer than two."""
    if len(found) < 2:
        return ""
    with rc_context(STYLE):
        figure, axes = axes_of(6.4, 2.8)
        places = [window.number for window in found]
        axes.axhline(0, color=MUTED, linewidth=1, linestyle="--")
        axes.errorbar(
            places,
            [100 * window.error for window in found],
            yerr=[100 * window.half_width for window in found],
            fmt="o-",
            color=SECOND,
            capsize=3,
            label="mean signed error",
        )
        axes.plot(places, [100 * window.ece for window in found], "s--", color=FIRST, label="ECE")
        alarms = [window for window in found if window.drifted]
        axes.plot(
            [window.number for window in alarms],
            [100 * window.error for window in alarms],
            "x",
            color=INK,
            markersize=12,
            label="drift reported",
        )
        axes.set_xlabel("update")
        axes.set_ylabel("points")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8)
        return svg(figure, "windows", "Calibration of the student on the new documents of each update")
