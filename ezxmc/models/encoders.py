"""Which encoder reads a catalog: the English one, or the multilingual one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ezxmc.config import AUTO
from ezxmc.hashing import text_hash
from ezxmc.models.resolve import resolve_model
from ezxmc.models.store import ModelProgress

ENGLISH, MULTILINGUAL = "all-MiniLM-L6-v2", "multilingual-e5-small"

_SAMPLE, _CHARACTERS = 256, 2_000
_LEAST_PER_TOKEN = 3.2


def fitting_encoder(
    name: str,
    texts: Sequence[str],
    *,
    say: Callable[[str], None] | None = None,
    progress: ModelProgress | None = None,
) -> str:
    """The encoder's name, and for `auto` the one that suits documents.

    The English encoder's own tokenizer tells: what it knows it reads in long pieces, other languages fall
    into fragments. Characters a token over whole sets: English package descriptions 3.8, WordNet's glosses
    4.2; French 2.8, German 2.6, Russian 1.1, Korean .7. Below 3.2 the multilingual encoder is taken.

    Args:
        name: As in the configuration.
        texts: All documents; 256 of them are looked at, drawn by hash.
        say: Told which one was taken, where it is not the English one.
        progress: Called while a model is fetched.

    Raises:
        ModelError: The English encoder, whose tokenizer is asked, cannot be fetched.
    """
    if name != AUTO:
        return name
    from tokenizers import Tokenizer

    drawn = sorted(texts, key=text_hash)[:_SAMPLE] if len(texts) > _SAMPLE else texts
    folder = Path(resolve_model(ENGLISH, kind="encoder", progress=progress))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Lone surrogates, which JSON escapes can smuggle in, are no text for a tokenizer.
    read = [text[:_CHARACTERS].encode("utf-8", "replace").decode() for text in drawn]
    tokens = sum(len(one.ids) for one in tokenizer.encode_batch(read, add_special_tokens=False))
    characters = sum(len("".join(text.split())) for text in read)
    if not tokens or characters / tokens >= _LEAST_PER_TOKEN:
        return ENGLISH
    if say:
        say(
            f"encoder {MULTILINGUAL}: {ENGLISH} knows little of these documents' words "
            f"({characters / tokens:.1f} characters a token); training.encoder names another"
        )
    return MULTILINGUAL
