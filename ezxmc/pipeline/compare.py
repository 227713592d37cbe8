"""An update's checks: has the former student's calibration drifted, has the new student forgotten?

For drift the former student's answers on new documents are put to the teacher. For
forgetting both students rank old labels on old documents neither was trained on.
At the end the new bundle is compared with the former one, and calibrated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import load_bundle
from ezxmc.bundle.predict import Predictor, rank_among
from ezxmc.calibration import Calibrator, Isotonic, JudgedRows, Verdict, judged_rows
from ezxmc.calibration.calibrator import FITS
from ezxmc.calibration.curves import cross_fitted
from ezxmc.errors import TrainingError
from ezxmc.feedback.budget import in_hash_order
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.metrics import (
    FEWEST_DOCUMENTS,
    Difference,
    Drift,
    JudgedPairs,
    Terms,
    detect_drift,
    differences,
    ece_at_k,
)
from ezxmc.metrics.evaluation import compare, evaluate
from ezxmc.pipeline.update_steps import Update
from ezxmc.records import Prediction
from ezxmc.report.update import Comparison, KeptMetric

_MOST_BEFORE = 2_000  # documents calibrated on: more would only cost time


def probe(update: Update) -> Drift | None:
    """Ask about `update.probed`, and compare with the documents calibrated on.

    Of either side count the documents whose first tags are all judged: which ones happen to be is no random
    choice. The probabilities of documents calibrated on are made again by a fit without them.

    Returns:
        `None` if it cannot tell; `update.notes` says why.
    """
    calibrator = update.student.bundle.calibrator
    fewest = min(len(update.probed), len(update.old_apart))
    if calibrator is None or fewest < FEWEST_DOCUMENTS:
        update.notes.append(
            f"Drift was not tested: it takes a calibrated bundle, and {FEWEST_DOCUMENTS} documents of either "
            f"side; there are {len(update.probed)} new ones and {len(update.old_apart)} calibrated on."
        )
        return None
    now = _answers(update, update.probed, ask=True)
    before = _answers(update, update.old_apart[:_MOST_BEFORE], ask=False)
    groups = {label.uid: label.parent for label in update.catalog.labels if label.parent}
    try:
        found = detect_drift(
            _pairs(*before, _unfitted(*before, calibrator, update.depth)),
            _pairs(*now, _stated(*now)),
            groups,
            level=update.config.update.false_alarms,
            seed=update.config.seed,
        )
    except TrainingError:
        found = None
    if found is None:
        update.notes.append(f"Drift was not tested: fewer than {FEWEST_DOCUMENTS} documents are judged.")
    return found


def _answers(update: Update, documents: Sequence[int], *, ask: bool) -> tuple[list[Prediction], Verdict]:
    """The former student's first tags and the teacher's verdicts on those of labels that stayed."""
    predictions = update.student.predict(update.annotator.documents(documents), k=update.depth)
    rows = [update.rows(prediction.labels, update.seen) for prediction in predictions]
    if ask:
        update.annotator.ask(documents, rows, "drift: teacher judges new documents")
    judgments = update.annotator.answers(documents, rows)
    judged = {(judgment.doc_uid, judgment.label_uid) for judgment in judgments}
    complete = [
        p for p in predictions if all((p.uid, label) in judged for label in p.labels if label in update.seen)
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


FEWEST_COMPARED = 20
"""Documents; fewer give no interval to decide by."""
_SURE = 0.05


def compare_rankings(
    former: Sequence[Prediction], new: Sequence[Prediction], yes: Mapping[str, Collection[str]], k: int
) -> Comparison | None:
    """P@1, 3, 5, k and nDCG@5 by the teacher's word; P@k decides.

    Args:
        former: Rankings of the former student.
        new: Of the new one, of the same documents.
        yes: By document uid, labels the teacher calls relevant among all that
            either ranked: every one of these is judged.
        k: Tags a document gets.

    Returns:
        `None` if fewer than 20 documents have such a label.
    """
    gold = {uid: labels for uid, labels in yes.items() if labels}
    if len(gold) < FEWEST_COMPARED:
        return None
    ks = sorted({1, 3, 5, k})
    one, other = (
        evaluate(side, gold, precision_ks=ks, recall_ks=(), ndcg_ks=(5,), coverage_ks=(), calibration_ks=())
        for side in (former, new)
    )
    shown = [name for name in one.values if name.startswith(("P@", "nDCG@"))]
    changes = compare(other, one)
    change = changes.get(f"P@{k}")
    return Comparison(
        documents=len(gold),
        primary=f"P@{k}",
        metrics={name: _kept(one.values[name], other.values[name], changes.get(name)) for name in shown},
        worse=change is not None and change.value < 0 and change.p < _SURE,
    )


def _kept(former: float, new: float, change: Difference | None) -> KeptMetric:
    ends = {"low": change.low, "high": change.high, "p": change.p} if change else {}
    return KeptMetric(former=former, new=new, **ends)


def with_calibration(
    found: Comparison, former: Sequence[Prediction], new: Sequence[Prediction], verdict: Verdict, depth: int
) -> Comparison:
    """The same with Brier score and ECE of both students' first tags.

    Each is calibrated (isotonic) on the other documents of these, so that neither is judged on what its curve
    was fitted to. ECE has no interval: it is no sum over documents.

    Args:
        found: What is added to.
        former: The former student's predictions, `depth` of each document.
        new: The new one's, of the same documents in the same order.
        verdict: The teacher's answers in [0, 1].
        depth: Tags calibrated on.
    """
    try:
        rows = [judged_rows(side, verdict, depth) for side in (former, new)]
        probabilities = [cross_fitted(Isotonic.fit, one) for one in rows]
    except TrainingError:
        return found
    name = f"Brier@{depth}"
    terms = [_squares(name, one, stated) for one, stated in zip(rows, probabilities, strict=True)]
    former_errors, new_errors = (
        term.values() | {f"ECE@{depth}": ece_at_k(stated, one.verdicts)}
        for term, stated, one in zip(terms, probabilities, rows, strict=True)
    )
    changes = differences(terms[1], terms[0])
    more = {name: _kept(error, new_errors[name], changes.get(name)) for name, error in former_errors.items()}
    return found.model_copy(update={"metrics": found.metrics | more})


def _squares(name: str, rows: JudgedRows, stated: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Terms:
    """Squared errors and pairs, by document."""
    squares = np.zeros_like(rows.scores)
    squares[rows.known] = (stated - rows.verdicts) ** 2
    return Terms((name,), squares.sum(axis=1)[:, None], rows.known.sum(axis=1).astype(np.float64)[:, None])


def compare_and_calibrate(
    update: Update, bundle: Path, *, compared: bool
) -> tuple[Comparison | None, Calibrator | None]:
    """Ask about what a new bundle answers on documents kept apart; compare it, and calibrate it.

    Documents of which the budget left a pair unasked serve neither, unless people reviewed them.
    `compared`: whether its student is another than the former one.
    """
    depth, k = update.depth, update.config.inference.k
    # Students are compared: what people's decisions add to the one, they will add to the other.
    sides = update.student.bundle, load_bundle(bundle)
    before, fresh = (Predictor(replace(side, offsets=None)) for side in sides)
    uids = [document.uid for document in update.catalog.documents]
    documents = in_hash_order(uids, [*update.checked, *update.new_apart])
    texts = update.annotator.documents(documents)
    # Of labels that people added the teacher knows nothing.
    everything = rank_among(
        fresh, [*texts, *update.annotator.documents(update.reviewed)], update.row_of, depth
    )
    answers = everything[: len(texts)]
    rankings: list[list[Prediction]] = []
    if compared:
        old = update.annotator.documents(update.checked)
        rankings = [rank_among(one, old, update.seen, k) for one in (before, fresh)]
    wanted = {p.uid: list(p.labels) for p in answers}
    for ranking in rankings:
        for one in ranking:
            wanted[one.uid] += one.labels
    rows = [update.rows(dict.fromkeys(wanted[text.uid]), update.row_of) for text in texts]
    update.annotator.ask(documents, rows, "teacher judges: calibration and comparison")
    judgments = update.annotator.answers(documents, rows)
    judged = {(judgment.doc_uid, judgment.label_uid) for judgment in judgments}
    # An answer without a score is one: asking again would not help.
    complete = {uid for uid, labels in wanted.items() if all((uid, label) in judged for label in labels)}
    answers = [p for p in answers if p.uid in complete]
    found = None
    if rankings:
        former, new = ([p for p in side if p.uid in complete] for side in rankings)
        found = _compare(update, before, former, new, answers)
    said = [judgment for judgment in judgments if judgment.doc_uid in complete]
    counted = update.counted(bundle, [*documents, *update.reviewed], everything, said)
    calibrator, update.reviews, _ = update.calibrate(bundle, *counted)
    return found, calibrator


def _compare(
    update: Update,
    before: Predictor,
    former: Sequence[Prediction],
    new: Sequence[Prediction],
    answers: Sequence[Prediction],
) -> Comparison | None:
    judgments = update.known()
    # The zero point is that of everything judged; nothing is taught here.
    said = update.taught(update.learnt(judgments, update.checked))
    yes = {
        one.doc_uid: {
            label
            for label, p in zip(one.labels, one.probabilities, strict=True)
            if p >= 0.5 and label in update.seen
        }
        for one in said.documents
    }
    uids = {p.uid for p in former}
    found = compare_rankings(
        former, new, {uid: yes.get(uid, set()) for uid in uids}, update.config.inference.k
    )
    if found is None:
        update.notes.append("Former and new student were not compared: too few documents are judged.")
        return None
    texts = [text for text in update.annotator.documents(update.checked) if text.uid in uids]
    answer_of = {p.uid: p for p in answers}
    return with_calibration(
        found,
        before.predict(texts, k=update.depth),
        [answer_of[text.uid] for text in texts],
        teacher_verdicts(judgments),
        update.depth,
    )
