"""SIGTERM, as schedulers and containers send it, ends a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.commands import Command, gone, until
from support.serving import write_bundle
from support.tinyworld import document, label_rows, write_rows

from ezxmc.feedback.store import FeedbackStore

# The program itself, with the tests' teacher in place of an LLM and a worker of its own that must not stay.
ANNOTATE = """
import subprocess, sys
import ezxmc.teacher
from support.fakes import FakeTeacher
from ezxmc.cli.app import main

class Slow(FakeTeacher):
    def score(self, pairs, *, expected=None):
        self.worker = subprocess.Popen(["sleep", "600"])
        yield from super().score(pairs, expected=expected)

    def close(self):
        if hasattr(self, "worker"):
            self.worker.kill()

ezxmc.teacher.load_teacher = lambda *args, **options: Slow(delay=0.01)
sys.argv[0] = "ezxmc"
main()
"""
FORK = """
import os, signal, time
from ezxmc.cli.app import _Termination
told = _Termination()
ready, begun = os.pipe()
child = os.fork()
if not child:
    os.write(begun, b"!")
    time.sleep(60)
os.read(ready, 1)
os.kill(child, signal.SIGTERM)
print(os.waitpid(child, 0)[1], told.came, flush=True)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print(told.came)
"""


def begun(folder: Path, *command: str) -> subprocess.Popen[str]:
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here.parent), str(here)])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], when: Callable[[], bool]) -> str:
    """Terminate a process once it is at work; what it said."""
    until(lambda: process.poll() is not None or when(), process.pid)
    assert process.poll() is None
    time.sleep(0.3)  # for some answers in hand
    workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said
    gone(workers)
    assert "Traceback" not in said
    return said


def stored(file: Path) -> int:
    if not file.exists():
        return 0
    with FeedbackStore(file) as store:
        return sum(1 for _ in store.judgments())


def test_judgments_in_hand_are_stored_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl", [document(number) for number in range(40)])
    write_rows(tmp_path / "l.jsonl", label_rows())
    labels = [row["uid"] for row in label_rows()]
    write_rows(tmp_path / "s.jsonl", [{"doc": f"d{number}", "labels": labels} for number in range(40)])
    command = ("-c", ANNOTATE, "annotate", "d.jsonl", "l.jsonl", "s.jsonl", "--store", "f.sqlite")
    said = ended(begun(tmp_path, *command), lambda: stored(tmp_path / "f.sqlite") >= 64)
    assert "terminated: what was computed is kept; the same command goes on from there" in said
    kept = stored(tmp_path / "f.sqlite")
    # What was in hand came with it: the store is written every 64 answers.
    assert kept % 64 and 64 < kept < 1000


def test_tags_written_stay_and_resume_goes_on(tmp_path: Path, tiny_encoder: Path, one_thread: None) -> None:
    write_bundle(tmp_path / "bundle", tiny_encoder)
    write_rows(tmp_path / "d.jsonl", [document(number) for number in range(20_000)])
    out, part = tmp_path / "tags.jsonl", tmp_path / "tags.jsonl.part"
    job = Command("predict", "bundle", "d.jsonl", "-o", "tags.jsonl", cwd=tmp_path)
    until(lambda: not job.running or (part.exists() and part.stat().st_size > 0), job.pid)
    assert job.end(signal.SIGTERM) == 128 + signal.SIGTERM, job.stderr
    assert "--resume goes on" in job.stderr and part.stat().st_size > 0 and not out.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_just_ends_and_a_second_signal_breaks_nothing_off() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert done.stdout.split("\n") == [f"{signal.SIGTERM.value} False", "True", ""], done.stderr
