"""Prompt files, and their rendering into token ids that share a cached prefix.

A prompt is rendered as head + document + padding | label + tail. Everything
left of the bar is equal for all labels of a document and ends on a boundary of
the engine's cache blocks, because engines reuse whole blocks only: without the
padding half a block of the shared part is computed again for every label.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ezxmc.errors import ConfigError, TeacherError
from ezxmc.hashing import json_hash

_DOCUMENT, _LABEL = "{document}", "{label}"
# Of a long document this many characters per token are tokenised, not all of it.
_CHARACTERS_PER_TOKEN = 64
# Private-use characters: no template rewrites them and no catalog holds them.
_DOCUMENT_MARK, _LABEL_MARK = "\ue0d0DOCUMENT\ue0d0", "\ue0d1LABEL\ue0d1"


class Answer(BaseModel):
    """The words whose first-token probabilities are the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scheme: Literal["yes_no"] = "yes_no"
    yes: tuple[str, ...] = Field(min_length=1)
    no: tuple[str, ...] = Field(min_length=1)


class Prompt(BaseModel):
    """One prompt file. `user` holds `{document}` and, after it, `{label}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    version: int
    domain: str
    system: str
    user: str
    answer: Answer

    @field_validator("user")
    @classmethod
    def _document_before_label(cls, value: str) -> str:
        if value.count(_DOCUMENT) != 1 or value.count(_LABEL) != 1:
            raise ValueError("must hold {document} once and {label} once")
        if value.index(_DOCUMENT) > value.index(_LABEL):
            raise ValueError("{document} must come before {label}, or nothing can be shared between labels")
        return value

    @cached_property
    def hash(self) -> str:
        """SHA-256 over every field."""
        return json_hash(self.model_dump())

    @classmethod
    def load(cls, name: str) -> Prompt:
        """Read a shipped prompt by name, or any prompt file by path.

        Raises:
            ConfigError: No such prompt, or the file is not a valid prompt.
        """
        shipped = prompt_files()
        path = shipped.get(name) or Path(name)
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(
                f"no prompt named {name!r}", f"use one of {', '.join(shipped)} or the path of a .toml file"
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"prompt {path} cannot be read: {error}", "compare with prompts/generic.toml"
            ) from None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"prompt {path}: {faults}", "compare with prompts/generic.toml") from None


def prompt_files() -> dict[str, Path]:
    """Shipped prompts by name; they lie in the wheel, or beside the package in a source checkout."""
    package = Path(str(files("ezxmc")))
    for folder in (package / "_prompts", package.parent / "prompts"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Token ids that mean yes and no at the answer's position."""

    yes: tuple[int, ...]
    no: tuple[int, ...]


