"""What is added to labels' scores: a bias and a shift of the vector of each, and what its count is worth.

No title tells how often a catalog uses a label. People who decide on what a student answers tell it, for
the labels at the head from the first dozen documents on. Where labels have a `count`, the teacher's answers
on a few dozen documents tell what that is worth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ezxmc.disk import disk_errors
from ezxmc.errors import BundleError
from ezxmc.files import loads, whole_file
from ezxmc.records import Label
from ezxmc.retrieval.index import LabelIndex

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

CANDIDATES = 100
"""Labels the scores propose before the offsets, or `_EACH` for each that is asked for where that is more."""
_EACH = 8  # on wordnet with counts R@50 is 62.6 with 400 candidates, 56.1 with 100, 64.1 with all
_OWN = 50  # decided labels beside them, by their scores with the offsets
_BIAS, _GROUP, _SHIFT, _FREQUENCY = 0.8, 0.5, 2.0, 1.0
"""Standard deviations of the normal priors, in nats: of a label's bias, of its parent's, of each component of
its shift, and of what a nat of its logarithmic frequency is worth. Chosen on 500 documents of debtags outside
the report part (tests/bench/people.py)."""
_STEPS, _WHOLE = 100, 8
_BOUND = 3.0  # nats a frequency may lie above or below the mean
_LEAST_SLOPE = 1.0  # nats per unit of score: a flatter one says that scores mean nothing
_FORMAT = "1"
_CURE = "calibrate the bundle again with people's decisions (`ezxmc calibrate --reviewed` or `--gold`)"


@dataclass(frozen=True, slots=True)
class DecidedPairs:
    """P decisions of people on labels of N documents.

    Attributes:
        vectors: (N, D) float32, of the documents.
        documents: (P,) rows of `vectors`.
        labels: (P,) places in the label list.
        scores: (P,) float32, the student's.
        answers: (P,) float32 in [0, 1], whether the label fits.
        weights: (P,) float32, how many pairs each stands for.
    """

    vectors: Floats
    documents: Rows
    labels: Rows
    scores: Floats
    answers: Floats
    weights: Floats

    def of(self, kept: NDArray[np.bool_]) -> DecidedPairs:
        """The pairs of some documents, (N,)."""
        some = kept[self.documents]
        parts = (self.documents, self.labels, self.scores, self.answers, self.weights)
        return DecidedPairs(self.vectors, *(part[some] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LabelOffsets:
    """A label's score becomes s + b_l + g_parent(l) + β f_l + x·δ_l, x the document's vector.

    f_l is the logarithm of a label's `count`, from the mean of all counted labels, at most 3 nats off it.

    Attributes:
        labels: (uid, title) of M labels that people decided on; one with another title by now has no offset.
        bias: (M,) float32.
        shifts: (M, D) float32.
        groups: g by parent.
        frequency: β, and the mean logarithm.
        documents: Hashes of the documents these were fitted on: none of them proves a guarantee.
        gain: What cross-validation said they are worth, by name.
    """

    labels: tuple[tuple[str, str], ...]
    bias: Floats
    shifts: Floats
    groups: Mapping[str, float] = field(default_factory=dict)
    frequency: tuple[float, float] = (0.0, 0.0)
    documents: frozenset[str] = frozenset()
    gain: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def by_counts(cls, worth: float, labels: Sequence[Label], dimension: int) -> LabelOffsets:
        """Nothing but what a nat of logarithmic frequency is worth, on the scale of the scores."""
        nothing = np.zeros((0, dimension), dtype=np.float32)
        return cls((), nothing.sum(axis=1), nothing, frequency=(worth, _centre(labels)))

    @classmethod
    def fit(cls, pairs: DecidedPairs, labels: Sequence[Label], worth: float = 0.0) -> LabelOffsets | None:
        """Fit them: a logistic regression with a normal prior on each offset.

        Minimises, over a, c, b, g, β and δ::

            Σ_p w_p BCE(σ(a s_p + c + b_l + g_parent(l) + β f_l + x·δ_l), y_p)
            + Σ b²/2σ_b² + Σ g²/2σ_g² + (β - a β₀)²/2σ_β² + Σ |δ|²/2σ_δ²

        and divides b, g, β and δ by a, so that scores stay on their scale. A label is held to its score the
        more, the less was decided about it; labels of one parent share what is decided. The problem is
        convex: L-BFGS finds its one solution.

        Args:
            pairs: What was decided.
            labels: The label list that `pairs.labels` are places of.
            worth: β₀, what counts are worth by the teacher's answers.

        Returns:
            The offsets; `None` where yes does not rise with the scores, or all decisions are of one kind.
        """
        if not len(pairs.answers) or pairs.answers.min() == pairs.answers.max():
            return None
        known, columns = np.unique(pairs.labels, return_inverse=True)
        decided = [labels[place] for place in known.tolist()]
        names = sorted({label.parent for label in decided if label.parent})
        place = {name: i for i, name in enumerate(names)}
        # The last group is of labels without a parent, and stays 0.
        group = torch.tensor([place.get(label.parent or "", len(names)) for label in decided])
        centre = _centre(labels)
        often = torch.from_numpy(_frequencies(decided, centre))
        found = _solve(pairs, torch.from_numpy(columns), group, often, len(names), worth)
        if found is None:
            return None
        bias, groups, beta, shifts = found
        return cls(
            tuple((label.uid, label.title) for label in decided),
            bias,
            shifts,
            dict(zip(names, groups.tolist(), strict=True)),
            (float(beta), centre),
        )

    def on(self, labels: Sequence[Label], index: LabelIndex) -> IndexOffsets:
        """The offsets of the rows of an index.

        Args:
            labels: Of each row.
            index: Which rows can be found.

        Raises:
            BundleError: The index has another dimension.
        """
        if self.shifts.shape[1] != index.dimension:
            raise BundleError(
                f"label offsets are of {self.shifts.shape[1]} dimensions, the index of {index.dimension}",
                _CURE,
            )
        place = {pair: i for i, pair in enumerate(self.labels)}
        beta, centre = self.frequency
        bias = np.array([self.groups.get(label.parent or "", 0.0) for label in labels], dtype=np.float32)
        bias += np.float32(beta) * _frequencies(labels, centre)
        live = index.rows.tolist()
        found = [
            (row, i) for row in live if (i := place.get((labels[row].uid, labels[row].title))) is not None
        ]
        rows, places = np.array(found, dtype=np.int64).reshape(-1, 2).T
        bias[rows] += self.bias[places]
        return IndexOffsets(bias, rows, self.shifts[places])

    def save(self, path: Path) -> None:
        """Write them as safetensors, what is no number as JSON in its header.

        Raises:
            ConfigError: Something else is in the file's place.
            DataError: The file cannot be written.
        """
        told = {
            "format": _FORMAT,
            "labels": json.dumps(self.labels),
            "groups": json.dumps(dict(self.groups)),
            "frequency": json.dumps(self.frequency),
            "documents": json.dumps(sorted(self.documents)),
            "gain": json.dumps(dict(self.gain)),
        }
        tensors = {"bias": torch.from_numpy(self.bias), "shifts": torch.from_numpy(self.shifts)}
        with whole_file(path, "label offsets", made=loads(LabelOffsets.load)) as fresh, disk_errors():
            save_file(tensors, fresh, metadata=told)

    @classmethod
    def load(cls, path: Path) -> LabelOffsets:
        """Read what `save` wrote.

        Raises:
            BundleError: The file is damaged, or of a newer format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                bias, shifts = (file.get_tensor(name).clone().numpy() for name in ("bias", "shifts"))
            labels = tuple((str(uid), str(title)) for uid, title in json.loads(told["labels"]))
            groups = {str(name): float(value) for name, value in json.loads(told["groups"]).items()}
            gain = {str(name): float(value) for name, value in json.loads(told["gain"]).items()}
            beta, centre = map(float, json.loads(told["frequency"]))
            fault = None if told["format"] == _FORMAT else f"its format is {told['format']}, not {_FORMAT}"
            documents = frozenset(json.loads(told["documents"]))
            found = cls(labels, bias, shifts, groups, (beta, centre), documents, gain)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"label offsets {path} cannot be read: {error}", _CURE) from None
        if fault := fault or found._fault():
            raise BundleError(f"label offsets {path} cannot be used: {fault}", _CURE)
        return found

    def _fault(self) -> str | None:
        m = len(self.labels)
        if self.bias.shape != (m,) or self.shifts.ndim != 2 or len(self.shifts) != m:
            return f"{m} labels have biases {self.bias.shape} and shifts {self.shifts.shape}"
        if self.bias.dtype != np.float32 or self.shifts.dtype != np.float32:
            return "its numbers are not float32"
        few = np.array([*self.groups.values(), *self.frequency, *self.gain.values()])
        numbers = (self.bias, self.shifts, few)
        return None if all(np.isfinite(part).all() for part in numbers) else "a number in it is not finite"


