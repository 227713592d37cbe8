"""Jobs on a real local Ray cluster of two worker processes: killed, resumed, counted at the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import engines, vllm_server
from support.commands import Command, gone, until
from support.fake_server import FakeServer, Reply, save_tokenizer
from support.fakes import catalog
from support.tinyworld import write_catalog, write_rows

from ezxmc.bundle import tagging
from ezxmc.bundle.bundle import save_bundle
from ezxmc.bundle.tagging import RayTagger, TaggingOptions, tag_rows
from ezxmc.cluster import RayConfig, pool
from ezxmc.config import RunConfig
from ezxmc.config.teacher import HttpTeacherConfig, VllmTeacherConfig
from ezxmc.data import RowReport
from ezxmc.data.predictions import WINDOW, RowFile
from ezxmc.data.rows import Cells
from ezxmc.errors import TeacherError
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of
from ezxmc.feedback.exchange import merge_shards
from ezxmc.feedback.store import FeedbackStore
from ezxmc.models import resolve_model
from ezxmc.pipeline.run import run
from ezxmc.records import Judgment, Label, Pair, Status
from ezxmc.retrieval import BiEncoder, ray_encoder
from ezxmc.retrieval.ray_encoder import RayEncoder
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.teacher.ray import RayTeacher
from ezxmc.teacher.shards import Shard

DOCUMENTS, LABELS = catalog(60, 10)
SHARD = 50


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    made = FakeServer(save_tokenizer(tmp_path / "toy"))
    yield made
    made.kill()


@pytest.fixture
def direct(server: FakeServer, tmp_path: Path) -> dict[str, Judgment]:
    """The job's store as the teacher of this process fills it."""
    job(http(server), tmp_path / "direct.sqlite")
    server.asked.clear()
    return stored(tmp_path / "direct.sqlite")


def config(server: FakeServer, **changes: Any) -> HttpTeacherConfig:
    place = str(Path(server.tokenizer.name_or_path))
    options: dict[str, Any] = {"model": "toy", "tokenizer": place, "concurrency": 1, "patience": 3.0}
    return HttpTeacherConfig(base_url=server.url, **{**options, **changes})


def http(server: FakeServer) -> Teacher:
    return load_teacher(config(server))


def job(teacher: Teacher, path: Path, **more: Any) -> AnnotateSummary:
    with FeedbackStore(path) as store:
        merge_shards(store)
        rows = [range(len(LABELS))] * len(DOCUMENTS)
        return annotate(lambda: pairs_of(DOCUMENTS, LABELS, rows), teacher, store, **more)


def stored(path: Path) -> dict[str, Judgment]:
    """Judgments by key; what the cache supplied is a matter of the order."""
    with FeedbackStore(path) as store:
        return {judgment.key: judgment for judgment in store.judgments()}


def asked(server: FakeServer) -> int:
    return sum(len(body["prompt"]) for body in server.asked)


