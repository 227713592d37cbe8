"""A bundle's scores become probabilities, and probabilities tags: `ezxmc calibrate` and `ezxmc decide`.

Both look at documents the student was not trained on, with the teacher's judgments of them, or with
people's tags, which come as gold (all right labels of a document) or as what `ezxmc review` collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ezxmc.bundle.bundle import add_calibrator, add_decision
from ezxmc.bundle.manifest import check_changeable
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
from ezxmc.calibration.decisions import Decision
from ezxmc.calibration.guarantees import (
    GRID,
    control_false_tag_rate,
    control_missed_rate,
    control_top_error,
    maximise_f1,
)
from ezxmc.calibration.rates import Rates, ReviewedDocuments, rates
from ezxmc.data import calibration_part
from ezxmc.data.catalog import Gold, Rows, Source, WithoutGold, documents_in, reviewed_gold
from ezxmc.data.predictions import check_shortlist, write_shortlist
from ezxmc.errors import ArgumentError, ConfigError, TrainingError, number_between, whole_number
from ezxmc.feedback.recall import existing_store, newest_judgments
from ezxmc.feedback.reviews import ReviewedPairs, tag_verdicts
from ezxmc.feedback.targets import teacher_verdicts
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document, Prediction


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `calibrate` put into a bundle.

    Attributes:
        bundle: The bundle.
        calibrator: What it has now.
        rows: How reading each input went, by name.
    """

    bundle: Path
    calibrator: Calibrator
    rows: Rows = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What a person asks of it, JSON-ready: whose answers, which curve, on how much, how good."""
        one = self.calibrator
        facts = {
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
    depth: int = 10,
    held_out: float | None = None,
    seed: int = 0,
    without_gold: WithoutGold | None = None,
    columns: Mapping[str, str] | None = None,
    watch: Progress | None = None,
) -> Calibrated:
    """Fit probabilities to a bundle's scores, and put them into the bundle.

    With a store they foretell its newest teacher, with people's tags people. With both, or with people's
    tags and the target "both" on a bundle that foretells its teacher, the teacher gives the shape and 50 to
    200 reviewed documents correct it.

    Args:
        bundle: The bundle's folder; its calibrator is replaced, and a decision in it goes.
        documents: Documents the student was not trained on: a file, or a list.
        store: A feedback store with the teacher's judgments of the bundle's own top labels.
        gold: People's tags, all that are right among the top labels: a file, or label uids by document uid.
        reviewed: In place of `gold`, a store with people's decisions, on half of a top list or more.
        target: Whose answers are foretold; by default as what is given says.
        kind: The shape of the curve; by default the one that foretells best.
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
        >>> found = calibrate("run/bundle", "documents.jsonl", gold="gold.tsv", kind="platt")
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
    kinds = (kind,) if kind else KINDS
    scored = _Scored.read(bundle, documents, depth, columns, watch, held_out=held_out, seed=seed)
    human: Verdict = tag_verdicts({})
    if gold is not None:
        human = tag_verdicts(scored.tags(gold, without_gold))
    predictions = scored.predictions()
    if reviewed is not None:
        with existing_store(reviewed):
            decided = ReviewedPairs.load(reviewed, scored.documents, scored.predictor.bundle.labels)
        lists = decided.lists(predictions, depth)
        watch.say(f"{decided.line}; {lists.counts}")
        if aim != "teacher":
            human = completed(predictions, lists, depth)
    if aim == "human":
        calibrator = fit_calibrator(predictions, human, target="human", k=depth, kinds=kinds)
    elif store is None:
        former = scored.predictor.bundle.calibrator
        calibrator = Calibrator.correct([former] if former else [], judged_rows(predictions, human, depth))
    else:
        teacher, lacking = scored.judged(store)
        name = documents if isinstance(documents, str | Path) else "DOCUMENTS"
        ask = f"ezxmc annotate {name} LABELS missing.jsonl --store {store}"
        scored.check(lacking, alone=aim == "teacher", command=ask)
        if aim == "teacher":
            calibrator = fit_calibrator(predictions, teacher, target="teacher", k=depth, kinds=kinds)
        else:
            calibrator = fit_few_shot(predictions, teacher, human, k=depth, kinds=kinds)
    add_calibrator(bundle, calibrator)
    return Calibrated(bundle, calibrator, scored.rows)


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

    Args:
        bundle: As for `calibrate`, as are all arguments of its names.
        documents: As there.
        store: The teacher's judgments so far.
        out: A file for shortlists, see `write_shortlist`.
        depth: As for `calibrate`.
        held_out: As there.
        seed: As there.
        columns: As there.
        watch: As there.

    Raises:
        ArgumentError: No store is given.
        BundleError, ConfigError, DataError, StoreError: As for `calibrate` and `write_shortlist`.
    """
    if store is None:
        raise ArgumentError("nothing is missing where no store is given", "--missing needs --store")
    inputs = [one for one in (documents, store) if isinstance(one, str | Path)]
    check_shortlist(Path(out), inputs)
    watch = watch or NoProgress()
    scored = _Scored.read(Path(bundle), documents, depth, columns, watch, held_out=held_out, seed=seed)
    scored.predictions()
    _, lacking = scored.judged(store)
    wanted = [{"doc": doc, "labels": labels} for doc, labels in lacking.items() if labels]
    write_shortlist(Path(out), wanted, inputs)
    return MissingPairs(len(wanted), sum(map(len, lacking.values())), Path(out), scored.rows)


@dataclass(slots=True)
class _Scored:
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
    ) -> _Scored:
        depth = whole_number(depth, "depth")
        check_changeable(bundle)
        everything, rows = documents_in(documents, columns)
        part = everything
        if held_out is not None:
            wanted = set(calibration_part(everything, held_out, seed))
            part = [document for document in everything if document.uid in wanted]
        if isinstance(documents, str | Path):
            rows.tell(watch.say, "documents")
        return cls(Predictor(bundle), everything, part, depth, watch, {"documents": rows})

    def tags(self, gold: Gold, without_gold: WithoutGold | None) -> dict[str, set[str]]:
        tags, self.rows["gold"] = reviewed_gold(
            gold,
            self.everything,
            self.predictor.bundle.titles(),
            of=self.documents,
            without_gold=without_gold,
            say=self.watch.say,
        )
        return tags

    def predictions(self) -> list[Prediction]:
        bar = self.watch.stage("scoring")
        for prediction in self.predictor.stream(self.documents, k=self.depth):
            self._found.append(prediction)
            bar(len(self._found), len(self.documents))
        return self._found

    def judged(self, store: str | Path) -> tuple[Verdict, dict[str, list[str]]]:
        """What the teacher said, and of which top labels it said nothing."""
        labels, say = self.predictor.bundle.labels, self.watch.say
        found = newest_judgments(store, self.everything, labels, say).judgments
        asked = {(judgment.doc_uid, judgment.label_uid) for judgment in found}
        return teacher_verdicts(found), unjudged(self._found, asked, self.depth)

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


@dataclass(frozen=True, slots=True)
class TagRule:
    """What `decide` put into a bundle, and what it does on the reviewed documents.

    Attributes:
        decision: The rule.
        measured: What it keeps of the reviewed documents' labels is worth.
        reviewed: These documents.
        rows: How reading each input went, by name.
    """

    decision: Decision
    measured: Rates
    reviewed: ReviewedDocuments
    rows: Rows = field(default_factory=dict)

    def curve(self) -> list[dict[str, Any]]:
        """The rates of plain thresholds, lowest first: what another choice would have been worth."""
        p, depth = self.reviewed.probabilities, self.reviewed.probabilities.shape[1]
        plain = {float(t): Decision.at_threshold(float(t), depth=depth) for t in GRID[::-1]}
        return [{"threshold": t, **rates(self.reviewed, one.keep(p)).to_dict()} for t, one in plain.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without `rows`."""
        return {
            "decision": {name: value for name, value in self.decision.to_dict().items() if value is not None},
            "guarantee": self.decision.guarantee,
            "measured": self.measured.to_dict(),
            "curve": self.curve(),
        }


