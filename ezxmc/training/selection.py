"""A student beside the teacher: how well they agree on unseen documents, and its own opinion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ezxmc.feedback.budget import JUDGED_TOP
from ezxmc.feedback.targets import Proposals, Targets
from ezxmc.metrics import Terms, differences
from ezxmc.records import Document, Label
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.training.dataset import Example, examples
from ezxmc.training.ranks import ALONE, Ranks


def agreement(
    documents: NDArray[np.float32], labels: NDArray[np.float32], pool: Sequence[Example]
) -> NDArray[np.float64]:
    """NDCG@5 of the student's order of the judged labels, the gain being the teacher's p.

    No human label enters. Documents with fewer than two judged labels say
    nothing about order and are left out.

    Args:
        documents: (N, D) unit rows.
        labels: (L, D) unit rows.
        pool: Judged documents; rows refer to the two matrices.

    Returns:
        In [0, 1], one of each document that can be used.
    """
    return np.array(
        [
            ndcg(labels[example.labels] @ documents[example.document], example.probabilities)
            for example in pool
            if len(example.labels) > 1
        ]
    )


def ndcg(scores: NDArray[np.floating], gains: NDArray[np.float64]) -> float:
    """nDCG@5 of the labels of one document, ordered by (J,) scores, with (J,) gains; 0 without any gain."""
    order = np.argsort(-scores, kind="stable")
    discounts = 1 / np.log2(np.arange(2, min(JUDGED_TOP, len(gains)) + 2))
    ideal = float(np.sort(gains)[::-1][: len(discounts)] @ discounts)
    return float(gains[order][: len(discounts)] @ discounts) / ideal if ideal else 0.0


def student_agreement(
    encoder: BiEncoder,
    texts: Sequence[str],
    titles: Sequence[str],
    pool: Sequence[Example],
    ranks: Ranks = ALONE,
) -> NDArray[np.float64]:
    """`agreement` of a student, encoding no label but the judged ones.

    A label list may hold a million titles; a held-out part judges some thousands.

    Args:
        encoder: The student.
        texts: Of the documents `pool` refers to.
        titles: Of all labels.
        pool: Judged documents.
        ranks: Processes that share the texts.

    Returns:
        NDCG@5 in [0, 1] of each document with a usable judgment.
    """
    if not pool:
        return np.empty(0)
    judged = np.unique(np.concatenate([example.labels for example in pool]))
    near = [replace(example, labels=np.searchsorted(judged, example.labels)) for example in pool]
    return agreement(
        ranks.encoded(encoder.encode_documents, texts),
        ranks.encoded(encoder.encode_labels, [titles[row] for row in judged]),
        near,
    )


def cosines_of(encoder: BiEncoder, documents: Sequence[Document], labels: Sequence[Label]) -> Proposals:
    """What a bi-encoder thinks of any pair, for `build_targets` to fuse with the teacher.

    Args:
        encoder: Whoever proposed the pairs.
        documents: The documents that can be asked about.
        labels: All labels.
    """
    document_of = {document.uid: document for document in documents}
    label_of = {label.uid: label for label in labels}

    def cosines(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        docs, tags = (list(dict.fromkeys(uids)) for uids in zip(*pairs, strict=True))
        left = encoder.encode_documents([document_of[uid].shown for uid in docs])
        right = encoder.encode_labels([label_of[uid].title for uid in tags])
        row, column = ({uid: i for i, uid in enumerate(uids)} for uids in (docs, tags))
        rows, columns = [row[doc] for doc, _ in pairs], [column[tag] for _, tag in pairs]
        found: NDArray[np.float64] = np.einsum("pd,pd->p", left[rows], right[columns]).astype(np.float64)
        return found

    return cosines


def held_out_agreement(
    encoder: BiEncoder, documents: Sequence[Document], labels: Sequence[Label], targets: Targets
) -> NDArray[np.float64]:
    """`student_agreement` on documents the student was not trained on.

    Args:
        encoder: The student.
        documents: Held-out documents.
        labels: All labels.
        targets: Of these documents at least. A student whose own first labels are not among
            them looks better than it is: nobody has judged its mistakes.

    Returns:
        NDCG@5 in [0, 1] of each document with a usable judgment.
    """
    return student_agreement(
        encoder,
        [document.shown for document in documents],
        [label.title for label in labels],
        examples(documents, labels, targets),
    )


def compared(
    students: Iterable[BiEncoder], documents: Sequence[Document], labels: Sequence[Label], targets: Targets
) -> tuple[list[float | None], str]:
    """Compare the students of a run's cycles by `held_out_agreement`.

    Args:
        students: One of each cycle, first to last, opened one after the other.
        documents: See there.
        labels: See there.
        targets: See there.

    Returns:
        Each one's mean, `None` without a usable judgment; and in words which is the best, of equal ones the
        last, and how sure that is: empty without judgments.
    """
    found = [held_out_agreement(student, documents, labels, targets) for student in students]
    means = [float(values.mean()) if len(values) else None for values in found]
    count = len(found[0])
    if not count or len(found) < 2:
        return means, ""
    best, other = sorted(range(len(found)), key=lambda i: (means[i], i), reverse=True)[:2]
    told = (
        f"the student of cycle {best + 1} agrees best with the teacher: {means[best]:.3f} against "
        f"{means[other]:.3f} of cycle {other + 1} on {count:,} document{'s'[: count > 1]}"
    )
    sides = [Terms(("nDCG",), found[i][:, None], np.ones((count, 1))) for i in (best, other)]
    if gap := differences(*sides).get("nDCG"):
        told += f", {gap.value:+.3f} (95 % interval {gap.low:+.3f} to {gap.high:+.3f})"
    return means, told if gap and gap.low > 0 else f"{told}, which leaves open which is better"
