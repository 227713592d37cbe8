"""The bi-encoder: documents and labels in one space, compared by cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from ezxmc.errors import ModelError

Progress = Callable[[int, int], None]

# No tokenizer in use averages 16 characters a token over running text, so
# what is cut here could not have reached the model anyway.
_CHARACTERS_PER_TOKEN = 16
_BATCHES_PER_REPORT = 16


class BiEncoder:
    """A sentence-transformers model shared by documents and labels.

    Give documents as `Document.shown` and labels as `Label.title`: label
    descriptions lower retrieval (measured on package tags).

    Args:
        source: A local sentence-transformers folder or a hub id.
        max_length: Tokens of a text the model reads, at most what its
            tokenizer allows; `None` keeps the length the folder was saved with.
        revision: Hub revision.
        device: Torch device; `None` chooses the best present.

    Raises:
        ModelError: No sentence-transformers model can be loaded from there.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        max_length: int | None = None,
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        try:
            with _without_bars():
                self.model: Any = SentenceTransformer(
                    str(source), revision=revision, device=device, trust_remote_code=False
                )
            self.dimension = int(self.model.get_embedding_dimension())
        except Exception as error:  # the libraries below raise anything from OSError to KeyError
            raise ModelError(
                f"no sentence-transformers model could be loaded from {source}: {error}",
                "give a folder with modules.json, a name of `ezxmc models list`, or a hub id in reach",
            ) from error
        if max_length is not None:
            self.model.max_seq_length = min(max_length, self.model.tokenizer.model_max_length)
        self.max_length = int(self.model.max_seq_length or 512)

    def encode_documents(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Embed documents.

        Args:
            texts: N texts, of any length; only the first `max_length` tokens count.
            batch_size: Texts in one forward pass.
            progress: Called with (done, total) texts.

        Returns:
            (N, D) float32, rows of unit length.
        """
        return self._encode(texts, batch_size, progress)

    def encode_labels(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Embed label titles; arguments and result as in `encode_documents`."""
        return self._encode(texts, batch_size, progress)

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """Model inputs of a batch of texts, padded, on the model's device (for training)."""
        inputs = self.model.preprocess([self._clipped(text) for text in texts])
        device = self.model.device
        return {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()}

    def save(self, path: str | Path) -> None:
        """Write a plain sentence-transformers folder; no model card is invented."""
        with _without_bars():
            self.model.save(str(path), create_model_card=False)

    def _encode(
        self, texts: Sequence[str], batch_size: int, progress: Progress | None
    ) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        step = batch_size * _BATCHES_PER_REPORT
        for start in range(0, len(texts), step):
            part = [self._clipped(text) for text in texts[start : start + step]]
            vectors[start : start + step] = self.model.encode(
                part,
                batch_size=batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
            if progress:
                progress(start + len(part), len(texts))
        return vectors

    def _clipped(self, text: str) -> str:
        # Tokenizers refuse lone surrogates, which JSON escapes can smuggle in.
        return text[: self.max_length * _CHARACTERS_PER_TOKEN].encode("utf-8", "replace").decode()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal; only the CLI draws there."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