def decide(
    bundle: str | Path,
    documents: Source,
    gold: Gold,
    *,
    missed_rate: float | None = None,
    false_tag_rate: float | None = None,
    first_tag_error: float | None = None,
    f1: bool = False,
    document_f1: bool = False,
    threshold: float | None = None,
    top_k: int | None = None,
    abstain_below: float | None = None,
    confidence: float = 0.9,
    depth: int = 50,
    without_gold: WithoutGold | None = None,
    columns: Mapping[str, str] | None = None,
    watch: Progress | None = None,
) -> TagRule:
    """Choose which candidates become tags, with a guarantee where one is asked for, and put it into a bundle.

    The documents must be a random sample of those to come, and used neither to train nor to calibrate:
    every guarantee rests on that, and on those that nothing fits being among them.

    Args:
        bundle: The bundle's folder, with a calibrator; its decision is replaced.
        documents: Documents that people reviewed: a file, or a list.
        gold: All their right labels: a file, or label uids by document uid.
        missed_rate: Of a document's right labels at most this share is missed.
        false_tag_rate: Of a tagged document's tags at most this share is false.
        first_tag_error: Of the documents tagged at most this share has a false first tag; others abstain.
        f1: The threshold of the best expected micro F1.
        document_f1: As many tags for each document as its expected F1 is best with.
        threshold: Tags at least this probable.
        top_k: The k best; with `first_tag_error`, of documents tagged.
        abstain_below: No tag where the best is less probable than this.
        confidence: Of `false_tag_rate` and `first_tag_error`; `missed_rate` holds on average.
        depth: Candidates per document looked at.
        without_gold: As for `calibrate`.
        columns: As there.
        watch: As there.

    Raises:
        ArgumentError: Not just one way to decide is given, or arguments do not go together.
        ConfigError: The bundle has no calibrator, or the rate cannot be guaranteed on these documents.
        BundleError, DataError: As for `calibrate`.

    Example:
        >>> found = decide("run/bundle", "documents.jsonl", "gold.tsv", missed_rate=0.2)
        >>> found.measured.missed < 0.2
        True
    """
    ways = [missed_rate, false_tag_rate, first_tag_error, f1 or None, document_f1 or None, threshold]
    if sum(way is not None for way in ways) + (top_k is not None and first_tag_error is None) != 1:
        raise ArgumentError(
            "there must be one way to decide",
            "give one of --missed-rate, --false-tag-rate, --first-tag-error, --f1, --document-f1, "
            "--threshold, --top-k",
        )
    if first_tag_error is not None and abstain_below is not None:
        raise ArgumentError("--first-tag-error chooses itself where to abstain", "drop --abstain-below")
    if abstain_below is not None:
        number_between(abstain_below, "abstain_below", 0, 1)
    watch, bundle = watch or NoProgress(), Path(bundle)
    depth = max(whole_number(depth, "depth"), 0 if top_k is None else whole_number(top_k, "top_k"))
    scored = _Scored.read(bundle, documents, depth, columns, watch)
    if scored.predictor.bundle.calibrator is None:
        raise ConfigError(
            f"a decision needs probabilities, and bundle {bundle} has no calibrator",
            "run `ezxmc calibrate` on it first, with other documents than these",
        )
    tags = scored.tags(gold, without_gold)
    scored.documents = [document for document in scored.documents if document.uid in tags]
    reviewed = ReviewedDocuments.of(scored.predictions(), tags)
    at_most, abstain = reviewed.probabilities.shape[1], abstain_below
    if missed_rate is not None:
        choice = control_missed_rate(reviewed, missed_rate, abstain_below=abstain)
    elif false_tag_rate is not None:
        choice = control_false_tag_rate(
            reviewed, false_tag_rate, confidence=confidence, abstain_below=abstain
        )
    elif first_tag_error is not None:
        k = min(top_k or 1, at_most)
        choice = control_top_error(reviewed, first_tag_error, confidence=confidence, k=k)
    elif threshold is not None:
        choice = Decision.at_threshold(threshold, depth=at_most, abstain_below=abstain)
    elif top_k is not None:
        choice = Decision.top_k(min(top_k, at_most), abstain_below=abstain)
    else:
        choice = maximise_f1(reviewed, per_document=document_f1, abstain_below=abstain)
    add_decision(bundle, choice)
    return TagRule(choice, rates(reviewed, choice.keep(reviewed.probabilities)), reviewed, scored.rows)
