"""Judgments → what the student learns: soft probabilities, positives, negatives.

A label's prior is what a teacher answers about it whatever the document is. Some labels get a "yes"
from any document. Asking about every label on a few documents drawn at random shows how far;
measured on debtags it lifts the teacher's own P@1 by ten points, more than estimating it from the
shortlists' judgments, whose documents are near the label already (tests/bench/quality.py). The idea
is contextual calibration (arXiv 2102.09690), with real documents in place of empty ones.
"""

from __future__ import annotations

import math
import reprlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from ezxmc.config import TrainingConfig
from ezxmc.data.in_memory import all_of, as_documents, as_labels, as_uid, cells_of, items_of
from ezxmc.data.matching import Names
from ezxmc.errors import ArgumentError, DataError, InputTypeError, RowError, TrainingError, number_between
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Judgment, Status

_PSEUDO_COUNTS = 8.0
# `auto` spends at most this share of the shortlists' pairs on it, holds at most
# so many judgments in memory, and wants so many documents.
_MOST, _HELD, _FEWEST = 0.5, 200_000, 2
_COMPLETE = 0.95  # of the labels: a failed pair or two does not spoil a document
# Documents judged on this share of what the longest judged one is are of its kind.
_AS_LONG = 0.75


def context_size(config: TrainingConfig, labels: int, pairs: int) -> int:
    """On how many random documents all labels are asked about.

    Args:
        config: `prior` and `prior_documents`.
        labels: How many labels there are.
        pairs: How many pairs the shortlists ask about.
    """
    if config.prior == "contextual":
        return config.prior_documents
    if config.prior != "auto":
        return 0
    affordable = min(config.prior_documents, int(_MOST * pairs / labels), _HELD // labels)
    return affordable if affordable >= _FEWEST else 0


def context_documents(documents: Sequence[Document], among: Iterable[int], count: int) -> list[int]:
    """Positions of `count` documents out of `among`, drawn by hash: the same in every session."""
    return sorted(among, key=lambda position: text_hash("prior", documents[position].uid))[:count]


def context_of(judgments: Iterable[Judgment], labels: int) -> list[Judgment]:
    """Those judgments that tell of labels' priors: of documents judged on (nearly) all labels.

    Labels that came later may never have been asked on these documents. So the
    documents judged on most labels count where they share nearly all of these,
    and these are at least half of all; a label judged on few of the documents,
    those near it, is left out. Else only documents judged on nearly all labels count.

    Args:
        judgments: Of any documents.
        labels: How many labels there are.
    """
    by_document: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_document[judgment.doc_uid].append(judgment)
    most = max(map(len, by_document.values()), default=0)
    rows = [row for row in by_document.values() if 2 * len(row) >= labels and len(row) >= _AS_LONG * most]
    times = Counter(judgment.label_uid for row in rows for judgment in row)
    shared = {label for label, count in times.items() if 2 * count >= len(rows)}
    kept = [[judgment for judgment in row if judgment.label_uid in shared] for row in rows]
    if len(rows) >= _FEWEST and 2 * len(shared) >= labels and min(map(len, kept)) >= _COMPLETE * len(shared):
        return [judgment for row in kept for judgment in row]
    return [judgment for row in rows if len(row) >= _COMPLETE * labels for judgment in row]


def label_shifts(
    scores: Mapping[str, Mapping[str, float]], context: Sequence[Judgment], config: TrainingConfig
) -> dict[str, float]:
    """What to take off each label's log-odds: α·(z̄_l − z̄).

    Args:
        scores: Log-odds by document and label, of shortlists. Without context
            the means are theirs, shrunk to the overall mean by 8 pseudo-counts.
        context: All labels on random documents; their means then count as they are.
        config: α is `prior_alpha`.

    Returns:
        Nats, by label uid; labels without a score are absent.
    """
    if config.prior == "none":
        return {}
    by_label: dict[str, list[float]] = defaultdict(list)
    for label, z in (
        ((j.label_uid, j.log_odds) for j in context)
        if context
        else (item for row in scores.values() for item in row.items())
    ):
        if z is not None:
            by_label[label].append(z)
    if not by_label:
        return {}
    mean = float(np.mean([z for values in by_label.values() for z in values]))
    pseudo = 0.0 if context else _PSEUDO_COUNTS
    return {
        label: config.prior_alpha * float(np.sum(np.subtract(values, mean))) / (len(values) + pseudo)
        for label, values in sorted(by_label.items())
    }


Proposals = Callable[[Sequence[tuple[str, str]]], NDArray[np.float64]]
"""(document uid, label uid) pairs → (P,) cosines of the encoder that proposed them."""

# Of the pairs: a teacher that says "yes" (or "no") to fewer hardly tells them apart.
_ODD = 0.01
_FEW = 20  # pairs; fewer say nothing about a teacher
_SAME = 1e-6  # nats between answers that are one
_DOCUMENT, _LABEL = ("document", "doc", "doc_uid"), ("label", "label_uid", "tag")  # columns of own feedback


@dataclass(frozen=True, slots=True)
class PriorCorrection:
    """How a log-odds becomes a probability.

    The zero point of an LLM's log-odds depends on the prompt's wording, and
    some labels get a "yes" from any document; only the order is trusted.

    Attributes:
        shifts: By label uid, α·(z̄_l − z̄) in nats; absent labels shift by 0.
        zero: The log-odds that count as even.
    """

    shifts: dict[str, float]
    zero: float


@dataclass(frozen=True, slots=True)
class DocumentTargets:
    """What is said about one document; labels that nobody judged are unknown.

    Attributes:
        doc_uid: The document's uid.
        labels: Judged label uids, the most probable first.
        probabilities: (len(labels),) float64 in [0, 1], aligned with `labels`.
        positives: The head of `labels` that is taught as relevant; may be empty.
        negatives: The tail of `labels` that is taught as irrelevant.
    """

    doc_uid: str
    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of every document with a usable judgment or decision, in the order of their uids.

    Attributes:
        documents: One entry a document.
        prior: The correction behind the probabilities.
        judged: Judgments used.
        unknown: Judgments without a score, left out.
        without_judgments: Documents dropped: none of their judgments has a score.
        without_positives: Documents kept whose labels are all improbable; they
            are not trained on.
    """

    documents: list[DocumentTargets]
    prior: PriorCorrection
    judged: int
    unknown: int
    without_judgments: int
    without_positives: int


def build_targets(
    judgments: Iterable[Judgment],
    config: TrainingConfig,
    context: Sequence[Judgment] = (),
    proposals: Proposals | None = None,
    verdicts: Mapping[tuple[str, str], bool] = MappingProxyType({}),
) -> Targets:
    """Correct the log-odds for each label's prior and set their zero point.

    z′ = z − α·(z̄_l − z̄) + β·cos, see `label_shifts`; β is `config.fusion`
    and cos what the proposing bi-encoder thinks: it errs otherwise than the
    teacher does. p = σ((z′ − t) / T) with t such that the probabilities add up
    to `config.positives` per document on average, or to
    `config.positive_share` of the judged labels where that is less. Up to
    `config.positives` of the most probable labels are positives, those below
    `config.negative_below` negatives, the rest neither.

    What a person decided has p = 1 or 0 whatever the teacher said, and each
    of a person's "yes" is a positive. Zero point and priors are the teacher's
    own and stay: people see pairs that were chosen for being doubtful.

    Args:
        judgments: Of one teacher; the last of several on the same pair counts.
        config: The names above, `prior_alpha`, and T, `target_temperature`.
        context: All labels judged on random documents, for the labels' priors.
        proposals: For the fusion; without it β is 0.
        verdicts: People's decisions, by (document uid, label uid).

    Raises:
        TrainingError: No judgment has a score, or all have the same.

    Example:
        >>> with FeedbackStore("feedback.sqlite") as store:
        ...     targets = build_targets(store.judgments(), TrainingConfig())
        >>> len(targets.documents)
        60
    """
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    seen: set[str] = set()
    unknown = 0
    for judgment in judgments:
        seen.add(judgment.doc_uid)
        if judgment.status is Status.OK and judgment.log_odds is not None:
            scores[judgment.doc_uid][judgment.label_uid] = judgment.log_odds
        else:
            unknown += 1
    if not scores:
        raise TrainingError(
            f"none of {unknown} judgments has a score: there is nothing to learn from",
            "look at the statuses with `ezxmc annotate`; the prompt or the teacher may not fit",
        )
    shifts = label_shifts(scores, context, config)
    corrected = {
        doc: {label: z - shifts.get(label, 0.0) for label, z in sorted(row.items())}
        for doc, row in sorted(scores.items())
    }
    if proposals is not None and config.fusion:
        pairs = [(doc, label) for doc, row in corrected.items() for label in row]
        for (doc, label), cosine in zip(pairs, proposals(pairs), strict=True):
            corrected[doc][label] += config.fusion * float(cosine)
    every = [z for row in scores.values() for z in row.values()]
    if len(every) >= _FEW and max(every) - min(every) < _SAME and not verdicts:
        raise TrainingError(
            f"the teacher gave all {len(every):,} pairs the same answer (log-odds {every[0]:.2f}): "
            "there is nothing to learn from",
            "look at the prompt and the answers: `ezxmc prompts check`, `ezxmc judgments export`",
        )
    zero = _zero_point(corrected, config)
    for (doc, label), yes in sorted(verdicts.items()):
        corrected.setdefault(doc, {})[label] = math.inf if yes else -math.inf
    documents = [_targets_of(doc, row, zero, config) for doc, row in sorted(corrected.items())]
    return Targets(
        documents,
        PriorCorrection(shifts, zero),
        judged=sum(map(len, scores.values())),
        unknown=unknown,
        without_judgments=len(seen) - len(scores),
        without_positives=sum(not document.positives for document in documents),
    )


def targets_from_rows(
    rows: Iterable[Any], documents: Iterable[Any], labels: Iterable[Any], config: TrainingConfig
) -> Targets:
    """Targets out of feedback of your own, without a store or a teacher.

    A `score` is a probability and taken at its word: 1 is always a positive, 0 a negative. A
    `log_odds` is what a language model said, ln p(yes) − ln p(no) in nats: its zero point and its
    leaning to some labels are corrected as `build_targets` corrects a teacher's.

    Args:
        rows: (document, label, score) tuples; or dicts, a table or a `datasets.Dataset` with the columns
            `document` (its uid or its text), `label` (its uid or its title), and `score` or `log_odds`.
            Of several rows about one pair the last counts, and a warning tells how many there are.
        documents: All documents that rows may be about.
        labels: All labels.
        config: As for `build_targets`.

    Raises:
        InputTypeError: `rows` is nothing of this kind.
        DataError: Rows that name an unknown document or label, that have no number or two, or a score
            outside of 0 to 1; or rows with a score beside rows with log-odds.
        TrainingError: There is no row, or nothing to learn from them.

    Example:
        >>> rows = [(0, "music", 0.9), (0, "food", 0.1)]
        >>> config = TrainingConfig()
        >>> targets_from_rows(rows, ["A song for guitar"], ["music", "food"], config).documents[0].positives
        ('music',)
    """
    if isinstance(rows, str | PathLike):
        cure = "read it first: datasets.load_dataset('csv', data_files=...) or pandas.read_csv(...)"
        raise InputTypeError(f"judgments are a file: {reprlib.repr(rows)}", cure)
    documents, labels = as_documents(documents), as_labels(labels)
    names = (
        Names({document.uid: document.shown for document in documents}),
        Names({label.uid: label.title for label in labels}),
    )
    read = all_of(
        _own(row, f"judgments[{place}]", *names) for place, row in enumerate(items_of(rows, "judgments"))
    )
    kinds = {kind for _, kind, _ in read}
    if len(kinds) > 1:
        raise DataError("some judgments have a score, others log-odds", "give all of them in one form")
    answers = {pair: value for pair, _, value in read}
    if len(answers) < len(read):
        pair, times = Counter(pair for pair, _, _ in read).most_common(1)[0]
        warnings.warn(
            f"{len(read) - len(answers):,} of {len(read):,} judgments are of a pair that was judged before "
            f"({pair} {times} times): the last of each counts",
            stacklevel=2,
        )
    if not answers:
        raise TrainingError("there are no judgments: nothing to learn from", "give some rows")
    if kinds == {"log_odds"}:
        judgments = [Judgment("", *pair, Status.OK, value) for pair, value in answers.items()]
        return build_targets(judgments, config, context_of(judgments, len(labels)))
    surest: dict[str, dict[str, float]] = defaultdict(dict)
    for (doc, label), probability in sorted(answers.items()):
        surest[doc][label] = config.target_temperature * float(logit(probability))
    found = [_targets_of(doc, row, 0.0, config) for doc, row in surest.items()]
    return Targets(
        found,
        PriorCorrection({}, 0.0),
        judged=len(answers),
        unknown=0,
        without_judgments=0,
        without_positives=sum(not document.positives for document in found),
    )


def _own(
    item: Any, where: str, documents: Names, labels: Names
) -> tuple[tuple[str, str], str, float] | DataError:
    """A row's pair, `score` or `log_odds`, and the number; or what is wrong with it."""
    if isinstance(item, tuple | list) and len(item) == 3:
        item = dict(zip(("document", "label", "score"), item, strict=True))
    try:
        row = cells_of(item, where, "(document, label, score), or a dict with these")
        pair = tuple(
            _named(row, columns, names, what)
            for columns, names, what in (
                (_DOCUMENT, documents, "document"),
                (_LABEL, labels, "label"),
            )
        )
        given = [name for name in ("score", "log_odds") if name in row]
        if len(given) != 1:
            raise RowError("no_score" if not given else "two_scores", "it needs either a score or log_odds")
        ends = (0.0, 1.0) if given == ["score"] else (-math.inf, math.inf)
        return (pair[0], pair[1]), given[0], number_between(row[given[0]], given[0], *ends)
    except RowError as error:
        return DataError(f"{where}: {error.kind}: {error.detail}", "mend the row, or leave it out")
    except ArgumentError as error:
        return DataError(f"{where}: {error.message}", error.cure)
    except DataError as error:
        return error


def _named(row: Mapping[Any, Any], columns: Sequence[str], names: Names, what: str) -> str:
    """The uid of the document or the label that a row is about."""
    value = next((row[column] for column in columns if column in row), None)
    if value is None:
        raise RowError(f"no_{what}", f"none of the columns {', '.join(columns)} is filled")
    uid, _ = names.find(as_uid(value))
    if uid is None:
        raise RowError(f"unknown_{what}", f"there is no {what} {reprlib.repr(value)}, or more than one")
    return uid


def doubt(judgments: Iterable[Judgment]) -> str | None:
    """A warning about a teacher that says (nearly) always the same; `None` if it does not."""
    answers = [judgment.log_odds > 0 for judgment in judgments if judgment.log_odds is not None]
    asked, agreed = len(answers), sum(answers)
    least = _ODD * asked
    if asked < _FEW or least <= agreed <= asked - least:
        return None
    said, count = ("no", asked - agreed) if agreed < least else ("yes", agreed)
    return (
        f'WARNING: the teacher said "{said}" to {count:,} of {asked:,} pairs. Only the order of its '
        "answers is left to learn from, and it may mean nothing.\n  cure: look at some of them "
        "(`ezxmc judgments export`), and whether the prompt (`ezxmc prompts check`), the labels' titles and "
        "the candidates fit the documents"
    )


def teacher_verdicts(judgments: Iterable[Judgment]) -> Callable[[str, str], float | None]:
    """The share of its answer that the teacher gives to "yes", by (document uid, label uid).

    σ(log-odds), raw: a calibrated value of it can be checked by asking. A hard
    yes or no would lose how sure the teacher was, and its share of "yes" says
    more about the prompt's wording than about the labels. `None` where there
    is no scored judgment.
    """
    answers = {
        (j.doc_uid, j.label_uid): float(expit(j.log_odds)) for j in judgments if j.log_odds is not None
    }
    return lambda doc_uid, label_uid: answers.get((doc_uid, label_uid))


def _targets_of(doc: str, row: dict[str, float], zero: float, config: TrainingConfig) -> DocumentTargets:
    labels = sorted(row, key=lambda label: -row[label])
    probabilities = expit((np.array([row[label] for label in labels]) - zero) / config.target_temperature)
    likely = int((probabilities >= config.negative_below).sum())
    decided = sum(z == math.inf for z in row.values())
    return DocumentTargets(
        doc,
        tuple(labels),
        probabilities,
        positives=tuple(labels[: min(likely, max(config.positives, decided))]),
        negatives=tuple(labels[likely:]),
    )


def _zero_point(corrected: dict[str, dict[str, float]], config: TrainingConfig) -> float:
    """The t at which Σ σ((z′ − t) / T) is the expected number of positives, by bisection."""
    values = np.concatenate([list(row.values()) for row in corrected.values()])
    expected = sum(min(config.positives, config.positive_share * len(row)) for row in corrected.values())
    low, high = float(values.min()) - 50.0, float(values.max()) + 50.0
    for _ in range(80):
        middle = (low + high) / 2
        if expit((values - middle) / config.target_temperature).sum() > expected:
            low = middle
        else:
            high = middle
    return (low + high) / 2
