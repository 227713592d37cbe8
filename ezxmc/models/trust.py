"""What an encoder's folder may ask for: settings of known modules and safetensors, never code.

From a folder's JSON files sentence-transformers and transformers take arguments of their loaders
(unsafe unpickling among them), classes to import, kernels and other models to fetch. Files whose
keys become arguments may hold known ones only; what a model's own configuration may hold differs
from architecture to architecture, so there the keys that lead elsewhere are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ezxmc.errors import ModelError

WEIGHTS = "model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
_PLAIN_CURE = "take an encoder of plain sentence-transformers modules, saved without it"
_SAFETENSORS_CURE = (
    "where you trust the model, open it with sentence-transformers and save it with "
    "`model.save_pretrained(FOLDER)`: that writes safetensors; then name FOLDER"
)

_MODULE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)(?:\.\w+)?\.(\w+)"
)
_TRANSFORMER, _STATIC = "Transformer", "StaticEmbedding"
_WEIGHTED = frozenset({_TRANSFORMER, _STATIC, "Dense", "LayerNorm", "WeightedLayerPooling"})
_SETTINGS = {
    _TRANSFORMER: "max_seq_length do_lower_case transformer_task modality_config module_output_name "
    "processing_kwargs unpad_inputs query_length document_length query_expansion",
    "Pooling": "embedding_dimension word_embedding_dimension pooling_mode include_prompt "
    "pooling_mode_cls_token pooling_mode_mean_tokens pooling_mode_max_tokens pooling_mode_lasttoken "
    "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens",
    "Normalize": "module_input_name module_output_name",
    "Dense": "in_features out_features bias activation_function module_input_name module_output_name "
    "use_residual",
    "LayerNorm": "dimension",
    "Dropout": "dropout",
    "WeightedLayerPooling": "embedding_dimension word_embedding_dimension num_hidden_layers layer_start",
    _STATIC: "",
}
_ROW = "idx name path type kwargs"
_MODEL = "__version__ model_type prompts default_prompt_name similarity_fn_name truncate_dim requirements"
# Of older versions, which named the file after the architecture.
_TRANSFORMER_FILES = "sentence_*_config.json"
# Arguments of loaders: weights that are unpickled, code that is trusted, other files and models.
_LOADERS = re.compile(r"(?:model|tokenizer|processor|config)_(?:args|kwargs)")
_METHODS = re.compile(r"forward|get_\w+_features")
_ACTIVATIONS = re.compile(r"torch\.nn\.(?:modules\.(?:activation|linear)\.)?[A-Z]\w*")
_ELSEWHERE = frozenset(
    {"transformers_weights", "audio_tokenizer", "base_model_name_or_path", "quantization_config"}
)
# Text, and large: no library takes names from them.
_TOKENS = frozenset({"tokenizer.json", "vocab.json"})


def check_encoder(folder: Path) -> None:
    """Whether sentence-transformers may open a folder without trusting who made it.

    Raises:
        ModelError: It names classes, arguments, kernels or models that may run code, its weights
            are pickled or elsewhere, or a file of it cannot be read.
    """
    model = folder / "config_sentence_transformers.json"
    if model.exists():
        _known(model, _object(model), _MODEL)
    # What makes an adapter of the model is looked for here, wherever its weights lie.
    _check_documents(folder)
    for place, kind in _modules(folder):
        if kind in _WEIGHTED:
            _check_weights(place)
        if kind == _TRANSFORMER:
            _check_documents(place)
        elif kind != _STATIC and (place / "config.json").exists():
            _check_settings(place / "config.json", kind)


def read_json(file: Path) -> Any:
    """The content of a JSON file; raises ModelError where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}", "copy the folder again, whole") from None


