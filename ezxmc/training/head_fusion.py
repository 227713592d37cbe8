"""The head as the last stage of a run, on top of a student that is frozen or learns on.

How much it says beside the bi-encoder is chosen by the teacher's judgments on held-out documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ezxmc.config import HeadConfig
from ezxmc.feedback.targets import Targets
from ezxmc.records import Document, Label
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.retrieval.index import LabelIndex
from ezxmc.retrieval.sparse_head import CANDIDATES, Fusion, SparseHead
from ezxmc.training.adapters import RATE, LearningWeights, is_large
from ezxmc.training.dataset import Example, examples
from ezxmc.training.head import Encode, fit_head, judged_pairs
from ezxmc.training.step import Embedder
from ezxmc.training.student import ndcg

_WEIGHTS = tuple(tenths / 10 for tenths in range(1, 11))
_TRUST = 1.0
Floats = NDArray[np.float32]
_FEWEST = 10  # documents; fewer choose nothing


@dataclass(frozen=True, slots=True)
class FusionChoice:
    """What was chosen, and by what.

    Attributes:
        fusion: To be used; its weight is 0 where the head adds nothing.
        agreement: By weight, agreement with the teacher (nDCG@5) on the held-out
            documents; empty where too few were judged.
        documents: Held-out documents with two judged labels or more.
    """

    fusion: Fusion
    agreement: dict[float, float]
    documents: int

    @property
    def line(self) -> str:
        """In words."""
        if not self.agreement:
            return f"head: {self.documents} held-out documents are too few to weigh it by: left out"
        weight = self.fusion.weight
        told = (
            f"head: agreement with the teacher on {self.documents} held-out documents "
            f"{self.agreement[0.0]:.3f} by the bi-encoder alone"
        )
        if not weight:
            return f"{told}, no more with the head: left out"
        return f"{told}, {self.agreement[weight]:.3f} with the head at weight {weight:.1f}"


def quality_alone(
    index: LabelIndex, vectors: NDArray[np.float32], pool: Sequence[Example]
) -> NDArray[np.float64]:
    """NDCG@5 of the bi-encoder by itself, of each document that `choose_fusion` looks at."""
    return np.array(
        [
            ndcg(index.vectors(example.labels) @ vectors[example.document], example.probabilities)
            for example in _ordered(pool)
        ]
    )


def confirmed(
    choice: FusionChoice,
    head: SparseHead,
    index: LabelIndex,
    vectors: NDArray[np.float32],
    pool: Sequence[Example],
    beat: NDArray[np.float64],
) -> FusionChoice:
    """What `choose_fusion` chose, held to documents on which both rankings' own first labels are judged.

    Elsewhere only what the bi-encoder proposed is: the head's own mistakes do not count.

    Args:
        choice: A fusion with a weight.
        head: As for `choose_fusion`.
        index: Beside it.
        vectors: (N, D) of the held-out documents.
        pool: Their judgments.
        beat: `quality_alone` on the same judgments, of what the fused ranking would replace.
    """
    pool, fusion = _ordered(pool), choice.fusion
    if len(pool) < _FEWEST:
        return FusionChoice(Fusion(weight=0.0), {}, len(pool))
    quality = []
    for example in pool:
        vector = vectors[example.document]
        mine = index.vectors(example.labels) @ vector
        z = head.scores(vector[None], example.labels[None])[0]
        quality.append(ndcg(fusion(mine, z), example.probabilities))
    agreement = {0.0: float(beat.mean()), fusion.weight: float(np.mean(quality))}
    kept = fusion if _gains(np.array(quality), beat) else Fusion(weight=0.0)
    return FusionChoice(kept, agreement, len(pool))


def _gains(quality: NDArray[np.float64], beat: NDArray[np.float64]) -> bool:
    """Whether the mean is higher by more than the standard error of the difference."""
    gain = quality - beat
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def choose_fusion(
    head: SparseHead,
    index: LabelIndex,
    vectors: NDArray[np.float32],
    pool: Sequence[Example],
    *,
    beat: NDArray[np.float64] | None = None,
) -> FusionChoice:
    """Put the head's scores on the bi-encoder's scale, and weigh them.

    Scale and shift give the head's scores of the bi-encoder's candidates the mean and deviation of the
    bi-encoder's own. Labels the head does not know keep the latter, and are rarer; the bonus is what known
    ones are more probable by. All are constants: a fused score says the same whatever else is on a list, as
    the calibrator needs it. The weight is the one of best nDCG@5 over the judged labels of held-out
    documents; it is 0 where the gain is within its standard error.

    Args:
        head: Trained on other documents.
        index: Beside it.
        vectors: (N, D) of the held-out documents.
        pool: Their judgments; `document` is a row of `vectors`.
        beat: `quality_alone` of what the fused ranking would replace; of `index` if None.
    """
    pool = _ordered(pool)
    nothing = FusionChoice(Fusion(weight=0.0), {}, len(pool))
    if len(pool) < _FEWEST:
        return nothing
    s, rows = index.search(vectors, CANDIDATES)
    z = head.scores(vectors, rows)
    known = ~np.isnan(z)
    if known.sum() < 2 or not z[known].std():
        return nothing
    scale = float(s[known].std() / z[known].std())
    fusion = Fusion(scale=scale, shift=float(s[known].mean() - scale * z[known].mean()))
    told = []
    for example in pool:
        vector = vectors[example.document]
        mine = index.vectors(example.labels) @ vector
        told.append((mine, head.scores(vector[None], example.labels[None])[0], example.probabilities))
    ways = {weight: _with_bonus(replace(fusion, weight=weight), told) for weight in _WEIGHTS}
    quality = {
        weight: np.array([ndcg(way(s, z), gains) for s, z, gains in told]) for weight, way in ways.items()
    }
    ways[0.0] = Fusion(weight=0.0)
    quality[0.0] = quality_alone(index, vectors, pool) if beat is None else beat
    agreement = {weight: float(values.mean()) for weight, values in sorted(quality.items())}
    best = max(agreement, key=lambda weight: (agreement[weight], -weight))
    if not _gains(quality[best], quality[0.0]):
        best = 0.0
    return FusionChoice(ways[best], agreement, len(pool))


def _ordered(pool: Sequence[Example]) -> list[Example]:
    """The documents with two judged labels or more."""
    return [example for example in pool if len(example.labels) > 1]


def _with_bonus(fusion: Fusion, told: Sequence[tuple[Floats, Floats, NDArray[np.float64]]]) -> Fusion:
    """The bonus of known labels at which fused scores predict the judgments best: a logistic regression."""
    fused = np.concatenate([fusion(s, z) for s, z, _ in told])
    known = np.concatenate([~np.isnan(z) for _, z, _ in told])
    p = np.concatenate([gains for _, _, gains in told])
    if known.all() or not known.any() or not 0 < p.mean() < 1:
        return fusion
    # Each pair stands twice, as right with weight p and as wrong with weight 1 − p.
    model = LogisticRegression(C=_TRUST).fit(
        np.tile(np.stack([(fused - fused.mean()) / fused.std(), known], axis=1), (2, 1)),
        np.repeat([1, 0], len(p)),
        sample_weight=np.concatenate([p, 1 - p]),
    )
    slope, bonus = model.coef_[0]
    return replace(fusion, bonus=float(bonus / slope * fused.std())) if slope > 0 else fusion


_ENCODER_RATE, _WEIGHT_DECAY = 2e-5, 0.01


def train_head(
    encoder: BiEncoder,
    documents: Sequence[Document],
    labels: Sequence[Label],
    targets: Targets,
    index: LabelIndex,
    config: HeadConfig,
    *,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SparseHead:
    """Train a sparse head on the teacher's judgments; see `fit_head`.

    Args:
        encoder: The student. With `config.fine_tune` its weights change in place.
        documents: To train on; those nobody judged are skipped.
        labels: All labels, in the rows of the index.
        targets: Of the documents.
        index: The student's label vectors.
        config: Sizes and weights.
        precision: Of the student's passes where it learns too.
        seed: Of order, new connections and groups.
        progress: Called with (steps done, steps).

    Returns:
        The head, not fused yet: `choose_fusion`.

    Raises:
        TrainingError: No label has enough positives, or fan-in exceeds the vectors.
        ModelError: See `LearningWeights`.
    """
    pool = examples(documents, labels, targets)
    judged = judged_pairs(pool, config.least_positives)
    shown = [documents[example.document].shown for example in pool]
    device = encoder.model.device
    shared: list[torch.optim.Optimizer] = []
    encode: Encode
    learning = LearningWeights(encoder.model) if config.fine_tune else None
    if learning:
        embed = Embedder(encoder, shown, precision)
        shared.append(
            torch.optim.AdamW(
                encoder.model.parameters(),
                lr=RATE if is_large(encoder.model) else _ENCODER_RATE,
                weight_decay=_WEIGHT_DECAY,
            )
        )

        def encode(members: NDArray[np.int64]) -> Tensor:
            return torch.nn.functional.normalize(embed([shown[row] for row in members]), dim=1)

    else:
        vectors = torch.from_numpy(encoder.encode_documents(shown)).to(device)

        def encode(members: NDArray[np.int64]) -> Tensor:
            return vectors[torch.from_numpy(members).to(device)]

    head = fit_head(
        encode, judged, index.vectors, config, device=device, seed=seed, shared=shared, progress=progress
    )
    if learning:
        learning.settle()
    return head
