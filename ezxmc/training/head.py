"""Training of the sparse head on judged documents.

By sparse evolutionary training: the smallest weights of each label go, random ones come. Groups
of like labels, all of one size, are the coarse classes of the auxiliary objective, and the
optimiser keeps one number per label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ezxmc.config import HeadConfig
from ezxmc.errors import TrainingError
from ezxmc.retrieval.backends import has_fast_bfloat16
from ezxmc.retrieval.sparse_head import SparseHead, blocks
from ezxmc.training.dataset import Example
from ezxmc.training.head_loss import sparse_bce
from ezxmc.training.step import Schedule

_LAST = 0.75
"""Share of the steps after which connections stay: new weights need time to grow."""


@dataclass(frozen=True, slots=True)
class Rewiring:
    """When connections change and how many: SET (Mocanu et al., arXiv 1707.04780) with a decaying share.

    The share ζ of a label's weights replaced falls along a half cosine, as in
    RigL (arXiv 1911.11134, section 3), from `fraction` to 0 at three quarters of the steps.

    Attributes:
        steps: Optimiser steps in all.
        interval: Steps between two changes.
        fraction: ζ at the start, in [0, 1].
    """

    steps: int
    interval: int
    fraction: float

    def share(self, step: int) -> float:
        """ζ after so many steps, from 1; 0 where nothing changes."""
        last = _LAST * self.steps
        if step % self.interval or step >= last:
            return 0.0
        return self.fraction * (1 + math.cos(math.pi * step / last)) / 2


def rewire(columns: Tensor, weights: Tensor, width: int, share: float, generator: torch.Generator) -> int:
    """Replace each label's smallest weights by new ones at zero, in place: the layer's answers hardly move.

    Fan-in stays as it is and no label has a column twice. What goes does not come back at once.

    Args:
        columns: (L, F) int16, distinct in a row.
        weights: (L, F) float, aligned.
        width: D, columns there are.
        share: Of the weights of each label, rounded to whole ones.
        generator: Source of the new columns, on the device of `columns`.

    Returns:
        Weights replaced per label.
    """
    fan_in = columns.shape[1]
    count = min(round(share * fan_in), width - fan_in)
    if not count:
        return 0
    for part, chance in random_rows(len(columns), width, generator):
        gone = weights[part].abs().topk(count, dim=1, largest=False).indices
        chance.scatter_(1, columns[part].long(), -1.0)
        fresh = chance.topk(count, dim=1).indices
        columns[part] = columns[part].scatter(1, gone, fresh.to(columns.dtype))
        weights[part] = weights[part].scatter(1, gone, 0.0)
    return count


def random_rows(labels: int, width: int, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
    """Uniform numbers (block, width) for one block of labels after the other; their order draws columns."""
    for part in blocks(labels, width, width):
        shape = (part.stop - part.start, width)
        yield part, torch.rand(shape, generator=generator, device=generator.device)


_ROUNDS = 5


def balanced_clusters(
    vectors: NDArray[np.float32], clusters: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Balanced spherical 2-means, applied until there are enough groups (Parabel, Prabhu et al., WWW 2018).

    Args:
        vectors: (L, D) label vectors.
        clusters: At least 1; rounded up to a power of two, at most L.
        rng: Draws the first two centres of each split.

    Returns:
        (L,) int64 group of each label; sizes differ by one at most.
    """
    groups = [np.arange(len(vectors))]
    while len(groups) < min(clusters, len(vectors)):
        groups = [half for group in groups for half in _halves(vectors, group, rng) if len(half)]
    cluster_of = np.empty(len(vectors), dtype=np.int64)
    for number, group in enumerate(groups):
        cluster_of[group] = number
    return cluster_of


