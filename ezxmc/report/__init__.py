"""The run report: one self-contained HTML page and its data."""

from ezxmc.report.model import (
    BudgetSummary,
    CalibrationSummary,
    CostSummary,
    CycleSummary,
    DataSummary,
    EvaluationSummary,
    ExampleDocument,
    ExampleTag,
    Histogram,
    ReliabilityBin,
    RowProblemEntry,
    RowSummary,
    RunReport,
    ShortlistSummary,
    TeacherSummary,
    TrainingSummary,
)
from ezxmc.report.page import render_report, write_report

__all__ = [
    "BudgetSummary",
    "CalibrationSummary",
    "CostSummary",
    "CycleSummary",
    "DataSummary",
    "EvaluationSummary",
    "ExampleDocument",
    "ExampleTag",
    "Histogram",
    "ReliabilityBin",
    "RowProblemEntry",
    "RowSummary",
    "RunReport",
    "ShortlistSummary",
    "TeacherSummary",
    "TrainingSummary",
    "render_report",
    "write_report",
]
