"""Metrics in pure numpy and scipy; they know labels and probabilities, and no model."""

from ezxmc.metrics.bootstrap import FEW, Difference, Terms, differences, intervals
from ezxmc.metrics.calibration import ReliabilityBin, ace_at_k, brier, ece_at_k, nll, reliability_bins
from ezxmc.metrics.drift import FEWEST_DOCUMENTS, Drift, JudgedPairs, Shift, detect_drift
from ezxmc.metrics.propensity import (
    GROUPS,
    Frequencies,
    frequency_groups,
    inverse_propensities,
    inverse_propensity,
    psp_at_k,
)
from ezxmc.metrics.ranking import (
    encode,
    hit_matrix,
    ndcg_at_k,
    precision_at_k,
    precision_by_document,
    recall_at_k,
    recall_by_document,
    top_labels,
)
from ezxmc.metrics.streaming import Measured, RankingMetrics

__all__ = [
    "FEW",
    "FEWEST_DOCUMENTS",
    "GROUPS",
    "Difference",
    "Drift",
    "Frequencies",
    "JudgedPairs",
    "Measured",
    "RankingMetrics",
    "ReliabilityBin",
    "Shift",
    "Terms",
    "ace_at_k",
    "brier",
    "detect_drift",
    "differences",
    "ece_at_k",
    "encode",
    "frequency_groups",
    "hit_matrix",
    "intervals",
    "inverse_propensities",
    "inverse_propensity",
    "ndcg_at_k",
    "nll",
    "precision_at_k",
    "precision_by_document",
    "psp_at_k",
    "recall_at_k",
    "recall_by_document",
    "reliability_bins",
    "top_labels",
]
