"""Model names resolved: weights that install as packages, local folders, hub ids."""

from ezxmc.models.catalog import ModelEntry, ModelKind
from ezxmc.models.resolve import (
    ModelInfo,
    list_models,
    model_identity,
    model_path,
    published_as,
    pull,
    resolve_model,
    verify,
)
from ezxmc.models.store import ModelProgress, cache_home

__all__ = [
    "ModelEntry",
    "ModelInfo",
    "ModelKind",
    "ModelProgress",
    "cache_home",
    "list_models",
    "model_identity",
    "model_path",
    "published_as",
    "pull",
    "resolve_model",
    "verify",
]
