"""A prompt in a model's chat template."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError

from ezxmc.errors import TeacherError

DOCUMENT, LABEL = "{document}", "{label}"
# Private-use characters: no template rewrites them and no catalog holds them.
_SYSTEM_MARK = "\ue0d2SYSTEM\ue0d2"
_DOCUMENT_MARK, _LABEL_MARK = "\ue0d0DOCUMENT\ue0d0", "\ue0d1LABEL\ue0d1"
# Some templates print the date (Llama 3.2): the same pair must be asked in the same words tomorrow.
_TODAY = datetime(2025, 1, 1)
_CURE = "use an instruct model with an ordinary chat template"


class Template(NamedTuple):
    """A prompt in a model's chat template, cut where instructions, document and label end or stand.

    Attributes:
        system: Everything up to the end of the instructions.
        opening: From there to the document.
        lead: From the document to the label.
        tail: What follows the label.
    """

    system: str
    opening: str
    lead: str
    tail: str


def render_template(
    tokenizer: Any, system: str, user: str, assistant: str = "", *, today: datetime = _TODAY
) -> Template:
    """Put the three texts of a prompt file into the chat template of a transformers tokenizer.

    Args:
        tokenizer: Its `chat_template` may be missing; then the texts follow one another.
        system: Instructions.
        user: The user's turn, with both placeholders or the document's only.
        assistant: The beginning of the answer, with the label's placeholder if `user` has none.
        today: The date for templates that print one.

    Raises:
        TeacherError: The template fails, or loses, repeats or reorders a part.
    """
    user, said = (
        text.replace(DOCUMENT, _DOCUMENT_MARK).replace(LABEL, _LABEL_MARK) for text in (user, assistant)
    )
    system = system.strip() + _SYSTEM_MARK

    def apply(*turns: tuple[str, str]) -> str:
        # enable_thinking: reasoning models would open a <think> block instead of answering.
        rendered: str = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            strftime_now=today.strftime,
        )
        return rendered

    if not tokenizer.chat_template:
        return _cut(f"{system}\n\n{user}\n{said or 'Answer:'}")
    try:
        rendered = apply(("system", system), ("user", user))
    except TemplateError:
        rendered = ""
    # Some templates refuse a system turn (Gemma), others drop it without a word.
    if system not in rendered:
        try:
            rendered = apply(("user", f"{system}\n\n{user}"))
        except TemplateError as error:
            raise TeacherError(f"the model's chat template fails: {error}", _CURE) from None
    return _cut(rendered + said)


def _cut(rendered: str) -> Template:
    marks = {"instructions": _SYSTEM_MARK, "document": _DOCUMENT_MARK, "label": _LABEL_MARK}
    for part, mark in marks.items():
        if (count := rendered.count(mark)) != 1:
            fault = "repeats" if count else "loses"
            raise TeacherError(f"the model's chat template {fault} the {part}", _CURE)
    cut = re.fullmatch("(.*)".join(["", *map(re.escape, marks.values()), ""]), rendered, re.DOTALL)
    if cut is None:
        raise TeacherError(
            "the model's chat template puts instructions, document and label in another order",
            _CURE,
        )
    return Template(*cut.groups())
