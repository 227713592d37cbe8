"""What is wrong with a prompt on a model, before any pair is paid for.

Each finding names the consequence and the cure. An *error* makes judgments wrong or impossible, a *warning*
costs tokens or accuracy, a *note* tells what the template does that needs no cure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ezxmc.errors import ConfigError, TeacherError
from ezxmc.teacher.prompt import Prompt, PromptRenderer
from ezxmc.teacher.render import DOCUMENT, LABEL, render_template

SAMPLE_DOCUMENT = (
    "nano\nA small, friendly text editor for the terminal, with syntax colouring, search and replace, "
    "undo, and help on screen."
)
SAMPLE_LABEL = "Purpose: Editing"
_MAX_DOCUMENT = 512
# Two or three of them mark the end of a label put into the model's mouth.
_FEW_TOKENS = 4
_OPEN_THOUGHT = re.compile(r"([<\[](?:\w+:)?think(?:ing)?[>\]])(?!.*[<\[]/(?:\w+:)?think(?:ing)?[>\]])", re.S)
_ROLE_NAMES = {"system", "user", "human", "assistant"}

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a prompt on a model.

    Attributes:
        severity: See the module.
        code: A word that stays the same, for programs.
        problem: What is wrong and what comes of it.
        cure: What to do about it; empty in a note.
    """

    severity: Severity
    code: str
    problem: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of one rendered prompt.

    Attributes:
        head: Template and instructions, padded; computed once per engine start.
        document: Computed once per document, as are the next two.
        padding: Completes the document's last block.
        lead: The words that introduce the label.
        label: Computed for each pair, as is the next.
        tail: What follows the label.
    """

    head: int
    document: int
    padding: int
    lead: int
    label: int
    tail: int

    @property
    def prefix(self) -> int:
        """Tokens all labels of a document share."""
        return self.head + self.document + self.padding + self.lead

    @property
    def per_pair(self) -> int:
        """Tokens computed for each pair."""
        return self.label + self.tail


def renderer_for(prompt: Prompt, tokenizer: Any, block_size: int) -> PromptRenderer:
    """A renderer as a teacher with default limits has it.

    Raises:
        TeacherError: The prompt does not fit the model.
    """
    return PromptRenderer(prompt, tokenizer, block_size=block_size, max_document_tokens=_MAX_DOCUMENT)


def cost(renderer: PromptRenderer, document: str = SAMPLE_DOCUMENT, label: str = SAMPLE_LABEL) -> Cost:
    """Count the tokens of one prompt."""
    return Cost(*map(len, renderer.sections(document, label)))


def readable(tokenizer: Any, ids: list[int]) -> str:
    """Token ids as text: control tokens stand in ⟦ ⟧, line breaks are marked ↵."""
    added = tokenizer.added_tokens_decoder
    shown, plain = [], []
    for token in [*ids, None]:
        if token is not None and not (token in added and added[token].content.strip()):
            plain.append(token)
            continue
        shown.append(re.sub("\n+", _line_breaks, _decode(tokenizer, plain)))
        plain = []
        if token is not None:
            shown.append(f"⟦{added[token].content}⟧")
    return "".join(shown)


def _line_breaks(found: re.Match[str]) -> str:
    count = len(found[0])
    return "↵\n" * count if count < 4 else f"↵ × {count}\n"


def check_file(name: str, tokenizer: Any, *, block_size: int = 32) -> list[Finding]:
    """Load a prompt and check it; a file that is no prompt is a finding too.

    Args:
        name: A shipped prompt's name, or a path.
        tokenizer: The model's transformers tokenizer.
        block_size: The engine's cache block, in tokens.
    """
    try:
        prompt = Prompt.load(name)
    except ConfigError as error:
        return [Finding("error", "file", error.message, error.cure)]
    return check_prompt(prompt, tokenizer, block_size=block_size)


def check_prompt(prompt: Prompt, tokenizer: Any, *, block_size: int = 32) -> list[Finding]:
    """Everything known to go wrong between a prompt and a model, worst first.

    Args:
        prompt: The prompt.
        tokenizer: The model's transformers tokenizer.
        block_size: The engine's cache block, in tokens.
    """
    found = [*_wording(prompt, tokenizer)]
    try:
        renderer = renderer_for(prompt, tokenizer, block_size)
    except TeacherError as error:
        found.append(Finding("error", "render", f"{error.message}; no pair can be asked", error.cure))
    else:
        found += _chat_template(prompt, tokenizer, renderer)
        found += _answer_place(prompt, tokenizer, renderer)
        found += _reading(tokenizer, renderer)
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: rank[finding.severity])


def faults_of(teacher: object) -> list[Finding]:
    """What is wrong with a teacher's prompt on its model: errors alone; none where it renders no prompts."""
    renderer = getattr(teacher, "renderer", None)
    if not isinstance(renderer, PromptRenderer):
        return []
    return [one for one in check_prompt(renderer.prompt, renderer.tokenizer) if one.severity == "error"]


