"""What people's decisions, and labels' counts, do to ranks: cross-validated, and left out if no gain."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Bundle
from ezxmc.bundle.predict import predictions_of
from ezxmc.calibration import Verdict
from ezxmc.feedback.reviews import ReviewedLists, ReviewedPairs, document_hash
from ezxmc.hashing import text_hash
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document, Prediction
from ezxmc.report.model import CurvePoint
from ezxmc.retrieval.label_offsets import CANDIDATES, DecidedPairs, LabelOffsets, worth_of_counts

FEWEST = 20
"""Documents with decisions, of which fewer change no rank."""
_TOP = 20  # of a document all of whose labels are known, so many count one by one
_DRAWN = 500  # and so many stand for all the others
_ADDED = 0.3  # who added one missing label may have left others out
_FOLDS, _SHARES = 5, (0.25, 0.5, 1.0)
_MEASURES = "P@1", "P@5", "nDCG@5"
_NEXT = 50


@dataclass(frozen=True, slots=True)
class Decided:
    """What people said of one document.

    Attributes:
        yes: Uids of labels that fit.
        no: Of labels that do not.
        others: How much it says against a label that is in neither: 1 where all right labels are known.
    """

    yes: AbstractSet[str]
    no: AbstractSet[str] = frozenset()
    others: float = 0.0

    def fits(self, uid: str) -> bool | None:
        """Whether a label does; `None` where nothing is known."""
        return True if uid in self.yes else False if uid in self.no or self.others == 1.0 else None


def by_review(lists: ReviewedLists, pairs: ReviewedPairs) -> dict[str, Decided]:
    """What people said of the documents they reviewed, labels that they added to them among it."""
    found: dict[str, Decided] = {}
    for (doc, label), fits in pairs.verdicts.items():
        if doc in lists.answers:
            said = found.get(doc, Decided(frozenset(), others=_ADDED if doc in lists.added else 0.0))
            one = {"yes": said.yes | {label}} if fits else {"no": said.no | {label}}
            found[doc] = replace(said, **one)  # type: ignore[arg-type]
    return found


def by_tags(predictions: Sequence[Prediction], tags: Mapping[str, Collection[str]]) -> dict[str, Decided]:
    """What people's tags say: of all labels, or of the first ones where no other was ever named.

    Args:
        predictions: The labels that people may have been shown.
        tags: Those that fit, by document uid.
    """
    shown = {p.uid: frozenset(p.labels) for p in predictions if p.uid in tags}
    if any(set(tags[uid]) - top for uid, top in shown.items()):
        return {uid: Decided(frozenset(tags[uid]), others=1.0) for uid in shown}
    return {uid: Decided(frozenset(tags[uid]), top - set(tags[uid])) for uid, top in shown.items()}


def verdicts_of(decided: Mapping[str, Decided]) -> Verdict:
    """Whether a label fits a document, as people said: 1, 0, or `None`."""

    def verdict(doc_uid: str, label_uid: str) -> float | None:
        fits = decided[doc_uid].fits(label_uid) if doc_uid in decided else None
        return None if fits is None else float(fits)

    return verdict


def part_for_ranks(uids: Iterable[str], share: float) -> list[str]:
    """A share of some documents, drawn by hash: those that may change ranks."""
    order = sorted(uids, key=lambda uid: text_hash("ranks", uid))
    return order[: round(share * len(order))]


@dataclass(frozen=True, slots=True)
class MovedRanks:
    """Ranks by more than scores.

    Attributes:
        predictions: Of every document, ranked by decisions on others: what probabilities may be fitted to.
        offsets: What they add to scores; `None` where that gains nothing.
        line: What cross-validation says, for a person.
        curve: The same at growing numbers of documents, and what is expected of 50 more.
    """

    predictions: Sequence[Prediction]
    offsets: LabelOffsets | None = None
    line: str = ""
    curve: Sequence[CurvePoint] = ()


def peoples_ranks(
    bundle: Bundle,
    documents: Sequence[Document],
    decided: Mapping[str, Decided],
    depth: int,
    watch: Progress | None = None,
    counted: LabelOffsets | None = None,
) -> MovedRanks:
    """Fit a bundle's label offsets to what people decided, and say what they are worth.

    Five times the offsets are fitted without a fifth of the documents, which are then ranked by them: of the
    labels on which something is known, in the order with and without offsets, P@1, P@5 and nDCG@5. With a
    half and a quarter of the other documents too: that shows what more would bring.

    Args:
        bundle: Without offsets of its own.
        documents: N documents.
        decided: By document uid; of others nothing is known.
        depth: Labels of a prediction.
        watch: Sees the stage.
        counted: What `counted_offsets` found: people start from that, and gain beside it.
    """
    k = max(depth, CANDIDATES)
    start = replace(bundle, offsets=counted.on(bundle.labels, bundle.index)) if counted else bundle
    worth_of_nat = counted.frequency[0] if counted else 0.0
    vectors = bundle.encoder.encode_documents([document.shown for document in documents])
    scores, rows = start.search(vectors, k)
    known = np.array([i for i, document in enumerate(documents) if document.uid in decided], dtype=np.int64)
    if len(known) < FEWEST:
        few = f"ranks stay: people decided on {len(known)} documents, from {FEWEST} on they may change"
        plain = predictions_of(bundle, documents, scores[:, :depth], rows[:, :depth])
        return MovedRanks(plain, counted, few)
    pairs = _pairs(bundle, vectors, [decided.get(document.uid) for document in documents], rows)

    def worth(found: NDArray[np.int64], i: int) -> tuple[float, float, float]:
        said = decided[documents[i].uid]
        verdicts = [said.fits(bundle.labels[row].uid) for row in found.tolist()]
        return _measures([fits for fits in verdicts if fits is not None], len(said.yes))

    before = np.array([worth(rows[i], i) for i in known.tolist()])
    after = {share: np.zeros_like(before) for share in _SHARES}
    bar, done = (watch or NoProgress()).stage("what people's decisions do to ranks"), 0
    places = np.random.default_rng(0).permutation(len(known))
    for part in np.array_split(places, _FOLDS):
        # In random order: half of them is no part of the catalog.
        mine, rest = known[part], known[places[~np.isin(places, part)]]
        for share in _SHARES:
            ranked = scores[mine], rows[mine]
            some = np.isin(np.arange(len(documents)), rest[: round(share * len(rest))])
            if offsets := LabelOffsets.fit(pairs.of(some), bundle.labels, worth_of_nat):
                ranked = replace(bundle, offsets=offsets.on(bundle.labels, bundle.index)).search(
                    vectors[mine], k
                )
            after[share][part] = [worth(*one) for one in zip(ranked[1], mine.tolist(), strict=True)]
            bar(done := done + 1, _FOLDS * len(_SHARES))
        # The last share is all of the rest.
        scores[mine], rows[mine] = ranked
    gains = {share: (values - before).mean(axis=0) for share, values in after.items()}
    offsets = LabelOffsets.fit(pairs, bundle.labels, worth_of_nat) if gains[1.0][-1] > 0 else None
    if offsets is None:
        scores, rows = start.search(vectors, k)
    else:
        others = np.setdiff1d(np.arange(len(documents)), known)
        fitted = replace(bundle, offsets=offsets.on(bundle.labels, bundle.index))
        scores[others], rows[others] = fitted.search(vectors[others], k)
        told = dict(zip(_MEASURES, gains[1.0].tolist(), strict=True)) | {"documents": float(len(known))}
        hashes = frozenset(document_hash(documents[i]) for i in known.tolist())
        offsets = replace(offsets, documents=hashes, gain=told)
    curve = _curve(len(known), before.mean(axis=0), gains)
    line = _line(len(known), curve, offsets is not None)
    found = predictions_of(bundle, documents, scores[:, :depth], rows[:, :depth])
    return MovedRanks(found, offsets or counted, line, curve if offsets else ())


def counted_offsets(
    bundle: Bundle,
    documents: Iterable[Document],
    predictions: Iterable[Prediction],
    teacher: Verdict,
    watch: Progress,
) -> LabelOffsets | None:
    """What labels' counts are worth by the teacher's answers on a bundle's own top labels.

    Kept where it is more than 0, and tells the answers on other documents better by more than the standard
    error of that.

    Args:
        bundle: Without offsets of its own.
        documents: Those of `predictions`, and others.
        predictions: The bundle's, of documents the student was not trained on.
        teacher: Its answers.
        watch: Told what is gained.

    Returns:
        The offsets; `None` where no label has a count, or nothing is gained.
    """
    if all(label.count is None for label in bundle.labels):
        return None
    row_of = bundle.rows()
    told = [
        (p.uid, row_of[label], score, answer)
        for p in predictions
        for label, score in zip(p.labels, p.scores, strict=True)
        if (answer := teacher(p.uid, label)) is not None
    ]
    uids = {uid: place for place, uid in enumerate(dict.fromkeys(uid for uid, *_ in told))}
    if len(uids) < 2 * _FOLDS:
        return None
    columns = zip(*told, strict=True)
    of = np.array([uids[uid] for uid in next(columns)], dtype=np.int64)
    rows, scores, answers = (np.array(column) for column in columns)
    worth, gain, error = worth_of_counts(of, scores, answers, rows, bundle.labels, _FOLDS)
    if worth <= 0 or gain <= error:
        return None
    watch.say(
        f"labels' counts move ranks: ten times as often is worth {worth * np.log(10):.3f} of score, by the "
        f"teacher's answers on {len(uids):,} documents"
    )
    return replace(
        LabelOffsets.by_counts(worth, bundle.labels, bundle.index.dimension),
        documents=frozenset(document_hash(document) for document in documents if document.uid in uids),
        gain={"nats": gain, "documents": float(len(uids))},
    )


def _measures(fits: Sequence[bool], right: int) -> tuple[float, float, float]:
    """P@1, P@5 and nDCG@5 of a document's known labels in some order, `right` of all labels being right."""
    top = np.array(fits[:5], dtype=np.float64)
    discounts = 1 / np.log2(np.arange(2, 7))
    ideal = discounts[: max(1, min(5, right))].sum()
    return float(top[:1].sum()), float(top.sum() / 5), float(top @ discounts[: len(top)] / ideal)


