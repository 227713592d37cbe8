"""Figures of drift: reliability before and now, errors of labels, errors over updates.

Labels are numbers here, whose names stand in the page's table: no text of the
user goes into a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from ezxmc.report.figures import FIRST, INK, MUTED, SECOND, STYLE, axes_of, filled, svg

if TYPE_CHECKING:
    from ezxmc.report.update import DriftSummary, Window

SHOWN = 15
"""Labels and groups that are drawn and listed."""


def drift(found: DriftSummary) -> str:
    """Left both reliability diagrams, right the mean signed errors of the most suspicious parts."""
    with rc_context(STYLE):
        figure, (left, right) = axes_of(6.8, 3.6, columns=2)
        left.plot([0, 100], [0, 100], "--", color=MUTED, linewidth=1)
        for bins, color, marker, name in (
            (found.reliability_before, FIRST, "s", "before"),
            (found.reliability, SECOND, "o", "new documents"),
        ):
            points = filled(bins)
            most = max((count for _, _, count in points), default=1)
            stated, true = [100 * p for p, _, _ in points], [100 * h for _, h, _ in points]
            left.plot(stated, true, color=color, alpha=0.6)
            sizes = [15 + 100 * count / most for _, _, count in points]
            left.scatter(stated, true, s=sizes, color=color, marker=marker, label=name, zorder=3)
        left.set_xlim(0, 102)
        left.set_ylim(0, 102)
        left.set_xlabel("stated probability, %")
        left.set_ylabel("the teacher says yes, %")
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
