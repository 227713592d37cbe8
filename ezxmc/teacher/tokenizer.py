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
    # mistral-common's tokenizer, taken wherever it is installed and there is a tekken.json,
    # has no control tokens to look at and reads no rendered prompt.
    if not isinstance(tokenizer.added_tokens_decoder, dict):
        tokenizer = _fast(tokenizer, str(source), pinned, name)
    if not tokenizer.chat_template and isinstance(source, Path) and (source / "tekken.json").exists():
        raise ModelError(f"only mistral-common knows the turns of {name}", "pip install mistral-common")
    # Of a folder without a tokenizer transformers makes an empty one.
    if not tokenizer("a word", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{name} holds no tokenizer", cure)
    return tokenizer


_MISTRAL_TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ SYSTEM }}{% endif %}{% endfor %}"
)


def _fast(mistral: Any, source: str, pinned: dict[str, Any], name: str) -> Any:
    """The same tokenizer as transformers' own kind, with the turns of the model's version.

    Args:
        mistral: As mistral-common has it; it proves the other one right.
        source: Folder or hub id.
        pinned: The hub id's revision.
        name: The model's name, for messages.

    Raises:
        ModelError: There is none that gives the same tokens.
    """
    from transformers import PreTrainedTokenizerFast

    ends = {"bos_token": mistral.bos_token, "eos_token": mistral.eos_token}
    turns = [{"role": "user", "content": "Seven plain words, 1 number, an é."}]
    try:
        fast: Any = PreTrainedTokenizerFast.from_pretrained(source, trust_remote_code=False, **pinned)
        if fast.chat_template:
            return fast
        fast.add_special_tokens(ends)
        system = "raise_exception('no system turn')"  # before version 7: it opens the user's
        if "[SYSTEM_PROMPT]" in fast.get_vocab():
            system = "'[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]'"
            turns.insert(0, {"role": "system", "content": "Answer Yes or No."})
        fast.chat_template = _MISTRAL_TURNS.replace("SYSTEM", system)
        ours = fast(fast.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        same = ours == mistral.apply_chat_template(turns, tokenize=True, return_dict=False)
        fault = "" if same else "; read otherwise, it gives other tokens"
    except Exception as error:  # of two libraries, on files of a third
        fault = f": {type(error).__name__}: {error}"
    if fault:
        raise ModelError(
            f"the tokenizer of {name} is there in Mistral's own format only{fault}",
            "name a copy of the model with tokenizer.json and a chat template",
        )
    return fast
