"""From what the user wrote to a model: a catalog name, a local folder, or a hub id.

A language model's tokenizer is loaded without the model; an encoder may be chosen by what it shall read.
"""

from __future__ import annotations

import difflib
import heapq
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ezxmc.config import AUTO
from ezxmc.errors import ModelError
from ezxmc.files import MANIFEST
from ezxmc.hashing import text_hash, tree_hash
from ezxmc.models import store
from ezxmc.models.catalog import CATALOG, ModelEntry, ModelKind, find
from ezxmc.models.store import ModelProgress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What changes a model's outputs: weights, configs, tokenizer, chat template.
_MODEL_FILES = {".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"}
# Settings, vocabularies and weights that hold no code.
_FETCHED = ["*.json", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.jinja", "*.safetensors"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One line of `ezxmc models list`; sizes in MB (10^6 bytes)."""

    name: str
    kind: ModelKind
    licence: str
    download_mb: int
    disk_mb: int
    pulled: bool
    path: Path
    origin: str
    note: str


def list_models() -> list[ModelInfo]:
    """Every model of the catalog, pulled or not."""
    return [
        ModelInfo(
            name=entry.name,
            kind=entry.kind,
            licence=entry.licence,
            download_mb=round(entry.download / 1e6),
            disk_mb=round(entry.disk / 1e6),
            pulled=store.is_pulled(entry),
            path=store.folder_of(entry),
            origin=entry.origin,
            note=entry.note,
        )
        for entry in CATALOG
    ]


def pull(name: str, progress: ModelProgress | None = None, *, force: bool = False) -> Path:
    """Fetch a catalog model into the cache and return its folder.

    Args:
        name: A catalog name.
        progress: Called with (stage, done, total); see `ModelProgress`.
        force: Fetch it again even if it is there.

    Raises:
        ModelError: Unknown name, or the pull failed; then nothing is left behind.
    """
    return store.pull(_entry(name), progress, force=force)


def model_path(name: str) -> Path:
    """The folder of a catalog model that has been pulled.

    Raises:
        ModelError: Unknown name, or not pulled (whole).
    """
    entry = _entry(name)
    if not store.is_pulled(entry):
        raise ModelError(f"{name} is not in the model cache", f"fetch it with `ezxmc models pull {name}`")
    return store.folder_of(entry)


def verify(name: str) -> list[str]:
    """Hash every file of a pulled catalog model.

    Returns:
        One line per fault; empty if all is well.

    Raises:
        ModelError: Unknown name.
    """
    return store.faults(_entry(name))


def resolve_model(
    name: str, *, kind: ModelKind, revision: str | None = None, progress: ModelProgress | None = None
) -> Path | str:
    """What to hand to sentence-transformers, transformers or vLLM.

    A catalog name always means the pinned weights (a folder of that name is
    reached as `./NAME`; `auto` is the encoder for English) and is pulled if need be; a folder is itself;
    anything of the form `org/name` is a hub id and comes back unchanged, but for an encoder
    of a revision: that is fetched, since whoever opens it later knows its folder alone.

    Args:
        name: Catalog name, local folder or hub id.
        kind: What the caller needs it for.
        revision: Hub revision; it goes with hub ids only.
        progress: Called while pulling; see `ModelProgress`.

    Returns:
        A folder, or the hub id.

    Raises:
        ModelError: The name is none of the three, the folder holds no model,
            the kind does not fit, or pulling failed.
    """
    found = _classify(name, revision)
    if isinstance(found, str) and kind == "encoder" and revision:
        return hub_folder(found, revision)
    if not isinstance(found, ModelEntry):
        return found
    if found.kind != kind:
        fitting = ", ".join(entry.name for entry in CATALOG if entry.kind == kind)
        raise ModelError(f"{name} is of kind {found.kind}; {kind} is needed", f"take one of: {fitting}")
    # Without this check every call would take the lock.
    return store.folder_of(found) if store.is_pulled(found) else store.pull(found, progress)


def model_identity(name: str, revision: str | None = None) -> str:
    """A string that changes when the model's outputs may: part of fingerprints.

    - catalog: `name@` and the first 12 digits of the weights' pinned SHA-256,
      and `+` the converter's version for converted weights; nothing is pulled;
    - folder: `folder@` and the hash of its weights, configs and tokenizer, so
      renaming or moving it voids nothing;
    - hub id: `id@revision`, `main` if none is given. A branch may move: pin a
      commit where that matters.

    Raises:
        ModelError: As `resolve_model`.
    """
    found = _classify(name, revision)
    if isinstance(found, ModelEntry):
        converter = store.converter_of(found)
        return f"{found.name}@{found.sha256[:12]}" + (f"+{converter}" if converter else "")
    if isinstance(found, Path):
        stats = {
            path.relative_to(found).as_posix(): path.stat()
            for path in found.rglob("*")
            if path.suffix in _MODEL_FILES and path.is_file() and path.name not in (store.MARKER, MANIFEST)
        }
        files = tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in sorted(stats.items()))
        return f"folder@{_folder_hash(found, files)[:12]}"
    return f"{found}@{revision or 'main'}"


