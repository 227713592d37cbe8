"""Retrieval without weights: search, BM25, fusion, exclusion and exploration."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezxmc.config import ShortlistConfig
from ezxmc.errors import BundleError, ModelError
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder, LabelIndex, LexicalIndex, shortlist
from ezxmc.retrieval.shortlist import choose, fuse


class HashEncoder:
    """Unit vectors that depend on the text alone."""

    def encode_documents(self, texts, *, progress=None):
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            rows.append(np.random.default_rng(seed).normal(size=8))
        vectors = np.array(rows, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_labels = encode_documents


DOCUMENTS = [Document(f"d{i}", f"title {i}", "body") for i in range(6)]
LABELS = [Label(f"l{i}", f"tag{i}") for i in range(60)]


PLAIN = ShortlistConfig(size=5, lexical=False, explore=0, centre=0, descriptions=0)


def cosines(documents: list[Document], texts: list[str]) -> np.ndarray:
    """(N, L), by brute force."""
    encoder = HashEncoder()
    return encoder.encode_documents([d.shown for d in documents]) @ encoder.encode_labels(texts).T


def dense_order(document: Document) -> list[int]:
    scores = cosines([document], [label.title for label in LABELS])[0]
    return np.argsort(-scores, kind="stable").tolist()


def test_index_equals_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 12)).astype(np.float32)
    queries = rng.normal(size=(7, 12)).astype(np.float32)
    index = LabelIndex(vectors)
    index.save(tmp_path / "index.faiss")
    for one in (index, LabelIndex.load(tmp_path / "index.faiss")):
        scores, rows = one.search(queries, 9)
        exact = queries @ vectors.T
        np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :9])
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :9], rtol=1e-5)
        assert (one.size, one.dimension, rows.dtype, scores.dtype) == (50, 12, np.int64, np.float32)
    assert index.search(queries, 500)[1].shape == (7, 50)
    assert index.search(queries[:0], 3)[0].shape == (0, 3)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_index_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "index.faiss"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"index\.faiss"):
        LabelIndex.load(path)


def test_truncated_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    LabelIndex(np.eye(20, dtype=np.float32)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError):
        LabelIndex.load(path)


@pytest.mark.parametrize("vectors", [np.zeros((0, 3)), np.full((2, 3), np.nan), np.zeros(3)])
def test_unusable_vectors_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ModelError):
        LabelIndex(vectors.astype(np.float32))


def test_lexical_finds_title_and_alias_only_where_words_meet() -> None:
    labels = [
        Label("a", "Video editing"),
        Label("b", "Astronomy", "stars and planets", aliases=("stargazing",)),
        Label("c", "Sound"),
    ]
    index = LexicalIndex(labels)
    assert index.search(["edit the video", "stargazing", "planets", "the and of", ""], 5) == [
        [0],
        [1],
        [],
        [],
        [],
    ]
    assert index.search(["video sound astronomy"], 2)[0].__len__() == 2
    assert LexicalIndex([Label("x", "the")]).search(["anything"], 3) == [[]]


def test_lexical_scores_are_those_of_bm25s() -> None:
    rng = np.random.default_rng(3)
    vocabulary = [f"w{i}" for i in range(60)]
    labels = [Label(str(i), " ".join(rng.choice(vocabulary, rng.integers(1, 5)))) for i in range(500)]
    texts = [" ".join(rng.choice([*vocabulary, "unheard"], 8)) for _ in range(150)]
    reference = bm25s.BM25()
    reference.index([label.title.split() for label in labels], show_progress=False)
    for text, found in zip(texts, LexicalIndex(labels).search(texts, 7), strict=True):
        scores = reference.get_scores(list(set(text.split()) & set(reference.vocab_dict)))
        expected = sorted(np.flatnonzero(scores > 0), key=lambda row: (-scores[row].round(4), row))
        assert len(found) == min(7, len(expected))
        np.testing.assert_allclose(scores[found], scores[expected[: len(found)]], atol=1e-4)


def test_one_search_of_many_queries_is_exact_until_lists_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(3_000, 16)).astype(np.float32)
    queries = vectors[:1_000] + rng.normal(scale=0.3, size=(1_000, 16)).astype(np.float32)
    assert LabelIndex.for_once(vectors, queries).kind == "exact"
    monkeypatch.setattr("ezxmc.retrieval.ann.EXACT_UP_TO", 1_000)
    monkeypatch.setattr("ezxmc.retrieval.index._COMPARISONS", 1_000_000)
    assert LabelIndex.for_once(vectors, queries[:100]).kind == "exact"
    lists = LabelIndex.for_once(vectors, queries)
    assert lists.kind == "ivf" and lists.recall > 0.9
    best = LabelIndex(vectors).search(queries, 10)[1]
    found = lists.search(queries, 10)[1]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]) > 0.9


def test_fusion_is_reciprocal_rank() -> None:
    fused = fuse([4, 7, 9], [9, 1], 0.5)
    expected = {4: 1 / 61, 7: 1 / 62, 9: 1 / 63 + 0.5 / 61, 1: 0.5 / 62}
    assert fused == sorted(expected, key=lambda row: -expected[row])
    assert fuse([4, 7, 9], [9, 1], 0.0)[:3] == [4, 7, 9]


@given(st.integers(0, 100), st.integers(1, 20), st.integers(0, 25), st.text(max_size=5))
def test_choice_keeps_the_budget_and_explores_below_it(
    length: int, size: int, explore: int, seed: str
) -> None:
    ranking = [7 * i for i in range(length)]
    best, drawn = choose(ranking, size, explore, seed)
    assert len(best) + len(drawn) == min(size, length)
    assert best == ranking[: len(best)]
    assert all(size <= ranking.index(row) < 4 * size for row in drawn)
    assert len(set(best + drawn)) == len(best + drawn) and drawn == sorted(drawn)
    assert (best, drawn) == choose(ranking, size, explore, seed)
    if length >= size + explore and explore <= size:
        assert len(drawn) == min(explore, 3 * size)


def test_shortlist_without_lexical_is_the_dense_order() -> None:
    for document, found in zip(DOCUMENTS, shortlist(DOCUMENTS, LABELS, HashEncoder(), PLAIN), strict=True):
        assert found.doc_uid == document.uid
        assert list(found.labels) == dense_order(document)[:5]
        assert list(found.scores) == sorted(found.scores, reverse=True)
        assert set(found.sources) == {"dense"}


def test_centring_takes_off_each_label_s_mean_over_the_catalog() -> None:
    plain = cosines(DOCUMENTS, [label.title for label in LABELS])
    expected = np.argsort(-(plain - 0.7 * plain.mean(axis=0)), axis=1)[:, :5]
    assert (expected != np.argsort(-plain, axis=1)[:, :5]).any()
    found = shortlist(DOCUMENTS, LABELS, HashEncoder(), PLAIN.model_copy(update={"centre": 0.7}))
    assert [list(one.labels) for one in found] == expected.tolist()
    # What is reported stays the cosine.
    for row, one in zip(plain, found, strict=True):
        np.testing.assert_allclose(one.scores, row[list(one.labels)], rtol=1e-5)


def test_more_is_taken_off_where_all_texts_are_near_each_other() -> None:
    """By the length of the documents' mean vector, here 0.9, where that is more than asked for."""

    class Near(HashEncoder):
        def encode_documents(self, texts, *, progress=None):
            vectors = 0.45 * super().encode_documents(texts) + np.eye(8, dtype=np.float32)[0]
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        encode_labels = encode_documents

    encoder = Near()
    vectors = encoder.encode_documents([document.shown for document in DOCUMENTS])
    mean = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    assert 0.85 < length < 0.97
    labels = encoder.encode_labels([label.title for label in LABELS])
    expected = np.argsort(-((vectors - length * mean) @ labels.T), axis=1)[:, :5]
    for centre in (0.1, 0.5):
        found = shortlist(DOCUMENTS, LABELS, encoder, PLAIN.model_copy(update={"centre": centre}))
        assert [list(one.labels) for one in found] == expected.tolist()
    assert (expected != np.argsort(-((vectors - 0.5 * mean) @ labels.T), axis=1)[:, :5]).any()
    off = shortlist(DOCUMENTS, LABELS, encoder, PLAIN)
    assert [list(one.labels) for one in off] == np.argsort(-(vectors @ labels.T), axis=1)[:, :5].tolist()


