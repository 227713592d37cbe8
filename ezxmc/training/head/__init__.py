"""Sparse classifier head: fixed fan-in weights, dynamic sparse training, fusion with the bi-encoder."""

from ezxmc.training.head.fit import Judged, fit_head, judged_pairs
from ezxmc.training.head.fuse import FusionChoice, choose_fusion, confirmed, quality_alone
from ezxmc.training.head.train import train_head, unaided, weighed

__all__ = [
    "FusionChoice",
    "Judged",
    "choose_fusion",
    "confirmed",
    "fit_head",
    "judged_pairs",
    "quality_alone",
    "train_head",
    "unaided",
    "weighed",
]
