"""What every teacher backend promises (`ezxmc.teacher.base`), asked of each of them."""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import engines, vllm_server
from support.commands import gone
from support.fake_server import FakeServer, save_tokenizer
from support.fakes import FakeTeacher, catalog
from support.tinyworld import build_cross_encoder

from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, VllmTeacherConfig
from ezxmc.records import Document, Label, Pair, Status
from ezxmc.teacher import Teacher, load_teacher

DOCUMENTS, LABELS = catalog(4, 5)
PAIRS = [Pair(doc, label) for doc in DOCUMENTS for label in LABELS]


@dataclass(frozen=True)
class Backend:
    """A teacher, and how to make it again, the same or another one."""

    teacher: Teacher
    same: Callable[[], Teacher]
    others: tuple[Callable[[], Teacher], ...]
    by_uid: bool = False
    stop: Callable[[], None] = lambda: None
    processes: Callable[[], list[psutil.Process]] = list  # which end when the teacher is closed


def fake(_: Path) -> Backend:
    fails = lambda pair: pair.label.uid == "l3"  # noqa: E731
    return Backend(
        FakeTeacher(fails=fails),
        lambda: FakeTeacher(fails=fails),
        (lambda: FakeTeacher(name="other"),),
    )


def replay(folder: Path) -> Backend:
    rows = [
        {"doc": pair.doc.uid, "label": pair.label.uid, "log_odds": 0.25 * i - 2, "mass": 0.9}
        for i, pair in enumerate(PAIRS)
        if pair.label.uid != "l3"
    ]
    less = {**rows[0], "log_odds": 7.0}
    for name, content in (("judged.jsonl", rows), ("other.jsonl", [less, *rows[1:]])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    make = lambda name: load_teacher(ReplayTeacherConfig(judgments=str(folder / name)))  # noqa: E731
    return Backend(make("judged.jsonl"), lambda: make("judged.jsonl"), (lambda: make("other.jsonl"),), True)


def own(folder: Path) -> Backend:
    """The cross-encoder of examples/python_api, with weights of a few kilobytes."""
    file = Path(__file__).parents[2] / "examples" / "python_api" / "own_teacher.py"
    found = runpy.run_path(str(file))["CrossEncoderTeacher"]
    first, second = (str(build_cross_encoder(folder / str(seed), seed)) for seed in (0, 1))
    return Backend(
        found(first), lambda: found(first), (lambda: found(second), lambda: found(first, question="On"))
    )


def other_prompt(folder: Path) -> str:
    prompt = folder / "mine.toml"
    shipped = Path(__file__).parents[2] / "prompts" / "generic.toml"
    prompt.write_text(shipped.read_text(encoding="utf-8").replace("Answer Yes if", "Say Yes if"))
    return str(prompt)


def http(folder: Path) -> Backend:
    tokenizer = save_tokenizer(folder / "toy")
    server, older = FakeServer(tokenizer), FakeServer(tokenizer, root="/mnt/toy-0")
    top = FakeServer(tokenizer, top=True)

    def make(server: FakeServer = server, **changes: Any) -> Teacher:
        options: dict[str, Any] = {"model": "toy", "tokenizer": str(tokenizer), "concurrency": 4}
        return load_teacher(HttpTeacherConfig(base_url=server.url, **{**options, **changes}))

    others = (
        lambda: make(prompt=other_prompt(folder)),
        lambda: make(max_document_tokens=64),
        lambda: make(min_label_mass=0.5),
        lambda: make(older),
        lambda: make(top),
    )

    def stop() -> None:
        for each in (server, older, top):
            each.kill()

    return Backend(make(), make, others, stop=stop)


def ray(folder: Path) -> Backend:
    """Each worker of a real local cluster a client of the server of `http_vllm`."""
    workers = RayConfig(workers=2, shard_pairs=5)

    def make(**changes: Any) -> Teacher:
        return vllm_server.teacher(cluster=workers, **changes)

    others = (lambda: make(prompt=other_prompt(folder)), lambda: make(min_label_mass=0.5))
    return Backend(make(), make, others)


def http_vllm(folder: Path) -> Backend:
    make = vllm_server.teacher
    others = ({"prompt": other_prompt(folder)}, {"max_document_tokens": 64}, {"min_label_mass": 0.5})
    return Backend(make(), make, tuple(lambda o=other: make(**o) for other in others))


def vllm(folder: Path) -> Backend:
    others = ({"prompt": other_prompt(folder)}, {"max_document_tokens": 64}, {"min_label_mass": 0.5})
    make = engines.teacher
    others = (
        *(lambda o=other: make(**o) for other in others),
        # Never asked, so it starts no engine of its own.
        lambda: load_teacher(VllmTeacherConfig(**engines.SETTINGS, dtype="float32")),
    )
    return Backend(make(), make, others, processes=engines.workers)


@pytest.fixture(
    scope="module",
    params=[
        fake,
        replay,
        own,
        http,
        pytest.param(ray, marks=pytest.mark.llm),
        pytest.param(vllm, marks=pytest.mark.llm),
        pytest.param(http_vllm, marks=pytest.mark.llm),
    ],
    ids=lambda make: make.__name__,
)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    if request.param is ray:
        request.getfixturevalue("cluster")  # of the session, however often its workers are sent away
    made = request.param(tmp_path_factory.mktemp("teacher"))
    yield made
    if request.param is not vllm:  # the session's engine serves other tests too
        made.teacher.close()
    made.stop()


def test_it_is_a_teacher(backend: Backend) -> None:
    assert isinstance(backend.teacher, Teacher)


def test_empty_input_gives_nothing(backend: Backend) -> None:
    assert list(backend.teacher.score([])) == []
    assert list(backend.teacher.score(iter(()), expected=0)) == []


def test_one_judgment_per_pair_under_its_key_and_uids(backend: Backend) -> None:
    judgments = list(backend.teacher.score(PAIRS, expected=len(PAIRS)))
    wanted = sorted((backend.teacher.key(pair), pair.doc.uid, pair.label.uid) for pair in PAIRS)
    assert sorted((j.key, j.doc_uid, j.label_uid) for j in judgments) == wanted
    assert len({j.key for j in judgments}) == len(PAIRS)


def test_numbers_come_with_ok_only(backend: Backend) -> None:
    judgments = list(backend.teacher.score(PAIRS))
    assert any(j.status is Status.OK for j in judgments)
    for j in judgments:
        assert (j.log_odds is not None) == (j.status is Status.OK)
        assert j.label_mass is None or 0 <= j.label_mass <= 1
        assert 0 <= j.cached_tokens <= j.prompt_tokens
    assert len({j.log_odds for j in judgments}) > len(PAIRS) // 2, "one answer for all is no answer"


def test_answers_do_not_depend_on_the_order_of_questions(backend: Backend) -> None:
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    first = {j.key: j for j in backend.teacher.score(PAIRS)}
    second = {j.key: j for j in backend.teacher.score(shuffled)}
    assert set(first) == set(second)
    for key, j in first.items():
        assert second[key].status is j.status
        # A cached prefix was computed in other batches: equal up to rounding.
        assert second[key].log_odds == (None if j.log_odds is None else pytest.approx(j.log_odds, abs=0.15))


def test_repeated_pairs_are_each_answered(backend: Backend) -> None:
    judgments = list(backend.teacher.score([PAIRS[0], PAIRS[0], PAIRS[1]]))
    assert sorted(j.label_uid for j in judgments) == ["l0", "l0", "l1"]


def test_input_is_read_lazily(backend: Backend) -> None:
    taken = 0

    def endless() -> Iterator[Pair]:
        nonlocal taken
        for number in count():
            taken += 1
            yield Pair(Document(f"e{number // 5}", "", f"endless {number // 5}"), LABELS[number % 5])

    stream = backend.teacher.score(endless())
    assert taken == 0, "nothing is read before the first answer is asked for"
    answers = list(islice(stream, 12))
    stream.close()
    assert len({j.key for j in answers}) == 12
    assert 12 <= taken <= 100
    # What was queued and not waited for must not turn up in the next job.
    after = list(backend.teacher.score(PAIRS[:3]))
    assert sorted(j.key for j in after) == sorted(map(backend.teacher.key, PAIRS[:3]))


def test_a_failing_source_of_pairs_is_heard_and_survived(backend: Backend) -> None:
    def broken() -> Iterator[Pair]:
        yield from PAIRS[:2]
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        list(backend.teacher.score(broken()))
    assert len(list(backend.teacher.score(PAIRS[:2]))) == 2


def test_fingerprint_is_stable_and_tells_teachers_apart(backend: Backend) -> None:
    same, others = backend.same(), [make() for make in backend.others]
    assert same.fingerprint == backend.teacher.fingerprint
    assert same.key(PAIRS[0]) == backend.teacher.key(PAIRS[0])
    assert same.description == backend.teacher.description
    fingerprints = {teacher.fingerprint for teacher in (same, *others)}
    assert len(fingerprints) == 1 + len(others)
    assert len({teacher.key(PAIRS[0]) for teacher in (same, *others)}) == len(fingerprints)


def test_keys_are_made_of_what_the_teacher_reads(backend: Backend) -> None:
    key, doc, label = backend.teacher.key, PAIRS[0].doc, PAIRS[0].label
    assert len(key(PAIRS[0])) == 64
    assert len({key(pair) for pair in PAIRS}) == len(PAIRS)
    renamed = Pair(Document("new", doc.title, doc.text), Label("new", label.title))
    rewritten = Pair(Document(doc.uid, doc.title, "new"), label)
    assert (key(renamed) == key(PAIRS[0])) is not backend.by_uid
    assert (key(rewritten) == key(PAIRS[0])) is backend.by_uid


def test_description_is_plain_json(backend: Backend) -> None:
    description = backend.teacher.description
    assert json.loads(json.dumps(description)) == description
    assert description["backend"]


def test_closed_twice_it_can_be_used_again(backend: Backend) -> None:
    before = {j.key: j.status for j in backend.teacher.score(PAIRS[:3])}
    processes = backend.processes()
    backend.teacher.close()
    backend.teacher.close()
    gone(processes)
    assert backend.teacher.key(PAIRS[0]) in before
    assert {j.key: j.status for j in backend.teacher.score(PAIRS[:3])} == before
    assert len(backend.processes()) == len(processes)
