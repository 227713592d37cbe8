"""Every loss against plain Python, its gradient, and who must never be pushed where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from ezxmc.errors import ConfigError
from ezxmc.training import losses as mw
from ezxmc.training.dataset import Example, collate_in_batch
from ezxmc.training.losses import LOSSES, Scored, combined, soft_threshold

TAU = 0.2
EVERY = sorted(LOSSES)
Rows = Iterator[tuple[int, list[int], list[int], list[int]]]


def random_batch(seed: int, rows: int = 6, columns: int = 16) -> Scored:
    """Positives, negatives, labels judged in between, and unknown ones; some of the first two judged."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, size=(rows, columns))
    kind[0], kind[1] = 0, np.where(kind[1] == 1, 0, kind[1])  # nothing known; no positive
    judged = (kind == 2) | ((kind > 0) & (rng.random(kind.shape) < 0.6))
    return Scored(
        scores=torch.from_numpy(rng.uniform(-1, 1, size=kind.shape)),
        positives=torch.from_numpy(np.where(kind == 1, rng.uniform(0.2, 1, size=kind.shape), 0.0)),
        negatives=torch.from_numpy(kind == 3),
        probabilities=torch.from_numpy(np.where(judged, rng.uniform(0, 1, size=kind.shape), 0.0)),
        judged=torch.from_numpy(judged),
    )


