"""A teacher behind an OpenAI-compatible server: `vllm serve` first of all.

At the first contact a server is asked what it is and whether it can judge; later, whether it is still
the same one.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby, islice
from queue import Empty, SimpleQueue
from typing import Any

from ezxmc.config.teacher import HttpTeacherConfig
from ezxmc.errors import ConfigError, ModelError, TeacherError
from ezxmc.hashing import json_hash, judgment_key
from ezxmc.models import ModelProgress
from ezxmc.models.resolve import load_tokenizer
from ezxmc.records import Document, Judgment, Label, Pair, Status
from ezxmc.teacher import openai_client as protocol
from ezxmc.teacher.openai_client import GaveUpError, HttpClient, Mode, RefusedError
from ezxmc.teacher.prompt import SCORING_VERSION, Prompt, PromptRenderer, judge

# Later a server may be gone for `patience`; at first its address is more likely wrong.
_FIRST_CONTACT = 20.0
_LABEL = 128  # tokens kept for a label where a context length is recommended
_SAMPLE = Pair(Document("", "A title", "Seven plain words, 1 number, an é."), Label("", "A label"))


@dataclass(frozen=True, slots=True)
class Server:
    """Which engine and model answer.

    Attributes:
        engine: Such as `vllm-0.32.0`; `unknown` where the server does not say.
        served: Last part of the path or hub id the server loaded the model from, if it says so; the part
            before may be a mount point.
        weights: How these are kept, such as `dtype bfloat16, quantization awq`; empty where the server does
            not say (vLLM does in its development mode, SGLang always, llama.cpp tells their size).
    """

    engine: str
    served: str | None
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.engine} with {self.served}" + (f" ({self.weights})" if self.weights else "")

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM's own habits can be counted on."""
        return self.engine.startswith("vllm")


