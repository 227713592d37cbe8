"""Stand-ins for well-known families of encoders: their configurations, tokenizers and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import processors

_CHARACTERS = [chr(code) for code in range(33, 127)]
_SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    **{"max_position_embeddings": 300, "initializer_range": 0.2},
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}
_LONGEST = 280
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Classification": "task: classification | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
}


def _bert_tokens() -> Any:
    from transformers import BertTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_CHARACTERS]
    pieces += [f"##{one}" for one in _CHARACTERS]
    return BertTokenizerFast(vocab={piece: row for row, piece in enumerate(pieces)})


def _bert(pooling: str, **prompts: str) -> tuple[Any, ...]:
    from transformers import BertConfig, BertModel

    tokens = _bert_tokens()
    return BertModel(BertConfig(vocab_size=len(tokens), **_SIZES)), tokens, pooling, prompts


def e5() -> tuple[Any, ...]:
    """multilingual-e5: a SentencePiece vocabulary, words put before both sides."""
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    first = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    tokens = XLMRobertaTokenizer(
        vocab=[*first, ("▁", -2.0), *((one, -3.0) for one in _CHARACTERS), ("<mask>", 0.0)]
    )
    model = XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokens), pad_token_id=1, **_SIZES))
    return model, tokens, "mean_tokens", {"query": "query: ", "passage": "passage: "}


def bge() -> tuple[Any, ...]:
    """bge: the first token's vector, an instruction before what is looked for."""
    return _bert("cls_token", query="Represent this sentence for searching relevant passages: ")


def gte() -> tuple[Any, ...]:
    """gte: a BERT without prompts."""
    return _bert("mean_tokens")


def gte_modernbert() -> tuple[Any, ...]:
    """gte-modernbert: rotary positions, local and global attention, the first token's vector."""
    from transformers import ModernBertConfig, ModernBertModel

    tokens = _bert_tokens()
    special = {name: getattr(tokens, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    config = ModernBertConfig(
        vocab_size=len(tokens),
        local_attention=8,
        layer_types=["full_attention", "sliding_attention"],
        bos_token_id=tokens.cls_token_id,
        eos_token_id=tokens.sep_token_id,
        **special,
        **_SIZES,
    )
    return ModernBertModel(config), tokens, "cls_token", {}


def qwen3() -> tuple[Any, ...]:
    """Qwen3-Embedding: a decoder, padded on the left, the last token's vector, published in bfloat16."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

    end, turn = "<|endoftext|>", "<|im_end|>"
    pieces = {
        piece: row for row, piece in enumerate([*sorted(ByteLevel.alphabet()), end, "<|im_start|>", turn])
    }
    tokens = Qwen2Tokenizer(vocab=pieces, merges=[], eos_token=turn, pad_token=end, padding_side="left")
    tokens.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, pieces[end])]
    )
    tokens.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    config = Qwen3Config(vocab_size=len(tokens), tie_word_embeddings=True, **_GROUPED)
    prompts = {"query": f"Instruct: {_INSTRUCTION}\nQuery:", "document": ""}
    # It was published with the architecture of the model that it came from.
    return Qwen3ForCausalLM(config).bfloat16(), tokens, "lasttoken", prompts


def gemma() -> tuple[Any, ...]:
    """EmbeddingGemma: attention in both directions, the mean, two dense layers, prompts of many tasks."""
    from transformers import Gemma3TextConfig, Gemma3TextModel, GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_CHARACTERS]
    tokens = GemmaTokenizer(
        vocab={piece: row for row, piece in enumerate(pieces)}, merges=[], padding_side="right"
    )
    tokens.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    config = Gemma3TextConfig(
        vocab_size=len(tokens),
        use_bidirectional_attention=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
        **_GROUPED,
    )
    return Gemma3TextModel(config).bfloat16(), tokens, "mean_tokens", _GEMMA


FAMILIES: dict[str, Callable[[], tuple[Any, ...]]] = {
    made.__name__: made for made in (e5, bge, gte, gte_modernbert, qwen3, gemma)
}


def build_family(name: str, folder: Path) -> Path:
    """A family's stand-in with random weights; its files are those that are published, and say no more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokens, pooling, prompts = FAMILIES[name]()
        tokens.model_max_length = _LONGEST
        model.save_pretrained(folder)
        tokens.save_pretrained(folder)
        parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
        if name == "gemma":
            for row, (wide, narrow) in enumerate(((32, 48), (48, 32)), 2):
                parts.append(("Dense", f"{row}_Dense"))
                settings = {"in_features": wide, "out_features": narrow, "bias": False}
                settings["activation_function"] = "torch.nn.modules.linear.Identity"
                _write(folder / f"{row}_Dense" / "config.json", settings)
                save_file(
                    {"linear.weight": torch.randn(narrow, wide)}, folder / f"{row}_Dense/model.safetensors"
                )
    parts.append(("Normalize", f"{len(parts)}_Normalize"))
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "lasttoken")}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(parts)
    ]
    _write(folder / "modules.json", rows)
    if prompts:
        told = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        _write(folder / "config_sentence_transformers.json", told)
    if name != "qwen3":
        settings = {"max_seq_length": _LONGEST, "do_lower_case": False}
        _write(folder / "sentence_bert_config.json", settings)
    return folder


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
