"""Probabilities become tags: `ezxmc decide`, on documents that people reviewed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ezxmc.bundle.bundle import add_decision
from ezxmc.calibration.decisions import Decision
from ezxmc.calibration.guarantees import (
    GRID,
    Rates,
    ReviewedDocuments,
    control_false_tag_rate,
    control_missed_rate,
    control_top_error,
    maximise_f1,
    rates,
)
from ezxmc.data.catalog import Gold, Rows, Source, WithoutGold
from ezxmc.errors import ArgumentError, ConfigError, number_between, whole_number
from ezxmc.pipeline.calibrate import Scored
from ezxmc.progress import NoProgress, Progress


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
    scored = Scored.read(bundle, documents, depth, columns, watch, plain=False)
    if scored.predictor.bundle.calibrator is None:
        raise ConfigError(
            f"a decision needs probabilities, and bundle {bundle} has no calibrator",
            "run `ezxmc calibrate` on it first, with other documents than these",
        )
    # What is proved must hold for the probabilities that a decision looks at.
    scored.predictor.ancestry = None
    tags = scored.tags(gold, without_gold)
    scored.documents = scored.for_proof(document for document in scored.documents if document.uid in tags)
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
