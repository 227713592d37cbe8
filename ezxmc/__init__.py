"""ezxmc: tag a brand-new catalog with no labelled data.

The names below load their modules when first used, so that `import ezxmc` is
quick and inference never loads an LLM engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ezxmc.calibration import Calibrator as Calibrator
    from ezxmc.config import RunConfig as RunConfig
    from ezxmc.evaluation import evaluate as evaluate
    from ezxmc.feedback.annotate import annotate as annotate
    from ezxmc.feedback.store import FeedbackStore as FeedbackStore
    from ezxmc.pipeline import run as run
    from ezxmc.predict import Predictor as Predictor
    from ezxmc.records import Document as Document
    from ezxmc.records import Label as Label
    from ezxmc.retrieval import BiEncoder as BiEncoder
    from ezxmc.retrieval import LabelIndex as LabelIndex
    from ezxmc.retrieval import shortlist as shortlist
    from ezxmc.teacher import Teacher as Teacher
    from ezxmc.teacher import load_teacher as load_teacher
    from ezxmc.training import train_bi_encoder as train_bi_encoder

_HOMES = {
    "BiEncoder": "retrieval",
    "Calibrator": "calibration",
    "Document": "records",
    "FeedbackStore": "feedback.store",
    "Label": "records",
    "LabelIndex": "retrieval",
    "Predictor": "predict",
    "RunConfig": "config",
    "Teacher": "teacher",
    "annotate": "feedback.annotate",
    "evaluate": "evaluation",
    "load_teacher": "teacher",
    "run": "pipeline",
    "shortlist": "retrieval",
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
