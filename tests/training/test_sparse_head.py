"""The sparse head: its layer against a dense masked one, its connections, memory, file and fusion."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.sparse import csc_array, csr_array
from support.commands import forked
from torch.nn.functional import binary_cross_entropy_with_logits

from ezxmc.config import HeadConfig
from ezxmc.errors import BundleError, TrainingError
from ezxmc.retrieval import LabelIndex, SparseHead, sparse_head
from ezxmc.retrieval.sparse_head import Fusion
from ezxmc.training.dataset import Example
from ezxmc.training.head import (
    Judged,
    Rewiring,
    RowAdagrad,
    balanced_clusters,
    fit_head,
    judged_pairs,
    rewire,
)
from ezxmc.training.head_fusion import choose_fusion, confirmed, quality_alone
from ezxmc.training.head_loss import sparse_bce

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 labels and 7 documents: every test crosses a border between blocks."""
    monkeypatch.setattr(sparse_head, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(sparse_head, "_DOCUMENTS", 7)


def layer(
    labels: int, width: int, fan_in: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.rand((labels, width), generator=generator).topk(fan_in, dim=1).indices.to(torch.int16)
    weights = torch.randn((labels, fan_in), generator=generator, dtype=dtype)
    return columns, weights, torch.randn(labels, generator=generator, dtype=dtype)


def judgments(documents: int, labels: int, seed: int = 0) -> tuple[csc_array, NDArray[np.bool_]]:
    """Targets with judged zeros among them, and which pairs are judged."""
    rng = np.random.default_rng(seed)
    judged = rng.random((documents, labels)) < 0.1
    row, column = judged.nonzero()
    p = rng.choice([0.0, 0.2, 1.0], len(row))
    return csc_array((p, (row, column)), shape=judged.shape), judged


def written_out(columns: torch.Tensor, weights: torch.Tensor, width: int) -> torch.Tensor:
    """The same layer as one dense matrix, made entry by entry."""
    dense = torch.zeros((len(columns), width), dtype=weights.dtype)
    for row in range(len(columns)):
        for place in range(columns.shape[1]):
            dense[row, int(columns[row, place])] = weights[row, place]
    return dense


@pytest.mark.parametrize("device", DEVICES)
def test_loss_and_gradients_are_those_of_a_dense_masked_layer(device: str) -> None:
    documents, labels, width, fan_in = 7, 150, 20, 5
    columns, weights, bias = layer(labels, width, fan_in)
    targets, judged = judgments(documents, labels)
    x = torch.randn((documents, width), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    dense = written_out(columns, weights, width).requires_grad_()
    there, level = x.clone().requires_grad_(), bias.clone().requires_grad_()
    c = torch.from_numpy(np.where(judged, 1.0, 0.3))
    wanted = torch.from_numpy(targets.toarray())
    expected = (
        binary_cross_entropy_with_logits(there @ dense.T + level, wanted, weight=c, reduction="sum")
        / documents
    )
    expected.backward()
    assert dense.grad is not None and there.grad is not None and level.grad is not None

    mine = [part.to(device).requires_grad_() for part in (x, weights, bias)]
    value = sparse_bce(mine[0], columns.to(device), mine[1], mine[2], targets, 0.3)
    (2 * value).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for found, right in zip(
        mine, (there.grad, dense.grad.gather(1, columns.long()), level.grad), strict=True
    ):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.cpu() / 2, right, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    columns, weights, bias = layer(70, 6, 3)
    targets, _ = judgments(3, 70)
    x = torch.randn((3, 6), dtype=torch.float64, requires_grad=True)
    weights.requires_grad_(), bias.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *parts: sparse_bce(parts[0], columns, parts[1], parts[2], targets, 0.5), (x, weights, bias)
    )


def test_bfloat16_rounds_little() -> None:
    columns, weights, bias = layer(200, 64, 16, dtype=torch.float32)
    targets, _ = judgments(8, 200)
    x = torch.randn((8, 64))
    one, other = (
        float(sparse_bce(x, columns, weights, bias, targets, 0.3, bfloat16=rounded))
        for rounded in (False, True)
    )
    assert one != other and other == pytest.approx(one, rel=0.01)


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0, 1))
def test_rewiring_keeps_fan_in_and_the_largest_and_repeats_no_column(
    seed: int, fan_in: int, share: float
) -> None:
    width = 12
    columns, weights, _ = layer(80, width, fan_in, seed)
    before = [dict(zip(c.tolist(), w.tolist(), strict=True)) for c, w in zip(columns, weights, strict=True)]
    count = rewire(columns, weights, width, share, torch.Generator().manual_seed(seed))
    assert count == min(round(share * fan_in), width - fan_in)
    for old, c, w in zip(before, columns.tolist(), weights.tolist(), strict=True):
        assert len(set(c)) == fan_in and min(c) >= 0 and max(c) < width
        new = dict(zip(c, w, strict=True))
        kept = sorted(old, key=lambda column: abs(old[column]))[count:]
        assert {column: new[column] for column in kept} == {column: old[column] for column in kept}
        fresh = new.keys() - set(kept)
        assert len(fresh) == count and not fresh & old.keys() and all(new[column] == 0 for column in fresh)