def _pairs(
    bundle: Bundle, vectors: NDArray[np.float32], decided: Sequence[Decided | None], rows: NDArray[np.int64]
) -> DecidedPairs:
    """What is decided, and of documents whose right labels are known a sample of the other labels."""
    row_of, live = bundle.rows(), bundle.index.rows
    rng = np.random.default_rng(0)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]] = []
    for i, said in enumerate(decided):
        if said is None:
            continue
        yes, no = (sorted(row_of[uid] for uid in some if uid in row_of) for some in (said.yes, said.no))
        weights = [1.0] * (len(yes) + len(no))
        if said.others:
            seen = {*yes, *no}
            near = [row for row in rows[i, :_TOP].tolist() if row not in seen]
            left = np.setdiff1d(live, [*seen, *near])
            drawn = rng.choice(left, min(_DRAWN, len(left)), replace=False)
            no += [*near, *drawn.tolist()]
            weights += [said.others] * len(near) + [said.others * len(left) / max(1, len(drawn))] * len(drawn)
        of = np.array([*yes, *no], dtype=np.int64)
        found.append((np.full(len(of), i), of, np.arange(len(of)) < len(yes), np.array(weights)))
    documents, labels, answers, weights_of = (np.concatenate(part) for part in zip(*found, strict=True))
    scores = np.empty(len(labels), dtype=np.float32)
    for i in np.unique(documents):
        mine = documents == i
        scores[mine] = bundle.scores(vectors[i : i + 1], labels[mine])[0]
    return DecidedPairs(
        vectors, documents, labels, scores, answers.astype(np.float32), weights_of.astype(np.float32)
    )


