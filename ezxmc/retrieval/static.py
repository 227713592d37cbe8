"""A student without a transformer: one vector a token, their mean, of unit length.

    static/                    a sentence-transformers folder (`StaticEmbedding`, `Normalize`)
    static/calibrator.json     its own scores to probabilities
    static/made.json           which student and which calibrator it was made from

What costs then is to tokenise. Most words of a catalog repeat, so each is tokenised once and looked up
afterwards: a whole text's token ids are those of its words, one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from ezxmc.config import Backend, EncoderPrompts, Precision
from ezxmc.errors import ConfigError, ModelError
from ezxmc.models.trust import WEIGHTS, check_encoder
from ezxmc.retrieval.encoder import BiEncoder, OnProgress, clipped

_AT_ONCE = 1024  # texts
_WORDS_KNOWN = 1 << 18
# At these Python would split a text where tokenizers take the character away, and its neighbours together.
_ODD = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
_SPACED = re.compile(r"\s")
_CURE = "make it again with `ezxmc export BUNDLE --backend static`"


class WordTokens:
    """The token ids of texts, without special tokens, as `tokenizer.encode_batch` gives them.

    Args:
        tokenizer: Any; words are looked up where it is BERT's, which never joins two of them.
        longest: Tokens of a text that are kept.
    """

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self._tokenizer, self.longest = tokenizer, longest
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.by_words = _by_words(json.loads(tokenizer.to_str()))
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The first `longest` token ids of each of N texts."""
        if not self.by_words:
            return self._whole(texts)
        words = [text.split() for text in texts]
        if len(self._known) > _WORDS_KNOWN:
            self._known = {}
        known = self._known  # another thread may begin a new one
        if missing := sorted({word for some in words for word in some if word not in known}):
            known.update(zip(missing, self._whole(missing), strict=True))
        found = [list(chain.from_iterable(map(known.__getitem__, some)))[: self.longest] for some in words]
        if odd := [place for place, text in enumerate(texts) if _ODD.search(text)]:
            for place, ids in zip(odd, self._whole([texts[place] for place in odd]), strict=True):
                found[place] = ids
        return found

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids[: self.longest] for one in encoded]


def _by_words(settings: dict[str, Any]) -> bool:
    """Whether a tokenizer's ids of a text are those of its words, parted at white space."""
    kinds = [(settings[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    joined = [one for one in settings["added_tokens"] if _SPACED.search(one["content"])]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not joined


def bags(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The ids of N texts one after the other, int64, and where each begins, (N,) int64."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
    return torch.from_numpy(ids), torch.from_numpy(np.cumsum(lengths) - lengths)


def unit_means(weights: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """(N, D) unit rows: of each text the mean of its tokens' vectors; zeros where it has none."""
    if not rows:
        return torch.zeros(0, weights.shape[1])
    ids, begins = bags(rows)
    return normalize(embedding_bag(ids, weights, begins, mode="mean"), dim=1)


class StaticEncoder(BiEncoder):
    """A `BiEncoder` for tagging alone, of a static student.

    Args:
        folder: As `write_static` wrote it.
        max_length: Tokens of a text that are read.
        precision: auto or float32.

    Raises:
        ModelError: The folder holds no static student, or is damaged.
        ConfigError: It does not compute in that precision.
    """

    def __init__(self, folder: Path, *, max_length: int, precision: Precision = "auto") -> None:
        if precision not in ("auto", "float32"):
            raise ConfigError(f"backend static does not compute in {precision}", "choose of auto, float32")
        try:
            check_encoder(folder)
            # Copied: weights that are mapped from the file would change with it.
            self._weights = load_file(folder / WEIGHTS)["embedding.weight"].float().clone()
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            if self._weights.ndim != 2 or len(self._weights) < tokenizer.get_vocab_size():
                raise ValueError(f"{len(self._weights)} vectors for {tokenizer.get_vocab_size()} tokens")
        except ModelError:
            raise
        except Exception as error:  # tokenizers raises its own, which shares no base
            raise ModelError(f"{folder} holds no static student: {error}", _CURE) from error
        self._folder, self.card, self._converted = folder, None, None
        self._tokenizer = tokenizer
        self.tokens = WordTokens(tokenizer, max_length)
        self.runner = SimpleNamespace(device=torch.device("cpu"))
        self.dimension, self.max_length = int(self._weights.shape[1]), max_length
        self.backend: Backend = "static"
        self.precision: Precision = "float32"
        self.prompts = EncoderPrompts()

    def read_of(self, text: str) -> str:
        """The beginning of a text whose tokens are read."""
        text = clipped(text, self.max_length)
        ends = self._tokenizer.encode(text, add_special_tokens=False).offsets[: self.max_length]
        return text[: max((end for _, end in ends), default=0)]

    def write(self, path: Path) -> None:
        """It is a part of its bundle."""
        raise ModelError("a static student is not saved", "copy its folder")

    def faster(self) -> BiEncoder:
        """Itself."""
        return self

    def encode(self, texts: Sequence[str], progress: OnProgress | None = None) -> NDArray[np.float32]:
        """As `BiEncoder.encode`."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(texts), _AT_ONCE):
                part = [clipped(text, self.max_length) for text in texts[start : start + _AT_ONCE]]
                vectors[start : start + len(part)] = unit_means(self._weights, self.tokens(part)).numpy()
                if progress:
                    progress(start + len(part), len(texts))
        return vectors


def write_static(folder: Path, tokenizer: Tokenizer, weights: Tensor, max_length: int) -> None:
    """Write a static student as a plain sentence-transformers folder.

    Args:
        folder: A new one.
        tokenizer: Whose ids are the rows of `weights`.
        weights: (V, D) float32.
        max_length: Tokens of a text that are read; kept in the tokenizer.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_truncation(max_length)
    modules = [StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", trust_remote_code=False)
    model.save(str(folder), create_model_card=False)