def tell_faults(teacher: object, say: Callable[[str], None]) -> None:
    """Say what `faults_of` finds, with its cure."""
    for fault in faults_of(teacher):
        say(f"prompt and model: {fault.problem}; {fault.cure}")


def _wording(prompt: Prompt, tokenizer: Any) -> Iterator[Finding]:
    """Faults of the file itself."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    # `assistant` may hold some on purpose, to close a thought for one.
    for field in ("system", "user"):
        inside = [token for token in added if token.content in getattr(prompt, field)]
        if inside:
            yield Finding(
                "error" if any(token.special for token in inside) else "warning",
                "control_token",
                f"{field} holds {', '.join(token.content for token in inside)}: to this model control "
                "tokens, not words; they end or open turns in the middle of the prompt",
                "write it in other words; the chat template adds the turns",
            )
    for placeholder in (DOCUMENT, LABEL):
        if placeholder in prompt.system:
            yield Finding(
                "warning",
                "placeholder",
                f"system holds {placeholder}, which is replaced in user and assistant only: the model reads "
                "the braces",
                "name the thing in words",
            )
    yield from _after_label(prompt, tokenizer)
    for field in ("user", "assistant"):
        text = getattr(prompt, field)
        # A line break before the answer is what most templates end with.
        if text != text.rstrip(None if field == "user" else " \t"):
            yield Finding(
                "warning",
                "whitespace",
                f"{field} ends in white space: paid for with every pair, dropped by some templates, and a "
                "space before the answer is one the model wants to write itself",
                f"end {field} with a word or {LABEL}",
            )
    if re.search(rf"(  |\t){re.escape(LABEL)}", prompt.user + prompt.assistant):
        yield Finding(
            "warning",
            "whitespace",
            f"several blanks stand before {LABEL}: the label is read as tokens it has nowhere else",
            "leave one space or a line break",
        )


def _after_label(prompt: Prompt, tokenizer: Any) -> Iterator[Finding]:
    field = "user" if LABEL in prompt.user else "assistant"
    words = getattr(prompt, field).partition(LABEL)[2]
    if field == "user":
        words += prompt.assistant
    count = len(_encode(tokenizer, words)) if re.search(r"\w", _without_control(words, tokenizer)) else 0
    if count > (0 if field == "user" else _FEW_TOKENS):
        yield Finding(
            "warning",
            "tail",
            f"{count} tokens of your own follow {LABEL} ({words.strip()!r}): computed again for every pair",
            f"ask the question in system, and let {LABEL} come last",
        )


def _chat_template(prompt: Prompt, tokenizer: Any, renderer: PromptRenderer) -> Iterator[Finding]:
    """What the model's template does with the texts."""
    template = renderer.template
    instructions = prompt.system.strip()
    placeholder = f"{re.escape(DOCUMENT)}|{re.escape(LABEL)}"
    own = [instructions, *re.split(placeholder, prompt.user), *re.split(placeholder, prompt.assistant)]
    if not all(words.strip() in "".join(template) for words in own):
        yield Finding(
            "error",
            "rewritten",
            "the chat template rewrites the prompt's words: the model is asked something else than the "
            "file says",
            "use an instruct model with an ordinary chat template",
        )
        return
    if tokenizer.chat_template and template.opening.strip() == prompt.user.partition(DOCUMENT)[0].strip():
        yield Finding(
            "note",
            "system_turn",
            "the template has no system turn; the instructions open the user's turn. The cost is the same",
        )
    added = template.system.replace(instructions, "")
    for mark in renderer.turn_marks:
        added = added.replace(mark, " ")
    if words := _own_words(added, tokenizer):
        yield Finding(
            "note", "template_words", f"the template adds words of its own before the instructions: {words!r}"
        )
    if renderer.turn_marks:
        yield Finding(
            "note",
            "turn_text",
            f"the template marks turns with ordinary text ({', '.join(renderer.turn_marks)}); in documents "
            "and labels spaces are put between its signs, so that no text can open or close a turn",
        )
    if template != render_template(
        tokenizer, prompt.system, prompt.user, prompt.assistant, today=datetime(1999, 12, 31)
    ):
        yield Finding(
            "note",
            "date",
            "the template prints today's date; ezxmc always prints the same day, so that neither the shared "
            "prefix nor the question changes overnight",
        )
    if opened := _OPEN_THOUGHT.search(template.lead + template.tail):
        yield Finding(
            "error",
            "thinking",
            f"the prompt ends inside {opened[1]}: the model begins to reason instead of answering, and "
            "nearly every pair comes back as low_mass",
            f'close it in the prompt file (assistant = "{opened[1][0]}/{opened[1][1:]}\\n\\n"), or use the '
            "model's instruct version",
        )
    start = [tokenizer.bos_token_id]
    if tokenizer("a")["input_ids"][:1] == start != renderer.sections("", "").head[:1]:
        yield Finding(
            "warning",
            "no_start",
            f"the model expects {tokenizer.bos_token} at the start, and nothing puts it there: models "
            "trained with it answer badly without",
            "use a model whose chat template writes it",
        )


def _own_words(text: str, tokenizer: Any) -> str:
    words = _without_control(text, tokenizer)
    return " ".join(words.split()) if set(re.findall(r"\w+", words.lower())) - _ROLE_NAMES else ""


def _without_control(text: str, tokenizer: Any) -> str:
    for token in tokenizer.added_tokens_decoder.values():
        text = text.replace(token.content, " ") if token.content.strip() else text
    return text


def _answer_place(prompt: Prompt, tokenizer: Any, renderer: PromptRenderer) -> Iterator[Finding]:
    """Whether the answer's tokens are those the model would write there."""
    context = SAMPLE_LABEL + renderer.template.tail
    ids = _encode(tokenizer, context)
    for answer, spellings in prompt.answer.scale.items():
        joined = {spelling: _encode(tokenizer, context + spelling) for spelling in spellings}
        here = [s for s, found in joined.items() if found[:-1] == ids and found[-1] in renderer.answers.ids]
        merged = [s for s, found in joined.items() if found[: len(ids)] != ids]
        if not here:
            yield Finding(
                "error",
                "answer_place",
                f"where the answer stands, no spelling of {answer!r} ({', '.join(map(repr, spellings))}) is "
                "one token: its probability is not seen",
                "end the prompt with a word, a line break or the turn, and add spellings to [answer]",
            )
        elif merged:
            yield Finding(
                "warning",
                "answer_place",
                f"{', '.join(map(repr, merged))} joins the prompt's last characters into one token: that "
                f"spelling of {answer!r} is rarely given, and its probability is lost",
                "end the prompt with a word, a line break or the turn",
            )


def _reading(tokenizer: Any, renderer: PromptRenderer) -> Iterator[Finding]:
    """Whether the token ids say what the template says."""
    sections = renderer.sections(SAMPLE_DOCUMENT, SAMPLE_LABEL)
    template = renderer.template
    seen = _decode(tokenizer, [token for section in sections for token in section])
    parts = (
        template.system,
        template.opening + SAMPLE_DOCUMENT,
        template.lead + SAMPLE_LABEL + template.tail,
    )
    if not re.fullmatch(r"\n*".join(map(re.escape, parts)), seen):
        only_blanks = "".join(seen.split()) == "".join("".join(parts).split())
        yield Finding(
            "warning" if only_blanks else "error",
            "reading",
            "this tokenizer adds or drops blanks where the parts of the prompt meet"
            if only_blanks
            else "the tokens do not read as the template's text: the model is asked something else",
            "judge the wording by `ezxmc prompts show --model`; a line break before each part helps",
        )
        return
    together = _encode(tokenizer, template.lead + SAMPLE_LABEL + template.tail)
    if together != [*sections.lead, *sections.label, *sections.tail]:
        yield Finding(
            "warning",
            "seam",
            f"the characters around {LABEL} would join it into other tokens than those it is asked with: a "
            "spelling the model has rarely seen",
            f"put one space or a line break before {LABEL}, and nothing or a line break after it",
        )


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