def _halves(
    vectors: NDArray[np.float32], group: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if len(group) < 2:
        return group, group[:0]
    mine = vectors[group]
    one, other = mine[rng.choice(len(group), 2, replace=False)]
    middle = len(group) // 2
    for _ in range(_ROUNDS):
        order = np.argsort(mine @ (one - other), kind="stable")
        one, other = mine[order[middle:]].mean(axis=0), mine[order[:middle]].mean(axis=0)
    return group[order[:middle]], group[order[middle:]]


class RowAdagrad(torch.optim.Optimizer):
    """AdaGrad (Duchi et al., JMLR 2011) with one sum of squares per row, as large embedding tables have it.

    G_l ← G_l + mean_f g_lf², w_lf ← w_lf − lr g_lf / √G_l. A label that is
    rarely right keeps a high rate, and weights that come and go leave no state behind.

    Args:
        parameters: Tensors (L, ...).
        lr: Rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                flat = parameter.grad.reshape(len(parameter), -1)
                state = self.state[parameter]
                if not state:
                    state["squares"] = parameter.new_zeros((len(parameter), 1))
                # einsum, not square().mean(): no second copy of the gradient.
                state["squares"] += torch.einsum("lf,lf->l", flat, flat)[:, None] / flat.shape[1]
                root = state["squares"].sqrt().clamp_min_(1e-10)
                parameter.view_as(flat).addcdiv_(flat, root.expand_as(flat), value=-group["lr"])


# Of the first logits: 15 cosines off -8 are the base rate of a label among thousands.
_SCALE, _ZERO = 15.0, -8.0
_RATE, _SHARED_RATE = 1.0, 5e-3
_REWIRINGS = 40
_LARGEST_CLUSTERS, _CLUSTER_SIZE, _SKETCH = 1024, 16, 32
_AUXILIARY_UNTIL = 0.5
_BATCHES, _BATCH_SIZES = 40, (16, 256)

Encode = Callable[[NDArray[np.int64]], Tensor]
"""From places in the pool (B,) to document vectors (B, D), with gradient where the encoder learns too."""


LabelVectors = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From label rows (n,) to the bi-encoder's vectors (n, D): `LabelIndex.vectors`."""


class Judged(NamedTuple):
    """What the head is taught.

    Attributes:
        rows: (M,) int64, ascending: label rows with enough positives.
        targets: (N, M) probabilities of the judged pairs of N documents, zeros stored too.
    """

    rows: NDArray[np.int64]
    targets: csr_array


def judged_pairs(pool: Sequence[Example], least_positives: int) -> Judged:
    """The pool's judgments of labels that are positive often enough.

    Raises:
        TrainingError: No label is.
    """
    sizes = [len(example.labels) for example in pool]
    labels = np.concatenate([example.labels for example in pool]) if pool else np.empty(0, dtype=np.int64)
    positive = [example.labels[: example.positives] for example in pool]
    found, counts = np.unique(np.concatenate(positive or [labels]), return_counts=True)
    rows = found[counts >= least_positives]
    if not len(rows):
        raise TrainingError(
            f"no label has {least_positives} positives among the judgments of {len(pool)} documents",
            "judge more documents, lower head.least_positives, or go without a head",
        )
    kept = np.isin(labels, rows)
    document = np.repeat(np.arange(len(pool)), sizes)[kept]
    p = np.concatenate([example.probabilities for example in pool])[kept].astype(np.float32)
    starts = np.searchsorted(document, np.arange(len(pool) + 1))
    # Built from its parts, a matrix keeps the zeros that were judged.
    return Judged(
        rows, csr_array((p, np.searchsorted(rows, labels[kept]), starts), shape=(len(pool), len(rows)))
    )


def batch_size(documents: int) -> int:
    """Documents in a step: few documents take small batches, or a training would end after a dozen steps."""
    least, most = _BATCH_SIZES
    return min(max(least, documents // _BATCHES), most)


def fit_head(
    encode: Encode,
    judged: Judged,
    label_vectors: LabelVectors,
    config: HeadConfig,
    *,
    device: torch.device,
    seed: int = 0,
    shared: Sequence[torch.optim.Optimizer] = (),
    progress: Callable[[int, int], None] | None = None,
) -> SparseHead:
    """Train a fixed fan-in layer by dynamic sparse training (Ullah et al., arXiv 2411.03171).

    As there: `sparse_bce` over all labels, connections that move (`rewire`), a dense layer that all labels
    share before the sparse one (here D × D, starting as the identity), and an auxiliary loss on groups of
    labels whose weight falls to 0 by half of the steps, so that shared weights learn something while the
    sparse ones do not carry much gradient yet. Other than there, labels start from the largest entries of the
    bi-encoder's vectors, and AdaGrad keeps one number per label.

    Measured on wordnet (12,000 documents with gold labels, 2,000 others, fan-in 32, two seeds), P@1 and P@5
    of the head alone: 48.8 and 29.6; random start 45.7 and 27.7; fixed connections 48.2 and 29.3; no
    auxiliary loss 48.0 and 29.6; dense 49.6 and 30.3.

    Memory per label, bytes, with F weights: 2F columns, 4F weights, 4F gradient, and 16 for bias, its
    gradient and both rates; a dense layer with Adam takes 16 (D + 1).

    Args:
        encode: Gives document vectors.
        judged: M labels and N documents' targets.
        label_vectors: Asked for a block of labels at a time.
        config: Sizes and weights.
        device: Of the head.
        seed: Of order, new connections and groups.
        shared: Optimisers of what `encode` computes with, stepped along; their rates follow the schedule.
        progress: Called with (steps done, steps).

    Returns:
        The head, not fused with anything.

    Raises:
        TrainingError: Fan-in exceeds D, or the loss is not finite.
    """
    count, width = len(judged.rows), label_vectors(judged.rows[:1]).shape[1]
    documents = judged.targets.shape[0]
    if not config.fan_in <= width <= np.iinfo(np.int16).max:
        raise TrainingError(
            f"{config.fan_in} weights a label do not fit vectors of {width}", "lower head.fan_in"
        )
    generator = torch.Generator(device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    columns, weights = _start(judged.rows, label_vectors, width, config, generator)
    weights.requires_grad_()
    bias = torch.full((count,), _ZERO, device=device, requires_grad=True)
    layer = torch.zeros((width, width), device=device, requires_grad=True)
    coarse = None
    if config.auxiliary:
        coarse = _Coarse(
            _sketch(judged.rows, label_vectors, width, rng), width, config.auxiliary, device, rng
        )
    common = [layer, *(coarse.parameters if coarse else ())]
    optimizers = [RowAdagrad([weights, bias], _RATE), torch.optim.Adam(common, _SHARED_RATE), *shared]
    plan = Schedule(config.epochs, batch_size(documents), _RATE)
    steps = plan.steps(documents)
    rates = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.factor(step, documents))
        for optimizer in optimizers
    ]
    moving = Rewiring(steps, max(1, steps // _REWIRINGS), config.rewire)
    faster = has_fast_bfloat16(device)
    for step in range(1, steps + 1):
        if (step - 1) % (steps // config.epochs) == 0:
            batches = np.array_split(rng.permutation(documents), steps // config.epochs)
        members = batches[(step - 1) % len(batches)]
        vectors = encode(members)
        targets = csc_array(judged.targets[members])
        features = torch.addmm(vectors, vectors, layer)
        loss = sparse_bce(features, columns, weights, bias, targets, config.unjudged, bfloat16=faster)
        if coarse and (share := max(0.0, 1 - step / (_AUXILIARY_UNTIL * steps))):
            loss = loss + share * coarse.loss(features, targets)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the head's loss became {float(loss.detach())}", "check the document vectors"
            )
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            rate.step()
        with torch.no_grad():
            rewire(columns, weights, width, moving.share(step), generator)
        if progress:
            progress(step, steps)
    return SparseHead(judged.rows, columns, weights.detach(), bias.detach(), layer.detach())


def _start(
    rows: NDArray[np.int64],
    label_vectors: LabelVectors,
    width: int,
    config: HeadConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Columns (M, F) int16 and weights (M, F): a sparse copy of the label vectors, or nothing yet."""
    shape, device = (len(rows), config.fan_in), generator.device
    columns = torch.empty(shape, dtype=torch.int16, device=device)
    weights = torch.zeros(shape, device=device)
    if config.start == "random":
        for part, chance in random_rows(len(rows), width, generator):
            columns[part] = chance.topk(config.fan_in, dim=1).indices.to(torch.int16)
        return columns, weights
    for part in blocks(len(rows), width, width):
        vectors = torch.from_numpy(label_vectors(rows[part])).to(device)
        chosen = vectors.abs().topk(config.fan_in, dim=1).indices
        columns[part], weights[part] = chosen.to(torch.int16), _SCALE * vectors.gather(1, chosen)
    return columns, weights


def _sketch(
    rows: NDArray[np.int64], label_vectors: LabelVectors, width: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Label vectors (M, 32) by a random projection, which keeps their distances: enough to group them."""
    projection = rng.normal(size=(width, _SKETCH)).astype(np.float32)
    parts = [label_vectors(rows[part]) @ projection for part in blocks(len(rows), width, width)]
    return np.concatenate(parts)


class _Coarse:
    """The auxiliary objective: which groups of like labels hold a right one, predicted densely."""

    def __init__(
        self,
        sketch: NDArray[np.float32],
        width: int,
        weight: float,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        clusters = min(_LARGEST_CLUSTERS, -(-len(sketch) // _CLUSTER_SIZE))
        self.cluster_of = balanced_clusters(sketch, clusters, rng)
        self.clusters = int(self.cluster_of.max()) + 1
        self.weight, self.device = weight, device
        self.parameters = (
            torch.zeros((width, self.clusters), device=device, requires_grad=True),
            torch.full((self.clusters,), _ZERO, device=device, requires_grad=True),
        )

    def loss(self, features: Tensor, targets: csc_array) -> Tensor:
        """Mean over documents of the groups' BCE; a group's target is the highest p of its labels."""
        pairs = targets.tocoo()
        wanted = np.zeros((targets.shape[0], self.clusters), dtype=np.float32)
        np.maximum.at(wanted, (pairs.row, self.cluster_of[pairs.col]), pairs.data)
        logits = torch.addmm(self.parameters[1], features, self.parameters[0])
        total = binary_cross_entropy_with_logits(
            logits, torch.from_numpy(wanted).to(self.device), reduction="sum"
        )
        return self.weight * total / len(features)