def _centre(labels: Sequence[Label]) -> float:
    known = [label.count for label in labels if label.count is not None]
    return float(np.log1p(known).mean()) if known else 0.0


def _frequencies(labels: Sequence[Label], centre: float) -> Floats:
    """The f of some labels; 0 where there is no count."""
    counts = np.array([math.nan if label.count is None else label.count for label in labels])
    found: Floats = np.nan_to_num((np.log1p(counts) - centre).clip(-_BOUND, _BOUND)).astype(np.float32)
    return found


def _solve(
    pairs: DecidedPairs, columns: Tensor, group: Tensor, often: Tensor, groups: int, worth: float
) -> tuple[Floats, Floats, Floats, Floats] | None:
    """The b (M,), g (G,), β () and δ (M, D) on the scale of the scores."""
    labels = len(often)
    used, places = np.unique(pairs.documents, return_inverse=True)
    vectors, documents = torch.from_numpy(pairs.vectors[used]), torch.from_numpy(places)
    # A matrix product and a look into it, where the pairs are not far fewer than all there could be.
    whole = len(used) * labels <= _WHOLE * len(places)
    scores, weights = torch.from_numpy(pairs.scores), torch.from_numpy(pairs.weights)
    answers = torch.from_numpy(pairs.answers)
    line = torch.tensor([10.0, -5.0], requires_grad=True)
    bias = torch.zeros(labels, requires_grad=True)
    shared, beta = torch.zeros(groups, requires_grad=True), torch.zeros((), requires_grad=True)
    shifts = torch.zeros(labels, vectors.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [line, bias, shared, beta, shifts],
        max_iter=_STEPS,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-7,
    )

    def cost() -> Tensor:
        optimizer.zero_grad()
        offsets = bias + torch.cat([shared, shared.new_zeros(1)])[group] + beta * often
        if whole:
            moved = (vectors @ shifts.T)[documents, columns]
        else:
            moved = (vectors[documents] * shifts[columns]).sum(dim=1)
        logits = line[0] * scores + line[1] + offsets[columns] + moved
        told = binary_cross_entropy_with_logits(logits, answers, weight=weights, reduction="sum")
        spreads = _BIAS, _GROUP, _FREQUENCY, _SHIFT
        priors = zip((bias, shared, beta - worth * line[0], shifts), spreads, strict=True)
        value = told + sum(part.square().sum() / (2 * spread**2) for part, spread in priors)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    slope = float(line[0].detach())
    if not slope >= _LEAST_SLOPE:
        return None
    return tuple((part.detach() / slope).numpy() for part in (bias, shared, beta, shifts))  # type: ignore[return-value]


