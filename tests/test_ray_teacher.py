"""Jobs on a real local Ray cluster of two worker processes: killed, resumed, counted at the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import vllm_server
from fake_server import FakeServer, Reply, save_tokenizer
from fakes import catalog
from tinyworld import write_catalog, write_rows

from ezxmc import tagging_ray
from ezxmc.bundle import save_bundle
from ezxmc.cluster import RayConfig
from ezxmc.cluster.connection import connect, disconnect
from ezxmc.config import HttpTeacherConfig, RunConfig, VllmTeacherConfig
from ezxmc.data import RowReport
from ezxmc.errors import TeacherError
from ezxmc.feedback.annotate import AnnotateSummary, annotate, pairs_of
from ezxmc.feedback.shards import merge_shards, shard_folder
from ezxmc.feedback.store import FeedbackStore
from ezxmc.pipeline import run
from ezxmc.predict import WINDOW
from ezxmc.records import Judgment, Pair, Status
from ezxmc.retrieval import BiEncoder, ray_encoder
from ezxmc.retrieval.ray_encoder import RayEncoder
from ezxmc.tagging import Row, RowFile, Rule, tag_rows
from ezxmc.tagging_ray import RayTagger
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.teacher.ray_data import RayTeacher
from ezxmc.teacher.shards import Shard

pytestmark = pytest.mark.timeout(600)

DOCUMENTS, LABELS = catalog(60, 10)
SHARD = 50


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayConfig]:
    """One cluster for all tests here; each pool starts and ends its own workers in it."""
    config = RayConfig(workers=2, shard_pairs=SHARD)
    connect(config)
    yield config
    disconnect()


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


def test_it_listens_on_this_machine_alone_and_reports_to_nobody(cluster: RayConfig) -> None:
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections():
                if one.status == psutil.CONN_LISTEN:
                    found[one.laddr.port] = ip_address(one.laddr.ip.removeprefix("::ffff:"))
    assert len(found) >= 4
    assert all(address.is_loopback for address in found.values()), found
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()


def test_it_tells_of_its_troubles_on_stderr_alone(
    cluster: RayConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private import worker

    # As its listener for errors does, whatever `log_to_driver` says.
    worker.print_to_stdstream({"lines": ["a worker died"], "pid": "raylet", "is_err": False}, False)
    out, err = capsys.readouterr()
    assert out == "" and "a worker died" in err


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
    # What fails gets a status, on the same workers; the others do not suffer.
    server.delay = 0.0
    server.script = faults(server)
    summary = job(teacher, tmp_path / "failing.sqlite")
    assert summary.statuses == {"ok": 580, Status.TRUNCATED_TOO_FAR: 10, Status.NO_LOGPROBS: 10}
    assert summary.problems[Status.NO_LOGPROBS].some == ["d5"]
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
    teacher.close()
    assert stored(tmp_path / "ray.sqlite") == direct
    assert asked(server) and asked(other) > asked(server)
    assert asked(server) + asked(other) <= 600 + SHARD, "what a shard had answers to is not asked again"

    older = FakeServer(Path(server.tokenizer.name_or_path), root="/mnt/toy-0")
    mixed = cluster.model_copy(update={"servers": [other.url, older.url]})
    teacher = load_teacher(config(server), cluster=mixed)
    with pytest.raises(TeacherError, match=r"another teacher than the driver: served 'toy-0', not 'toy-1'"):
        job(teacher, tmp_path / "mixed.sqlite")
    teacher.close()
    other.kill()
    older.kill()


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All of its processes but Ray's agents, which outlive it by a minute: they wait to tell of it."""
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "Agent" not in child.name()]


def kept(path: Path) -> set[str]:
    """Keys of the judgments in a store, or in a shard that waits to be merged."""
    left = [Shard.read(shard) for shard in shard_folder(path).glob("*/*.parquet")]
    return set(stored(path)) | {judgment.key for shard in left for judgment in shard.judgments}


