"""Which encoder reads a catalog: the English one, or the multilingual one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ezxmc.config import AUTO
from ezxmc.hashing import text_hash
from ezxmc.models.resolve import resolve_model
from ezxmc.models.store import ModelProgress

ENGLISH, MULTILINGUAL = "all-MiniLM-L6-v2", "multilingual-e5-small"

_SAMPLE, _CHARACTERS = 256, 2_000
_WORD = re.compile(r"[^\W\d_]{2,}")
_LEAST_WHOLE = 0.65


def fitting_encoder(
    name: str,
    texts: Sequence[str],
    *,
    say: Callable[[str], None] | None = None,
    progress: ModelProgress | None = None,
) -> str:
    """The encoder's name, and for `auto` the one that suits documents.

    The English encoder's own vocabulary tells: it holds most words of an English text whole, and those of
    other languages in fragments. Shares of words that are whole: WordNet's glosses .95, English package
    descriptions .88, readmes of Python packages .74; French .52, German .40, Korean .23, Russian .07. Below
    .65 the multilingual encoder is taken.

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
    words = [word for text in drawn for word in _WORD.findall(text[:_CHARACTERS])]
    distinct = sorted(set(words))
    pieces = tokenizer.encode_batch(distinct, add_special_tokens=False)
    whole = {word for word, found in zip(distinct, pieces, strict=True) if len(found.ids) == 1}
    share = sum(word in whole for word in words) / max(1, len(words))
    if not words or share >= _LEAST_WHOLE:
        return ENGLISH
    if say:
        say(
            f"encoder {MULTILINGUAL}: {ENGLISH} knows {share:.0%} of these documents' words; "
            "training.encoder names another"
        )
    return MULTILINGUAL
