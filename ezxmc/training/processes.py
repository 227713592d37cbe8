"""Training in child processes: the job goes to them by files, progress and result come back as lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import torch

from ezxmc import errors
from ezxmc.config import TrainingConfig
from ezxmc.errors import EzxmcError, TrainingError
from ezxmc.training.job import Job, TrainSummary
from ezxmc.training.ranks import enough_gpus

Progress = Callable[[int, int, float], None]
FAILURE = "failure.json"


def processes_of(config: TrainingConfig) -> int:
    """How many processes a configuration asks for on this machine."""
    return max(1, torch.cuda.device_count()) if config.processes == "auto" else config.processes


def launched(job: Job, processes: int, progress: Progress | None) -> TrainSummary:
    """Do a training round in several processes of this machine.

    They end when this one does, however it ends: each waits for the end of its
    standard input, which this process holds open. What they say is kept beside
    `job.out` in a `.log` unless all goes well.

    Args:
        job: What to do.
        processes: More than one.
        progress: Called with (step, steps, loss).

    Raises:
        ConfigError: There are fewer GPUs than processes.
        EzxmcError: What the process that failed first said, of whatever kind that was.
        TrainingError: One of them failed otherwise, or was killed.
    """
    enough_gpus(processes)
    log = _new_log(job.out)
    # Beside the student, where there is room for its weights.
    with TemporaryDirectory(dir=job.out.parent, prefix=".ezxmc-job-") as folder:
        job.save(Path(folder))
        summary = _followed(Path(folder), log, processes, progress)
    log.unlink()
    return summary


def _new_log(out: Path) -> Path:
    """An empty log beside a student, of a name that was not taken."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        log = out.with_name(f"{out.name}.log" if number == 1 else f"{out.name}.{number}.log")
        with suppress(FileExistsError), log.open("x"):
            return log
    raise AssertionError


def _followed(folder: Path, log: Path, processes: int, progress: Progress | None) -> TrainSummary:
    command = [sys.executable, "-m", "ezxmc.launcher", str(processes), str(folder / FAILURE)]
    environment = {
        **os.environ,
        # What this process imports, and nothing that happens to lie in the present folder.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
    }
    summary = None
    with (
        log.open("wb") as said,
        Popen(
            [*command, "ezxmc.training.worker", str(folder)],
            stdin=PIPE,
            stdout=PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends them
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            for line in process.stdout:
                told = json.loads(line)
                if "summary" in told:
                    summary = TrainSummary.from_dict(told["summary"])
                elif progress:
                    progress(*told["progress"])
        finally:
            process.stdin.close()
            process.wait()
    if process.returncode or summary is None:
        raise _failure(folder / FAILURE, log, process.returncode)
    return summary


def _failure(file: Path, log: Path, code: int) -> EzxmcError:
    """What a worker wrote, or else the launcher."""
    found = {"message": f"the training processes ended with code {code}"}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    if "kind" not in found:
        return TrainingError(found["message"], f"{log} has what each of them said; did memory run out?")
    kind: type[EzxmcError] = getattr(errors, found["kind"])
    return kind(found["message"], found["cure"])
