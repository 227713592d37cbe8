"""A bundle's scores become probabilities, and people's decisions change its ranks: `ezxmc calibrate`.

It looks at documents the student was not trained on, with the teacher's judgments of them, or with
people's tags, which come as gold (all right labels of a document) or as what `ezxmc review` collected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from ezxmc.bundle.bundle import add_calibrator, load_bundle
from ezxmc.bundle.manifest import OFFSETS, check_changeable, read_manifest
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import (
    KINDS,
    LEAST_JUDGED,
    Calibrator,
    Kind,
    Target,
    Verdict,
    completed,
    fit_calibrator,
    fit_few_shot,
    judged_rows,
    unjudged,
)
from ezxmc.data import calibration_part
from ezxmc.data.catalog import Gold, Rows, Source, WithoutGold, documents_in, reviewed_gold
from ezxmc.data.predictions import check_shortlist, write_shortlist
from ezxmc.errors import ArgumentError, ConfigError, TrainingError, number_between, whole_number
from ezxmc.feedback.recall import existing_store, newest_judgments
from ezxmc.feedback.reviews import ReviewedPairs, document_hash
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.pipeline.people_ranks import (
    by_review,
    by_tags,
    counted_offsets,
    part_for_ranks,
    peoples_ranks,
    verdicts_of,
)
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document, Prediction
from ezxmc.retrieval.label_offsets import LabelOffsets


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `calibrate` put into a bundle.

    Attributes:
        bundle: The bundle.
        calibrator: What it has now.
        rows: How reading each input went, by name.
        offsets: What people's decisions add to scores, if they changed ranks.
    """

    bundle: Path
    calibrator: Calibrator
    rows: Rows = field(default_factory=dict)
    offsets: LabelOffsets | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a person asks of it, JSON-ready: whose answers, which curve, on how much, how good."""
        one = self.calibrator
        facts = {
            "ranks_gain": dict(self.offsets.gain) if self.offsets else None,
            "target": one.target,
            "kind": one.kind,
            "documents": one.documents,
            "pairs": one.n,
            "ece_cross_fitted": one.ece_cross_fitted,
            "ece_uncorrected": one.ece_uncorrected,
            "nll_cross_fitted": {name: round(loss, 4) for name, loss in one.nll_cross_fitted.items()},
            "bundle": str(self.bundle),
        }
        return {name: value for name, value in facts.items() if value is not None}


def calibrate(
    bundle: str | Path,
    documents: Source,
    *,
    store: str | Path | None = None,
    gold: Gold | None = None,
    reviewed: str | Path | None = None,
    target: Target | None = None,
    kind: Kind | None = None,
    ranks: float = 1.0,
    depth: int = 10,
    held_out: float | None = None,
    seed: int = 0,
    without_gold: WithoutGold | None = None,
    columns: Mapping[str, str] | None = None,
    watch: Progress | None = None,
) -> Calibrated:
    """Fit probabilities to a bundle's scores, and put them into the bundle.

    With a store they predict its newest teacher, with people's tags people. With both, or with people's
    tags and the target "both" on a bundle that predicts its teacher, the teacher gives the shape and 50 to
    200 reviewed documents correct it.

    Args:
        bundle: The bundle's folder; its calibrator is replaced, and a decision in it goes.
        documents: Documents the student was not trained on: a file, or a list.
        store: A feedback store with the teacher's judgments of the bundle's own top labels.
        gold: People's tags, all that are right among the top labels: a file, or label uids by document uid.
        reviewed: In place of `gold`, a store with people's decisions, on half of a top list or more.
        target: Whose answers are predicted; by default as what is given says.
        kind: The shape of the curve; by default the one that predicts best.
        ranks: The share of people's documents that may change ranks too (`peoples_ranks`), where
            cross-validation says that it gains; with a store, labels' counts may too
            (`counted_offsets`). The others can prove a guarantee of `decide`; with 0 ranks stay as they are.
        depth: Ranks per document used.
        held_out: The share given to the training, whose part for calibration is taken; all by default.
        seed: The one given to the training.
        without_gold: What documents are that `gold` has no label for; must be said where there are any.
        columns: Columns of a file of documents by the field they serve as.
        watch: Sees stages and messages.

    Raises:
        ArgumentError: What is given does not go together.
        BundleError: There is no such bundle, or it cannot be changed.
        DataError: An input cannot be read, or nobody says what documents without gold are.
        TrainingError: Too little was judged, or too few of the bundle's own top labels.
        StoreError: A store is missing or cannot be read.

    Example:
        >>> found = calibrate("run/bundle", "documents.jsonl", gold="gold.tsv", ranks=0.5)
        >>> found.calibrator.target
        'human'
    """
    watch, bundle = watch or NoProgress(), Path(bundle)
    people = gold is not None or reviewed is not None
    aim = _target(store is not None, people, target)
    if gold is not None and reviewed is not None:
        raise ArgumentError("people's tags are given twice", "give --gold or --reviewed, not both")
    if kind not in (None, *KINDS):
        raise ArgumentError(f"the kind is {kind!r}", f"choose of {', '.join(KINDS)}")
    kinds, ranks = (kind,) if kind else KINDS, number_between(ranks, "ranks", 0, 1)
    scored = Scored.read(bundle, documents, depth, columns, watch, held_out=held_out, seed=seed)
    tags = scored.tags(gold, without_gold) if gold is not None else {}
    predictions, offsets = scored.predictions(), None
    if store is not None and aim != "human":
        teacher, lacking = scored.judged(store)
        name = documents if isinstance(documents, str | Path) else "DOCUMENTS"
        ask = f"ezxmc annotate {name} LABELS missing.jsonl --store {store}"
        scored.check(lacking, alone=aim == "teacher", command=ask)
        if ranks:
            offsets = counted_offsets(scored.predictor.bundle, scored.documents, predictions, teacher, watch)
    elif ranks:
        offsets = scored.counted()
    plain = scored.predictor.bundle
    if offsets is not None:
        predictions = scored.predictions(offsets)
    ranked: Sequence[Prediction] = predictions
    said = by_tags(predictions, tags)
    human: Verdict = verdicts_of(said)
    if reviewed is not None:
        with existing_store(reviewed):
            decided = ReviewedPairs.load(reviewed, scored.documents, scored.predictor.bundle.labels)
        lists = decided.lists(predictions, depth)
        watch.say(f"{decided.line}; {lists.counts}")
        said = by_review(lists, decided)
        if aim != "teacher":
            human = completed(predictions, lists, depth)
    if aim != "teacher" and ranks:
        some = {uid: said[uid] for uid in part_for_ranks(said, ranks)}
        # Of the others no verdict is known.
        documents_of = [document for document in scored.documents if document.uid in said]
        moved = peoples_ranks(plain, documents_of, some, depth, watch, offsets)
        watch.say(moved.line)
        offsets, ranked = moved.offsets, moved.predictions
    if aim == "human":
        calibrator = fit_calibrator(ranked, human, target="human", k=depth, kinds=kinds)
    elif store is None:
        former = scored.predictor.bundle.calibrator
        calibrator = Calibrator.correct([former] if former else [], judged_rows(ranked, human, depth))
    elif aim == "teacher":
        calibrator = fit_calibrator(predictions, teacher, target="teacher", k=depth, kinds=kinds)
    else:
        calibrator = fit_few_shot(predictions, teacher, human, k=depth, kinds=kinds, ranked=ranked)
    add_calibrator(bundle, calibrator, offsets=offsets)
    return Calibrated(bundle, calibrator, scored.rows, offsets)


def _target(teacher: bool, people: bool, wanted: Target | None) -> Target:
    if wanted not in (None, *get_args(Target)):
        raise ArgumentError(f"the target is {wanted!r}", f"choose of {', '.join(get_args(Target))}")
    if not teacher and not people:
        raise ArgumentError(
            "nobody's answers are given",
            "give --store, --gold, --reviewed, or --store with one of the others",
        )
    if wanted is None:
        return "both" if teacher and people else "human" if people else "teacher"
    if not (teacher if wanted == "teacher" else people):
        missing = "the teacher's" if wanted == "teacher" else "people's"
        options = "--store" if wanted == "teacher" else "--gold or --reviewed"
        raise ArgumentError(f"the target {wanted} needs {missing} answers", f"give {options}")
    return wanted


@dataclass(frozen=True, slots=True)
class MissingPairs:
    """What `missing_pairs` wrote: how many documents and pairs, and where; and how reading went."""

    documents: int
    pairs: int
    out: Path
    rows: Rows = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without `rows`."""
        return {"documents": self.documents, "pairs": self.pairs, "out": str(self.out)}