def test_rewiring_draws_every_free_column_alike() -> None:
    columns, weights = torch.arange(4, dtype=torch.int16).repeat(6000, 1), torch.ones(6000, 4)
    weights[:, 0] = 0.1
    rewire(columns, weights, 10, 0.25, torch.Generator().manual_seed(0))
    drawn = np.bincount(columns[:, 0].numpy(), minlength=10)
    assert (drawn[:4] == 0).all() and (abs(drawn[4:] - 1000) < 150).all()


def test_the_rewired_share_falls_along_a_cosine_and_ends() -> None:
    moving = Rewiring(steps=400, interval=10, fraction=0.4)
    assert moving.share(5) == 0 and moving.share(150) == pytest.approx(0.2)
    shares = [moving.share(step) for step in range(10, 300, 10)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.39
    assert not any(moving.share(step) for step in range(300, 401))


def test_rowwise_adagrad_by_hand() -> None:
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    optimizer = RowAdagrad([w], lr=0.5)
    for _ in range(2):
        w.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        optimizer.step()
    g, m = np.array([3.0, 4.0]), 12.5  # mean of squares
    np.testing.assert_allclose(w.detach()[0], [1, 2] - 0.5 * g / np.sqrt(m) - 0.5 * g / np.sqrt(2 * m))
    assert w.detach()[1].tolist() == [3, 4]
    assert optimizer.state[w]["squares"].shape == (2, 1)


@pytest.mark.parametrize(("labels", "clusters"), [(1, 1), (5, 8), (64, 4), (1000, 30)])
def test_clusters_are_balanced(labels: int, clusters: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(labels, 8)).astype(np.float32)
    sizes = np.bincount(balanced_clusters(vectors, clusters, np.random.default_rng(0)))
    assert sizes.sum() == labels and sizes.max() - sizes.min() <= 1
    assert min(clusters, labels) <= len(sizes) < 2 * clusters


def test_clusters_hold_like_labels() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 25)
    vectors = (np.eye(8)[truth] + 0.05 * rng.normal(size=(100, 8))).astype(np.float32)
    found = balanced_clusters(vectors, 4, rng)
    assert all(len(set(truth[found == group])) == 1 for group in range(4))


# A world to learn: each label applies on one side of a plane through a few coordinates.

WIDTH, LABELS, DOCUMENTS = 24, 90, 900


