"""A teacher behind an OpenAI-compatible server: `vllm serve` first of all."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby, islice
from queue import Empty, SimpleQueue
from typing import Any

from ezxmc.config import HttpTeacherConfig
from ezxmc.errors import ConfigError, ModelError
from ezxmc.hashing import json_hash, judgment_key
from ezxmc.models import ModelProgress
from ezxmc.records import Judgment, Pair, Status
from ezxmc.teacher import http_protocol as protocol
from ezxmc.teacher.http_client import GaveUpError, RefusedError
from ezxmc.teacher.http_contact import Contact
from ezxmc.teacher.prompt import Prompt, PromptRenderer
from ezxmc.teacher.scoring import SCORING_VERSION, judge
from ezxmc.teacher.tokenizer import load_tokenizer

# The server's cache blocks are not known here. 32 is a multiple of vLLM's 16 on
# GPUs, and the smallest block of its CPU backend (`vllm serve --block-size 32`).
_BLOCK = 32
# A document with thousands of candidates is asked in several requests: one that
# fails costs less, and all the same the first fills the cache for the others.
_MOST_PROMPTS = 64
# Answers are handed on when the server has been seen, after them, to be the one
# that was met. `concurrency` of them, or those of so many seconds, wait for that look together.
_HELD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    """Pairs of one document and their prompts, asked together so that they share its prefix."""

    pairs: list[Pair]
    prompts: list[list[int]]

    def alone(self) -> Iterator[_Request]:
        for pair, prompt in zip(self.pairs, self.prompts, strict=True):
            yield _Request([pair], [prompt])


class OpenAITeacher:
    """Scores pairs with an LLM behind an OpenAI-compatible server.

    Prompts go to `/completions` as token ids made here, so `<|im_end|>` in a
    document stays text. A server that takes only text is refused: what it makes
    of control tokens in a document would be out of our hands.

    When the fingerprint is first wanted, the server is asked what it is and can
    do. With vLLM's `logprob_token_ids` it gives the probabilities of exactly
    the answer tokens (mode `full`). Any other gives its 20 most probable tokens
    (mode `top20`): spellings outside count as zero, so label mass is a lower
    bound, and an answer with one side wholly outside is `no_logprobs`. The mode
    is part of the fingerprint, and so are engine version and the name of the
    folder or hub id the server loaded and, where it tells, dtype and
    quantisation; the server's address is not. No answer is handed on before
    the server was asked once more who it is.

    A request the server fails on six times gives `engine_error`; a server that
    is gone, restarts or is busy is waited for. vLLM answers NaN with status
    500, so that ends as `engine_error` too.

    Args:
        config: Server, model, prompt, limits.
        progress: Passed to the tokenizer's download; see `ModelProgress`.

    Raises:
        ConfigError: The environment variable with the key is not set.
        ModelError: The tokenizer cannot be found or loaded.
        TeacherError: The prompt does not fit the tokenizer.
    """

    def __init__(self, config: HttpTeacherConfig, progress: ModelProgress | None = None) -> None:
        self._config = config
        key = _api_key(config.api_key_env)
        prompt = Prompt.load(config.prompt)
        tokenizer = _tokenizer(config, progress)
        self.renderer = PromptRenderer(
            prompt, tokenizer, block_size=_BLOCK, max_document_tokens=config.max_document_tokens
        )
        self._contact = Contact(config, self.renderer, tokenizer, key)
        answers = self.renderer.answers
        self._ours = {
            "backend": "openai",
            "model": config.model,
            "prompt": f"{prompt.name}/{prompt.version}",
            "prompt_hash": prompt.hash,
            "answer_tokens": {str(t): w for t, w in zip(answers.ids, answers.weights, strict=True)},
            # Tokenizer and chat template, by what they make of a sample.
            "rendering": json_hash(self._contact.sample),
            "max_document_tokens": config.max_document_tokens,
            "min_label_mass": config.min_label_mass,
            "block_size": _BLOCK,
            "scoring": SCORING_VERSION,
        }
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """See `Teacher`.

        Raises:
            TeacherError: Nobody answers, or the server cannot judge.
        """
        if not self._fingerprint:
            self._fingerprint = json_hash(self.description)
        return self._fingerprint

    @property
    def description(self) -> dict[str, Any]:
        """See `Teacher`; raises as `fingerprint`."""
        server, mode = self._contact.meet()
        told = {"weights": server.weights} if server.weights else {}
        return {**self._ours, "engine": server.engine, "served": server.served, **told, "mode": mode}

    def key(self, pair: Pair) -> str:
        """See `Teacher`; raises as `fingerprint`."""
        return judgment_key(self.fingerprint, pair.doc.shown, pair.label.title)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`. A request holds a document's pairs; `concurrency` of them are under way.

        Raises:
            TeacherError: Nothing was answered for `patience` seconds, the
                server refuses, or it is another one than before.
        """
        requests = self._requests(pairs)
        waiting = deque(islice(requests, 1))
        if not waiting:
            return
        _, mode = self._contact.meet()
        flying: dict[Future[dict[str, Any]], _Request] = {}
        landed: SimpleQueue[Future[dict[str, Any]]] = SimpleQueue()
        held: list[Judgment] = []
        with self._contact.client() as client:
            self._contact.recognise(client)
            seen, answered = time.monotonic(), 0
            while True:
                while len(flying) < self._config.concurrency:
                    waiting.extend(islice(requests, 0 if waiting else 1))
                    if not waiting:
                        break
                    request = waiting.popleft()
                    future = self._contact.post(client, request.prompts, mode)
                    flying[future] = request
                    future.add_done_callback(landed.put)
                if held and (
                    not flying
                    or answered >= self._config.concurrency
                    or time.monotonic() - seen >= _HELD_SECONDS
                ):
                    self._contact.recognise(client)
                    yield from held
                    held, answered, seen = [], 0, time.monotonic()
                if not flying:
                    return
                try:
                    future = landed.get(timeout=_HELD_SECONDS if held else None)
                except Empty:
                    continue
                request = flying.pop(future)
                answered += 1
                try:
                    held += self._judgments(request, future.result())
                except GaveUpError:
                    held += self._without_number(request, Status.ENGINE_ERROR)
                except RefusedError as refusal:
                    if not protocol.too_long(refusal):
                        raise self._contact.explained(refusal) from None
                    if len(request.pairs) > 1:
                        waiting.extend(request.alone())
                    else:
                        held += self._without_number(request, Status.TRUNCATED_TOO_FAR)

    def close(self) -> None:
        """See `Teacher`: nothing of the server is ours to free."""

    def _requests(self, pairs: Iterable[Pair]) -> Iterator[_Request]:
        for _, group in groupby(self.renderer.prompts(pairs), key=lambda item: item[0].doc.shown):
            while part := list(islice(group, _MOST_PROMPTS)):
                yield _Request([pair for pair, _ in part], [ids for _, ids in part])

    def _judgments(self, request: _Request, answer: Mapping[str, Any]) -> Iterator[Judgment]:
        server, mode = self._contact.meet()
        cached = protocol.cached_tokens(answer, request.prompts, vllm=server.is_vllm)
        choices = protocol.choices(answer, len(request.prompts))
        for pair, ids, choice, hits in zip(request.pairs, request.prompts, choices, cached, strict=True):
            found = protocol.logprobs(choice, self._contact.names)
            answers = self.renderer.answers
            if mode == "top20":
                answers = protocol.seen_answers(found, answers) or answers
            yield judge(
                self.key(pair),
                pair.doc.uid,
                pair.label.uid,
                found,
                answers,
                min_label_mass=self._config.min_label_mass,
                prompt_tokens=len(ids),
                cached_tokens=hits,
            )

    def _without_number(self, request: _Request, status: Status) -> Iterator[Judgment]:
        for pair in request.pairs:
            yield Judgment(self.key(pair), pair.doc.uid, pair.label.uid, status)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise ConfigError(f"environment variable {variable} holds no API key", f"export {variable}=...")
    return key


def _tokenizer(config: HttpTeacherConfig, progress: ModelProgress | None) -> Any:
    try:
        return load_tokenizer(config.tokenizer or config.model, config.revision, progress)
    except ModelError as error:
        if config.tokenizer:
            raise
        raise ModelError(
            f"no tokenizer to render prompts with: {error.message}",
            "name the served model (catalog name, folder or hub id) in teacher.tokenizer (--tokenizer)",
        ) from None