def published_as(name: str) -> tuple[str | None, str | None]:
    """Hub id and licence (SPDX) of what a name means to `resolve_model`, as far as they are known here.

    Example:
        >>> published_as("all-MiniLM-L6-v2")
        ('sentence-transformers/all-MiniLM-L6-v2', 'Apache-2.0')
    """
    if entry := find(name):
        return entry.origin, entry.licence
    return (name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None), None


def hub_folder(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a model in the hub's own cache, fetched if it is not there: no pickled weights, no code.

    Raises:
        ModelError: It cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            hub_id if "/" in hub_id else f"sentence-transformers/{hub_id}",
            revision=revision,
            cache_dir=os.environ.get("SENTENCE_TRANSFORMERS_HOME"),
            allow_patterns=_FETCHED,
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    except Exception as error:  # the hub raises anything from OSError to ValueError
        raise ModelError(
            f"{f'revision {revision} of ' if revision else ''}{hub_id} cannot be fetched: {error}",
            "is the hub in reach, and is there such a model, and such a revision?",
        ) from error
    return Path(folder)


@lru_cache(maxsize=16)
def _folder_hash(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Hash of the named files; sizes and times only tell when to hash again."""
    return tree_hash(folder, [name for name, _, _ in files])


def _entry(name: str) -> ModelEntry:
    """The catalog entry; `ModelError` with suggestions where there is none."""
    entry = find(name)
    if entry is None:
        raise _unknown(name)
    return entry


def _classify(name: str, revision: str | None) -> ModelEntry | Path | str:
    # Without documents that would tell (`fitting_encoder`).
    name = ENGLISH if name == AUTO else name
    folder = Path(name).expanduser()
    found = find(name)
    if found is None and not (name and folder.is_dir()):
        if _HUB_ID.fullmatch(name):
            return name
        raise _unknown(name)
    if revision is not None:
        raise ModelError(
            f"{name} has no revisions: it is {'a catalog name' if found else 'a local folder'}",
            "drop the revision, or give a hub id (org/name)",
        )
    if found is not None:
        return found
    if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise ModelError(
            f"{folder} holds no model: neither config.json nor modules.json is in it",
            "give the folder that `save_pretrained` or `ezxmc models pull` wrote",
        )
    return folder.resolve()


def _unknown(name: str) -> ModelError:
    names = {entry.name.lower(): entry.name for entry in CATALOG}
    tail = name.rsplit("/", 1)[-1].lower()
    close = [names[hit] for hit in difflib.get_close_matches(tail, names, n=2, cutoff=0.5)]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelError(
        f"no model {name!r}: not in the catalog, and no such folder",
        f"{meant}catalog: {', '.join(names.values())}. Hub ids have the form org/name; "
        "folders are given by path",
    )


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

    drawn = heapq.nsmallest(_SAMPLE, texts, key=text_hash)
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
