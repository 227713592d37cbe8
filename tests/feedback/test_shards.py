"""Judgments in shards: how pairs are cut, files written, and merged into the store exactly once."""

from __future__ import annotations

import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeTeacher, catalog

from ezxmc.cli.console import with_engine
from ezxmc.cluster import RayConfig, pool
from ezxmc.cluster.pool import Board, Task, WorkerRate, _Worker, line, stragglers, table
from ezxmc.config import RunConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, VllmTeacherConfig
from ezxmc.disk import temporary
from ezxmc.errors import ClusterError, ConfigError, StoreError, TeacherError
from ezxmc.feedback.exchange import merge_shards
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Judgment, Label, Pair, Status
from ezxmc.teacher import load_teacher
from ezxmc.teacher.shards import Shard, ShardFolder, cut

TEACHER = FakeTeacher()


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 6))
def test_a_cut_loses_nothing_and_keeps_documents_together(widths: list[int], size: int) -> None:
    docs = [Document(f"d{i}", "", f"text {i}") for i in range(len(widths))]
    labels = [Label(f"l{j}", f"{j}") for j in range(9)]
    pairs = [Pair(doc, label) for doc, width in zip(docs, widths, strict=True) for label in labels[:width]]
    shards = list(cut(iter(pairs), size))
    assert [pair for shard in shards for pair in shard] == pairs
    assert all(size <= len(shard) < 2 * size for shard in shards[:-1])
    for doc, width in zip(docs, widths, strict=True):
        parts = [sum(pair.doc is doc for pair in shard) for shard in shards]
        # A document is parted only if it fills shards of its own.
        assert sum(part > 0 for part in parts) <= max(1, -(-width // size))


JUDGMENTS = st.builds(
    lambda number, status, value, tokens: Judgment(
        text_hash("key", str(number)),
        f"d{number}",
        "ä\n",
        status,
        value if status is Status.OK else None,
        None if status is Status.ENGINE_ERROR else 0.5,
        tokens,
        tokens // 2,
    ),
    st.integers(0, 7),
    st.sampled_from((Status.OK, Status.LOW_MASS, Status.ENGINE_ERROR)),
    st.floats(-20, 20),
    st.integers(0, 1 << 40),
)


@given(st.lists(JUDGMENTS, min_size=1))
def test_a_shard_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, judgments: list[Judgment]
) -> None:
    path = tmp_path_factory.mktemp("shard") / "000000.parquet"
    shard = Shard("f" * 64, {"backend": "fake", "n": [1, {"é": None}]}, 1.5, judgments)
    shard.write(path)
    assert Shard.read(path) == shard
    assert [file.name for file in path.parent.iterdir()] == [path.name]


class Crash(Exception):  # noqa: N818
    """Stands for kill -9."""


class Crashing:
    """A store that dies right after its commits, before anything else is done; or right before them."""

    def __init__(self, store: FeedbackStore, crashes: list[str]) -> None:
        self._store, self._crashes = store, crashes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, *values: Any) -> list[Judgment]:
        when = self._crashes.pop() if self._crashes else "never"
        if when == "before":
            raise Crash
        new = self._store.append(*values)
        if when == "after":
            raise Crash
        return new


@given(
    st.lists(st.lists(st.lists(JUDGMENTS, min_size=1, max_size=5), max_size=3), max_size=3),
    st.lists(JUDGMENTS, max_size=3),
    st.lists(st.sampled_from(("before", "after", "never")), max_size=6),
)
def test_shards_are_merged_exactly_once_whenever_the_driver_dies(
    tmp_path_factory: pytest.TempPathFactory,
    jobs: list[list[list[Judgment]]],
    before: list[Judgment],
    crashes: list[str],
) -> None:
    path = tmp_path_factory.mktemp("merge") / "feedback.sqlite"
    place = path.with_name(f"{path.name}-shards")
    for number, shards in enumerate(jobs):
        folder = place / f"{number:032x}"
        folder.mkdir(parents=True)
        for position, judgments in enumerate(shards):
            shard = Shard(TEACHER.fingerprint, TEACHER.description, 2.0, judgments)
            shard.write(folder / f"{position:06}.parquet")
        (folder / temporary()).write_bytes(b"PAR1")  # of a worker killed while it wrote
    offered = [*before, *(j for shards in jobs for judgments in shards for j in judgments)]
    with FeedbackStore(path) as store:
        session = store.open_session(TEACHER.fingerprint, TEACHER.description)
        store.append(session, before, 0.0)
        while True:
            try:
                merge_shards(Crashing(store, crashes))  # type: ignore[arg-type]
                break
            except Crash:
                continue
        stored = list(store.judgments())
        totals = store.totals(TEACHER.fingerprint)
        assert merge_shards(store) == 0
    final = {j.key for j in offered if j.status.final}
    assert sorted(j.key for j in stored) == sorted(final)
    assert all(j in offered for j in stored)
    assert totals.judged == totals.judgments == len(final)
    assert totals.failures == len({j.key for j in offered} - final)
    assert totals.seconds <= 2.0 * sum(len(shards) for shards in jobs)
    assert not place.exists()


