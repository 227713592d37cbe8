"""The end of an update: a new bundle is compared with the former one, and calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ezxmc.calibration import Calibrator
from ezxmc.feedback.budget import in_hash_order
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.growth.forgetting import Comparison, compare_rankings, with_calibration
from ezxmc.growth.work import Work
from ezxmc.pipeline import calibrate
from ezxmc.predict import Predictor, rank_among
from ezxmc.records import Prediction


def settle(work: Work, bundle: Path, *, compared: bool) -> tuple[Comparison | None, Calibrator | None]:
    """Ask about what a new bundle answers on documents kept apart; compare it, and calibrate it.

    Documents of which the budget left a pair unasked serve neither, unless people reviewed them.

    Args:
        work: The update.
        bundle: A bundle of the catalog as it is.
        compared: Whether its student is another than the former one.
    """
    fresh, depth, k = Predictor(bundle), work.depth, work.config.inference.k
    uids = [document.uid for document in work.catalog.documents]
    documents = in_hash_order(uids, [*work.checked, *work.new_apart])
    texts = work.inquiry.documents(documents)
    # Of labels that people added the teacher knows nothing.
    everything = rank_among(fresh, [*texts, *work.inquiry.documents(work.reviewed)], work.row_of, depth)
    answers = everything[: len(texts)]
    rankings: list[list[Prediction]] = []
    if compared:
        old = work.inquiry.documents(work.checked)
        rankings = [rank_among(one, old, work.seen, k) for one in (work.student, fresh)]
    wanted = {p.uid: list(p.labels) for p in answers}
    for ranking in rankings:
        for one in ranking:
            wanted[one.uid] += one.labels
    rows = [work.rows(dict.fromkeys(wanted[text.uid]), work.row_of) for text in texts]
    work.inquiry.ask(documents, rows, "teacher judges: calibration and comparison")
    judgments = work.inquiry.answers(documents, rows)
    judged = {(judgment.doc_uid, judgment.label_uid) for judgment in judgments}
    # An answer without a score is one: asking again would not help.
    complete = {uid for uid, labels in wanted.items() if all((uid, label) in judged for label in labels)}
    teacher = teacher_verdicts(j for j in judgments if j.doc_uid in complete)
    answers = [p for p in answers if p.uid in complete]
    found = None
    if rankings:
        former, new = ([p for p in side if p.uid in complete] for side in rankings)
        found = _compare(work, former, new, answers)
    reviewed = work.decided.lists(everything, depth)
    work.reviews = reviewed.line
    return found, calibrate(bundle, everything, teacher, reviewed, depth, work.watch)


def _compare(
    work: Work, former: Sequence[Prediction], new: Sequence[Prediction], answers: Sequence[Prediction]
) -> Comparison | None:
    judgments = work.known()
    # The zero point is that of everything judged; nothing is taught here.
    said = work.targets(work.learnt(judgments, work.checked))
    yes = {
        one.doc_uid: {
            label
            for label, p in zip(one.labels, one.probabilities, strict=True)
            if p >= 0.5 and label in work.seen
        }
        for one in said.documents
    }
    uids = {p.uid for p in former}
    found = compare_rankings(former, new, {uid: yes.get(uid, set()) for uid in uids}, work.config.inference.k)
    if found is None:
        work.notes.append("Former and new student were not compared: too few documents are judged.")
        return None
    texts = [text for text in work.inquiry.documents(work.checked) if text.uid in uids]
    answer_of = {p.uid: p for p in answers}
    return with_calibration(
        found,
        work.student.predict(texts, k=work.depth),
        [answer_of[text.uid] for text in texts],
        teacher_verdicts(judgments),
        work.depth,
    )