def listening() -> dict[int, IPv4Address | IPv6Address]:
    """Addresses that this process's children listen on, by port."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections():
                if one.status == psutil.CONN_LISTEN:
                    found[one.laddr.port] = ip_address(one.laddr.ip.removeprefix("::ffff:"))
    return found


def test_it_tells_of_its_troubles_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    from ray._private import worker

    pool._keep_from_stdout()

    # As its listener for errors does, whatever `log_to_driver` says.
    worker.print_to_stdstream({"lines": ["a worker died"], "pid": "raylet", "is_err": False}, False)
    out, err = capsys.readouterr()
    assert out == "" and "a worker died" in err


@pytest.mark.long
def test_a_killed_worker_repeats_its_shard_and_nothing_is_lost(
    cluster: RayConfig, server: FakeServer, direct: dict[str, Judgment], tmp_path: Path
) -> None:
    server.delay = 0.15
    teacher = RayTeacher(config(server), cluster)
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if done and not killed:
            assert teacher._pool is not None
            midway: list[str] = []
            while not midway:
                time.sleep(0.02)
                rates = teacher._pool.rates()
                midway = [rate.worker for rate in rates if 0.2 < (rate.shard_seconds or 0.0) < 0.5]
            killed.append(int(midway[0].rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)

    summary = job(teacher, tmp_path / "ray.sqlite", progress=kill)
    assert killed
    assert stored(tmp_path / "ray.sqlite") == direct
    assert summary.statuses == {"ok": 600}
    assert 600 < asked(server) <= 600 + 2 * SHARD, "at most the shard in hand is asked again"
    rows = teacher.workers()
    assert sorted(row["restarts"] for row in rows) == [0, 1]
    assert sum(row["shards"] for row in rows) >= 600 // (2 * SHARD)  # type: ignore[misc]
    assert all(row["per_second"] for row in rows)
    teacher.close()
    assert not list(tmp_path.glob("*-shards")), "all is stored, nothing is left"


def faults(server: FakeServer) -> Any:
    """The server refuses document 3, and gives no probabilities for document 5."""

    def script(body: dict[str, Any]) -> Any:
        text = server.tokenizer.decode(body["prompt"][0])
        if "Title 3\n" in text:
            raise Reply(400, {"error": {"message": "the prompt is too long: max_model_len"}})
        if "Title 5\n" in text:
            return lambda answer: {**answer, "choices": [{**c, "logprobs": None} for c in answer["choices"]]}
        return None

    return script


@pytest.mark.long
def test_a_dead_replica_is_given_up_and_another_teacher_is_refused(
    cluster: RayConfig, server: FakeServer, direct: dict[str, Judgment], tmp_path: Path
) -> None:
    other = FakeServer(Path(server.tokenizer.name_or_path))
    both = cluster.model_copy(update={"servers": [server.url, other.url]})
    teacher = load_teacher(config(server, patience=1.0), cluster=both)
    server.delay = other.delay = 0.03

    def kill(done: int, total: int) -> None:
        if done and asked(server):
            server.kill()

    job(teacher, tmp_path / "ray.sqlite", progress=kill)
    assert stored(tmp_path / "ray.sqlite") == direct
    assert asked(server) and asked(other) > asked(server)
    assert asked(server) + asked(other) <= 600 + SHARD, "what a shard had answers to is not asked again"
    # What fails gets a status, on the same workers; the others do not suffer.
    other.delay = 0.0
    other.script = faults(other)
    summary = job(teacher, tmp_path / "failing.sqlite")
    assert summary.statuses == {"ok": 580, Status.TRUNCATED_TOO_FAR: 10, Status.NO_LOGPROBS: 10}
    assert summary.problems[Status.NO_LOGPROBS].some == ["d5"]
    teacher.close()
    assert not list(tmp_path.glob("*-shards")), "all is stored, nothing is left"
    other.script = lambda body: None

    older = FakeServer(Path(server.tokenizer.name_or_path), root="/mnt/toy-0")
    mixed = cluster.model_copy(update={"servers": [other.url, older.url]})
    teacher = load_teacher(config(server), cluster=mixed)
    with pytest.raises(TeacherError, match=r"another teacher than the driver: served 'toy-0', not 'toy-1'"):
        job(teacher, tmp_path / "mixed.sqlite")
    teacher.close()
    other.kill()
    older.kill()


def workers_of(driver: int) -> list[psutil.Process]:
    """All of its processes but Ray's agents, which outlive it by a minute: they wait to tell of it."""
    children = psutil.Process(driver).children(recursive=True)
    return [child for child in children if "Agent" not in child.name()]


def kept(path: Path) -> set[str]:
    """Keys of the judgments in a store, or in a shard that waits to be merged."""
    left = [Shard.read(shard) for shard in path.with_name(f"{path.name}-shards").glob("*/*.parquet")]
    return set(stored(path)) | {judgment.key for shard in left for judgment in shard.judgments}