def missing_pairs(
    bundle: str | Path,
    documents: Source,
    store: str | Path | None,
    out: str | Path,
    *,
    depth: int = 10,
    held_out: float | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    watch: Progress | None = None,
) -> MissingPairs:
    """Write which of a bundle's own top labels the teacher must judge yet, as a shortlist for `annotate`.

    `store` has the teacher's judgments so far, `out` is a file for shortlists (`write_shortlist`); the other
    arguments are those of `calibrate`.

    Raises:
        ArgumentError: No store is given.
        BundleError, ConfigError, DataError, StoreError: As for `calibrate` and `write_shortlist`.
    """
    if store is None:
        raise ArgumentError("nothing is missing where no store is given", "--missing needs --store")
    inputs = [one for one in (documents, store) if isinstance(one, str | Path)]
    check_shortlist(Path(out), inputs)
    watch = watch or NoProgress()
    scored = Scored.read(
        Path(bundle), documents, depth, columns, watch, held_out=held_out, seed=seed, plain=False
    )
    scored.predictions()
    _, lacking = scored.judged(store)
    wanted = [{"doc": doc, "labels": labels} for doc, labels in lacking.items() if labels]
    write_shortlist(Path(out), wanted, inputs)
    return MissingPairs(len(wanted), sum(map(len, lacking.values())), Path(out), scored.rows)


