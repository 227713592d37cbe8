"""The run report: one self-contained HTML page and its data (`ezxmc.report.model`); two runs compared."""

from ezxmc.report.model import RunReport
from ezxmc.report.page import compared, render_comparison, render_report, write_comparison, write_report

__all__ = ["RunReport", "compared", "render_comparison", "render_report", "write_comparison", "write_report"]
