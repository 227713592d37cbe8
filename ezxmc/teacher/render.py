"""A prompt in a model's chat template."""

from __future__ import annotations

import re
from contextlib import suppress
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
_BRACKETED = re.compile(r"<+[^\s<>]+>+|\[+[^\s\[\]]+\]+|\{+[^\s{}]+\}+")
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

    if not tokenizer.chat_template:
        return _cut(f"{system}\n\n{user}\n{said or 'Answer:'}")
    try:
        rendered = _apply(tokenizer, today, ("system", system), ("user", user))
    except TemplateError:
        rendered = ""
    # Some templates refuse a system turn (Gemma), others drop it without a word.
    if system not in rendered:
        try:
            rendered = _apply(tokenizer, today, ("user", f"{system}\n\n{user}"))
        except TemplateError as error:
            raise TeacherError(f"the model's chat template fails: {error}", _CURE) from None
    return _cut(rendered + said)


def _apply(tokenizer: Any, today: datetime, *turns: tuple[str, str]) -> str:
    # enable_thinking: reasoning models would open a <think> block instead of answering.
    rendered: str = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        strftime_now=today.strftime,
    )
    return rendered


def turn_marks(tokenizer: Any) -> tuple[str, ...]:
    """What opens and closes turns in a chat template that does it with ordinary text.

    Such are `<|user|>` of Zephyr, `[INST]` and `<<SYS>>` of Llama 2, `USER:` of Vicuna: strings that whoever
    writes a document can write, too, and that become the same tokens there. Where a control token goes before
    each turn, there are none: what follows it (a role's name, as in ChatML) opens nothing by itself.

    Args:
        tokenizer: A transformers tokenizer.
    """
    if not tokenizer.chat_template:
        return ()
    said = [f"\ue0d3{number}\ue0d3" for number in range(4)]
    talk = list(zip(("system", "user", "assistant", "user"), said, strict=True))
    rendered = ""
    # Not every template takes a system turn, or a second one of the user.
    for turns in (talk, talk[1:], talk[:2], talk[1:2]):
        with suppress(Exception):  # whatever a template raises: that it takes our own turns was seen
            rendered = _apply(tokenizer, _TODAY, *turns)
        if all(rendered.count(content) == 1 for _, content in turns):
            break
    opening, *between = re.split("|".join(said), rendered)
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    control = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)) or "(?!)"
    pieces = [re.split(control, frame) for frame in between]
    # After the last control token stands a role's name at most, and then words of the turn itself.
    if all(len(parts) > 1 and re.match(r"\w+(\s|$)|\s*$", parts[-1]) for parts in pieces):
        return ()
    found: set[str] = set()
    for place, parts in enumerate([re.split(control, opening), *pieces]):
        for line in "\n".join(parts).split("\n"):
            # A system turn may begin with words of the template's own: only brackets count there.
            if bracketed := _BRACKETED.findall(line):
                found.update(bracketed)
            elif place and re.search(r"[^\w\s]", line) and len(line.strip()) > 1:
                found.add(line.strip())
    return tuple(sorted(found))


def _cut(rendered: str) -> Template:
    marks = {"instructions": _SYSTEM_MARK, "document": _DOCUMENT_MARK, "label": _LABEL_MARK}
    for part, mark in marks.items():
        if (count := rendered.count(mark)) != 1:
            fault = "repeats" if count else "loses"
            raise TeacherError(f"the model's chat template {fault} the {part}", _CURE)
    cut = re.fullmatch("(.*)".join(["", *map(re.escape, marks.values()), ""]), rendered, re.DOTALL)
    if cut is None:
        raise TeacherError(
            "the model's chat template puts instructions, document and label in another order", _CURE
        )
    return Template(*cut.groups())