def _modules(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folder and kind of each module; without a list of them it is a transformer alone."""
    file = folder / "modules.json"
    if not file.exists():
        yield folder, _TRANSFORMER
        return
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ModelError(f"{file} lists no modules", "copy the folder again, whole")
    for row in rows:
        named = row.get("type") if isinstance(row, dict) else None
        match = _MODULE.fullmatch(named) if isinstance(named, str) else None
        if match is None or match[1] not in _SETTINGS:
            raise ModelError(
                f"{file} names the class {named}, which is none of {', '.join(_SETTINGS)} "
                "of sentence-transformers",
                "take an encoder of these modules",
            )
        _known(file, row, _ROW)
        path = row.get("path")
        if not isinstance(path, str) or not _is_inside(path):
            raise ModelError(f"{file} names the path {path!r}, which leaves the folder", _PLAIN_CURE)
        yield folder / path, match[1]


def _check_documents(place: Path) -> None:
    """What transformers reads, and the arguments of a `Transformer`."""
    for file in sorted(place.glob("*.json")):
        if file.name in _TOKENS:
            continue
        if file.name == "adapter_config.json":
            raise ModelError(
                f"{file} makes the model of another one (an adapter)",
                "merge it: `model.merge_and_unload()` of peft, then `save_pretrained`",
            )
        if file.match(_TRANSFORMER_FILES):
            _check_settings(file, _TRANSFORMER)
        for key, value in _pairs(read_json(file)):
            kernel = key.endswith(("attn_implementation", "experts_implementation", "_internal"))
            if value is not None and (key in _ELSEWHERE or (kernel and "/" in json.dumps(value))):
                raise ModelError(f"{file} leads elsewhere: {key}", _PLAIN_CURE)


def _check_settings(file: Path, kind: str) -> None:
    """The arguments of a module's class."""
    settings = _object(file)
    _known(file, settings, _SETTINGS[kind])
    wrong = [
        f"{key}: {value}"
        for key, value in settings.items()
        if (key == "transformer_task" and value != "feature-extraction")
        or (key == "modality_config" and not _is_reading(value))
        or (key == "activation_function" and not _ACTIVATIONS.fullmatch(str(value)))
        or (kind != _TRANSFORMER and isinstance(value, dict))
    ]
    if wrong:
        raise ModelError(f"{file} asks for what is not supported: {wrong[0]}", _PLAIN_CURE)


def _is_reading(modalities: Any) -> bool:
    """Whether each kind of input goes to a method of the model that reads it."""
    return isinstance(modalities, dict) and all(
        isinstance(how, dict) and _METHODS.fullmatch(str(how.get("method"))) for how in modalities.values()
    )


def _check_weights(place: Path) -> None:
    if not any((place / name).is_file() for name in (WEIGHTS, _INDEX)):
        raise ModelError(
            f"{place} holds no weights in safetensors; pickled ones (pytorch_model.bin) can run code "
            "and are not read",
            _SAFETENSORS_CURE,
        )
    index = place / _INDEX
    if not index.is_file():
        return
    names = _object(index).get("weight_map")
    # Files of the hub's cache are links into the folder of its contents.
    homes = [
        place.resolve(),
        *(up.parent / "blobs" for up in place.resolve().parents if up.name == "snapshots"),
    ]
    for name in names.values() if isinstance(names, dict) else [None]:
        plain = isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name)
        if not plain or not any((place / plain[0]).resolve().is_relative_to(home) for home in homes):
            raise ModelError(
                f"{index} names weights that are no safetensors of this folder: {name}", _SAFETENSORS_CURE
            )


def _known(file: Path, settings: dict[str, Any], keys: str) -> None:
    """Refuse keys that no version of sentence-transformers writes; arguments of loaders may be empty."""
    known = keys.split()
    for key, value in settings.items():
        if key not in known and (value or not _LOADERS.fullmatch(key)):
            raise ModelError(f"{file} has the setting {key}, which may lead to code being run", _PLAIN_CURE)


def _object(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no JSON object", "copy the folder again, whole")
    return found


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def _is_inside(path: str) -> bool:
    plain = PurePosixPath(path)
    return not plain.is_absolute() and ".." not in plain.parts and not re.search(r"[\\:\x00]", path)
