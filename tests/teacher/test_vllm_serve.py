"""The HTTP teacher against a real `vllm serve`: its scores, its cache, its death and return."""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import metadata
from itertools import islice

import pytest
from support import engines
from support.fakes import catalog
from support.vllm_server import shared, teacher

from ezxmc.records import Document, Label, Pair, Status

pytestmark = pytest.mark.llm

PACKAGES = ("numpy", "httpx", "pydantic", "torch", "rich", "pyarrow", "matplotlib", "filelock")
LABELS = [
    Label(title, title)
    for title in ("Scientific computing", "Networking", "Text processing", "Graphics", "File systems")
]


def documents() -> list[Document]:
    """Real texts: what installed packages say of themselves."""
    found = [(name, metadata(name)) for name in PACKAGES]
    return [Document(name, name, f"{about['Summary']}\n{about.get_payload()}") for name, about in found]


def test_scores_equal_those_of_the_engine_in_this_process() -> None:
    pairs = [Pair(document, label) for document in documents() for label in LABELS]
    remote = {(j.doc_uid, j.label_uid): j for j in teacher().score(pairs)}
    local = {(j.doc_uid, j.label_uid): j for j in engines.teacher().score(pairs)}
    assert len(remote) == len(local) == 40
    differences = [abs(j.log_odds - local[pair].log_odds) for pair, j in remote.items()]  # type: ignore[operator]
    print("log-odds over HTTP against in-process, nats: largest", max(differences))
    # In float32 there and bfloat16 here: one step of its logits is rounding. Both stand beside transformers
    # in `test_vllm_teacher`.
    assert max(differences) < 0.4
    odds = sorted(j.log_odds for j in local.values() if j.log_odds is not None)
    assert odds[-1] - odds[0] > 0.5, "the comparison must be able to fail"
    for pair, j in remote.items():
        assert j.prompt_tokens == local[pair].prompt_tokens
        assert j.label_mass == pytest.approx(local[pair].label_mass, rel=0.15)
    told, true = (sum(j.cached_tokens for j in judged.values()) for judged in (remote, local))
    assert 0.9 * true <= told <= true, "a lower bound, and a near one"


def test_the_server_is_named_and_gives_every_answer_token() -> None:
    described = teacher().description
    assert described["mode"] == "full"
    assert described["engine"].startswith("vllm-")
    assert "/" not in described["served"]


def test_a_label_that_does_not_fit_says_so() -> None:
    document = documents()[0]
    labels = [LABELS[0], Label("long", "endless " * 400), LABELS[1]]
    statuses = {j.label_uid: j.status for j in teacher().score(Pair(document, label) for label in labels)}
    assert statuses == {
        LABELS[0].uid: Status.OK,
        "long": Status.TRUNCATED_TOO_FAR,
        LABELS[1].uid: Status.OK,
    }


def test_killed_and_started_again_in_the_middle_it_answers_every_pair_once() -> None:
    docs, labels = catalog(60, 10)
    pairs = [Pair(document, label) for document in docs for label in labels]
    asks = teacher(timeout=60.0)
    stream = asks.score(pairs)
    judged = list(islice(stream, 100))
    shared().kill()
    killed = time.monotonic()
    shared().start()
    try:
        judged += stream
    finally:
        shared().wait()
    assert Counter(j.key for j in judged) == Counter(map(asks.key, pairs))
    assert {j.status for j in judged} == {Status.OK}
    print(f"gone and back, and the job done, in {time.monotonic() - killed:.0f} s")
