"""Prompt files, and their rendering into token ids that share a cached prefix.

A prompt is rendered as head | document + padding + lead | label + tail, the lead being the words that
introduce the label. The head is equal for all documents, and everything before the label for all labels of a
document. Both end on a boundary of the engine's cache blocks, because engines reuse whole blocks only:
without the padding half a block of the shared part is computed again each time.

Below: from answer-token log-probabilities to one number, or an honest status.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ezxmc.errors import ConfigError, TeacherError
from ezxmc.files import package_files
from ezxmc.hashing import json_hash
from ezxmc.records import Judgment, Pair, Status
from ezxmc.teacher.render import DOCUMENT, LABEL, render_template, turn_marks

# Of a long document this many characters per token are tokenised, not all of it.
_CHARACTERS_PER_TOKEN = 64


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Spellings = Annotated[tuple[str, ...], Field(min_length=1)]


class YesNo(_Part):
    """The answer is yes or no; each may be spelled in several ways."""

    scheme: Literal["yes_no"] = "yes_no"
    yes: Spellings
    no: Spellings

    @property
    def scale(self) -> dict[str, Spellings]:
        """Spellings by answer, from irrelevant to relevant."""
        return {"no": self.no, "yes": self.yes}


class Graded(_Part):
    """The answer is a grade; `grades` lists the spellings of each, lowest first."""

    scheme: Literal["graded"]
    grades: tuple[Spellings, ...] = Field(min_length=2)

    @property
    def scale(self) -> dict[str, Spellings]:
        """Spellings by answer, from irrelevant to relevant."""
        return {str(grade): spellings for grade, spellings in enumerate(self.grades)}


class Prompt(_Part):
    """One prompt file.

    `user` holds `{document}` and, after it, `{label}`. The label may stand in `assistant` instead, text that
    is put into the model's mouth and after which it answers.
    """

    name: str
    version: int
    domain: str
    system: str
    user: str
    assistant: str = ""
    answer: Annotated[YesNo | Graded, Field(discriminator="scheme")]

    @model_validator(mode="after")
    def _document_before_label(self) -> Prompt:
        text = self.user + self.assistant
        if self.user.count(DOCUMENT) != 1 or text.count(DOCUMENT) != 1 or text.count(LABEL) != 1:
            raise ValueError("user must hold {document} once, and user or assistant {label} once")
        if text.index(DOCUMENT) > text.index(LABEL):
            raise ValueError("{document} must come before {label}, or nothing can be shared between labels")
        return self

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
    """Shipped prompts by name."""
    return package_files("prompts", "*.toml")


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens that count as an answer, and what each says.

    Attributes:
        ids: Token ids.
        weights: Relevance each stands for, in [0, 1], aligned with `ids`: no is
            0, yes is 1, grade g of 0..m is g/m.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class Sections(NamedTuple):
    """Token ids of one prompt, in order; the first four are the shared prefix."""

    head: list[int]
    document: list[int]
    padding: list[int]
    lead: list[int]
    label: list[int]
    tail: list[int]


class PromptRenderer:
    """Turns documents and labels into the token ids of one prompt and model.

    Document and label text is tokenised with special tokens split into plain characters: `<|im_end|>` in a
    document stays text and closes no turn. So are added tokens the model's authors did not declare special
    (`<tool_call>`). Where a template marks turns with ordinary text (`[INST]`), such marks in a document or
    label are spaced out (`[ INST ]`); other texts stay as they are.

    Args:
        prompt: The prompt file.
        tokenizer: A transformers tokenizer.
        block_size: The engine's cache block, in tokens.
        max_document_tokens: Longer documents are cut here.

    Raises:
        TeacherError: The chat template loses the document or the label, or no spelling of an answer is a
            single token.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any, *, block_size: int, max_document_tokens: int) -> None:
        self.prompt = prompt
        self.tokenizer = tokenizer
        self._block = block_size
        self._max_document = max_document_tokens
        self._unsplit = _added_tokens(tokenizer)
        self._control = _control_tokens(tokenizer)
        self.turn_marks = turn_marks(tokenizer)
        """What opens turns in this model's template and is ordinary text; see `turn_marks`."""
        self._mark = re.compile("|".join(map(re.escape, self.turn_marks)) or "(?!)")
        self.template = render_template(tokenizer, prompt.system, prompt.user, prompt.assistant)
        system, head, lead, tail = self.template
        # Byte-pair vocabularies keep a space with the word after it.
        self._space = " " if lead.endswith(" ") else ""
        # The template's own control tokens are meant; those of a text are not.
        newline = self._encode("\n", trusted=True)
        if not newline:
            raise TeacherError("the model's tokenizer has no line break to pad with", "use another model")
        self._pad = newline[-1]
        instructions, opening = self._encode(system, trusted=True), self._encode(head, trusted=True)
        padding = -(len(instructions) + len(opening)) % block_size
        self._head = [*instructions, *[self._pad] * padding, *opening]
        self._lead = self._encode(lead.removesuffix(" "), trusted=True)
        self._tail = self._encode(tail, trusted=True)
        self.answers = self._answer_tokens(prompt)

    def _encode_text(self, text: str) -> list[int]:
        """Token ids of text that is not ours: no control token, whatever it holds."""
        # Tokenizers refuse lone surrogates, which JSON escapes can smuggle in.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self._encode_plain(self._mark.sub(_spaced, text))
        # A normaliser may write a mark (`［INST］`), or the loss of a control token inside it.
        while self.turn_marks and self._mark.search(shown := self._decode(ids)):
            ids = self._encode_plain(self._mark.sub(" ", shown))
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        cuts = [found.start() + 1 for found in self._unsplit.finditer(text)] if self._unsplit else []
        edges = zip([0, *cuts], [*cuts, len(text)], strict=True)
        ids = (token for start, end in edges for token in self._encode(text[start:end], trusted=False))
        # Unigram vocabularies, and byte-pair ones that look up whole words, hold
        # control tokens as ordinary pieces; a normaliser can write them, too.
        return [token for token in ids if token not in self._control]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _encode(self, text: str, *, trusted: bool) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not trusted, verbose=False
        )["input_ids"]
        return ids

    def _answer_tokens(self, prompt: Prompt) -> AnswerTokens:
        scale = prompt.answer.scale
        weights: dict[int, float] = {}
        for step, (answer, spellings) in enumerate(scale.items()):
            found = {token for spelling in spellings for token in self._single(spelling)}
            if not found:
                raise TeacherError(
                    f"prompt {prompt.name}: no spelling of {answer!r} among {list(spellings)} is a single "
                    "token of this model",
                    "add spellings to [answer] in the prompt file",
                )
            if found & weights.keys():
                raise TeacherError(
                    f"prompt {prompt.name}: {answer!r} shares a token with another answer", "change [answer]"
                )
            weights.update(dict.fromkeys(sorted(found), step / (len(scale) - 1)))
        return AnswerTokens(tuple(weights), tuple(weights.values()))

    def _single(self, spelling: str) -> Iterator[int]:
        """The tokens an answer may be: alone, and where it is given.

        SentencePiece models put a space before a text that stands alone.
        """
        for before, ids in (("", []), (self.template.tail, self._tail)):
            *rest, last = self._encode(before + spelling, trusted=True) or [-1]
            if rest == ids and last >= 0:
                yield last

    def sections(self, document: str, label: str) -> Sections:
        """One prompt in its parts, for people to look at."""
        ids, padding = self._fitted(document)
        shown = self._encode_text(self._space + label)
        return Sections(self._head, ids, padding, self._lead, shown, self._tail)

    def prefix(self, document: str) -> list[int]:
        """Token ids shared by all labels of a document: a whole number of blocks."""
        ids, padding = self._fitted(document)
        return [*self._head, *ids, *padding, *self._lead]

    def _fitted(self, document: str) -> tuple[list[int], list[int]]:
        """A document's token ids, cut to the limit, and the padding that completes its last block."""
        # A book costs no more than its first pages. Text of which so many
        # characters are still too few tokens (long runs of spaces) is read whole.
        start = document[: self._max_document * _CHARACTERS_PER_TOKEN]
        ids = self._encode_text(start)
        if len(ids) <= self._max_document and len(start) < len(document):
            ids = self._encode_text(document)
        if len(ids) > self._max_document:
            # Cutting on the boundary saves the padding, if enough is left.
            overhang = (self._max_document + len(self._lead)) % self._block
            ids = ids[: self._max_document - (overhang if overhang <= self._max_document // 4 else 0)]
        return ids, [self._pad] * (-(len(ids) + len(self._lead)) % self._block)

    def suffix(self, label: str) -> list[int]:
        """Token ids after the shared prefix: the label and the turn's end."""
        return [*self._encode_text(self._space + label), *self._tail]

    def prompts(self, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, list[int]]]:
        """Token ids of each pair; a document is tokenised once for all pairs that follow one another."""
        shown: str | None = None
        prefix: list[int] = []
        for pair in pairs:
            if pair.doc.shown != shown:
                shown = pair.doc.shown
                prefix = self.prefix(shown)
            yield pair, [*prefix, *self.suffix(pair.label.title)]

    def with_block(self, block_size: int) -> PromptRenderer:
        """The same prompt for cache blocks of another size; 1 pads nothing."""
        return PromptRenderer(
            self.prompt, self.tokenizer, block_size=block_size, max_document_tokens=self._max_document
        )

    @property
    def longest_prefix(self) -> int:
        """Upper bound of `len(prefix(...))`, in tokens."""
        return len(self._head) + self._max_document + self._block + len(self._lead)


def _spaced(mark: re.Match[str]) -> str:
    """A mark with spaces around each of its signs."""
    return re.sub(r"(?<=\S)(?=[^\w\s])|(?<=[^\w\s])(?=\S)", " ", mark[0])


def _added_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds every start of an added token that `split_special_tokens` would not split."""
    added = [
        re.escape(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special and token.content.strip()
    ]
    return re.compile(f"(?={'|'.join(added)})") if added else None


def _control_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids that text of others never becomes; the one for unknown characters is harmless."""
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.special or len(token.content.strip()) > 1) - unknown


# Of the rendering into tokens and of the rule below: part of every content key.
SCORING_VERSION = 2
# A probability a little above 1 is rounding; far above it the engine did not
# give probabilities at all (logits, for one), and a score would be made up.
_ROUNDING = 0.01


def _log_sum(logprobs: Sequence[float], weights: Sequence[float]) -> float:
    """Logarithm of Σ w·exp(logprob), over positive weights."""
    terms = [value + math.log(w) for value, w in zip(logprobs, weights, strict=True) if w > 0]
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))


def judge(
    key: str,
    doc_uid: str,
    label_uid: str,
    logprobs: Mapping[int, float],
    answers: AnswerTokens,
    *,
    min_label_mass: float,
    prompt_tokens: int,
    cached_tokens: int,
) -> Judgment:
    """Log-odds and label mass of one answer.

    With w_t the relevance token t stands for (1 for yes, 0 for no, g/m for grade g of 0..m): log-odds = ln
    Σ_t p(t)·w_t − ln Σ_t p(t)·(1 − w_t), the logit of the expected relevance; mass = Σ_t p(t).

    Args:
        key: Content key of the pair.
        doc_uid: The document's uid.
        label_uid: The label's uid.
        logprobs: Natural-log probabilities over the full vocabulary at the answer's position, by token id;
            every answer token must be there.
        answers: Which token ids are answers, and what each says.
        min_label_mass: Below this mass the model did not answer the question.
        prompt_tokens: Length of the prompt.
        cached_tokens: How many of them the prefix cache supplied.

    Returns:
        `ok` with the log-odds; `low_mass`; `no_logprobs` when a token is missing; `not_finite` when a value
        is no log-probability: no number is ever made up.
    """
    given = [logprobs[token] for token in answers.ids if token in logprobs]
    if len(given) < len(answers.ids):
        return Judgment(key, doc_uid, label_uid, Status.NO_LOGPROBS)
    if not all(math.isfinite(value) and value <= _ROUNDING for value in given):
        return Judgment(key, doc_uid, label_uid, Status.NOT_FINITE)
    relevant = _log_sum(given, answers.weights)
    irrelevant = _log_sum(given, [1 - weight for weight in answers.weights])
    mass = min(1.0, math.exp(relevant) + math.exp(irrelevant))
    status = Status.OK if mass >= min_label_mass else Status.LOW_MASS
    return Judgment(
        key,
        doc_uid,
        label_uid,
        status,
        log_odds=relevant - irrelevant if status is Status.OK else None,
        label_mass=mass,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
    )
