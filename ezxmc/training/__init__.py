"""Training: distil the teacher's judgments into the bi-encoder."""

from ezxmc.training.interop import DistillationLoss, targets_dataset
from ezxmc.training.label_vectors import refined_label_vectors
from ezxmc.training.launch import TrainSummary
from ezxmc.training.student import compared, cosines_of, held_out_agreement, train_bi_encoder

__all__ = [
    "DistillationLoss",
    "TrainSummary",
    "compared",
    "cosines_of",
    "held_out_agreement",
    "refined_label_vectors",
    "targets_dataset",
    "train_bi_encoder",
]
