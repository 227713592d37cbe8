"""Has the former student's calibration drifted? Its answers on new documents are put to the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ezxmc.calibration import Calibrator, Verdict, judged_rows
from ezxmc.calibration.calibrator import FITS
from ezxmc.calibration.crossfit import cross_fitted
from ezxmc.errors import TrainingError
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.growth.work import Work
from ezxmc.metrics import FEWEST_DOCUMENTS, Drift, JudgedPairs, detect_drift
from ezxmc.records import Prediction

_MOST_BEFORE = 2_000  # documents calibrated on: more would only cost time


def probe(work: Work) -> Drift | None:
    """Ask about `work.probed`, and compare with the documents calibrated on.

    Of either side count the documents whose first tags are all judged: which
    ones happen to be is no random choice. The probabilities of documents
    calibrated on are made anew by a fit without them.

    Returns:
        `None` if it cannot tell; `work.notes` says why.
    """
    calibrator = work.student.bundle.calibrator
    fewest = min(len(work.probed), len(work.old_apart))
    if calibrator is None or fewest < FEWEST_DOCUMENTS:
        work.notes.append(
            f"Drift was not tested: it takes a calibrated bundle, and {FEWEST_DOCUMENTS} documents of either "
            f"side; there are {len(work.probed)} new ones and {len(work.old_apart)} calibrated on."
        )
        return None
    now = _answers(work, work.probed, ask=True)
    before = _answers(work, work.old_apart[:_MOST_BEFORE], ask=False)
    groups = {label.uid: label.parent for label in work.catalog.labels if label.parent}
    try:
        found = detect_drift(
            _pairs(*before, _unfitted(*before, calibrator, work.depth)),
            _pairs(*now, _stated(*now)),
            groups,
            level=work.config.update.false_alarms,
            seed=work.config.seed,
        )
    except TrainingError:
        found = None
    if found is None:
        work.notes.append(f"Drift was not tested: fewer than {FEWEST_DOCUMENTS} documents are judged.")
    return found


def _answers(work: Work, documents: Sequence[int], *, ask: bool) -> tuple[list[Prediction], Verdict]:
    """The former student's first tags and the teacher's verdicts on those of labels that stayed."""
    predictions = work.student.predict(work.inquiry.documents(documents), k=work.depth)
    rows = [work.rows(prediction.labels, work.seen) for prediction in predictions]
    if ask:
        work.inquiry.ask(documents, rows, "drift: teacher judges new documents")
    judgments = work.inquiry.answers(documents, rows)
    judged = {(judgment.doc_uid, judgment.label_uid) for judgment in judgments}
    complete = [
        p for p in predictions if all((p.uid, label) in judged for label in p.labels if label in work.seen)
    ]
    return complete, teacher_verdicts(judgments)


def _stated(predictions: Sequence[Prediction], verdict: Verdict) -> NDArray[np.float64]:
    """(P,) probabilities as a user sees them, of the judged pairs."""
    return np.array(
        [
            stated
            for p in predictions
            for label, stated in zip(p.labels, p.probabilities, strict=True)
            if verdict(p.uid, label) is not None
        ]
    )


def _unfitted(
    predictions: Sequence[Prediction], verdict: Verdict, calibrator: Calibrator, depth: int
) -> NDArray[np.float64]:
    """The same of documents calibrated on, by fits without them; as they are, where people calibrated."""
    fit = next((fit for kind, fit in FITS.items() if kind == calibrator.kind), None)
    if fit is None or calibrator.target != "teacher":
        return _stated(predictions, verdict)
    return cross_fitted(fit, judged_rows(predictions, verdict, depth))


def _pairs(predictions: Sequence[Prediction], verdict: Verdict, stated: NDArray[np.float64]) -> JudgedPairs:
    judged = [
        (p.uid, label, hit)
        for p in predictions
        for label in p.labels
        if (hit := verdict(p.uid, label)) is not None
    ]
    uids, labels, hits = zip(*judged, strict=True) if judged else ((), (), ())
    return JudgedPairs(uids, labels, stated, np.array(hits, dtype=np.float64))
