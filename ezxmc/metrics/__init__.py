"""Metrics in pure numpy; they know labels and probabilities, and no model."""

from ezxmc.metrics.calibration import ReliabilityBin, ace_at_k, brier, ece_at_k, nll, reliability_bins
from ezxmc.metrics.propensity import frequency_groups, inverse_propensities, psp_at_k
from ezxmc.metrics.ranking import (
    hit_matrix,
    ndcg_at_k,
    precision_at_k,
    precision_by_document,
    recall_at_k,
    recall_by_document,
)

__all__ = [
    "ReliabilityBin",
    "ace_at_k",
    "brier",
    "ece_at_k",
    "frequency_groups",
    "hit_matrix",
    "inverse_propensities",
    "ndcg_at_k",
    "nll",
    "precision_at_k",
    "precision_by_document",
    "psp_at_k",
    "recall_at_k",
    "recall_by_document",
    "reliability_bins",
]
