"""Calibration: from a similarity to a probability one can act on."""

from ezxmc.calibration.calibrator import KINDS, Calibrator, Kind, Target
from ezxmc.calibration.corrected import Corrected
from ezxmc.calibration.fit import (
    LEAST_JUDGED,
    Verdict,
    completed,
    fit_calibrator,
    fit_few_shot,
    judged_rows,
    unjudged,
)
from ezxmc.calibration.isotonic import Isotonic
from ezxmc.calibration.platt import Platt
from ezxmc.calibration.ranked import Ranked
from ezxmc.calibration.rows import JudgedRows
from ezxmc.calibration.temperature import Temperature

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