def _curve(count: int, before: NDArray[Any], gains: Mapping[float, NDArray[Any]]) -> list[CurvePoint]:
    """P@1 and P@5 by the documents fitted on, and at 50 more than there are."""
    sizes = [share * count * (1 - 1 / _FOLDS) for share in gains]
    # A gain grows with the logarithm of the documents.
    slopes = np.polyfit(np.log(sizes), np.stack(list(gains.values())), 1)[0].clip(min=0)
    then = before + gains[1.0] + slopes * np.log((count + _NEXT) / sizes[-1])
    every = [before, *(before + gain for gain in gains.values()), then.clip(max=1)]
    documents = [0, *map(round, sizes), count + _NEXT]
    return [
        CurvePoint(
            documents=n, values=dict(zip(_MEASURES[:2], values.tolist(), strict=False)), expected=n > count
        )
        for n, values in zip(documents, every, strict=True)
    ]


def _line(count: int, curve: Sequence[CurvePoint], kept: bool) -> str:
    """What cross-validation says, and what the next fifty documents would bring."""
    before, *_, now, then = (point.values for point in curve)
    told = ", ".join(f"{name} {100 * before[name]:.1f} to {100 * now[name]:.1f} %" for name in before)
    if not kept:
        return f"ranks stay: people's decisions on {count:,} documents change {told}, by cross-validation"
    # That of the decisions there are is beyond what cross-validation fits on.
    fitted = curve[-2].documents
    more = 100 * (then["P@5"] - now["P@5"]) * np.log(1 + _NEXT / count) / np.log((count + _NEXT) / fitted)
    return (
        f"ranks follow people's decisions on {count:,} documents: {told} of what they decided on, by "
        f"cross-validation; {_NEXT} documents more would bring about {more:.1f} points of P@5"
    )