@pytest.mark.long
def test_a_killed_driver_goes_on_where_its_workers_were(
    server: FakeServer, direct: dict[str, Judgment], tmp_path: Path
) -> None:
    write_rows(tmp_path / "d.jsonl", [{"uid": d.uid, "title": d.title, "text": d.text} for d in DOCUMENTS])
    write_rows(tmp_path / "l.jsonl", [{"uid": label.uid, "title": label.title} for label in LABELS])
    uids = [label.uid for label in LABELS]
    write_rows(tmp_path / "s.jsonl", [{"doc": d.uid, "labels": uids} for d in DOCUMENTS])
    path = tmp_path / "feedback.sqlite"
    command = ["annotate", "d.jsonl", "l.jsonl", "s.jsonl", "--server", server.url, "--model", "toy"]
    command += ["--tokenizer", str(tmp_path / "toy"), "--engine", "ray", "--workers", "2", "--json"]
    most = 2 * 80  # 600 pairs for 2 workers: shards of eight documents
    server.delay = 1.5
    driver = Command(*command, cwd=tmp_path)
    children = []
    try:
        until(lambda: not driver.running or asked(server) >= 300, driver.pid)
        assert driver.running, driver.stderr
        children = workers_of(driver.pid)
        # Stopped first: what workers finish now is left for the next driver.
        driver.send_signal(signal.SIGSTOP)
        until(lambda: len(list(path.with_name(f"{path.name}-shards").glob("*/*.parquet"))) >= 2, driver.pid)
    finally:
        driver.kill()
        driver.wait()
    gone(children)
    before, known = asked(server), kept(path)
    assert len(known) > len(stored(path)) and before < 600
    assert before - len(known) <= most, "lost: what was in hand"

    server.delay = 0.0
    done = Command(*command, cwd=tmp_path)
    assert done.wait() == 0, done.stderr
    told = json.loads(done.stdout)
    assert asked(server) - before == told["asked"] == 600 - len(known)
    assert told["known"] == len(known)
    assert "whose driver was interrupted" in done.stderr
    assert {row["straggler"] for row in told["workers"]} <= {False, True}
    assert sum(row["items"] for row in told["workers"]) == told["asked"]
    assert stored(path) == direct
    assert not path.with_name(f"{path.name}-shards").exists()


@pytest.fixture(scope="module")
def encoder() -> Path:
    return Path(resolve_model("all-MiniLM-L6-v2", kind="encoder"))


@pytest.mark.encoder
def test_a_catalog_is_encoded_as_by_one_process_on_this_machine_alone_and_what_is_done_is_kept(
    cluster: RayConfig, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_encoder, "SHARD", 40)
    monkeypatch.chdir(tmp_path)  # which is not where the workers are
    texts = [f"the {word} of boat {number}" for number in range(50) for word in ("rose", "comet", "drum" * 9)]
    alone = BiEncoder(encoder, max_length=32)
    shared = RayEncoder(encoder, cluster, Path("vectors"), max_length=32)
    told: list[tuple[int, int]] = []
    addresses: dict[int, IPv4Address | IPv6Address] = {}

    def progress(*now: int) -> None:
        told.append(now)
        addresses.update(listening())

    first = shared.encode_documents(texts, progress=progress)
    assert len(addresses) >= 4 and all(address.is_loopback for address in addresses.values()), addresses
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()
    assert np.abs(first - alone.encode_documents(texts)).max() < 1e-5
    assert told[-1] == (150, 150) and told == sorted(told)
    files = sorted((tmp_path / "vectors").iterdir())
    assert len(files) == 4
    # Interrupted: one shard is missing, and another process takes the rest as it is.
    content = np.load(files[0])
    np.save(files[0], -content)
    files[1].unlink()
    again = RayEncoder(encoder, cluster, tmp_path / "vectors", max_length=32).encode_labels(texts)
    flipped = np.flatnonzero((again != first).any(axis=1))
    assert len(flipped) == len(content), "what is there is not encoded again"
    assert len(shared.encode_documents(texts[:40])) == 40
    # An encoder that reads less makes other vectors.
    other = RayEncoder(encoder, cluster, tmp_path / "vectors", max_length=8)
    assert other._named != shared._named


