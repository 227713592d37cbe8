"""The label index: every kind against brute force, labels that come and go, files."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezxmc.errors import BundleError, ModelError
from ezxmc.retrieval import LabelIndex, ann
from ezxmc.retrieval.ann import EXACT_UP_TO, HNSW_UP_TO, Kind, choose, document_like, recall

KINDS: list[Kind] = ["exact", "hnsw", "ivf"]
GB = 10**9


def clustered(count: int, *, dimension: int = 32, seed: int = 0, longest: float = 1.0) -> np.ndarray:
    """Rows around a few dozen centres, as label vectors lie; of length 1 to `longest`."""
    rng = np.random.default_rng(seed)
    spectrum = 1 / np.sqrt(1 + np.arange(dimension))
    centres = rng.normal(size=(40, dimension)) * spectrum
    rows = centres[rng.integers(40, size=count)] + 0.7 * rng.normal(size=(count, dimension)) * spectrum
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows * rng.uniform(1, longest, size=(count, 1))).astype(np.float32)


def ranked(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """(N, k) best rows, by brute force."""
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(1500, longest=1.6)


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray) -> np.ndarray:
    return document_like(vectors, 60, seed=7)


@pytest.fixture(scope="module")
def built(kind: Kind, vectors: np.ndarray) -> LabelIndex:
    return LabelIndex.build(vectors, kind=kind)


@pytest.fixture
def index(built: LabelIndex, tmp_path: Path) -> LabelIndex:
    """A copy a test may change."""
    built.save(tmp_path / "copy.faiss")
    return LabelIndex.load(tmp_path / "copy.faiss")


def test_what_is_found_is_what_brute_force_finds(
    built: LabelIndex, kind: Kind, vectors: np.ndarray, queries: np.ndarray
) -> None:
    few = recall(built.search(queries, 5)[1], ranked(vectors, queries, 5))
    assert few == 1 if kind == "exact" else few >= 0.95, "the best few are found at least as surely"
    scores, rows = built.search(queries, 100)
    found = recall(rows, ranked(vectors, queries, 100))
    assert found == 1 if kind == "exact" else found >= 0.93
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all() and built.kind == kind and built.reason
    assert built.recall_at == 100 and abs(built.recall - found) < 0.05


def test_queries_go_in_blocks_and_nobody_sees_it(
    built: LabelIndex, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = built.search(queries, 20)
    monkeypatch.setattr(ann, "_QUERIES_AT_ONCE", 7)
    for in_blocks, at_once in zip(built.search(queries, 20), whole, strict=True):
        np.testing.assert_allclose(in_blocks, at_once, atol=1e-6)


def test_recall_counts_what_was_missed() -> None:
    assert recall(np.array([[1, 2], [3, 9]]), np.array([[2, 1], [3, 4]])) == 0.75


def test_k_beyond_what_the_structure_reaches_is_answered_in_full(
    index: LabelIndex, queries: np.ndarray
) -> None:
    scores, rows = index.search(queries[:3], 5000)
    assert rows.shape == scores.shape == (3, 1500)
    assert all(sorted(row) == list(range(1500)) for row in rows.tolist())
    index.remove(np.arange(1400))
    assert all(sorted(row) == list(range(1400, 1500)) for row in index.search(queries[:3], 200)[1].tolist())
    assert index.search(queries[:0], 5)[1].shape == (0, 5)


def test_added_labels_are_found_at_once_and_removed_ones_never(
    index: LabelIndex, kind: Kind, vectors: np.ndarray, queries: np.ndarray
) -> None:
    more = clustered(200, seed=1, longest=1.6)
    assert index.add(more).tolist() == list(range(1500, 1700))
    both = np.vstack([vectors, more])
    gone = np.unique(ranked(both, queries, 12)[:, ::3])
    assert (gone < 1500).any() and (gone >= 1500).any()
    index.remove(gone)
    assert index.size == 1700 - len(gone) and index.total == 1700
    assert index.rows.tolist() == sorted(set(range(1700)) - set(gone.tolist()))
    scores, rows = index.search(queries, 50)
    assert not np.isin(rows, gone).any()
    order = ranked(both, queries, 1700)
    removed = set(gone.tolist())
    wanted = np.array([[row for row in best if row not in removed][:50] for best in order.tolist()])
    found = recall(rows, wanted)
    assert found == 1 if kind == "exact" else found >= 0.93
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ both.T, rows, 1), atol=1e-5)
    np.testing.assert_array_equal(index.vectors([3, 1600]), both[[3, 1600]])
    later = index.add(more[:1])
    assert later.tolist() == [1700], "a row is never used again"


@pytest.mark.parametrize("mmap", [True, False])
def test_changes_are_kept_on_disk(index: LabelIndex, queries: np.ndarray, tmp_path: Path, mmap: bool) -> None:
    index.add(clustered(30, seed=2))
    index.remove([0, 7, 1510])
    index.save(tmp_path / "index.faiss")
    again = LabelIndex.load(tmp_path / "index.faiss", mmap=mmap)
    for one, other in zip(index.search(queries, 20), again.search(queries, 20), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.kind, again.reason, again.recall) == (index.kind, index.reason, index.recall)
    assert again.rows.tolist() == index.rows.tolist()
    index.remove([1])
    index.save_changes(tmp_path / "later.npz")
    later = LabelIndex.load(tmp_path / "index.faiss", changes=tmp_path / "later.npz")
    assert set(again.rows) - set(later.rows) == {1}


def test_a_loaded_index_reads_its_vectors_where_they_lie(tmp_path: Path) -> None:
    vectors = clustered(4000, dimension=64)
    LabelIndex(vectors).save(tmp_path / "index.faiss")
    index = LabelIndex.load(tmp_path / "index.faiss")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "index.faiss") in maps.read_text()
    (tmp_path / "index.faiss").unlink()  # as when a bundle is replaced under a running service
    assert index.search(vectors[:5], 1)[1][:, 0].tolist() == list(range(5))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2**20), st.integers(1, 6)), max_size=12),
    st.integers(1, 40),
)
def test_any_history_of_changes_equals_a_fresh_index(history: list[tuple[bool, int, int]], k: int) -> None:
    rng = np.random.default_rng(0)
    kept = {row: vector for row, vector in enumerate(rng.normal(size=(12, 5)).astype(np.float32))}
    index, used = LabelIndex(np.stack(list(kept.values()))), 12
    for adds, seed, count in history:
        if adds:
            new = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
            assert index.add(new).tolist() == list(range(used, used + count))
            kept |= dict(zip(range(used, used + count), new, strict=True))
            used += count
        else:
            gone = np.random.default_rng(seed).permutation(list(kept))[: min(count, len(kept))]
            index.remove(gone)
            for row in gone.tolist():
                del kept[row]
    queries = rng.normal(size=(4, 5)).astype(np.float32)
    scores, rows = index.search(queries, k)
    assert index.size == len(kept) and rows.shape == (4, min(k, len(kept)))
    if kept:
        exact = queries @ np.stack(list(kept.values())).T
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-5)
        assert set(rows.ravel().tolist()) <= set(kept)


def test_what_cannot_be_added_or_removed_changes_nothing(index: LabelIndex) -> None:
    for bad in (np.zeros((2, 5)), np.full((1, 32), np.nan), np.zeros((0, 32)), np.zeros(32)):
        with pytest.raises(ModelError):
            index.add(bad.astype(np.float32))
    index.remove([4])
    for rows in ([4], [1500], [-1], [3, 3]):
        with pytest.raises(ModelError, match="holds no label"):
            index.remove(rows)
    assert index.size == 1499 and index.total == 1500


def test_the_choice_follows_labels_and_memory_and_says_why() -> None:
    assert choose(EXACT_UP_TO, 384, GB) == ("exact", choose(EXACT_UP_TO, 384, 0)[1])
    kind, reason = choose(EXACT_UP_TO + 1, 384, GB)
    assert kind == "hnsw" and "20,001" in reason and "1.00 GB" in reason
    assert choose(HNSW_UP_TO, 384, GB)[0] == "hnsw"
    assert choose(HNSW_UP_TO + 1, 384, GB)[0] == "ivf"
    kind, reason = choose(100_000, 384, GB // 10)
    assert kind == "ivf" and "0.18 GB of 0.10 GB" in reason
    small = LabelIndex.build(clustered(50))
    assert small.kind == "exact" and "50 labels" in small.reason
    assert small.recall == 1 and small.recall_at == 50


def test_vectors_beyond_the_memory_are_kept_in_half_precision(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    index = LabelIndex.build(vectors, kind="ivf", memory=1000)
    scores, rows = index.search(queries, 10)
    wanted = np.take_along_axis(queries @ vectors.T, rows, 1)
    np.testing.assert_allclose(scores, wanted, atol=3e-3)
    assert np.abs(scores - wanted).max() > 0
    assert recall(rows, ranked(vectors, queries, 10)) > 0.9


def test_many_changes_are_reason_to_rebuild() -> None:
    index = LabelIndex(clustered(100))
    assert index.advice is None
    index.add(clustered(2000, seed=1))
    assert index.advice is None
    index.add(clustered(1, seed=2))
    assert index.advice is not None and "2,001 labels were added to 100" in index.advice
    index = LabelIndex(clustered(2500))
    index.remove(np.arange(2001))
    assert index.advice is not None and "2,001 of 2,500 labels were removed" in index.advice


def test_stand_ins_for_documents_are_as_far_from_labels_as_documents() -> None:
    vectors = clustered(3000, dimension=384)
    queries = document_like(vectors, 200)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    best = (queries @ vectors.T).max(axis=1)
    assert 0.4 < np.median(best) < 0.85
    np.testing.assert_array_equal(queries, document_like(vectors, 200))


def damaged(path: Path, how: str) -> None:
    if how == "other kind":
        other = faiss.IndexFlatL2(32)
        other.add(clustered(3))
        faiss.write_index(other, str(path))
    elif how == "empty":
        faiss.write_index(faiss.IndexFlatIP(32), str(path))
    elif how == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"no index")


@pytest.mark.parametrize("how", ["other kind", "empty", "half", "text"])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_damaged_index_is_refused_by_name(index: LabelIndex, tmp_path: Path, how: str, mmap: bool) -> None:
    index.save(tmp_path / "index.faiss")
    damaged(tmp_path / "index.faiss", how)
    with pytest.raises(BundleError, match=r"index\.faiss(.|\n)*cure"):
        LabelIndex.load(tmp_path / "index.faiss", mmap=mmap)


def test_damaged_changes_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    index = LabelIndex(clustered(20))
    index.save(tmp_path / "index.faiss")
    file = tmp_path / "index.npz"
    whole = file.read_bytes()
    np.savez(tmp_path / "objects.npz", added=np.array([{}], dtype=object), removed=np.arange(0))
    np.savez(tmp_path / "range.npz", added=np.zeros((0, 32), np.float32), removed=np.array([20]))
    np.savez(tmp_path / "lacking.npz", added=np.zeros((0, 32), np.float32))
    others = [(tmp_path / f"{name}.npz").read_bytes() for name in ("objects", "range", "lacking")]
    for content in (whole[:-30], b"", b"text", *others):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=r"index\.npz(.|\n)*cure"):
            LabelIndex.load(tmp_path / "index.faiss")
    file.unlink()
    for text in ("{", "[]", '{"kind": "ivf", "reason": "", "recall": 1.0, "recall_at": 20}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(BundleError, match=r"index\.json"):
            LabelIndex.load(tmp_path / "index.faiss")
