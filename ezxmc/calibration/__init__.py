"""Calibration: from a similarity to a probability one can act on."""

from ezxmc.calibration.fit import Verdict, fit_calibrator
from ezxmc.calibration.isotonic import Calibrator

__all__ = ["Calibrator", "Verdict", "fit_calibrator"]