def world(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Document vectors, label vectors that know a part of the truth, and the truth."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(DOCUMENTS, WIDTH))
    planes = np.zeros((LABELS, WIDTH))
    for row in planes:
        row[rng.choice(WIDTH, 4, replace=False)] = rng.choice([-1, 1], 4)
    scores = x @ planes.T
    truth = scores > np.quantile(scores, 0.95, axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    titles = planes + 1.5 * rng.normal(size=planes.shape)
    titles /= np.linalg.norm(titles, axis=1, keepdims=True)
    return x.astype(np.float32), titles.astype(np.float32), truth


def taught(
    truth: NDArray[np.bool_], vectors: NDArray[np.float32], titles: NDArray[np.float32]
) -> list[Example]:
    """The twelve labels nearest to each document, judged."""
    pool = []
    for row, near in enumerate(np.argsort(-vectors @ titles.T, axis=1)[:, :12]):
        right = truth[row, near]
        order = near[np.argsort(~right, kind="stable")]
        p = np.where(truth[row, order], 0.95, 0.05)
        pool.append(Example(row, order, p, int(right.sum()), int((~right).sum())))
    return pool


def trained(
    seed: int = 0, **settings: object
) -> tuple[SparseHead, LabelIndex, NDArray[np.float32], list[Example]]:
    vectors, titles, truth = world()
    index, pool = LabelIndex(titles), taught(truth, vectors, titles)
    x = torch.from_numpy(vectors)
    config = HeadConfig.model_validate({"fan_in": 6, "epochs": 8, **settings})
    head = fit_head(
        lambda members: x[torch.from_numpy(members)],
        judged_pairs(pool[:600], config.least_positives),
        index.vectors,
        config,
        device=CPU,
        seed=seed,
    )
    return head, index, vectors, pool


def test_a_trained_head_helps_the_bi_encoder_on_unseen_documents() -> None:
    head, index, vectors, pool = trained()
    choice = choose_fusion(head, index, vectors, pool[600:750])
    assert choice.fusion.weight > 0 and choice.agreement[choice.fusion.weight] > choice.agreement[0] + 0.02
    truth, unseen = world()[2][750:], vectors[750:]
    fused = replace(head, fusion=choice.fusion).search(index, unseen, 5)[1]
    alone = index.search(unseen, 5)[1]
    hits = [np.take_along_axis(truth, rows, 1).mean() for rows in (alone, fused)]
    assert hits[1] > 1.1 * hits[0]


def test_a_head_of_noise_gets_no_weight() -> None:
    head, index, vectors, pool = trained()
    noise = torch.randn(head.weights.shape, generator=torch.Generator().manual_seed(0))
    useless = replace(head, weights=noise, layer=torch.zeros_like(head.layer))
    choice = choose_fusion(useless, index, vectors, pool[600:])
    assert choice.fusion.weight == 0 and "left out" in choice.line
    few = choose_fusion(head, index, vectors, pool[600:605])
    assert few.fusion.weight == 0 and few.agreement == {} and "too few" in few.line


def test_a_head_gains_nothing_by_its_unjudged_mistakes() -> None:
    head, index, vectors, pool = trained()
    truth, never = world()[2], head.rows[::5]
    # Such a head lifts labels that nobody proposed, and so nobody judged.
    told = [(each, ~np.isin(each.labels, never)) for each in pool[600:750]]
    apart = [replace(e, labels=e.labels[some], probabilities=e.probabilities[some]) for e, some in told]
    choice = choose_fusion(head, index, vectors, apart)
    lifted = replace(head, bias=head.bias.clone())
    lifted.bias[np.isin(lifted.rows, never)] += 50
    assert choice.fusion.weight > 0

    def judged(one: SparseHead) -> list[Example]:
        fused = replace(one, fusion=choice.fusion).search(index, vectors, 5)[1]
        found = []
        for each in apart:
            own = [*index.search(vectors[[each.document]], 5)[1][0], *fused[each.document]]
            rows = np.unique([*each.labels, *own])
            right = truth[each.document, rows]
            p = np.where(right, 0.95, 0.05)
            found.append(Example(each.document, rows, p, int(right.sum()), int((~right).sum())))
        return found

    for one, good in ((head, True), (lifted, False)):
        pooled = judged(one)
        done = confirmed(choice, one, index, vectors, pooled, quality_alone(index, vectors, pooled))
        assert (done.fusion.weight > 0) == good and done.documents == 150
    assert choose_fusion(lifted, index, vectors, apart).fusion.weight > 0, "so it would be without"
    few = confirmed(choice, head, index, vectors, pooled[:5], quality_alone(index, vectors, pooled[:5]))
    assert few.fusion.weight == 0 and "too few" in few.line


def test_the_same_seed_gives_the_same_head() -> None:
    one, same, other = trained(seed=3)[0], trained(seed=3)[0], trained(seed=4)[0]
    for name in ("columns", "weights", "bias", "layer"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.weights, other.weights)


def test_a_start_from_label_vectors_is_a_sparse_bi_encoder() -> None:
    _, titles, _ = world()
    head = trained(epochs=1, rewire=0, start="vectors")[0]
    largest = np.argsort(-np.abs(titles[head.rows]), axis=1)[:, :6]
    assert [set(row) for row in head.columns.tolist()] == [set(row) for row in largest.tolist()]
    drawn = trained(epochs=1, rewire=0, start="random")[0]
    assert all(len(set(row)) == 6 for row in drawn.columns.tolist())
    assert [set(row) for row in drawn.columns.tolist()] != [set(row) for row in largest.tolist()]


def test_the_auxiliary_objective_reaches_the_shared_layer_alone() -> None:
    with_it, without = (trained(epochs=1, start="random", auxiliary=weight)[0] for weight in (5.0, 0.0))
    assert with_it.layer.norm() > without.layer.norm()


def test_an_encoder_gets_gradient_through_the_head() -> None:
    vectors, titles, truth = world()
    index, pool = LabelIndex(titles), taught(truth, vectors, titles)
    shift = torch.zeros(WIDTH, requires_grad=True)
    optimizer = torch.optim.SGD([shift], lr=0.1)
    x = torch.from_numpy(vectors)
    fit_head(
        lambda members: x[torch.from_numpy(members)] + shift,
        judged_pairs(pool, 1),
        index.vectors,
        HeadConfig(fan_in=6, epochs=1),
        device=CPU,
        shared=[optimizer],
    )
    assert shift.abs().sum() > 0 and shift.grad is not None


def test_judged_zeros_stay_judged_and_rare_labels_are_left_out() -> None:
    pool = [
        Example(0, np.array([7, 3]), np.array([0.9, 0.0]), 1, 1),
        Example(1, np.array([3, 7, 5]), np.array([0.8, 0.6, 0.0]), 2, 1),
    ]
    judged = judged_pairs(pool, 1)
    assert judged.rows.tolist() == [3, 7] and judged.targets.shape == (2, 2) and judged.targets.nnz == 4
    np.testing.assert_allclose(judged.targets.toarray(), [[0, 0.9], [0.8, 0.6]])
    assert judged.targets[[1, 0]].nnz == 4 == csc_array(judged.targets[[1, 0]]).nnz
    assert judged_pairs(pool, 2).rows.tolist() == [7]
    with pytest.raises(TrainingError, match="no label has 3 positives"):
        judged_pairs(pool, 3)
    with pytest.raises(TrainingError, match="no label has 1 positives"):
        judged_pairs([], 1)


def test_a_fan_in_beyond_the_vectors_is_refused() -> None:
    with pytest.raises(TrainingError, match="25 weights"):
        trained(fan_in=25)


@pytest.mark.parametrize("device", DEVICES)
def test_search_ranks_all_labels_by_fused_scores(device: str) -> None:
    """Against all scores computed densely: labels without a row, removed labels and late ones included."""
    head, index, vectors, _ = trained()
    index.remove([2, 40])
    index.add(world(1)[1][:3])
    head = replace(head, fusion=Fusion(0.6, 0.04, 0.3, 0.02)).keeping(index.rows).to(device)
    assert not {2, 40} & set(head.rows.tolist())
    s = vectors[:50] @ index.vectors(np.arange(index.total)).T
    h = vectors[:50] + vectors[:50] @ head.layer.cpu().numpy()
    dense = written_out(head.columns.cpu(), head.weights.cpu(), WIDTH).numpy()
    z = h @ dense.T + head.bias.cpu().numpy()
    fused = s.copy()
    fused[:, head.rows] = 0.4 * s[:, head.rows] + 0.6 * (0.04 * z + 0.3) + 0.02
    fused[:, [2, 40]] = -np.inf
    scores, rows = head.search(index, vectors[:50], 7)
    np.testing.assert_allclose(scores, -np.sort(-fused, axis=1)[:, :7], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(fused, rows, 1), scores, atol=1e-5)
    deeper = head.search(index, vectors[:50], 30)
    np.testing.assert_array_equal(deeper[1][:, :7], rows)
    everything = head.search(index, vectors[:2], 1000)[1]
    assert all(sorted(row) == sorted(index.rows.tolist()) for row in everything.tolist())
    assert head.search(index, vectors[:0], 5)[0].shape == (0, 5)
    own = head.best(vectors[:50], 4)
    np.testing.assert_array_equal(own, head.rows[np.argsort(-z, axis=1, kind="stable")[:, :4]])


def test_a_large_head_judges_the_candidates_of_the_bi_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    head, index, vectors, _ = trained()
    head = replace(head, fusion=Fusion(1.0, 1.0, 100.0))
    monkeypatch.setattr(sparse_head, "CANDIDATES", 10)
    own = head.search(index, vectors[:20], 10)[1]
    monkeypatch.setattr(sparse_head, "SEARCHED_UP_TO", 10)
    listed = head.search(index, vectors[:20], 10)[1]
    near = index.search(vectors[:20], 10)[1]
    assert all(set(mine) == set(theirs) for mine, theirs in zip(listed.tolist(), near.tolist(), strict=True))
    assert any(set(mine) != set(theirs) for mine, theirs in zip(own.tolist(), near.tolist(), strict=True))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    head = replace(trained()[0], fusion=Fusion(0.5, 0.1, 0.2, 0.3))
    head.save(tmp_path / "head.safetensors")
    again = SparseHead.load(tmp_path / "head.safetensors")
    assert again.fusion == head.fusion and again.rows.tolist() == head.rows.tolist()
    for name in ("columns", "weights", "bias", "layer"):
        assert torch.equal(getattr(again, name), getattr(head, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": torch.full((2, 1), 4, dtype=torch.int16)}, "columns leave the 3"),
        ({"columns": torch.zeros((2, 1), dtype=torch.int64)}, "columns is"),
        ({"weights": torch.full((2, 1), float("nan"))}, "weights holds"),
        ({"bias": torch.zeros(3)}, "bias is"),
        ({"layer": torch.zeros((3, 2))}, "layer is"),
        ({"rows": torch.tensor([4, 4])}, "do not ascend"),
        ({"rows": torch.tensor([-1, 4])}, "do not ascend"),
        ({"news": torch.zeros(1)}, "cannot be read"),
        ({"format": "9"}, "format is 9"),
        ({"fusion": "{}"}, None),
        ({"fusion": "[1"}, "cannot be read"),
        ({"fusion": '{"weight": NaN}'}, "fusion is not finite"),
    ],
)
def test_a_head_that_does_not_fit_together_is_refused(
    tmp_path: Path, change: dict[str, object], message: str | None
) -> None:
    file = tmp_path / "head.safetensors"
    head = SparseHead(
        np.array([1, 4]),
        torch.zeros((2, 1), dtype=torch.int16),
        torch.zeros((2, 1)),
        torch.zeros(2),
        torch.zeros((3, 3)),
    )
    head.save(file)
    told = {"format": "1", "fusion": json.dumps({"weight": 0.5})}
    tensors = {**load_file(file)}
    for name, value in change.items():
        if isinstance(value, str):
            told[name] = value
        else:
            assert isinstance(value, torch.Tensor)
            tensors[name] = value
    save_file(tensors, file, metadata=told)
    if message is None:
        assert SparseHead.load(file).fusion == Fusion()
        return
    with pytest.raises(BundleError, match=message):
        SparseHead.load(file)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BundleError, match="cannot be read"):
        SparseHead.load(tmp_path / "head.safetensors")
    with pytest.raises(BundleError, match="cannot be read"):
        SparseHead.load(tmp_path / "absent.safetensors")


def _fit_many(labels: int) -> None:
    torch.set_num_threads(1)
    width, documents = 384, 32
    rng = np.random.default_rng(0)
    small = rng.normal(size=(1000, width)).astype(np.float32)
    x = torch.from_numpy(small[:documents])
    ends = np.linspace(0, labels, documents + 1).astype(int)
    targets = csr_array(
        (np.ones(labels, np.float32), rng.integers(0, labels, labels), ends), shape=(documents, labels)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit_head(
        lambda m: x[torch.from_numpy(m)],
        Judged(np.arange(labels), targets),
        lambda r: small[r % 1000],
        HeadConfig(fan_in=16, epochs=1),
        device=torch.device("cpu"),
    )
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 150e6


def test_memory_never_holds_labels_by_width_nor_documents_by_labels() -> None:
    """200,000 labels: a float32 matrix of labels × 384 alone would take 307 MB."""
    process = forked(_fit_many, 200_000)
    process.join()
    assert process.exitcode == 0