@pytest.mark.encoder
def test_a_file_is_tagged_as_by_one_process_and_what_is_done_is_kept(
    cluster: RayConfig, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "SHARD", 2)
    monkeypatch.chdir(tmp_path)  # which is not where the workers are
    save_bundle(tmp_path / "bundle", BiEncoder(encoder), LABELS, max_length=32, k=3)
    rows = [
        json.dumps({"uid": str(n), "text": f"the {'rose' if n % 3 else 'comet'} {n}"})
        for n in range(3 * WINDOW)
    ]
    rows[700] = "{"
    source, alone, out = tmp_path / "in.jsonl", tmp_path / "alone.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(rows))
    options = TaggingOptions("bundle", precision="float32", k=2)
    with RowFile(alone) as file:
        tag_rows(options.tagger(), source, RowReport(), file.write)

    def tag(*, fails_after: int | None = None) -> None:
        left = count(1)

        def write(answers: list[Cells]) -> None:
            if next(left) == fails_after:
                raise KeyboardInterrupt
            file.write(answers)

        with RowFile(out, resume=True) as file:
            start = file.skip // WINDOW
            with RayTagger(options, cluster, Path("shards"), start=start) as tagging:
                tag_rows(tagging, source, RowReport(), write, skip=file.skip)

    with pytest.raises(KeyboardInterrupt):
        tag(fails_after=2)
    # The first shard (windows 0 and 1) was finished, and only its first window written.
    part = tmp_path / "out.jsonl.part"
    assert part.read_bytes() == b"".join(alone.read_bytes().splitlines(keepends=True)[:WINDOW])
    marked = []
    for shard in (tmp_path / "shards").iterdir():
        answers = json.loads(shard.read_bytes())
        if answers[0]["uid"] == "0":
            answers[WINDOW]["mark"] = "not tagged again"
            shard.write_text(json.dumps(answers))
            marked.append(shard)
    tag()
    told, wanted = ([json.loads(line) for line in path.open()] for path in (out, alone))
    assert len(marked) == 1 and told[WINDOW].pop("mark") == "not tagged again"
    assert told == wanted and wanted[700]["line"] == 701
    assert not (tmp_path / "shards").exists()


@pytest.mark.llm
@pytest.mark.long
def test_a_whole_run_on_the_cluster_is_that_of_one_machine(
    cluster: RayConfig, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_encoder, "SHARD", 40)
    asks = HttpTeacherConfig(base_url=vllm_server.shared().url, **CLIENT)
    judged, listed = {}, {}
    for engine in ("local", "ray"):
        made = RunConfig.load(write_catalog(tmp_path / engine, tiny_encoder, cycles=1))
        settings = made.model_copy(update={"engine": engine, "ray": cluster, "teacher": asks})
        report = run(settings)
        assert report.evaluation is not None
        place = Path(settings.run_dir)
        judged[engine] = stored(place / "feedback.sqlite")
        lines = (place / "cycles" / "1" / "shortlist.jsonl").read_text().splitlines()
        listed[engine] = [json.loads(line) for line in lines]
        assert not (place / "vectors").exists()
        assert not (place / "feedback.sqlite-shards").exists()
    for there, here in zip(listed["ray"], listed["local"], strict=True):
        assert there.pop("scores") == pytest.approx(here.pop("scores"), abs=2e-4)
        assert there == here
    # Which labels a student tags with, after training, is a matter of rounding.
    both = judged["ray"].keys() & judged["local"].keys()
    assert len(both) > 0.9 * len(judged["local"])
    alike(*({key: judged[engine][key] for key in both} for engine in ("ray", "local")))


