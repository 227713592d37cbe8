"""Static students: token ids by words, vectors, and what sentence-transformers makes of the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from support.tinyworld import document
from tokenizers import Tokenizer

from ezxmc.errors import ConfigError, ModelError
from ezxmc.retrieval import BiEncoder
from ezxmc.retrieval.static import StaticEncoder, WordTokens, clipped, unit_means, write_static
from ezxmc.training.static import token_vectors, tokenizer_of, tuned, weighted

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["{title}\n{text}".format(**document(number)) for number in range(60)]
# Characters that tokenizers drop, split at or change, and what is no word to them.
ODD = "\x00\x01\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u200b\u200d\u3000\ufffd\u0301Σς中éßİ"
CHUNKS = st.one_of(
    st.text(), st.text(alphabet=ODD + "aZ9 .-\t\n"), st.sampled_from(["[CLS]", " [MASK]x", "a" * 120])
)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> BiEncoder:
    return BiEncoder(tiny_encoder, max_length=32, device="cpu")


@pytest.fixture(scope="module")
def folder(encoder: BiEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("static") / "made"
    place.mkdir()
    tokenizer = tokenizer_of(encoder)
    write_static(place, tokenizer, token_vectors(encoder, tokenizer, range(tokenizer.get_vocab_size())), 32)
    return place


def plain(tokenizer: Tokenizer, texts: list[str], longest: int) -> list[list[int]]:
    return [one.ids[:longest] for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


@given(st.lists(st.lists(CHUNKS, max_size=4).map("".join), max_size=4), st.integers(1, 12))
def test_token_ids_by_words_are_the_tokenizers_own(
    encoder: BiEncoder, texts: list[str], longest: int
) -> None:
    tokenizer = tokenizer_of(encoder)
    by_words = WordTokens(tokenizer_of(encoder), longest)
    assert by_words.by_words
    texts = [clipped(text, 300) for text in texts]
    for _ in range(2):  # words that are not known, and words that are
        assert by_words(texts) == plain(tokenizer, texts, longest)


def test_a_tokenizer_that_joins_words_is_asked_for_whole_texts(encoder: BiEncoder) -> None:
    tokenizer = tokenizer_of(encoder)
    tokenizer.add_tokens(["guitar melody"])
    by_words = WordTokens(Tokenizer.from_str(tokenizer.to_str()), 32)
    assert not by_words.by_words
    texts = ["a guitar melody", "a guitar  melody"]
    assert by_words(texts) == plain(tokenizer, texts, 32)
    assert by_words(texts)[0] != by_words(texts)[1]


def test_words_are_forgotten_where_there_are_too_many(
    encoder: BiEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.retrieval.static._WORDS_KNOWN", 3)
    by_words, tokenizer = WordTokens(tokenizer_of(encoder), 32), tokenizer_of(encoder)
    for text in TEXTS[:10]:
        assert by_words([text]) == plain(tokenizer, [text], 32)
        assert len(by_words._known) < 20


def test_sentence_transformers_opens_it_and_says_the_same(folder: Path) -> None:
    own = StaticEncoder(folder, max_length=32)
    model = SentenceTransformer(str(folder), device="cpu")
    texts = [*TEXTS, "guitar " * 100, "unheard-of wörds"]
    found = own.encode_documents(texts)
    assert np.allclose(found, model.encode(texts), atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert own.encode_documents([]).shape == (0, own.dimension)
    assert (own.encode_documents(["\x01"]) == 0).all(), "no token"


def test_what_is_read_of_a_text(folder: Path) -> None:
    own = StaticEncoder(folder, max_length=4)
    text = "guitar drums concert singer melody boat"
    read = own.read_of(text)
    assert text.startswith(read) and read != text
    assert (own.encode_documents([read]) == own.encode_documents([text])).all()


def test_tuning_brings_documents_to_where_the_student_puts_them(encoder: BiEncoder) -> None:
    tokenizer = tokenizer_of(encoder)
    rows = WordTokens(tokenizer_of(encoder), 32)(TEXTS)
    wanted = encoder.encode_documents(TEXTS)
    labels = encoder.encode_labels(["guitar", "oven", "boat", "soil", "comet"])
    start = weighted(token_vectors(encoder, tokenizer, range(tokenizer.get_vocab_size())), rows)

    def cosine(weights: torch.Tensor) -> float:
        return float((unit_means(weights, rows).numpy() * wanted).sum(axis=1).mean())

    made = tuned(start, rows, wanted, labels, epochs=10)
    near = tuned(start, rows, wanted, labels, nearest=np.tile(np.arange(3), (60, 1)), epochs=10)
    assert cosine(made) > cosine(start) + 0.1 and cosine(near) > cosine(start) + 0.1
    assert torch.equal(made, tuned(start, rows, wanted, labels, epochs=10)), "the same again"
    unseen = sorted(set(range(len(start))) - {token for row in rows for token in row})
    assert unseen and torch.equal(made[unseen], start[unseen])


def test_what_is_no_static_student_is_refused(folder: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8"):
        StaticEncoder(folder, max_length=32, precision="int8")
    for place in (tmp_path, tiny_encoder):
        with pytest.raises(ModelError):
            StaticEncoder(place, max_length=32)
    with pytest.raises(ModelError, match="not saved"):
        StaticEncoder(folder, max_length=32).save(tmp_path / "copy")
    static = BiEncoder(folder, device="cpu")
    with pytest.raises(ModelError, match="token alone"):
        tokenizer_of(static)


@pytest.mark.encoder
def test_a_real_encoder_is_distilled(tmp_path: Path) -> None:
    encoder = BiEncoder("all-MiniLM-L6-v2", max_length=64, device="cpu")
    tokenizer = tokenizer_of(encoder)
    by_words = WordTokens(tokenizer_of(encoder), 64)
    rows, odd = by_words(TEXTS), ["Naïve ΣΑΣ 中文\x1cgrep-like [SEP] tools_v2.0…", "x" * 150 + " y"]
    assert by_words.by_words and by_words(odd) == plain(tokenizer, odd, 64)
    start, wanted = (
        weighted(token_vectors(encoder, tokenizer, range(tokenizer.get_vocab_size())), rows),
        encoder.encode_documents(TEXTS),
    )
    labels = encoder.encode_labels(["guitar", "oven", "boat", "soil", "comet"])
    made = tuned(start, rows[:40], wanted[:40], labels, epochs=20)
    before, after = (
        (unit_means(weights, rows[40:]).numpy() * wanted[40:]).sum(axis=1).mean() for weights in (start, made)
    )
    assert after > max(0.7, before), "documents it was not tuned on"
    write_static(tmp_path, tokenizer, made, 64)
    found = StaticEncoder(tmp_path, max_length=64).encode_documents([*TEXTS, *odd])
    model = SentenceTransformer(str(tmp_path), device="cpu")
    assert np.allclose(found, model.encode([*TEXTS, *odd]), atol=1e-6)
