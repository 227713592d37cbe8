"""The encoder as it comes, the student of ezxmc, and the teacher itself."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ezxmc.bench.baselines.task import DEPTH, Method, Ranking, Task
from ezxmc.feedback.targets import build_targets
from ezxmc.retrieval import BiEncoder
from ezxmc.training import cosines_of, refined_label_vectors, train_bi_encoder


def _untrained(task: Task, seed: int) -> Ranking:
    return task.untrained


def _student(task: Task, seed: int, label_vectors: Literal["refined", "titles"] = "refined") -> Ranking:
    """One round of distillation from the judgments, as a run does it; a share of them selects the epoch."""
    judged = {judgment.doc_uid for judgment in task.judgments}
    uids = [document.uid for document in task.rest if document.uid in judged]
    apart = task.set_apart(uids, task.config.held_out, seed)
    judged -= apart
    bar = task.watch.stage("student")
    train = [document for document in task.rest if document.uid in judged]
    proposals = None
    if task.proposer:
        proposals = cosines_of(
            BiEncoder(task.proposer, max_length=task.config.max_length), task.rest, task.labels
        )
    targets = build_targets(task.judgments, task.config, task.context, proposals)

    def refine(encoder: BiEncoder, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return refined_label_vectors(encoder, train, task.labels, targets, vectors, seed=seed)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "student")
        train_bi_encoder(
            train,
            task.labels,
            targets,
            task.config,
            out,
            former=task.proposer,
            held_out=[document for document in task.rest if document.uid in apart],
            seed=seed,
            progress=lambda done, total, loss: bar(done, total),
        )
        encoder = BiEncoder(out, max_length=task.config.max_length)
        return task.ranked_by(encoder, refine if label_vectors == "refined" else None)


def _teacher(task: Task, seed: int) -> Ranking:
    """The judged labels by the LLM's prior-corrected log-odds, then the others as the encoder ranks them.

    An LLM at inference, as ICXML has it (arXiv 2311.09649): what distillation
    from this teacher can be measured by. Documents it did not judge are left out.
    """
    row_of = {label.uid: row for row, label in enumerate(task.labels)}
    targets = build_targets(task.report_judgments, task.config, task.context)
    judged = {target.doc_uid: [row_of[uid] for uid in target.labels] for target in targets.documents}
    return [
        list(dict.fromkeys([*judged[document.uid], *after]))[:DEPTH] if document.uid in judged else None
        for document, after in zip(task.report, task.untrained, strict=True)
    ]


UNTRAINED = Method(_untrained, "label titles", seeded=False)
STUDENT = Method(_student, "judgments", ("judgments", "training"), amount="judgments")
STUDENT_TITLES = Method(
    partial(_student, label_vectors="titles"),
    "judgments; labels by their titles alone",
    ("judgments", "training"),
    amount="judgments",
)
TEACHER = Method(
    _teacher,
    "judgments of the document itself: an LLM at inference",
    ("report_judgments", "judgments", "training"),
    seeded=False,
)