def blank(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Scored:
    nothing = torch.zeros(rows, columns, dtype=torch.bool)
    zeros = torch.zeros(rows, columns, dtype=dtype)
    return Scored(zeros, zeros, nothing, zeros, nothing)


def part(batch: Scored, rows: list[int]) -> Scored:
    return Scored(*(getattr(batch, name)[rows] for name in Scored.__dataclass_fields__))


def known(batch: Scored) -> Rows:
    """Per document: its number, positives, negatives, judged labels."""
    for i in range(len(batch.scores)):
        masks = (batch.positives[i] > 0, batch.negatives[i], batch.judged[i])
        yield i, *(mask.nonzero().flatten().tolist() for mask in masks)


def mean_of(costs: dict[int, float]) -> float:
    return sum(costs.values()) / len(costs)


def per_positive(batch: Scored, cost: Callable[[list[float], int, list[int], list[int]], float]) -> float:
    costs = {}
    for i, positives, negatives, _ in known(batch):
        if positives:
            w, s = batch.positives[i].tolist(), batch.scores[i].tolist()
            costs[i] = sum(w[p] * cost(s, p, positives, negatives) for p in positives) / sum(
                w[p] for p in positives
            )
    return mean_of(costs)


def plain_decoupled_softmax(batch: Scored) -> float:
    def cost(s: list[float], p: int, positives: list[int], negatives: list[int]) -> float:
        against = sum(math.exp(s[n] / TAU) for n in negatives)
        return -math.log(math.exp(s[p] / TAU) / (math.exp(s[p] / TAU) + against))

    return per_positive(batch, cost)


def plain_dcl(batch: Scored) -> float:
    def cost(s: list[float], p: int, positives: list[int], negatives: list[int]) -> float:
        return -s[p] / TAU + math.log(sum(math.exp(s[n] / TAU) for n in negatives)) if negatives else 0.0

    return per_positive(batch, cost)


def plain_soft_topk(batch: Scored) -> float:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def cost(s: list[float], p: int, positives: list[int], negatives: list[int]) -> float:
        candidates = [s[j] / TAU for j in positives + negatives]
        if len(candidates) <= 5:
            return 0.0
        shift = brentq(lambda t: sum(sigmoid(x + t) for x in candidates) - 5, -30, 30, xtol=1e-14)
        return -math.log(sigmoid(s[p] / TAU + shift))

    return per_positive(batch, cost)


def plain_triplet_ohnm(batch: Scored) -> float:
    def cost(s: list[float], p: int, positives: list[int], negatives: list[int]) -> float:
        hardest = sorted((s[n] for n in negatives), reverse=True)[:10]
        hinges = [max(0.0, s_n - s[p] + 0.3) for s_n in hardest]
        raw = [math.exp(s_n / 0.1) if hinge else 1.0 for s_n, hinge in zip(hardest, hinges, strict=True)]
        weighted = sum(r * hinge for r, hinge in zip(raw, hinges, strict=True))
        return weighted / sum(raw) / len(hardest) if hardest else 0.0

    return per_positive(batch, cost)


def plain_mw(batch: Scored) -> float:
    cost = weight = 0.0
    for i, positives, _, _ in known(batch):
        for p in positives:
            for j, _, negatives, _ in known(batch):
                for n in negatives:
                    pair = float(batch.positives[i, p])
                    gap = float(batch.scores[i, p] - batch.scores[j, n])
                    cost += pair * math.log(1 + math.exp(-gap / TAU))
                    weight += pair
    return cost / weight


def plain_listwise_kl(batch: Scored) -> float:
    def softmax(values: list[float]) -> list[float]:
        total = sum(math.exp(value) for value in values)
        return [math.exp(value) / total for value in values]

    costs = {}
    for i, _, _, judged in known(batch):
        if len(judged) > 1:
            p = softmax([float(batch.scores[i, j]) / TAU for j in judged])
            log_odds = [math.log(y / (1 - y)) for y in batch.probabilities[i, judged].tolist()]
            pairs = list(zip(p, softmax(log_odds), strict=True))
            there = sum(a * math.log(a / b) for a, b in pairs)
            back = sum(b * math.log(b / a) for a, b in pairs)
            costs[i] = (there + back) / 2
    return mean_of(costs)


def plain_bce(batch: Scored) -> float:
    costs = {}
    for i, positives, negatives, judged in known(batch):
        targets = dict.fromkeys(negatives, 0.0) | {p: float(batch.positives[i, p]) for p in positives}
        targets |= {j: float(batch.probabilities[i, j]) for j in judged}
        if targets:
            costs[i] = 0.0
            for j, y in targets.items():
                p = 1 / (1 + math.exp(-(float(batch.scores[i, j]) / TAU - 10)))
                costs[i] -= y * math.log(p) + (1 - y) * math.log(1 - p)
    return mean_of(costs)


PLAIN: dict[str, Callable[[Scored], float]] = {
    name: globals()[f"plain_{name}"] for name in LOSSES
}  # a loss without its plain form fails here


def double(name: str) -> torch.nn.Module:
    return combined({name: 1.0}, TAU).double()


def value_and_gradient(loss: torch.nn.Module, batch: Scored) -> tuple[float, torch.Tensor]:
    scores = batch.scores.clone().requires_grad_()
    value = loss(replace(batch, scores=scores))
    value.backward()
    assert scores.grad is not None
    return value.item(), scores.grad


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", EVERY)
def test_equals_a_plain_loop(name: str, seed: int) -> None:
    batch = random_batch(seed)
    assert double(name)(batch).item() == pytest.approx(PLAIN[name](batch), rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", EVERY)
def test_gradient(name: str, seed: int) -> None:
    batch, loss = random_batch(seed), double(name)
    parameters = [parameter.detach().clone().requires_grad_() for parameter in loss.parameters()]
    names = [name for name, _ in loss.named_parameters()]

    def of(scores: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            loss, dict(zip(names, values, strict=True)), replace(batch, scores=scores)
        )

    assert torch.autograd.gradcheck(of, (batch.scores.requires_grad_(), *parameters))


@pytest.mark.parametrize("name", EVERY)
def test_unknown_labels_do_not_enter(name: str) -> None:
    batch, loss = random_batch(5), double(name)
    unknown = (batch.positives == 0) & ~batch.negatives & ~batch.judged
    value, gradient = value_and_gradient(loss, batch)
    moved, same = value_and_gradient(loss, replace(batch, scores=batch.scores + 9 * unknown))
    assert unknown.any() and gradient.abs().sum() > 0
    assert moved == pytest.approx(value) and not gradient[unknown].any()
    torch.testing.assert_close(same, gradient)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("seed", range(5))
def test_only_negatives_are_pushed_down(name: str, seed: int) -> None:
    # Without the teacher's soft answers, which may ask for less of anything.
    batch = random_batch(seed, columns=30)
    nothing = blank(*batch.scores.shape, dtype=torch.float64)
    # A weight of 1 is a target of 1, which no score of `bce` exceeds.
    batch = replace(batch, positives=batch.positives.ceil(), judged=nothing.judged)
    if name == "soft_topk":  # positives share its k places, so one each
        batch = replace(batch, positives=batch.positives * (batch.positives.cumsum(dim=1) == 1))
    _, gradient = value_and_gradient(double(name), batch)
    assert not (gradient[~batch.negatives] > 0).any()
    assert (gradient[batch.negatives] > 0).any() or name == "listwise_kl"


@pytest.mark.parametrize("name", EVERY)
def test_documents_that_share_a_label_do_not_make_it_a_negative(name: str) -> None:
    def example(document: int, labels: list[int], positives: int) -> Example:
        return Example(document, np.array(labels), np.full(len(labels), 0.9), positives, 0)

    # Label 1 is a positive of the first two and likely for the third; the fourth knows nothing of it.
    members = [example(0, [1, 2], 2), example(1, [1, 3], 2), example(2, [4, 1], 1), example(3, [5], 1)]
    built = collate_in_batch(members, 5, np.random.default_rng(0))
    shared = built.labels.tolist().index(1)
    batch = replace(
        blank(4, len(built.labels), torch.float64),
        scores=torch.linspace(-0.5, 0.5, 4 * len(built.labels), dtype=torch.float64).reshape(4, -1),
        positives=torch.from_numpy(built.positives).double(),
        negatives=torch.from_numpy(built.negatives),
    )
    _, gradient = value_and_gradient(double(name), batch)
    assert (gradient[:3, shared] <= 0).all() and gradient[2, shared] == 0
    # The fourth does push it, where something is judged and not all fit into the top k.
    assert gradient[3, shared] != 0 or name in ("listwise_kl", "soft_topk")


@pytest.mark.parametrize("name", EVERY)
def test_missing_parts_cost_nothing_and_never_give_nan(name: str) -> None:
    loss = combined({name: 1.0}, 0.01)
    empty = blank(2, 12)
    one_positive = replace(empty, positives=torch.eye(2, 12))
    only_negatives = replace(empty, negatives=torch.ones(2, 12, dtype=torch.bool))
    one_judged = replace(empty, probabilities=torch.eye(2, 12), judged=torch.eye(2, 12).bool())
    for batch in (empty, one_positive, only_negatives, one_judged):
        value, gradient = value_and_gradient(loss, batch)
        assert torch.isfinite(gradient).all()
        if name != "bce" or batch is empty:  # it needs no other label
            assert value == 0 and not gradient.any()
        assert all(torch.isfinite(parameter.grad).all() for parameter in loss.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_extreme_scores_stay_finite(name: str) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(2, 8)
    for scores in (signs, -signs):
        positives = torch.eye(2, 16)
        judged = torch.ones(2, 16, dtype=torch.bool)
        batch = Scored(scores, positives, positives == 0, positives, judged)
        value, gradient = value_and_gradient(combined({name: 1.0}, 0.01), batch)
        assert math.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_document_of_which_nothing_is_known_does_not_count(name: str) -> None:
    batch, loss = random_batch(2), double(name)
    value = loss(batch).item()
    assert loss(part(batch, [1, 2, 3, 4, 5])).item() == pytest.approx(value)
    assert loss(part(batch, [0, 1, 2, 5])).item() != pytest.approx(value)


def test_mw_in_blocks_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = value_and_gradient(double("mw"), random_batch(1))
    monkeypatch.setattr(mw, "_PAIRS_AT_ONCE", 60)
    blocks = value_and_gradient(double("mw"), random_batch(1))
    assert blocks[0] == pytest.approx(whole[0])
    torch.testing.assert_close(blocks[1], whole[1])


@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0])
def test_soft_threshold_lets_k_in(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.rand(3, 50, generator=generator)).requires_grad_()
    candidates = torch.rand(3, 50, generator=generator) < 0.6
    candidates[2] = torch.arange(50) < 7  # as many as fit
    shift = soft_threshold(logits, candidates, 7)
    inside = (torch.sigmoid(logits + shift.unsqueeze(1)) * candidates).sum(dim=1)
    assert inside[:2].tolist() == pytest.approx([7, 7], rel=1e-5)
    shift.sum().backward()
    # Raising all scores by 1 lowers the threshold by 1, even where every σ(1 − σ) is 0 in float32.
    assert logits.grad is not None and logits.grad.sum(dim=1).tolist() == pytest.approx([-1, -1, 0])
    assert not logits.grad[~candidates].any()


def test_combined_is_the_weighted_sum() -> None:
    batch, weights = random_batch(0), {"mw": 0.5, "bce": 2.0, "listwise_kl": 3.0}
    together = combined(weights, TAU).double()
    assert together(batch).item() == pytest.approx(
        sum(weight * PLAIN[name](batch) for name, weight in weights.items()), rel=1e-6
    )
    assert len(list(together.parameters())) == 2


@pytest.mark.parametrize("weights", [{}, {"mv": 1.0}, {"mw": 0.0}, {"mw": -1.0}, {"mw": math.nan}])
def test_refused_combinations(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        combined(weights, TAU)
