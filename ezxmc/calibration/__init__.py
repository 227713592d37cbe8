"""Calibration: from a similarity to a probability one can act on."""

from ezxmc.calibration.calibrator import (
    KINDS,
    LEAST_JUDGED,
    Calibrator,
    Kind,
    Target,
    Verdict,
    completed,
    fit_calibrator,
    fit_few_shot,
    judged_rows,
    unjudged,
)
from ezxmc.calibration.curves import Corrected, Isotonic, JudgedRows, Platt, Ranked, Temperature

__all__ = [
    "KINDS",
    "LEAST_JUDGED",
    "Calibrator",
    "Corrected",
    "Isotonic",
    "JudgedRows",
    "Kind",
    "Platt",
    "Ranked",
    "Target",
    "Temperature",
    "Verdict",
    "completed",
    "fit_calibrator",
    "fit_few_shot",
    "judged_rows",
    "unjudged",
]
