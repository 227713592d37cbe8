"""Tokenizers of a few hundred words, made in a moment: how prompts become tokens, without a model."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")


def tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE: every text encodes, and decodes to itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = [
        "Yes No Yes No yes no Entry: Tag: Answer user system assistant\n the text of a document word"
    ] * 50
    corpus += ["Yes", "No", "yes", "no"] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(CONTROL[:3]),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    # Qwen's <tool_call> is such a token: of one piece, yet not declared special.
    bpe.add_tokens([AddedToken(name, special=False, normalized=False) for name in CONTROL[3:]])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=CONTROL[0])
    fast.chat_template = template
    return fast


def sentencepiece() -> Any:
    """As Llama 2 and Mistral: a blank is put before a text, and is part of the word."""
    words = ["▁", "▁Yes", "▁No", "Yes", "No", "0", "1", "\n", "<s>", "[/INST]"]
    pieces = [("<unk>", 0.0), *((word, -1.0) for word in words)]
    pieces += [(chr(c), -9.0) for c in range(33, 127) if chr(c) not in words]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    unigram.decoder = decoders.Metaspace(prepend_scheme="first")
    unigram.add_special_tokens(["<s>", "[/INST]"])
    made = PreTrainedTokenizerFast(tokenizer_object=unigram, bos_token="<s>", unk_token="<unk>")
    made.chat_template = "<s>{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}[/INST]"
    return made