class PromptRenderer:
    """Turns documents and labels into the token ids of one prompt and model.

    Document and label text is tokenised with special tokens split into plain
    characters: `<|im_end|>` in a document stays text and closes no turn. So are
    added tokens the model's authors did not declare special (`<tool_call>`).

    Args:
        prompt: The prompt file.
        tokenizer: A transformers tokenizer.
        block_size: The engine's cache block, in tokens.
        max_document_tokens: Longer documents are cut here.

    Raises:
        TeacherError: The chat template loses the document or the label, or no
            spelling of an answer is a single token.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any, *, block_size: int, max_document_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._block = block_size
        self._max_document = max_document_tokens
        self._unsplit = _added_tokens(tokenizer)
        head, rest = self._split(self._render(prompt), _DOCUMENT_MARK)
        middle, tail = self._split(rest, _LABEL_MARK)
        # The template's own control tokens are meant; those of a text are not.
        self._head = self._encode(head, trusted=True)
        self._middle = self._encode(middle, trusted=True)
        self._tail = self._encode(tail, trusted=True)
        newline = self._encode("\n", trusted=True)
        self._pad = newline[-1]
        self.answers = AnswerTokens(
            yes=self._single_tokens(prompt.answer.yes), no=self._single_tokens(prompt.answer.no)
        )
        if set(self.answers.yes) & set(self.answers.no):
            raise TeacherError(f"prompt {prompt.name}: yes and no share a first token", "change [answer]")

    def _render(self, prompt: Prompt) -> str:
        user = prompt.user.replace(_DOCUMENT, _DOCUMENT_MARK).replace(_LABEL, _LABEL_MARK)
        if not self._tokenizer.chat_template:
            return f"{prompt.system}\n\n{user}\nAnswer:"
        turns = [{"role": "system", "content": prompt.system}, {"role": "user", "content": user}]
        try:
            rendered = self._apply_template(turns)
        except TemplateError:
            rendered = ""
        if rendered and prompt.system.strip() in rendered:
            return rendered
        # Some templates refuse a system turn (Gemma), others drop it without a word.
        return self._apply_template([{"role": "user", "content": f"{prompt.system}\n\n{user}"}])

    def _apply_template(self, turns: list[dict[str, str]]) -> str:
        # enable_thinking: reasoning models would open a <think> block instead of answering.
        rendered: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return rendered

    @staticmethod
    def _split(text: str, mark: str) -> tuple[str, str]:
        before, found, after = text.partition(mark)
        if not found or mark in after:
            raise TeacherError(
                "the model's chat template does not keep the user message as written",
                "use an instruct model with an ordinary chat template",
            )
        return before, after

    def _encode_text(self, text: str) -> list[int]:
        """Token ids of text that is not ours: no control token, whatever it holds."""
        # Tokenizers refuse lone surrogates, which JSON escapes can smuggle in.
        text = text.encode("utf-8", "replace").decode("utf-8")
        cuts = [found.start() + 1 for found in self._unsplit.finditer(text)] if self._unsplit else []
        edges = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [token for start, end in edges for token in self._encode(text[start:end], trusted=False)]

    def _encode(self, text: str, *, trusted: bool) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not trusted, verbose=False
        )["input_ids"]
        return ids

    def _single_tokens(self, spellings: tuple[str, ...]) -> tuple[int, ...]:
        encoded = (self._encode(spelling, trusted=True) for spelling in spellings)
        ids = dict.fromkeys(tokens[0] for tokens in encoded if len(tokens) == 1)
        if not ids:
            raise TeacherError(
                f"none of the answers {list(spellings)} is a single token of this model",
                "add spellings to [answer] in the prompt file",
            )
        return tuple(ids)

    def prefix(self, document: str) -> list[int]:
        """Token ids shared by all labels of a document: a whole number of blocks."""
        # A book costs no more than its first pages. Text of which so many
        # characters are still too few tokens (long runs of spaces) is read whole.
        start = document[: self._max_document * _CHARACTERS_PER_TOKEN]
        ids = self._encode_text(start)
        if len(ids) <= self._max_document and len(start) < len(document):
            ids = self._encode_text(document)
        if len(ids) > self._max_document:
            # Cutting on the boundary saves the padding, if enough is left.
            overhang = (len(self._head) + self._max_document) % self._block
            ids = ids[: self._max_document - (overhang if overhang <= self._max_document // 4 else 0)]
        padding = -(len(self._head) + len(ids)) % self._block
        return [*self._head, *ids, *[self._pad] * padding]

    def suffix(self, label: str) -> list[int]:
        """Token ids after the shared prefix: the label and the turn's end."""
        return [*self._middle, *self._encode_text(label), *self._tail]

    @property
    def longest_prefix(self) -> int:
        """Upper bound of `len(prefix(...))`, in tokens."""
        return len(self._head) + self._max_document + self._block


def _added_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds every start of an added token that `split_special_tokens` would not split."""
    added = [
        re.escape(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special and token.content.strip()
    ]
    return re.compile(f"(?={'|'.join(added)})") if added else None
