"""A model's tokenizer without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ezxmc.errors import ModelError
from ezxmc.models import resolve_model
from ezxmc.models.packages import ModelProgress


def load_tokenizer(name: str, revision: str | None = None, progress: ModelProgress | None = None) -> Any:
    """The transformers tokenizer of a language model.

    Args:
        name: Catalog name, local folder or hub id.
        revision: Hub revision; with hub ids only.
        progress: Called while a catalog model is fetched.

    Raises:
        ModelError: The model cannot be resolved, or holds no usable tokenizer.
    """
    # transformers takes a second or two to import; a wrong name should not wait for it.
    source = resolve_model(name, kind="llm", revision=revision, progress=progress)
    from transformers import AutoTokenizer

    pinned = {} if isinstance(source, Path) else {"revision": revision}
    cure = "name a model folder with its tokenizer, a catalog name or a hub id"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **pinned)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of {name} cannot be loaded: {error}", cure) from None
    # Of a folder without a tokenizer transformers makes an empty one.
    if not tokenizer("a word", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{name} holds no tokenizer", cure)
    return tokenizer
