"""From probabilities to tags: which of a document's candidates to keep, and what is promised of them.

Two kinds of promise. In expectation (conformal risk control): averaged over the draw of the reviewed
documents and one more, the loss is at most the target; for the documents one happens to have reviewed it
may be somewhat above or below. With confidence (Learn-Then-Test): for at least that share of all draws the
rate on all documents to come is at most the target.

Both need the reviewed documents and those to come to be exchangeable: a random sample of the same stream,
trained on and calibrated on by nobody. Neither needs the probabilities to be right; the better they are,
the more is kept.

Without reviewed documents, from calibrated probabilities alone, the tags of the best expected F1 can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError

from ezxmc.errors import BundleError, ConfigError, number_between, whole_number
from ezxmc.files import loads, write_file
from ezxmc.records import Result

_CELLS = 1 << 21  # numbers held at once


def micro_threshold(probabilities: NDArray[np.float64], beyond: float = 0.0) -> float:
    """The threshold of the greatest expected micro-averaged F1 over many documents.

    Maximises 2 Σ_kept p / (number kept + Σ p + N · beyond). At the maximum F* exactly the pairs with p >
    F*/2 are worth keeping (Lipton et al., arXiv 1402.1892); pairs at F*/2 change nothing.

    Args:
        probabilities: (N, k) calibrated.
        beyond: Right labels expected per document that are not among its k.

    Returns:
        One of the probabilities: pairs at or above it are kept.
    """
    p = np.sort(probabilities, axis=None)[::-1]
    hits = np.cumsum(p)
    total = hits[-1] + beyond * len(probabilities)
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + total)
    return float(p[int(f1.argmax())])


def best_sizes(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of its best labels each document should keep for the greatest expected F1 of its own.

    E[2 · hits / (size + right labels)] exactly, labels being independent given their probabilities: the
    best set is then a prefix of the ranking (Lewis, SIGIR 1995; computed as in Ye et al., arXiv 1206.4625,
    from the distributions of the number right in the prefix and in the rest). An empty answer counts 0, so
    every document gets at least one label; labels that are no candidates are taken to be wrong.

    Args:
        probabilities: (N, k) calibrated, rows best first.

    Returns:
        (N,) int64 in 1..k; the smaller of equally good sizes. Time is in the order of N·k³.
    """
    n, k = probabilities.shape
    at_once = max(1, _CELLS // (k + 1) ** 2)
    parts = [_sizes(probabilities[start : start + at_once]) for start in range(0, n, at_once)]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _sizes(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    n, k = probabilities.shape
    counts = np.arange(k + 1)
    # rest[h]: distribution of the number right among ranks h+1..k.
    rest = np.zeros((k + 1, n, k + 1))
    rest[k, :, 0] = 1
    for rank in range(k - 1, -1, -1):
        rest[rank] = _one_more(rest[rank + 1], probabilities[:, rank])
    prefix = rest[k].copy()
    expected = np.empty((n, k))
    for size in range(1, k + 1):
        prefix = _one_more(prefix, probabilities[:, size - 1])
        f1 = 2 * counts[:, None] / (size + counts[:, None] + counts)
        expected[:, size - 1] = ((prefix @ f1) * rest[size]).sum(axis=1)
    return np.asarray(expected.argmax(axis=1) + 1, dtype=np.int64)


def _one_more(distribution: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """The number right, (N, k+1), after one more independent label."""
    p = probability[:, None]
    more = distribution * (1 - p)
    more[:, 1:] += distribution[:, :-1] * p
    return more


FORMAT_VERSION = 1
DEPTH = 50
Kind = Literal[
    "top_k", "threshold", "expected_f1", "expected_document_f1", "missed_rate", "false_tag_rate", "top_error"
]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What was controlled, and on what.

    Attributes:
        target: The rate is at most this.
        documents: Reviewed documents it was fitted on.
        confidence: Share of draws of these for which it holds; `None`: it holds in expectation over the
            draws.
    """

    target: float
    documents: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Decision(Result):
    """A rule that keeps some of a document's candidates.

    Attributes:
        kind: How it was chosen.
        depth: Candidates per document it looks at; deeper ones are never kept.
        k: Keep at most this many.
        threshold: Keep only candidates at least as probable as this.
        abstain_below: Keep nothing of a document whose best candidate is less probable than this.
        promise: What is guaranteed, where something is; as long as no label has `changed`.
        changed: Labels that were added, removed or renamed since: what was promised was promised for the
            labels there were.
        version: Of the file format.

    Raises:
        ValueError: A field is out of range, or one that the kind needs is missing.
    """

    kind: Kind
    depth: int
    k: int | None = None
    threshold: float | None = None
    abstain_below: float | None = None
    promise: Guarantee | None = None
    changed: int = 0
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        shares = [self.threshold, self.abstain_below]
        if self.promise is not None:
            shares += [self.promise.target, self.promise.confidence]
        if not all(share is None or 0 <= share <= 1 for share in shares):
            raise ValueError("thresholds, targets and confidence must be in [0, 1]")
        if self.changed < 0:
            raise ValueError("labels changed since cannot be fewer than none")
        if self.depth < 1 or (self.k is not None and not 1 <= self.k <= self.depth):
            raise ValueError(f"depth must be at least 1 and k in 1..{self.depth}")
        if missing := [name for name in _NEEDS[self.kind] if getattr(self, name) is None]:
            raise ValueError(f"a decision of kind {self.kind} needs {', '.join(missing)}")

    @classmethod
    def top_k(cls, k: int, *, abstain_below: float | None = None) -> Decision:
        """Keep the k best, k at least 1."""
        k = whole_number(k, "k")
        return cls("top_k", k, k=k, abstain_below=abstain_below)

    @classmethod
    def at_threshold(
        cls, threshold: float, *, depth: int = DEPTH, abstain_below: float | None = None
    ) -> Decision:
        """Keep what is at least this probable, from 0 to 1, of the `depth` best."""
        threshold, depth = number_between(threshold, "threshold", 0, 1), whole_number(depth, "depth")
        return cls("threshold", depth, threshold=threshold, abstain_below=abstain_below)

    def keep(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Which candidates are tags.

        Args:
            probabilities: (N, k) calibrated, rows best first, k at least `depth`.

        Returns:
            (N, k) bool.

        Raises:
            ConfigError: Fewer candidates than `depth`.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        if p.ndim != 2 or p.shape[1] < self.depth:
            raise ConfigError(
                f"this decision looks at {self.depth} candidates per document, got shape {p.shape}",
                "search deeper, or decide again (`ezxmc decide`) if labels were removed since",
            )
        rank = np.arange(p.shape[1])
        kept = np.broadcast_to(rank < (self.k or self.depth), p.shape).copy()
        if self.threshold is not None:
            kept &= p >= self.threshold
        if self.kind == "expected_document_f1":
            kept &= rank < best_sizes(p[:, : self.depth])[:, None]
        if self.abstain_below is not None:
            kept &= p[:, :1] >= self.abstain_below
        return kept

    def after(self, labels: int) -> Decision:
        """The same rule once so many more labels were added, removed or renamed."""
        return replace(self, changed=self.changed + labels)

    def among(self, labels: int) -> Decision:
        """The same rule where there are so many labels: fewer than its depth, and it looks at them all."""
        lost = self.depth - labels
        if lost <= 0:
            return self
        k = None if self.k is None else min(self.k, labels)
        return replace(self, depth=labels, k=k, changed=max(self.changed, lost))

    def abstains(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """(N,) bool: which documents get no tag at all."""
        return np.asarray(~self.keep(probabilities).any(axis=1))

    @property
    def guarantee(self) -> str:
        """What is promised, in words."""
        if self.promise is None:
            return "no rate is guaranteed"
        p = self.promise
        rate = _CONTROLLED[self.kind].format(target=_percent(p.target), depth=self.depth)
        how = (
            "in expectation over which documents were reviewed"
            if p.confidence is None
            else f"with confidence {_percent(p.confidence)} over which documents were reviewed"
        )
        if self.changed:
            return (
                f"no rate is guaranteed any more: labels have changed since ({self.changed:,} added, removed "
                f"or renamed). The promise was, for the former ones: {rate}, {how}; `ezxmc decide` renews it"
            )
        return (
            f"{rate}, {how} ({p.documents:,} of them), provided that new documents "
            "come from the same stream as those (exchangeable) and that labels, student and calibrator stay"
        )

    def save(self, path: str | Path) -> None:
        """Write the decision as JSON; a former one is replaced, anything else is a ConfigError."""
        write_file(path, _JSON.dump_json(self, indent=1), "a decision", made=loads(Decision.load))

    @classmethod
    def load(cls, path: str | Path) -> Decision:
        """Read a decision written by `save`.

        Raises:
            BundleError: Missing, damaged, or of a newer format.
        """
        try:
            found = _JSON.validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleError(
                f"decision {path} cannot be used: {error}", "make it again with `ezxmc decide`"
            ) from error
        if found.version > FORMAT_VERSION:
            raise BundleError(
                f"decision {path} has format {found.version}, this ezxmc knows {FORMAT_VERSION}", "upgrade"
            )
        return found


_CONTROLLED = {
    "missed_rate": "of a document's right labels at most {target} are missed on average, those beyond the "
    "{depth} candidates included",
    "false_tag_rate": "of a tagged document's tags at most {target} are false on average",
    "top_error": "of the documents tagged, at most {target} have a false first tag",
}
_NEEDS: dict[Kind, tuple[str, ...]] = {
    "top_k": ("k",),
    "threshold": ("threshold",),
    "expected_f1": ("threshold",),
    "expected_document_f1": (),
    "missed_rate": ("threshold", "promise"),
    "false_tag_rate": ("threshold", "promise"),
    "top_error": ("k", "abstain_below", "promise"),
}
_JSON = TypeAdapter(Decision)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