class Contact:
    """Speaks to one server for one model and prompt.

    Args:
        config: The server, and what is asked of it.
        renderer: Makes the prompts.
        tokenizer: The renderer's.
        key: API key.
    """

    def __init__(
        self, config: HttpTeacherConfig, renderer: PromptRenderer, tokenizer: Any, key: str | None
    ) -> None:
        self._config, self._tokenizer, self._key = config, tokenizer, key
        self._answers = renderer.answers
        self._longest = renderer.longest_prefix + len(renderer.suffix("")) + 1
        self._url = config.base_url
        self._offered: list[str] = []
        self._met: tuple[Server, Mode] | None = None
        self.sample = next(renderer.prompts([_SAMPLE]))[1]
        """Token ids of a fixed prompt."""
        # A server that does not write token ids writes a token's text or its vocabulary entry.
        self.names: dict[str, int] = {
            name: token
            for token in self._answers.ids
            for name in (tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token]))
        }
        """Token ids of the answers by what the server may call them."""

    def client(self, patience: float | None = None) -> HttpClient:
        """A client for this server, to be entered; `patience` is the configured one by default."""
        config = self._config
        return HttpClient(
            self._url,
            self._key,
            timeout=config.timeout,
            patience=config.patience if patience is None else patience,
        )

    def meet(self) -> tuple[Server, Mode]:
        """What the server is and can do; asked once.

        Raises:
            TeacherError: Nobody answers, or the server cannot judge.
        """
        if self._met is None:
            with self.client(min(self._config.patience, _FIRST_CONTACT)) as client:
                self._met = self._identify(client), self._feature_test(client)
        return self._met

    def post(
        self, client: HttpClient, prompts: Sequence[Sequence[int]], mode: Mode
    ) -> Future[dict[str, Any]]:
        """Ask for one answer token to each prompt; see `HttpClient.post`."""
        return client.post("completions", protocol.body(self._config.model, prompts, mode, self._answers))

    def recognise(self, client: HttpClient) -> None:
        """Raise if another server answers now: its judgments must not go under the old one's fingerprint.

        Raises:
            TeacherError: Engine, model or its weights' format changed.
        """
        was, now = self.meet()[0], self._identify(client)
        if was != now:
            raise TeacherError(
                f"{self._url} was {was}, now it is {now}",
                "judgments so far are kept; to go on with them bring the old server back (the same command "
                "would ask the new one everything anew)",
            )

    def explained(self, failure: RefusedError | GaveUpError) -> TeacherError:
        """The error to raise when the server does not do what is asked."""
        cure = "see the server's log"
        if isinstance(failure, RefusedError):
            known = f" (it serves {', '.join(self._offered)})" if self._offered else ""
            name = f"set teacher.model to a name the server knows{known}; teacher.base_url mostly ends in /v1"
            key = "name the environment variable that holds the right API key in teacher.api_key_env"
            cure = {401: key, 403: key, 404: name}.get(
                failure.status, "the server must take prompts of token ids and give 20 logprobs; see its log"
            )
        return TeacherError(f"{self._url} does not judge with {self._config.model!r}: {failure}", cure)

    def _identify(self, client: HttpClient) -> Server:
        base = self._url.removesuffix("/v1")
        # Both at once: answers wait for this.
        versions = client.get(f"{base}/version")
        cards = self._told(client.get(f"{self._url}/models")).get("data")
        known = [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
        self._offered = [str(card["id"]) for card in known if "id" in card]
        card = next((card for card in known if card.get("id") == self._config.model), {})
        longest = card.get("max_model_len")
        if isinstance(longest, int) and longest < self._longest:
            raise TeacherError(
                f"{self._url} takes {longest} tokens, and a document's prompt may need {self._longest}",
                f"start the server with --max-model-len {self._longest + _LABEL}, or lower "
                "teacher.max_document_tokens",
            )
        version = self._told(versions).get("version")
        root = card.get("root")
        info = {}
        # A server that did not know the question will not know it the next time.
        if self._met is None or self._met[0].weights:
            info = self._told(client.get(f"{base}/server_info?config_format=json"))
        return Server(
            f"{card.get('owned_by') or 'server'}-{version}" if isinstance(version, str) else "unknown",
            root.rstrip("/").rpartition("/")[2] if isinstance(root, str) else None,
            ", ".join(dict.fromkeys(_weights(card, info))),
        )

    def _told(self, answer: Future[dict[str, Any]]) -> dict[str, Any]:
        """What the server says of itself; nothing if it does not know the question."""
        try:
            return answer.result()
        except RefusedError as refusal:
            if refusal.status in (401, 403):
                raise self.explained(refusal) from None
            return {}
        except GaveUpError as failure:
            raise self.explained(failure) from None

    def _feature_test(self, client: HttpClient) -> Mode:
        """Have the sample judged: `full` if every answer token's probability comes, else `top20`."""
        modes: tuple[Mode, ...] = ("full", "top20")
        for mode in modes:
            try:
                answer = self.post(client, [self.sample], mode).result()
            except RefusedError as refusal:
                # A server that does not know vLLM's parameters may refuse them.
                if mode == "full" and refusal.status in (400, 422):
                    continue
                raise self.explained(refusal) from None
            except GaveUpError as failure:
                raise self.explained(failure) from None
            choice = protocol.choices(answer, 1)[0]
            found = protocol.logprobs(choice, self.names)
            if found.keys() >= set(self._answers.ids) if mode == "full" else protocol.top(choice):
                self._check_tokenizer(answer, choice)
                return mode
        raise TeacherError(
            f"{self._url} gives no log-probabilities",
            "use a server whose /completions answers `logprobs`, such as `vllm serve`",
        )

    def _check_tokenizer(self, answer: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        """Raise if the server reads or writes other tokens than we do."""
        read = protocol.prompt_tokens(answer)
        if read not in (None, len(self.sample)):
            fault = f"it read {read} tokens where {len(self.sample)} were sent"
        else:
            token, text = protocol.first_token(choice)
            ours = "" if token is None else self._tokenizer.decode([token], skip_special_tokens=True).strip()
            # Half a character cannot be compared.
            if not text or not ours or text == ours or "\ufffd" in text + ours:
                return
            fault = f"token {token} is {text!r} there and {ours!r} here"
        raise TeacherError(
            f"{self._url} has another tokenizer: {fault}",
            "name the served model's tokenizer in teacher.tokenizer (--tokenizer)",
        )


def _weights(*told: Any) -> Iterator[str]:
    """What a model's card and the server's account of itself say of the weights' format."""
    for part in told:
        if isinstance(part, dict):
            for name in ("dtype", "quantization", "size"):
                if isinstance(value := part.get(name), str | int):
                    yield f"{name} {value}"
            # Of vLLM's whole configuration, and where llama.cpp puts it.
            yield from _weights(*(part.get(name) for name in ("vllm_config", "model_config", "meta")))


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

    Prompts go to `/completions` as token ids made here, so `<|im_end|>` in a document stays text. A server
    that takes only text is refused: what it makes of control tokens in a document would be out of our hands.

    When the fingerprint is first wanted, the server is asked what it is and can do. With vLLM's
    `logprob_token_ids` it gives the probabilities of exactly the answer tokens (mode `full`). Any other gives
    its 20 most probable tokens (mode `top20`): spellings outside count as zero, so label mass is a lower
    bound, and an answer with one side wholly outside is `no_logprobs`. The mode is part of the fingerprint,
    and so are engine version and the name of the folder or hub id the server loaded and, where it tells,
    dtype and quantisation; the server's address is not. No answer is handed on before the server was asked
    once more who it is.

    A request the server fails on six times gives `engine_error`; a server that is gone, restarts or is busy
    is waited for. vLLM answers NaN with status 500, so that ends as `engine_error` too.

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
