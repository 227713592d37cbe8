"""An OpenAI-compatible server without a model: answers by a rule, misbehaves on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ezxmc.hashing import json_hash

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer in which yes and no are single tokens, in a model's folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_SPECIAL,
        show_progress=False,
    )
    bpe.train_from_iterator(["Yes No yes no"] * 100 + ["Yes", "No"] * 100, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_SPECIAL[0])
    fast.chat_template = _CHATML
    fast.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


class Reply(Exception):  # noqa: N818 - no error of ours
    """What to answer instead: a status, a body and headers."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if body is not None else {"error": {"message": f"scripted {status}"}}
        self.headers = headers


class Hang(Exception):  # noqa: N818
    """Answer nothing until the client goes away."""


class FakeServer:
    """A server on a free loopback port.

    Attributes:
        script: Called with each completion request before it is answered; may
            raise `Reply` or `Hang`, or change the answer by returning a
            function of it (to a `Reply`, if it likes).
        asked: Bodies of the completion requests, the feature test's left out.
        most: Most completion requests under way at once.
        gone: Requests whose client went away while they hung.
        top: The server knows nothing of vLLM's parameters: 20 tokens, as text.
        delay: Seconds each completion takes.
        info: Its account of itself; most servers give none.
    """

    def __init__(self, tokenizer: Path, *, top: bool = False, **card: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
        self.top, self.delay = top, 0.0
        self.script: Callable[[dict[str, Any]], Any] = lambda body: None
        self.card = {"id": "toy", "root": "/mnt/toy-1", "owned_by": "vllm", "max_model_len": 4096, **card}
        self.version = "1.0"
        self.info: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self.gone = self._now = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listen, on the port it had before."""
        outer = self

        class Handler(_Handler):
            owner = outer

        self._server = _Quiet(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Stop listening and cut every connection, as a killed process does."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def become(self, *, version: str = "", info: dict[str, Any] | None = None, **card: Any) -> None:
        """Be another server from now on, without a connection cut."""
        self.version, self.info, self.card = version or self.version, info or self.info, self.card | card

    def complete(self, body: dict[str, Any], connection: socket.socket) -> Any:
        if not self.is_test(body):
            self.asked.append(body)
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.delay)
            change = self.script(body)
            return (change or (lambda answer: answer))(self._answer(body))
        except Hang:
            connection.settimeout(60)
            with suppress(OSError):
                connection.recv(1)
            self.gone += 1
            raise
        finally:
            with self._lock:
                self._now -= 1

    def is_test(self, body: dict[str, Any]) -> bool:
        return len(body["prompt"]) == 1 and "Seven plain words" in self.tokenizer.decode(body["prompt"][0])

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"]
        return {
            "choices": [
                {
                    "index": index,
                    "text": "Yes",
                    "logprobs": {
                        "tokens": ["Yes" if self.top else f"token_id:{self._id('Yes')}"],
                        "top_logprobs": [self._top(ids, body)],
                    },
                }
                # An order of its own: only `index` counts.
                for index, ids in reversed(list(enumerate(prompts)))
            ],
            "usage": {
                "prompt_tokens": sum(map(len, prompts)),
                "prompt_tokens_details": {"cached_tokens": 64 if len(prompts) > 1 else 32},
            },
            "system_fingerprint": f"build-{self.version}",
        }

    def _id(self, text: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(text))

    def _top(self, ids: list[int], body: dict[str, Any]) -> dict[str, float]:
        rule = int(json_hash(ids)[:4], 16) / 65536
        if self.top:
            return {"Yes": -0.4 - rule, "No": -1.5, "Maybe": -7.0}
        wanted = body.get("logprob_token_ids", [])
        return {f"token_id:{token}": -2.5 - (3 * rule if place else 0) for place, token in enumerate(wanted)}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are two small pieces
    owner: FakeServer

    def setup(self) -> None:
        super().setup()
        self.owner._open.add(self.connection)

    def finish(self) -> None:
        self.owner._open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"data": [self.owner.card]})
        elif self.path == "/version" and self.owner.version:
            self._send(200, {"version": self.owner.version})
        elif self.path.startswith("/server_info") and self.owner.info:
            self._send(200, self.owner.info)
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.headers.append(dict(self.headers))
        try:
            answer = self.owner.complete(body, self.connection)
            if isinstance(answer, Reply):
                raise answer
            self._send(200, answer)
        except Hang:
            self.close_connection = True
        except Reply as reply:
            self._send(reply.status, reply.body, **reply.headers)

    def _send(self, status: int, body: Any, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass
