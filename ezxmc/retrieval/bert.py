"""A plain BERT student on the processor, without the imports of transformers.

They take longer than all else that a command does which tags a document. What is opened here is
what sentence-transformers writes of a BERT with a WordPiece vocabulary, mean or first-token pooling
and unit length, read from safetensors: its vectors are the same to the last bit, for the same
operations run in the same order. Of anything else, be it one setting that is not known here,
`open_plain` says nothing, and sentence-transformers opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from ezxmc.models.trust import WEIGHTS


def _any(names: str) -> dict[str, Any]:
    """Settings that change no vector, or are read."""
    return dict.fromkeys(names.split(), ...)


_SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
_FILES = frozenset(
    {
        *("config.json", "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", WEIGHTS),
        *("README.md", "ezxmc.json", "ezxmc-model.json", "1_Pooling", "2_Normalize", "onnx"),
    }
)
# What a setting must be where it is there; `...` is anything.
_CONFIG: Mapping[str, Any] = {
    **_any("hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size"),
    **_any("max_position_embeddings type_vocab_size layer_norm_eps hidden_dropout_prob"),
    **_any("attention_probs_dropout_prob bos_token_id classifier_dropout eos_token_id pad_token_id"),
    **_any("_name_or_path architectures gradient_checkpointing initializer_range tie_word_embeddings"),
    **_any("transformers_version use_cache"),
    **{"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"},
    **{"add_cross_attention": False, "is_decoder": False, "dtype": "float32", "torch_dtype": "float32"},
}
_TOKENS: Mapping[str, Any] = {
    **_SPECIAL,
    **_any("clean_up_tokenization_spaces do_lower_case is_local local_files_only max_length"),
    **_any("model_max_length name_or_path strip_accents tokenize_chinese_chars"),
    **{"backend": "tokenizers", "do_basic_tokenize": True, "never_split": None, "stride": 0},
    **{"pad_to_multiple_of": None, "pad_token_type_id": 0, "padding_side": "right"},
    **{"tokenizer_class": "BertTokenizer", "truncation_side": "right"},
    "truncation_strategy": "longest_first",
}
_TRANSFORMER: Mapping[str, Any] = {
    **{"do_lower_case": False, "max_seq_length": ..., "transformer_task": "feature-extraction"},
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_MODEL: Mapping[str, Any] = {
    **{"__version__": ..., "model_type": "SentenceTransformer", "similarity_fn_name": ..., "prompts": ...},
    **{"default_prompt_name": None, "truncate_dim": None},
}
_UNIT = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
_ABSENT = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})


def open_plain(folder: Path) -> PlainBert | None:
    """A folder's model, if it is a plain BERT and there is no accelerator it should run on.

    Args:
        folder: One that `ezxmc.models.trust.check_encoder` has passed.
    """
    try:
        return None if torch.accelerator.is_available() else _open(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None  # whoever opens it in full says what is wrong


def _open(folder: Path) -> PlainBert | None:
    config = _settings(folder / "config.json", _CONFIG)
    tokens = _settings(folder / "tokenizer_config.json", _TOKENS)
    module = _settings(folder / "sentence_bert_config.json", _TRANSFORMER)
    _settings(folder / "config_sentence_transformers.json", _MODEL)
    if (named := folder / "special_tokens_map.json").exists():
        _settings(named, _SPECIAL)
    pooling, unit = _pooling(folder, config["hidden_size"])
    read = json.loads((folder / "tokenizer.json").read_bytes())
    places = config["max_position_embeddings"]
    longest = module.get("max_seq_length") or min(tokens["model_max_length"], places)
    weights = {name: part for name, part in load_file(folder / WEIGHTS).items() if name not in _ABSENT}
    if (
        {entry.name for entry in folder.iterdir()} - _FILES
        or config["model_type"] != "bert"
        or longest > places
        or not _is_plain(read, tokens)
        or any(part.dtype != torch.float32 for part in weights.values())
    ):
        return None
    model = PlainBert(SimpleNamespace(**config), pooling, unit)
    # Copied: weights that are mapped from the file would change with it.
    model.load_state_dict(weights)
    model.tokenizer = _Tokens(str(folder / "tokenizer.json"), read["model"]["vocab"]["[PAD]"], longest)
    return model.eval()


def _settings(file: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of settings says.

    Raises:
        ValueError: One of them is not known, or not as it is here.
    """
    found: dict[str, Any] = json.loads(file.read_bytes())
    for name, value in found.items():
        if name not in known or known[name] not in (..., value):
            raise ValueError(name)
    return found