CLIENT: dict[str, Any] = {"model": vllm_server.MODEL, "concurrency": 2, "min_label_mass": 0.0}


@pytest.mark.llm
def test_a_real_llm_behind_vllm_serve_judges_alike(
    cluster: RayConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = HttpTeacherConfig(base_url=vllm_server.shared().url, **CLIENT)
    documents, labels = catalog(30, 5)
    rows = [range(5)] * 30
    found, answered = {}, {}
    killed: list[int] = []

    def killing(teacher: Teacher) -> Any:
        def kill(done: int, total: int) -> None:
            if isinstance(teacher, RayTeacher) and done and not killed:
                assert teacher._pool is not None
                killed.append(int(teacher._pool.rates()[0].worker.rpartition(":")[2]))
                os.kill(killed[0], signal.SIGKILL)

        return kill

    for name, workers in (("direct", None), ("ray", cluster.model_copy(update={"shard_pairs": 10}))):
        before = vllm_server.shared().answered()
        teacher = load_teacher(settings, cluster=workers)
        request.addfinalizer(teacher.close)
        with FeedbackStore(tmp_path / f"{name}.sqlite") as store:
            summary = annotate(
                lambda: pairs_of(documents, labels, rows), teacher, store, progress=killing(teacher)
            )
        if isinstance(teacher, RayTeacher):
            told = teacher.workers()
            assert sorted(row["restarts"] for row in told) == [0, 1] and all(row["shards"] for row in told)
        teacher.close()
        assert summary.statuses == {"ok": 150}
        found[name] = stored(tmp_path / f"{name}.sqlite")
        answered[name] = vllm_server.shared().answered() - before
    assert killed
    tries = answered["direct"] - 150  # with which a client finds out what a server can do
    assert 0 <= tries < 5
    # Clients are the driver's, the two workers' and the new worker's.
    assert answered["ray"] <= 150 + 10 + 4 * tries, "a worker's shard at most was judged twice"
    alike(found["ray"], found["direct"])

    # The driver is killed; what its workers finished is judged once.
    path = tmp_path / "feedback.sqlite"
    documents = catalog(60, 5)[0]
    write_rows(tmp_path / "d.jsonl", [{"uid": d.uid, "title": d.title, "text": d.text} for d in documents])
    write_rows(tmp_path / "l.jsonl", [{"uid": label.uid, "title": label.title} for label in labels])
    uids = [label.uid for label in labels]
    write_rows(tmp_path / "s.jsonl", [{"doc": d.uid, "labels": uids} for d in documents])
    command = ["annotate", "d.jsonl", "l.jsonl", "s.jsonl", "--server", settings.base_url, "--json"]
    command += ["--model", vllm_server.MODEL, "--engine", "ray", "--workers", "2"]
    before = vllm_server.shared().answered()
    driver = Command(*command, cwd=tmp_path)
    until(lambda: not driver.running or vllm_server.shared().answered() - before >= 100, driver.pid)
    assert driver.running, driver.stderr
    children = workers_of(driver.pid)
    driver.kill()
    driver.wait()
    gone(children)
    known = kept(path)
    assert 0 < len(known) < 300
    again = Command(*command, cwd=tmp_path)
    assert again.wait() == 0, again.stderr
    told = json.loads(again.stdout)
    assert (told["asked"], told["known"]) == (300 - len(known), len(known))
    assert sum(row["items"] for row in told["workers"]) == told["asked"]
    in_hand = 2 * 40  # 300 pairs for 2 workers: shards of eight documents
    assert vllm_server.shared().answered() - before <= 300 + in_hand + 6 * tries
    last = stored(path).values()
    assert len(last) == 300 and not path.with_name(f"{path.name}-shards").exists()
    # This model often answers something else, which the command does not take for an answer.
    clear = {(one.doc_uid, one.label_uid): one for one in last if one.status is Status.OK}
    direct = {(one.doc_uid, one.label_uid): one for one in found["direct"].values()}
    assert len(clear) > 150
    alike(*({pair: of[pair] for pair in clear.keys() & direct.keys()} for of in (clear, direct)))


class Relay:
    """Passes on to a server until it is killed: a replica that dies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._open: list[socket.socket] = []
        self.passed = 0
        self._dead = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while (data := one.recv(1 << 16)) and not self._dead:
                self.passed += data.count(b"POST ")
                other.sendall(data)
        other.close()

    def kill(self) -> None:
        self._dead = True
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.mark.llm
def test_a_replica_that_dies_is_given_up_and_what_is_no_such_teacher_refused(
    cluster: RayConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = vllm_server.shared()
    relay = Relay(server.port)
    both = cluster.model_copy(update={"servers": [relay.url, server.url], "shard_pairs": 20})
    teacher = vllm_server.teacher(cluster=both, base_url=relay.url, patience=1.0)
    request.addfinalizer(teacher.close)  # whoever keeps the cluster's workers keeps the next test waiting
    documents, labels = catalog(30, 5)
    labels[4] = Label("long", "endless " * 800)
    before = server.answered()

    def kill(done: int, total: int) -> None:
        if done and relay.passed > 3:
            relay.kill()

    with FeedbackStore(tmp_path / "ray.sqlite") as store:
        summary = annotate(
            lambda: pairs_of(documents, labels, [range(5)] * 30), teacher, store, progress=kill
        )
    assert relay._dead
    assert summary.statuses == {Status.OK: 120, Status.TRUNCATED_TOO_FAR: 30}
    # What a shard had answers to is not asked again; each client finds out first what the server can do.
    assert 120 <= server.answered() - before <= 120 + 2 * 16 + 5 * 4
    pairs = [Pair(document, label) for document in documents for label in labels[:4]]
    direct = {one.key: one for one in vllm_server.teacher().score(pairs)}
    alike({key: one for key, one in stored(tmp_path / "ray.sqlite").items() if key in direct}, direct)

    # Workers whose teacher is another one than the driver's.
    assert isinstance(teacher, RayTeacher)
    teacher._configs = [teacher._configs[1].model_copy(update={"max_document_tokens": 64})]
    teacher._dismiss()
    with pytest.raises(TeacherError, match=r"another teacher .*: max_document_tokens 64, not 256"):
        list(teacher.score(pairs[:3]))


@pytest.mark.llm
def test_each_worker_has_an_engine_of_its_own(cluster: RayConfig, request: pytest.FixtureRequest) -> None:
    # Single precision, as the server's: bfloat16 kernels round otherwise in batches of other sizes.
    settings = VllmTeacherConfig(**{**engines.SETTINGS, "dtype": "float32"})
    documents, labels = catalog(8, 5)
    pairs = [Pair(document, label) for document in documents for label in labels]
    teacher = load_teacher(settings, cluster=cluster.model_copy(update={"shard_pairs": 10}))
    request.addfinalizer(teacher.close)
    assert isinstance(teacher, RayTeacher)
    found = {(one.doc_uid, one.label_uid): one for one in teacher.score(pairs, expected=len(pairs))}
    told = teacher.workers()
    assert len(found) == 40 == sum(row["items"] for row in told)  # type: ignore[misc]
    assert len({row["worker"] for row in told}) == 2
    alike(found, {(one.doc_uid, one.label_uid): one for one in vllm_server.teacher().score(pairs)})


def alike(some: Mapping[Any, Judgment], others: Mapping[Any, Judgment]) -> None:
    """A cached prefix was computed in other batches: equal up to rounding."""
    assert some.keys() == others.keys()
    for key, judgment in others.items():
        assert judgment.log_odds is not None
        assert some[key].log_odds == pytest.approx(judgment.log_odds, abs=0.02)
