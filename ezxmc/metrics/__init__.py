"""Metrics in pure numpy; they know labels and probabilities, and no model."""

from ezxmc.metrics.calibration import ReliabilityBin, ace_at_k, brier, ece_at_k, nll, reliability_bins
from ezxmc.metrics.ranking import hit_matrix, ndcg_at_k, precision_at_k, recall_at_k

__all__ = [
    "ReliabilityBin",
    "ace_at_k",
    "brier",
    "ece_at_k",
    "hit_matrix",
    "ndcg_at_k",
    "nll",
    "precision_at_k",
    "recall_at_k",
    "reliability_bins",
]