def test_a_part_of_the_catalog_is_centred_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's name for it is the function's.
    monkeypatch.setattr(sys.modules["ezxmc.retrieval.shortlist"], "_BACKGROUND", 20)
    config = PLAIN.model_copy(update={"centre": 1.0})
    catalog = [Document(f"c{i}", f"text {i}", "") for i in range(100)]
    drawn = sorted(catalog, key=lambda document: text_hash("mean", document.uid))[:20]
    whole = shortlist(catalog, LABELS, HashEncoder(), config)
    plain = cosines(catalog, [label.title for label in LABELS])
    mean = cosines(drawn, [label.title for label in LABELS]).mean(axis=0)
    assert [list(one.labels) for one in whole] == np.argsort(-(plain - mean), axis=1)[:, :5].tolist()
    assert shortlist(catalog[30:60], LABELS, HashEncoder(), config, background=catalog) == whole[30:60]
    assert shortlist(catalog[30:60], LABELS, HashEncoder(), config) != whole[30:60]
    # Documents that come to a large catalog mostly change nothing for the others.
    last = text_hash("mean", drawn[-1].uid)
    late = [Document(f"e{i}", "new", "") for i in range(50) if text_hash("mean", f"e{i}") > last]
    assert len(late) > 20
    assert shortlist([*late, *catalog], LABELS, HashEncoder(), config)[len(late) :] == whole