def worth_of_counts(
    documents: Rows, scores: Floats, answers: Floats, places: Rows, labels: Sequence[Label], folds: int
) -> tuple[float, float, float]:
    """What a nat of logarithmic frequency is worth by P answers, and how much better it tells them.

    Fits σ(a s + c + β f) to the answers, β with its normal prior: to all for β, and without a part of the
    documents each time for the gain.

    Args:
        documents: (P,) numbers of documents.
        scores: (P,) the student's.
        answers: (P,) in [0, 1].
        places: (P,) places in the label list.
        labels: The label list.
        folds: Parts of the documents.

    Returns:
        β/a, 0 where yes does not rise with the scores; by how many nats a document not fitted on is told
        better; and the standard error of that.
    """
    often = _frequencies(labels, _centre(labels))[places]
    columns = np.stack([scores, np.ones_like(scores), often], axis=1).astype(np.float64)

    def fitted(some: NDArray[np.bool_], width: int) -> NDArray[np.float64]:
        x, y, spread = columns[some, :width], answers[some], np.array([0, 0, _FREQUENCY**-2])[:width]

        def cost(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            z = x @ w
            value = np.logaddexp(0, z).sum() - y @ z + (spread * w * w).sum() / 2
            return float(value), x.T @ (expit(z) - y) + spread * w

        found: NDArray[np.float64] = minimize(cost, np.array([10.0, -5.0, 0.0])[:width], jac=True).x
        return found

    of = np.unique(documents, return_inverse=True)[1]
    fold = np.random.default_rng(0).permutation(of.max() + 1) % folds
    gains = np.zeros(len(fold))
    for number in range(folds):
        apart = fold[of] == number
        for width, sign in ((2, 1), (3, -1)):
            z = columns[apart, :width] @ fitted(~apart, width)
            np.add.at(gains, of[apart], sign * (np.logaddexp(0, z) - answers[apart] * z))
    slope, _, beta = fitted(np.ones(len(of), dtype=np.bool_), 3)
    worth = beta / slope if slope >= _LEAST_SLOPE else 0.0
    return float(worth), float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))


