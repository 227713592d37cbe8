"""ezxmc: tag a brand-new catalog with no labelled data.

The names below load their modules when first used, so that `import ezxmc` is
quick and inference never loads an LLM engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ezxmc.bundle.bundle import save_bundle as save_bundle
    from ezxmc.bundle.predict import Predictor as Predictor
    from ezxmc.calibration import Calibrator as Calibrator
    from ezxmc.config import RunConfig as RunConfig
    from ezxmc.config import TrainingConfig as TrainingConfig
    from ezxmc.data.predictions import predictions_dataset as predictions_dataset
    from ezxmc.feedback.annotate import annotate as annotate
    from ezxmc.feedback.store import FeedbackStore as FeedbackStore
    from ezxmc.feedback.targets import build_targets as build_targets
    from ezxmc.feedback.targets import targets_from_rows as targets_from_rows
    from ezxmc.metrics.evaluation import evaluate as evaluate
    from ezxmc.pipeline.calibrate import calibrate as calibrate
    from ezxmc.pipeline.decide import decide as decide
    from ezxmc.pipeline.run import run as run
    from ezxmc.records import Document as Document
    from ezxmc.records import Judgment as Judgment
    from ezxmc.records import Label as Label
    from ezxmc.records import Pair as Pair
    from ezxmc.records import Prediction as Prediction
    from ezxmc.records import Tag as Tag
    from ezxmc.retrieval import BiEncoder as BiEncoder
    from ezxmc.retrieval import LabelIndex as LabelIndex
    from ezxmc.retrieval import shortlist as shortlist
    from ezxmc.teacher import Teacher as Teacher
    from ezxmc.teacher import load_teacher as load_teacher
    from ezxmc.training import DistillationLoss as DistillationLoss
    from ezxmc.training import targets_dataset as targets_dataset
    from ezxmc.training import train_bi_encoder as train_bi_encoder

_HOMES = {
    "BiEncoder": "retrieval",
    "Calibrator": "calibration",
    "DistillationLoss": "training",
    "Document": "records",
    "FeedbackStore": "feedback.store",
    "Judgment": "records",
    "Label": "records",
    "LabelIndex": "retrieval",
    "Pair": "records",
    "Prediction": "records",
    "Predictor": "bundle.predict",
    "RunConfig": "config",
    "Tag": "records",
    "Teacher": "teacher",
    "TrainingConfig": "config",
    "annotate": "feedback.annotate",
    "build_targets": "feedback.targets",
    "calibrate": "pipeline.calibrate",
    "decide": "pipeline.decide",
    "evaluate": "metrics.evaluation",
    "load_teacher": "teacher",
    "predictions_dataset": "data.predictions",
    "run": "pipeline.run",
    "save_bundle": "bundle.bundle",
    "shortlist": "retrieval",
    "targets_dataset": "training",
    "targets_from_rows": "feedback.targets",
    "train_bi_encoder": "training",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
