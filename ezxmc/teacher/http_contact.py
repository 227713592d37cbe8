"""Meeting a server: what it is, whether it can judge, and whether it is still the same one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ezxmc.config import HttpTeacherConfig
from ezxmc.errors import TeacherError
from ezxmc.records import Document, Label, Pair
from ezxmc.teacher import http_protocol as protocol
from ezxmc.teacher.http_client import GaveUpError, HttpClient, RefusedError
from ezxmc.teacher.http_protocol import Mode
from ezxmc.teacher.prompt import PromptRenderer

# Later a server may be gone for `patience`; at first its address is more likely wrong.
_FIRST_CONTACT = 20.0
_LABEL = 128  # tokens kept for a label where a context length is recommended
_SAMPLE = Pair(Document("", "A title", "Seven plain words, 1 number, an é."), Label("", "A label"))


@dataclass(frozen=True, slots=True)
class Server:
    """Which engine and model answer.

    Attributes:
        engine: Such as `vllm-0.32.0`; `unknown` where the server does not say.
        served: Last part of the path or hub id the server loaded the model
            from, if it says so; the part before may be a mount point.
        weights: How these are kept, such as `dtype bfloat16, quantization awq`;
            empty where the server does not say (vLLM does in its development
            mode, SGLang always, llama.cpp tells their size).
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
            if found.keys() >= set(self._answers.ids) if mode == "full" else protocol.gives_logprobs(choice):
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
