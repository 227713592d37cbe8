"""Training: distil the teacher's judgments into the bi-encoder."""

from ezxmc.training.selection import held_out_agreement
from ezxmc.training.student import TrainSummary, train_bi_encoder

__all__ = ["TrainSummary", "held_out_agreement", "train_bi_encoder"]