def test_shards_of_a_job_at_work_are_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    judged = [Judgment(text_hash("a"), "d", "l", Status.OK, 1.0, 0.9)]
    working = ShardFolder(path.with_name(f"{path.name}-shards"))
    Shard(TEACHER.fingerprint, TEACHER.description, 1.0, judged).write(file := working.next())
    with FeedbackStore(path) as store:
        assert merge_shards(store) == 0
        assert working.take(file).judgments == judged
        working.close()  # before anybody stored it
        assert merge_shards(store) == 1
        assert store.get([judged[0].key])


def test_a_shard_is_deleted_when_all_of_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = ShardFolder(Path("shards"))
    assert folder.path.parent == tmp_path / "shards", "workers elsewhere find it, too"
    docs, labels = catalog(2, 3)
    paths = []
    for doc in docs:
        judgments = list(TEACHER.score(Pair(doc, label) for label in labels))
        paths.append(folder.next())
        Shard(TEACHER.fingerprint, {}, 1.0, judgments).write(paths[-1])
        folder.take(paths[-1])
    folder.stored(2)
    assert [path.exists() for path in paths] == [True, True]
    folder.stored(2)
    assert [path.exists() for path in paths] == [False, True]
    folder.stored(2)
    assert [path.exists() for path in paths] == [False, False]
    folder.close()
    assert not (tmp_path / "shards").exists()


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = (tmp_path / "feedback.sqlite-shards") / uuid4().hex
    folder.mkdir(parents=True)
    (folder / "000000.parquet").write_bytes(b"not parquet")
    with (
        FeedbackStore(tmp_path / "feedback.sqlite") as store,
        pytest.raises(StoreError, match=r"000000\.parquet is no shard[\s\S]*delete this file"),
    ):
        merge_shards(store)


def test_the_board_times_workers_and_names_the_slow_one() -> None:
    now = 0.0
    board = Board(lambda: now)
    for slot, actor in enumerate("abc"):
        board.began(slot, f"host:{actor}")
    now = 100.0  # engines start: no part of anybody's speed
    for slot in range(3):
        board.did(slot, 1)
    assert stragglers(board.rates()) == []
    now = 110.0
    for slot, items in enumerate((100, 80, 25)):
        board.did(slot, items)
        board.ended(slot, 5 * (slot == 2))
    now = 500.0  # waiting is not working
    board.began(1, "host:b")
    now = 510.0
    board.began(2, "host:c2")
    rates = board.rates()
    assert [rate.per_second for rate in rates] == [10.0, pytest.approx(80 / 20), 3.0]
    assert [rate.shard_seconds for rate in rates] == [None, 10.0, 0.0]
    assert [rate.restarts for rate in rates] == [0, 0, 1]
    assert [rate.items for rate in rates] == [101, 81, 31]
    hurried = [WorkerRate(f"w{i}", 10, speed) for i, speed in enumerate((10.0, 9.0, 8.0, 3.0))]
    assert stragglers(hurried) == ["w3"]
    assert [row["straggler"] for row in table(hurried)] == [False, False, False, True]
    assert line(hurried).startswith("4 workers, 30.0/s: STRAGGLER w3 10 3.0/s waits; w2")
    assert json.loads(json.dumps(table(rates)))