@dataclass(slots=True)
class Scored:
    """Documents that a bundle scores, and who said what of its top labels."""

    predictor: Predictor
    everything: list[Document]
    documents: list[Document]
    depth: int
    watch: Progress
    rows: Rows
    _found: list[Prediction] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        bundle: Path,
        documents: Source,
        depth: int,
        columns: Mapping[str, str] | None,
        watch: Progress,
        *,
        held_out: float | None = None,
        seed: int = 0,
        plain: bool = True,
    ) -> Scored:
        """`plain`: without the label offsets there are, for others take their place."""
        depth = whole_number(depth, "depth")
        check_changeable(bundle)
        everything, rows = documents_in(documents, columns)
        part = everything
        if held_out is not None:
            wanted = set(calibration_part(everything, held_out, seed))
            part = [document for document in everything if document.uid in wanted]
        if isinstance(documents, str | Path):
            rows.tell(watch.say, "documents")
        opened = load_bundle(bundle)
        if plain:
            opened = replace(opened, offsets=None)
        return cls(Predictor(opened), everything, part, depth, watch, {"documents": rows})

    def tags(self, gold: Gold, without_gold: WithoutGold | None) -> dict[str, set[str]]:
        """People's tags, by document uid."""
        tags, self.rows["gold"] = reviewed_gold(
            gold,
            self.everything,
            self.predictor.bundle.titles(),
            of=self.documents,
            without_gold=without_gold,
            say=self.watch.say,
        )
        return tags

    def predictions(self, offsets: LabelOffsets | None = None) -> list[Prediction]:
        """Of the documents; with label offsets in place of the bundle's."""
        bar, predictor = self.watch.stage("scoring"), self.predictor
        if offsets is not None:
            bundle = predictor.bundle
            predictor = Predictor(replace(bundle, offsets=offsets.on(bundle.labels, bundle.index)))
        self._found = []
        for prediction in predictor.stream(self.documents, k=self.depth):
            self._found.append(prediction)
            bar(len(self._found), len(self.documents))
        return self._found

    def offsets(self) -> LabelOffsets | None:
        """Those in the bundle."""
        bundle = self.predictor.bundle.path
        name = read_manifest(bundle).file(OFFSETS)
        return LabelOffsets.load(bundle / name) if name else None

    def counted(self) -> LabelOffsets | None:
        """Those in the bundle that are the teacher's word on labels' counts alone."""
        found = self.offsets()
        return found if found and not found.labels else None

    def judged(self, store: str | Path) -> tuple[Verdict, dict[str, list[str]]]:
        """What the teacher said, and of which top labels it said nothing."""
        labels, say = self.predictor.bundle.labels, self.watch.say
        found = newest_judgments(store, self.everything, labels, say).judgments
        asked = {(judgment.doc_uid, judgment.label_uid) for judgment in found}
        return teacher_verdicts(found), unjudged(self._found, asked, self.depth)

    def for_proof(self, documents: Iterable[Document]) -> list[Document]:
        """Those that did not fit the bundle's ranks: a promise is proved on others."""
        there, some = self.offsets(), list(documents)
        fitted = there.documents if there else frozenset()
        left = [document for document in some if document_hash(document) not in fitted]
        if out := len(some) - len(left):
            line = f"{out:,} of {len(some):,} documents fitted the bundle's ranks, and can prove nothing"
            if not left:
                raise ConfigError(
                    line,
                    "give others, or calibrate with `--ranks 0.5` first: half of them then are kept for this",
                )
            self.watch.say(f"{line}: {len(left):,} are left")
        return left

    def check(self, lacking: Mapping[str, Sequence[str]], *, alone: bool, command: str) -> None:
        """Tell of top labels nobody judged; refuse where they are many and no people correct the teacher."""
        pairs = sum(min(self.depth, len(p.labels)) for p in self._found if p.uid in lacking)
        missing = sum(map(len, lacking.values()))
        if missing in (0, pairs):
            return
        line = (
            f"{missing:,} of {pairs:,} pairs of the bundle's own top {self.depth} were never judged. Those "
            "that were, another model proposed, and of these more are right: probabilities fitted to them "
            "are too high"
        )
        # People set right what the teacher's rates are off by.
        if 1 - missing / pairs < LEAST_JUDGED and alone:
            raise TrainingError(
                line,
                "write the missing pairs with the same command and `--missing missing.jsonl`, ask about them "
                f"with `{command}`, then calibrate again",
            )
        self.watch.say(line)
