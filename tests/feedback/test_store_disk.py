"""A disk that is full or read-only: a clear error, and the store as it was."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fakes import FakeTeacher, catalog

from ezxmc.errors import EzxmcError, StoreError
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.exchange import export_judgments
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Pair

NOBODY = 65_534


def job(documents: int) -> Callable[[], Iterator[Pair]]:
    docs, tags = catalog(documents, 10)
    return lambda: pairs_of(docs, tags, [range(10)] * documents)


def filled(path: Path, documents: int = 20) -> Path:
    with FeedbackStore(path) as store:
        annotate(job(documents), FakeTeacher(), store)
    return path


def answered(path: Path) -> int:
    """What is stored, in a file that must be sound."""
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count = int(db.execute("SELECT COUNT(*) FROM judgments").fetchone()[0])
        assert db.execute("SELECT SUM(judgments) FROM counts").fetchone() == (count,)
    db.close()
    return count


def in_a_process(work: Callable[[], None], *, as_nobody: bool = False, file_limit: int = 0) -> str:
    """The error `work` ends with, in a process of its own with fewer rights."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()

    def child() -> None:
        # Root may write anywhere: give that up, or the test would prove nothing.
        if as_nobody and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        if file_limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        try:
            work()
        except EzxmcError as error:
            answer.put(f"{type(error).__name__}: {error}")
        except BaseException as error:
            answer.put(f"not translated: {error!r}")
        else:
            answer.put("no error")

    process = context.Process(target=child)
    process.start()
    found: str = answer.get()
    process.join()
    return found


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder everybody can reach; pytest's own belong to one user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder
        folder.chmod(0o777)


def test_a_full_store_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = filled(tmp_path / "f.sqlite")
    teacher = FakeTeacher()
    with FeedbackStore(path) as store:
        pages = store._db.rows("PRAGMA page_count")[0][0]
        store._db.run(f"PRAGMA max_page_count={pages + 20}")
        with pytest.raises(StoreError, match=r"f\.sqlite: .*full\n  cure: the disk is full: make room"):
            annotate(job(2000), teacher, store)
        kept = store.totals(teacher.fingerprint).judgments
        store._db.run("PRAGMA max_page_count=1000000")
        assert annotate(job(2000), FakeTeacher(), store).known == kept
    assert 200 <= kept < 20_000 and answered(path) == 20_000


def test_a_file_that_may_not_grow_is_an_error_with_a_cure(tmp_path: Path) -> None:
    path = filled(tmp_path / "f.sqlite")
    size = path.stat().st_size

    def work() -> None:
        with FeedbackStore(path) as store:
            annotate(job(3000), FakeTeacher(), store)

    said = in_a_process(work, file_limit=size + 200_000)
    assert said.startswith("StoreError: feedback store") and "disk full" in said
    kept = answered(path)
    assert 200 <= kept < 30_000
    with FeedbackStore(path) as store:
        assert annotate(job(100), FakeTeacher(), store).wanted == 1000
    answered(path)


def test_a_disk_without_room(tmp_path: Path) -> None:
    """A real one, of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a disk; the tests beside this one need no root")
    try:
        path = filled(disk / "f.sqlite", 10)
        with FeedbackStore(path) as store, pytest.raises(StoreError, match="make room"):
            annotate(job(3000), FakeTeacher(), store)
        kept = answered(path)
        assert kept >= 100
        with FeedbackStore(path) as store, pytest.raises(EzxmcError, match="cure"):
            for number in range(100):
                export_judgments(store, disk / f"judgments{number}.jsonl")
        assert not list(disk.glob(".*new")), "half a file was left"
        assert answered(path) == kept
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_read_only_store_is_an_error_with_a_cure(open_folder: Path, what: str) -> None:
    path = filled(open_folder / "f.sqlite")
    before = path.read_bytes()
    for file in open_folder.iterdir():
        file.chmod(0o444)
    open_folder.chmod(0o555 if what == "folder" else 0o777)

    def work() -> None:
        with FeedbackStore(path) as store:
            annotate(job(30), FakeTeacher(), store)

    said = in_a_process(work, as_nobody=True)
    assert said.startswith("StoreError: feedback store") and "read-only: copy the store" in said
    assert path.read_bytes() == before and answered(path) == 200


def test_a_store_in_a_read_only_folder_cannot_be_made(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    for path in (open_folder / "f.sqlite", open_folder / "below" / "f.sqlite"):
        said = in_a_process(lambda path=path: FeedbackStore(path).close(), as_nobody=True)
        assert said.startswith("StoreError: feedback store") and "writable" in said
    assert list(open_folder.iterdir()) == []


def test_a_job_whose_keys_find_no_room_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def small(name: object, **options: object) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(name, **options)  # type: ignore[call-overload]
        if name == "":
            db.execute("PRAGMA max_page_count=10")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    with FeedbackStore(tmp_path / "f.sqlite") as store, pytest.raises(StoreError, match="TMPDIR"):
        annotate(job(1000), FakeTeacher(), store)


def test_names_of_a_batch_that_was_undone_go_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before its commit, as by ctrl-C in a notebook that goes on with the same store."""
    teacher = FakeTeacher()
    first, second = (list(teacher.score([pair])) for pair in list(job(2)())[:20:10])
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        session = store.open_session(teacher.fingerprint, {})
        run = store._db.run

        def interrupted(statement: str, *values: object) -> None:
            run(statement, *values)
            raise KeyboardInterrupt

        monkeypatch.setattr(store._db, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append(session, first, 0.1)
        monkeypatch.undo()
        store.append(session, second, 0.1)
        store.append(session, first, 0.1)
        found = {judgment.key: judgment.doc_uid for judgment in store.judgments()}
    assert found == {judgment.key: judgment.doc_uid for judgment in [*first, *second]}


def test_what_is_told_as_stored_outlives_a_power_cut(tmp_path: Path) -> None:
    """No power can be cut here: SQLite's own word for waiting for the disk at each commit is FULL."""
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        assert store._db.rows("PRAGMA synchronous") == [(2,)]
        assert store._db.rows("PRAGMA journal_mode") == [("wal",)]