def test_a_killed_driver_goes_on_where_its_workers_were(
    server: FakeServer, direct: dict[str, Judgment], tmp_path: Path
) -> None:
    write_rows(tmp_path / "d.jsonl", [{"uid": d.uid, "title": d.title, "text": d.text} for d in DOCUMENTS])
    write_rows(tmp_path / "l.jsonl", [{"uid": label.uid, "title": label.title} for label in LABELS])
    uids = [label.uid for label in LABELS]
    write_rows(tmp_path / "s.jsonl", [{"doc": d.uid, "labels": uids} for d in DOCUMENTS])
    path = tmp_path / "feedback.sqlite"
    command = [sys.executable, "-c", "from ezxmc.cli.app import main; main()", "annotate"]
    command += ["d.jsonl", "l.jsonl", "s.jsonl", "--server", server.url, "--model", "toy"]
    command += ["--tokenizer", str(tmp_path / "toy"), "--engine", "ray", "--workers", "2", "--json"]
    most = 2 * 80  # 600 pairs for 2 workers: shards of eight documents
    server.delay = 1.5
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = []
    try:
        while asked(server) < 300:
            assert driver.poll() is None
            time.sleep(0.02)
        children = workers_of(driver)
        # Stopped first: what workers finish now is left for the next driver.
        driver.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 20
        while time.monotonic() < until and len(list(shard_folder(path).glob("*/*.parquet"))) < 2:
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "a cluster of this machine ends with its driver"
    before, known = asked(server), kept(path)
    assert len(known) > len(stored(path)) and before < 600
    assert before - len(known) <= most, "lost: what was in hand"

    server.delay = 0.0
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert asked(server) - before == told["asked"] == 600 - len(known)
    assert told["known"] == len(known)
    assert "whose driver was interrupted" in done.stderr
    assert {row["straggler"] for row in told["workers"]} <= {False, True}
    assert sum(row["items"] for row in told["workers"]) == told["asked"]
    assert stored(path) == direct
    assert not shard_folder(path).exists()


def test_a_catalog_is_encoded_as_by_one_process_and_what_is_done_is_kept(
    cluster: RayConfig, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_encoder, "SHARD", 40)
    monkeypatch.chdir(tmp_path)  # which is not where the workers are
    texts = [f"the {word} of boat {number}" for number in range(50) for word in ("rose", "comet", "drum" * 9)]
    alone = BiEncoder(tiny_encoder, max_length=32)
    shared = RayEncoder(tiny_encoder, cluster, Path("vectors"), max_length=32)
    told: list[tuple[int, int]] = []
    first = shared.encode_documents(texts, progress=lambda *now: told.append(now))
    assert np.abs(first - alone.encode_documents(texts)).max() < 1e-5
    assert told[-1] == (150, 150) and told == sorted(told)
    files = sorted((tmp_path / "vectors").iterdir())
    assert len(files) == 4
    # Interrupted: one shard is missing, and another process takes the rest as it is.
    content = np.load(files[0])
    np.save(files[0], -content)
    files[1].unlink()
    again = RayEncoder(tiny_encoder, cluster, tmp_path / "vectors", max_length=32).encode_labels(texts)
    flipped = np.flatnonzero((again != first).any(axis=1))
    assert len(flipped) == len(content), "what is there is not encoded again"
    assert len(shared.encode_documents(texts[:40])) == 40
    # An encoder that reads less makes other vectors.
    other = RayEncoder(tiny_encoder, cluster, tmp_path / "vectors", max_length=8)
    assert other._named != shared._named


def test_a_file_is_tagged_as_by_one_process_and_what_is_done_is_kept(
    cluster: RayConfig, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging_ray, "SHARD", 2)
    monkeypatch.chdir(tmp_path)  # which is not where the workers are
    save_bundle(tmp_path / "bundle", BiEncoder(tiny_encoder), LABELS, max_length=32, k=3)
    rows = [
        json.dumps({"uid": str(n), "text": f"the {'rose' if n % 3 else 'comet'} {n}"}) for n in range(2200)
    ]
    rows[700] = "{"
    source, alone, out = tmp_path / "in.jsonl", tmp_path / "alone.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(rows))
    rule = Rule("bundle", precision="float32", k=2)
    with RowFile(alone) as file:
        tag_rows(rule.tagger(), source, RowReport(), file.write)

    def tag(*, fails_after: int | None = None) -> None:
        left = count(1)

        def write(answers: list[Row]) -> None:
            if next(left) == fails_after:
                raise KeyboardInterrupt
            file.write(answers)

        with RowFile(out, resume=True) as file:
            start = file.skip // WINDOW
            with RayTagger(rule, cluster, Path("shards"), start=start) as tagging:
                tag_rows(tagging, source, RowReport(), write, skip=file.skip)

    with pytest.raises(KeyboardInterrupt):
        tag(fails_after=2)
    # The first shard (windows 0 and 1) was finished, and only its first window written.
    assert out.read_bytes() == b"".join(alone.read_bytes().splitlines(keepends=True)[:WINDOW])
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


