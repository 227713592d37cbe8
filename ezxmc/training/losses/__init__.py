"""Distillation losses, one file each: pure functions of scores and masks."""

from ezxmc.training.losses.decoupled_softmax import decoupled_softmax

__all__ = ["decoupled_softmax"]