def test_what_is_told_of_a_label_weighs_beside_its_title() -> None:
    labels = [
        replace(label, text=f"about {i}" if i % 2 else "", aliases=(f"a{i}", f"b{i}") if i % 3 == 0 else ())
        for i, label in enumerate(LABELS)
    ]
    told = [label.title for label in labels]
    for i in range(60):
        told[i] += f". a{i}, b{i}" if i % 3 == 0 else ""
        told[i] += f". about {i}" if i % 2 else ""
    titles = cosines(DOCUMENTS, [label.title for label in labels])
    expected = np.argsort(-(titles + 0.4 * cosines(DOCUMENTS, told)), axis=1)[:, :5]
    config = PLAIN.model_copy(update={"descriptions": 0.4})
    found = shortlist(DOCUMENTS, labels, HashEncoder(), config)
    assert [list(one.labels) for one in found] == expected.tolist()
    for row, one in zip(titles, found, strict=True):
        np.testing.assert_allclose(one.scores, row[list(one.labels)], rtol=1e-5)
    # Labels of titles alone are ranked as without.
    plain = shortlist(DOCUMENTS, LABELS, HashEncoder(), PLAIN)
    assert [one.labels for one in shortlist(DOCUMENTS, LABELS, HashEncoder(), config)] == [
        one.labels for one in plain
    ]


def test_judged_labels_are_never_offered_again() -> None:
    config = ShortlistConfig(size=5, explore=1)
    judged: dict[str, set[str]] = {}
    for _ in range(12):
        for found in shortlist(DOCUMENTS, LABELS, HashEncoder(), config, judged=judged):
            uids = {LABELS[row].uid for row in found.labels}
            assert len(uids) == len(found.labels) == 5
            assert not uids & judged.setdefault(found.doc_uid, set())
            judged[found.doc_uid] |= uids
    # 12 cycles of 5 exhaust the 60 labels; a 13th has nothing left to ask.
    assert all(len(uids) == 60 for uids in judged.values())
    assert all(
        not found.labels for found in shortlist(DOCUMENTS, LABELS, HashEncoder(), config, judged=judged)
    )


def test_exploration_depends_on_seed_and_document_not_on_its_neighbours() -> None:
    config = PLAIN.model_copy(update={"size": 6, "explore": 3})
    whole = shortlist(DOCUMENTS, LABELS, HashEncoder(), config, seed=1)
    alone = shortlist(DOCUMENTS[3:4], LABELS, HashEncoder(), config, seed=1)
    assert whole[3].labels == alone[0].labels and whole[3].sources == alone[0].sources
    assert whole[3].sources == ("dense",) * 3 + ("explore",) * 3
    deeper = dense_order(DOCUMENTS[3])[6:24]
    assert all(row in deeper for row in whole[3].labels[3:])
    other = shortlist(DOCUMENTS, LABELS, HashEncoder(), config, seed=2)
    assert [found.labels for found in whole] != [found.labels for found in other]


def test_lexical_source_and_few_labels() -> None:
    documents = [Document("d", "", "zebra")]
    labels = [*LABELS[:9], Label("z", "zebra")]
    config = ShortlistConfig(size=3, explore=0, lexical_weight=1.0)
    found = shortlist(documents, labels, HashEncoder(), config)[0]
    assert 9 in found.labels
    everything = shortlist(documents, labels[:2], HashEncoder(), config)[0]
    assert sorted(everything.labels) == [0, 1]
    assert shortlist(documents, [], HashEncoder(), config)[0].labels == ()


def test_missing_encoder_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=str(tmp_path)):
        BiEncoder(tmp_path)


@pytest.mark.encoder
def test_encoder_is_plain_sentence_transformers_at_unit_length(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from ezxmc.models import resolve_model

    encoder = BiEncoder(resolve_model("all-MiniLM-L6-v2", kind="encoder"), max_length=64)
    texts = ["play music", "", "lone \ud800 surrogate", "word " * 200_000, "play music"]
    seen: list[tuple[int, int]] = []
    vectors = encoder.encode_documents(texts, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and vectors.dtype == np.float32 and vectors.shape == (5, encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-6)
    # Cutting characters first changes nothing the model would have read.
    np.testing.assert_allclose(vectors[3], encoder.encode_labels(["word " * 100])[0], atol=1e-5)
    assert encoder.encode_documents([]).shape == (0, encoder.dimension)
    encoder.save(tmp_path / "m")
    assert BiEncoder(tmp_path / "m").max_length == 64
    again = SentenceTransformer(str(tmp_path / "m")).encode(texts[:1], normalize_embeddings=True)
    np.testing.assert_allclose(again, vectors[:1], atol=1e-6)
