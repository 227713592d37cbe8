"""Training: distil the teacher's judgments into the bi-encoder."""

from ezxmc.training.student import TrainSummary, train_bi_encoder

__all__ = ["TrainSummary", "train_bi_encoder"]