class Telling:
    """A board's handle as a worker has it."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._board, name))


def test_a_worker_does_a_task_once_and_tells_what_ends_the_job(tmp_path: Path) -> None:
    board, opened = Board(), []

    class Writing:
        def open(self, slot: int) -> Any:
            opened.append(slot)
            return self.work

        def work(self, task: Task, tell: Any) -> None:
            for item in task.items:
                if item == "refused":
                    raise ConfigError("it is refused", "do this")
                tell(1)
            with Path(task.path).open("a") as file:
                file.write("done")

    worker = _Worker(Telling(board), Writing(), 3)
    paths = [str(tmp_path / name) for name in "abc"]
    assert worker.do(Task(paths[0], range(7))) is worker.do(Task(paths[1], range(2))) is None
    # Its predecessor died between the last step and the word that it is done.
    assert worker.do(Task(paths[0], range(7))) is None
    assert [Path(path).read_text() for path in paths[:2]] == ["done", "done"] and opened == [3]
    assert worker.do(Task(paths[2], ["fine", "refused"])) == ("it is refused", "do this")
    told = worker.do(Task(str(tmp_path / "elsewhere" / "d"), [1]))
    assert told is not None and "does not see" in told[0] and "file system that all nodes share" in told[1]
    (rate,) = board.rates()
    assert (rate.items, rate.shards, rate.shard_seconds, rate.restarts) == (10, 4, None, 0)


def test_without_ray_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.jsonl").write_text('{"doc": "d0", "label": "l0", "log_odds": 1.0}\n')
    monkeypatch.setattr(pool, "find_spec", lambda name: None)
    teacher = load_teacher(ReplayTeacherConfig(judgments=str(tmp_path / "r.jsonl")), cluster=RayConfig())
    docs, labels = catalog(1, 1)
    with pytest.raises(TeacherError, match=r"Ray is not installed[\s\S]*ezxmc\[ray\]"):
        list(teacher.score([Pair(docs[0], labels[0])]))
    teacher.close()
    with pytest.raises(ClusterError):
        pool.connect(RayConfig())


def test_replicas_need_a_server(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"doc": "d0", "label": "l0", "log_odds": 1.0}\n')
    with pytest.raises(ConfigError, match="no server"):
        load_teacher(
            ReplayTeacherConfig(judgments=str(tmp_path / "r.jsonl")),
            cluster=RayConfig(servers=["http://a/v1"]),
        )


EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster"


@pytest.mark.parametrize("name", ["run", "servers"])
def test_the_runs_of_the_cluster_example_are_valid(name: str) -> None:
    config = RunConfig.load(EXAMPLE / f"{name}.yaml")
    assert config.cluster is not None
    if name == "servers":
        assert isinstance(config.teacher, HttpTeacherConfig)
        assert config.cluster.workers % len(config.cluster.servers) == 0
    else:
        assert isinstance(config.teacher, VllmTeacherConfig)
        assert config.cluster.workers == 8 * len(nodes()), "a worker for each GPU"


def nodes() -> list[str]:
    provider = yaml.safe_load((EXAMPLE / "ray-cluster.yaml").read_text(encoding="utf-8"))["provider"]
    return [provider["head_ip"], *provider["worker_ips"]]


def test_the_cluster_of_the_example_is_one_for_ray() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    launched = yaml.safe_load((EXAMPLE / "ray-cluster.yaml").read_text(encoding="utf-8"))
    origin = find_spec("ray")
    assert origin and origin.origin
    schema = Path(origin.origin).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(launched, json.loads(schema.read_text()))
    assert launched["max_workers"] == len(nodes()) - 1


def test_failures_in_shards_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    folder = path.with_name(f"{path.name}-shards") / uuid4().hex
    folder.mkdir(parents=True)
    failed = Judgment(text_hash("f"), "d", "l", Status.ENGINE_ERROR)
    Shard(TEACHER.fingerprint, TEACHER.description, 1.0, [failed]).write(folder / "000000.parquet")
    with FeedbackStore(path) as store:
        assert merge_shards(store) == 0
        assert [one.doc_uid for one in store.failures(TEACHER.fingerprint)] == ["d"]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM judgments").fetchone() == (0,)
    db.close()


def test_options_of_the_cluster_go_with_the_engine_ray(tmp_path: Path) -> None:
    plain = RunConfig.model_validate({"data": {"documents": "d", "labels": "l"}})
    assert with_engine(plain, None, None, None).cluster is None
    asked = with_engine(plain, "ray", 7, "auto").cluster
    assert asked is not None and (asked.workers, asked.address) == (7, "auto")
    assert with_engine(with_engine(plain, "ray", 7, None), None, None, "h:6379").ray.workers == 7
    with pytest.raises(typer.BadParameter, match="--engine ray"):
        with_engine(plain, None, 7, None)
