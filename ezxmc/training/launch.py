"""Training in child processes: the job goes to them by files, progress and result come back as lines.

A round is texts and rows: what all its processes must know, and what comes of it. torchrun starts the
processes of `ezxmc.training.worker`, and ends all if one fails. It runs in a process of its own, for it
takes over the signals of whoever calls it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ezxmc import errors
from ezxmc.config import TrainingConfig
from ezxmc.errors import EzxmcError, TrainingError
from ezxmc.training.dataset import Example
from ezxmc.training.ranks import enough_gpus

_FILE = "job.jsonl"


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training round did.

    Attributes:
        documents: Documents trained on.
        labels_seen: Distinct labels that occur in their judgments.
        held_out: Documents the epochs were compared on.
        steps: Optimiser steps.
        seconds: Wall time of the training steps, selection excluded.
        samples_per_second: Documents through a training step per second.
        losses: Mean loss of each epoch.
        selection: Agreement with the teacher (nDCG@5) on held-out documents, first of the untrained student,
            then after each epoch; empty without held-out documents.
        best_epoch: The epoch kept; 0 is the untrained student.
        peak_memory_bytes: Of the first process: of its device on CUDA, else its own so far.
        processes: That shared each step.
    """

    documents: int
    labels_seen: int
    held_out: int
    steps: int
    seconds: float
    samples_per_second: float
    losses: tuple[float, ...]
    selection: tuple[float, ...]
    best_epoch: int
    peak_memory_bytes: int
    processes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSummary:
        """What `to_dict` gave, perhaps by way of a file."""
        return cls(**{**values, "losses": tuple(values["losses"]), "selection": tuple(values["selection"])})


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a training round depends on.

    Attributes:
        documents: Texts of the documents of `pool`, in its order.
        titles: Of all labels.
        pool: Documents with at least one positive each.
        held_out: Texts of the documents of `judged`, in its order.
        judged: Documents for selection.
        config: Losses, sizes, rates.
        base: Weights to start from.
        former: A student to average the weights with.
        seed: Of the order and of the positives drawn.
        out: Folder to write.
        card: For the model card: the number of `judgments`, and the `teacher` in words.
    """

    documents: list[str]
    titles: list[str]
    pool: list[Example]
    held_out: list[str]
    judged: list[Example]
    config: TrainingConfig
    base: str
    former: str | None
    seed: int
    out: Path
    card: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write everything to a folder that is there: one file of JSON lines."""
        with (folder / _FILE).open("w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in self._lines())

    @classmethod
    def load(cls, folder: Path) -> Job:
        """What `save` wrote, to the last bit."""
        with (folder / _FILE).open(encoding="ascii") as lines:
            head = json.loads(next(lines))
            titles = [json.loads(next(lines)) for _ in range(head.pop("labels"))]
            documents, pool = _read(lines, head.pop("documents"))
            held_out, judged = _read(lines, head.pop("held_out"))
        config, out = TrainingConfig(**head.pop("config")), Path(head.pop("out"))
        return cls(documents, titles, pool, held_out, judged, config, out=out, **head)

    def digest(self) -> bytes:
        """SHA-256 of everything but where files are: machines may keep them in different places."""
        elsewhere = replace(
            self,
            out=Path(),
            base="",
            former=self.former and "",
            config=self.config.model_copy(update={"encoder": ""}),
        )
        found = hashlib.sha256()
        for line in elsewhere._lines():
            found.update(line.encode("ascii") + b"\n")
        return found.digest()

    def _lines(self) -> Iterator[str]:
        # JSON keeps float64 to the last bit and, in ASCII, the lone surrogates that texts may hold.
        head = {
            "config": self.config.model_dump(),
            "base": self.base,
            "former": self.former,
            "seed": self.seed,
            "out": str(self.out),
            "card": self.card,
            "labels": len(self.titles),
            "documents": len(self.pool),
            "held_out": len(self.judged),
        }
        yield json.dumps(head)
        yield from map(json.dumps, self.titles)
        for texts, examples in ((self.documents, self.pool), (self.held_out, self.judged)):
            for example in examples:
                labels, probabilities = example.labels.tolist(), example.probabilities.tolist()
                known = [labels, probabilities, example.positives, example.negatives]
                yield json.dumps([texts[example.document], *known])


def compact(texts: Sequence[str], examples: Sequence[Example]) -> tuple[list[str], list[Example]]:
    """The texts that examples refer to, and the examples with rows of these."""
    kept = [texts[example.document] for example in examples]
    return kept, [replace(example, document=row) for row, example in enumerate(examples)]


def _read(lines: Iterator[str], count: int) -> tuple[list[str], list[Example]]:
    texts, examples = [], []
    for row in range(count):
        text, labels, probabilities, *known = json.loads(next(lines))
        texts.append(text)
        examples.append(
            Example(row, np.array(labels, dtype=np.int64), np.array(probabilities, dtype=np.float64), *known)
        )
    return texts, examples


OnProgress = Callable[[int, int, float], None]
FAILURE = "failure.json"
# How torchrun ends the others when one process has failed, and how NCCL ends one that lost another.
_FOLLOWING = (signal.SIGTERM, signal.SIGABRT)
# What torchrun says at the end of each process that failed.
_CODE = re.compile(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)")


def processes_of(config: TrainingConfig) -> int:
    """How many processes a configuration asks for on this machine."""
    return max(1, torch.cuda.device_count()) if config.processes == "auto" else config.processes


def launched(job: Job, processes: int, progress: OnProgress | None) -> TrainSummary:
    """Do a training round in several processes of this machine.

    They end when this one does, however it ends: each waits for the end of its standard input, which this
    process holds open. What they say is kept beside `job.out` in a `.log` unless all goes well.

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


def _followed(folder: Path, log: Path, processes: int, progress: OnProgress | None) -> TrainSummary:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "localhost"]  # a machine's own name need not resolve
    command += ["--nproc-per-node", str(processes), "-m", "ezxmc.training.worker", str(folder)]
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
            command,
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
        raise _failure(folder / FAILURE, log, processes)
    return summary


def _failure(file: Path, log: Path, processes: int) -> EzxmcError:
    """What the process that failed first wrote, or what it could not say itself."""
    said = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    told = log.read_text(encoding="utf-8", errors="replace")
    codes = {int(rank): int(code) for rank, code in _CODE.findall(told)}
    unsaid = _unsaid(codes, processes, bool(said))
    if unsaid or "kind" not in said:
        message = unsaid or said.get("message", "the training processes ended")
        return TrainingError(message, f"{log} has what each of them said; did memory run out?")
    kind: type[EzxmcError] = getattr(errors, said["kind"])
    return kind(said["message"], said["cure"])


def _unsaid(codes: Mapping[int, int], processes: int, said: bool) -> str | None:
    """What no process could say itself; one that is killed is why the others lost their connection to it."""
    killed = [rank for rank, code in codes.items() if code < 0 and -code not in _FOLLOWING]
    if not killed and (said or not codes):
        return None
    rank = min(killed or codes)
    how = (
        f"was killed by {signal.Signals(-codes[rank]).name}"
        if codes[rank] < 0
        else f"left with {codes[rank]}"
    )
    return f"training process {rank} of {processes} (the first is 0) {how}; the others were ended"
