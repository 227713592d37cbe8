"""Sparse classifier head: fixed fan-in weights, dynamic sparse training, fusion with the bi-encoder."""

from ezxmc.training.head.fit import Judged, fit_head, judged_pairs
from ezxmc.training.head.fuse import FusionChoice, choose_fusion
from ezxmc.training.head.train import train_head, unaided, weighed

__all__ = [
    "FusionChoice",
    "Judged",
    "choose_fusion",
    "fit_head",
    "judged_pairs",
    "train_head",
    "unaided",
    "weighed",
]