def _pooling(folder: Path, size: int) -> tuple[str, bool]:
    """How tokens become one vector, and whether that is of unit length.

    Raises:
        ValueError: In another way than one of those here.
    """
    modules = json.loads((folder / "modules.json").read_bytes())
    kinds = [(row["type"].rpartition(".")[2], row["path"]) for row in modules]
    plain = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    if kinds not in (plain, plain[:2]) or any(set(row) != {"idx", "name", "path", "type"} for row in modules):
        raise ValueError("modules")
    if len(kinds) > 2 and (unit := folder / "2_Normalize" / "config.json").exists():
        _settings(unit, _UNIT)
    found = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
    width = found.pop("embedding_dimension", None) or found.pop("word_embedding_dimension", None)
    modes = [found.pop("pooling_mode")] if "pooling_mode" in found else []
    # As older versions named it.
    for name in [name for name in found if name.startswith("pooling_mode_")]:
        if found.pop(name):
            modes.append({"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}.get(name))
    if width != size or found not in ({}, {"include_prompt": True}) or modes not in (["mean"], ["cls"]):
        raise ValueError("pooling")
    return modes[0], len(kinds) > 2


def _is_plain(read: dict[str, Any], tokens: dict[str, Any]) -> bool:
    """Whether transformers would make of a tokenizer.json and its settings what the file itself says."""
    model, post = dict(read["model"]), read["post_processor"]
    vocabulary = model.pop("vocab")
    ids = {token: vocabulary[token] for token in sorted(_SPECIAL.values())}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first, text, last = "[CLS]", {"Sequence": {"id": "A", "type_id": 0}}, "[SEP]"
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (first, last)]
    return (
        model
        == {
            **{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
            "max_input_chars_per_word": 100,
        }
        and read["normalizer"]
        == {
            **{"type": "BertNormalizer", "clean_text": True},
            "handle_chinese_chars": tokens.get("tokenize_chinese_chars", True),
            "strip_accents": tokens.get("strip_accents"),
            "lowercase": tokens.get("do_lower_case", True),
        }
        and read["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and (post["type"], post["single"]) == ("TemplateProcessing", [ends[0], text, ends[1]])
        and post["special_tokens"]
        == {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (first, last)}
        and sorted(read["added_tokens"], key=lambda one: str(one["content"]))
        == [{"id": number, "content": token, **flags, "special": True} for token, number in ids.items()]
    )


class _Tokens:
    """A fast tokenizer, cut and padded as sentence-transformers has it done."""

    pad_token_type_id, padding_side, is_fast = 0, "right", True

    def __init__(self, file: str, pad: int, longest: int) -> None:
        self.backend_tokenizer, self.pad_token_id = Tokenizer.from_file(file), pad
        self.backend_tokenizer.enable_padding(pad_id=pad, pad_token="[PAD]")
        self.model_max_length = longest

    @property
    def model_max_length(self) -> int:
        return self._longest

    @model_max_length.setter
    def model_max_length(self, longest: int) -> None:
        self._longest = longest
        self.backend_tokenizer.enable_truncation(
            longest, stride=0, strategy="longest_first", direction="right"
        )

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        """Where each token of a text that is read lies in it; `options` are what it does anyhow."""
        return {"offset_mapping": self.backend_tokenizer.encode(text).offsets}


class _Linear(nn.Linear):
    """One whose weights are read, and not drawn before."""

    def reset_parameters(self) -> None:
        pass


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        pass


class _Attention(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.heads, self.scale = sizes.num_attention_heads, (width // sizes.num_attention_heads) ** -0.5
        self.query, self.key, self.value = (_Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        shape = (*hidden.shape[:-1], self.heads, -1)
        query, key, value = (
            part(hidden).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return found.transpose(1, 2).contiguous().reshape(hidden.shape)


class _Added(nn.Module):
    """A linear layer whose result is added to what came before."""

    def __init__(self, width: int, sizes: Any) -> None:
        super().__init__()
        self.dense = _Linear(width, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        added: Tensor = self.LayerNorm(self.dense(hidden) + before)
        return added


class _Layer(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        parts = {"self": _Attention(sizes), "output": _Added(sizes.hidden_size, sizes)}
        self.attention = nn.ModuleDict(parts)
        self.intermediate = nn.ModuleDict({"dense": _Linear(sizes.hidden_size, sizes.intermediate_size)})
        self.output = _Added(sizes.intermediate_size, sizes)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention["output"](self.attention["self"](hidden, mask), hidden)
        found: Tensor = self.output(gelu(self.intermediate["dense"](attended)), attended)
        return found


class _Embeddings(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.word_embeddings = _Embedding(sizes.vocab_size, width)
        self.position_embeddings = _Embedding(sizes.max_position_embeddings, width)
        self.token_type_embeddings = _Embedding(sizes.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        found = self.word_embeddings(tokens) + self.token_type_embeddings(types)
        embedded: Tensor = self.LayerNorm(found + self.position_embeddings(places))
        return embedded


class PlainBert(nn.Module):
    """What a `BiEncoder` asks of a sentence-transformers model, for tagging alone.

    Args:
        sizes: The model's configuration.
        pooling: `mean` or `cls`.
        unit: Whether its vectors are of unit length.
    """

    prompts: Mapping[str, str] = {}
    default_prompt_name = None
    tokenizer: _Tokens

    def __init__(self, sizes: Any, pooling: str, unit: bool) -> None:
        super().__init__()
        self.pooling, self.unit, self.dimension = pooling, unit, sizes.hidden_size
        self.embeddings = _Embeddings(sizes)
        layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.embeddings.LayerNorm.weight.device

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that are read."""
        return self.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, longest: int) -> None:
        self.tokenizer.model_max_length = longest

    def get_embedding_dimension(self) -> int:
        """Numbers of a vector."""
        return int(self.dimension)

    def preprocess(self, texts: Sequence[str], prompt: str | None = None) -> dict[str, Tensor]:
        """Model inputs of N texts: (N, T) int64."""
        found = self.tokenizer.backend_tokenizer.encode_batch(list(texts))
        if not found:
            return {}
        return {
            "input_ids": torch.tensor([one.ids for one in found]),
            "token_type_ids": torch.tensor([one.type_ids for one in found]),
            "attention_mask": torch.tensor([one.attention_mask for one in found]),
        }

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(N, D) vectors, as "sentence_embedding", of what `preprocess` made."""
        tokens, kept = features["input_ids"], features["attention_mask"]
        hidden = self.embeddings(tokens, features["token_type_ids"])
        # Without a mask torch may take a faster kernel, of which other bits come.
        mask = None if kept.all() else kept.bool()[:, None, None, :].expand(-1, -1, tokens.shape[1], -1)
        for layer in self.encoder["layer"].children():
            hidden = layer(hidden, mask)
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            weights = kept.unsqueeze(-1).to(hidden.dtype)
            exact = torch.float32 if hidden.dtype == torch.bfloat16 else hidden.dtype
            total = (hidden * weights).sum(dim=1, dtype=exact)
            vectors = (total / weights.sum(dim=1, dtype=exact).clamp(min=1e-9)).to(hidden.dtype)
        return {"sentence_embedding": normalize(vectors, p=2, dim=-1) if self.unit else vectors}