def test_a_whole_run_on_the_cluster_is_that_of_one_machine(
    cluster: RayConfig,
    server: FakeServer,
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_encoder, "SHARD", 40)
    judged, listed = {}, {}
    for engine in ("local", "ray"):
        made = RunConfig.load(write_catalog(tmp_path / engine, tiny_encoder, cycles=1))
        settings = made.model_copy(update={"engine": engine, "ray": cluster, "teacher": config(server)})
        report = run(settings)
        assert report.evaluation is not None
        place = Path(settings.run_dir)
        judged[engine] = stored(place / "feedback.sqlite")
        lines = (place / "cycles" / "1" / "shortlist.jsonl").read_text().splitlines()
        listed[engine] = [json.loads(line) for line in lines]
        assert not (place / "vectors").exists()
        assert not shard_folder(place / "feedback.sqlite").exists()
    for there, here in zip(listed["ray"], listed["local"], strict=True):
        assert there.pop("scores") == pytest.approx(here.pop("scores"), abs=2e-4)
        assert there == here
    # Which labels a student tags with, after training, is a matter of rounding.
    both = judged["ray"].keys() & judged["local"].keys()
    assert len(both) > 0.9 * len(judged["local"])
    assert all(judged["ray"][key].log_odds == judged["local"][key].log_odds for key in both)


DRIVER = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fakes import catalog
from ezxmc.cluster import RayConfig
from ezxmc.config import HttpTeacherConfig
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.shards import merge_shards
from ezxmc.feedback.store import FeedbackStore
from ezxmc.teacher import load_teacher

documents, labels = catalog(60, 5)
teacher = load_teacher(HttpTeacherConfig(**json.loads(sys.argv[1])), cluster=RayConfig(workers=2))
with FeedbackStore("feedback.sqlite") as store:
    merge_shards(store)
    summary = annotate(lambda: pairs_of(documents, labels, [range(5)] * 60), teacher, store)
teacher.close()
print(json.dumps({{"asked": summary.asked, "known": summary.known}}))
"""


@pytest.mark.llm
def test_a_real_llm_behind_vllm_serve_judges_alike(cluster: RayConfig, tmp_path: Path) -> None:
    options = {"model": vllm_server.MODEL, "concurrency": 2, "min_label_mass": 0.0}
    settings = HttpTeacherConfig(base_url=vllm_server.shared().url, **options)
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
        with FeedbackStore(tmp_path / f"{name}.sqlite") as store:
            summary = annotate(
                lambda: pairs_of(documents, labels, rows), teacher, store, progress=killing(teacher)
            )
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
    command = [sys.executable, "-c", DRIVER, settings.model_dump_json()]
    before = vllm_server.shared().answered()
    driver = subprocess.Popen(command, cwd=tmp_path)
    children = []
    try:
        while vllm_server.shared().answered() - before < 100:
            assert driver.poll() is None
            time.sleep(0.02)
        children = workers_of(driver)
    finally:
        driver.kill()
        driver.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]
    known = kept(path)
    assert 0 < len(known) < 300
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"asked": 300 - len(known), "known": len(known)}
    in_hand = 2 * 40  # 300 pairs for 2 workers: shards of eight documents
    assert vllm_server.shared().answered() - before <= 300 + in_hand + 6 * tries
    last = stored(path)
    assert len(last) == 300
    alike({key: last[key] for key in found["direct"]}, found["direct"])


@pytest.mark.llm
def test_each_worker_has_an_engine_of_its_own(cluster: RayConfig) -> None:
    # Single precision: bfloat16 kernels round otherwise in batches of other sizes.
    settings = VllmTeacherConfig(
        model=vllm_server.MODEL, dtype="float32", kv_cache_gib=0.5, min_label_mass=0.0
    )
    documents, labels = catalog(8, 5)
    pairs = [Pair(document, label) for document in documents for label in labels]
    found: dict[str, dict[str, Judgment]] = {}
    for name, workers in (("ray", cluster.model_copy(update={"shard_pairs": 10})), ("direct", None)):
        teacher = load_teacher(settings, cluster=workers)
        found[name] = {one.key: one for one in teacher.score(pairs, expected=len(pairs))}
        if isinstance(teacher, RayTeacher):
            assert sum(row["items"] for row in teacher.workers()) == 40  # type: ignore[misc]
        teacher.close()
    assert len(found["ray"]) == 40
    alike(found["ray"], found["direct"])


def alike(some: dict[str, Judgment], others: dict[str, Judgment]) -> None:
    """A cached prefix was computed in other batches: equal up to rounding."""
    assert some.keys() == others.keys()
    for key, judgment in others.items():
        assert judgment.log_odds is not None
        assert some[key].log_odds == pytest.approx(judgment.log_odds, abs=0.02)