Search = Callable[[Floats, int], tuple[Floats, Rows]]
"""(N, D) vectors and k to (N, k) scores, best first, and the labels' rows."""
Scores = Callable[[Floats, Rows], Floats]
"""(N, D) vectors and (K,) rows to their (N, K) scores."""


@dataclass(frozen=True, slots=True)
class IndexOffsets:
    """`LabelOffsets` by the rows of an index.

    Attributes:
        bias: (total,) float32, of every row.
        rows: (m,) int64, ascending: those with a shift.
        shifts: (m, D) float32.
    """

    bias: Floats
    rows: Rows
    shifts: Floats

    def of(self, vectors: Floats, rows: Rows) -> Floats:
        """What is added to the scores of (N, K) rows."""
        return self._added(vectors @ self.shifts.T, rows)

    def _added(self, moved: Floats, rows: Rows) -> Floats:
        """`of`, where the products (N, m) of vectors and shifts are known."""
        added = self.bias[rows]
        if len(self.rows) and rows.size:
            places = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
            known = self.rows[places] == rows
            added += np.where(known, np.take_along_axis(moved, places, axis=1), np.float32(0))
        return added

    def search(self, search: Search, scores: Scores, vectors: Floats, k: int) -> tuple[Floats, Rows]:
        """The k best labels with their offsets.

        Candidates are the best without them (`CANDIDATES`), and the best decided labels with them.

        Args:
            search: Without the offsets.
            scores: Likewise.
            vectors: (N, D) float32.
            k: How many, at least 1; clipped to what there is.

        Returns:
            Scores (N, k) float32, best first, and the labels' rows (N, k) int64.
        """
        s, found = search(vectors, max(_EACH * k, CANDIDATES))
        k = min(k, found.shape[1])
        if not found.size:
            return s[:, :k], found[:, :k]
        moved = vectors @ self.shifts.T
        s = s + self._added(moved, found)
        if len(self.rows):
            own = scores(vectors, self.rows) + self.bias[self.rows] + moved
            best = np.argsort(-own, axis=1, kind="stable")[:, :_OWN]
            rows = self.rows[best]
            told = np.take_along_axis(own, best, axis=1)
            told[(rows[:, :, None] == found[:, None, :]).any(axis=2)] = -np.inf
            s, found = np.hstack([s, told]), np.hstack([found, rows])
        order = np.argsort(-s, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(s, order, 1), np.take_along_axis(found, order, 1)
