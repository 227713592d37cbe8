"""Runs that are stopped at any moment, killed, or meet a disk that fails, and go on."""

from __future__ import annotations

import itertools
import random
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from support.commands import forked
from support.fakes import FakeTeacher
from support.faults import KILLED, KINDS, Fault, Kind
from support.spying import Messages
from support.tinyworld import REFINED, topical

from ezxmc.bundle.bundle import load_bundle
from ezxmc.config import RunConfig
from ezxmc.errors import EzxmcError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.report import RunReport, page
from ezxmc.report import figures as drift_figures
from ezxmc.training import label_vectors


def soon(call: Callable[..., None], *arguments: object) -> None:
    """In a process that was forked: refine label vectors as `pipeline/conftest.py` has it in this one."""
    label_vectors._STEPS = REFINED
    call(*arguments)


class Interrupting(Messages):
    """Interrupts a run at a stage's first progress, or at a message; a number is the teacher's affair."""

    def __init__(self, point: str | int) -> None:
        super().__init__()
        self.point = point

    def stage(self, title: str) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done and title == self.point:
                raise KeyboardInterrupt

        return progress

    def say(self, text: str) -> None:
        if text.startswith(str(self.point)):
            raise KeyboardInterrupt


class Interrupted(FakeTeacher):
    """Is interrupted after so many judgments."""

    def __init__(self, point: str | int) -> None:
        super().__init__(topical)
        self.most = point if isinstance(point, int) else None

    def score(self, pairs, *, expected=None):
        for judgment in super().score(pairs, expected=expected):
            if len(self.asked) - 1 == self.most:
                self.asked.pop()
                raise KeyboardInterrupt
            yield judgment


def stored(place: Path) -> set[str]:
    if not (place / "feedback.sqlite").exists():
        return set()
    with FeedbackStore(place / "feedback.sqlite") as store:
        return {judgment.key for judgment in store.judgments()}


def killed_and_resumed(
    target: Callable[[str, str], None],
    config: Path,
    logs: Path,
    *,
    attempts: int,
    look: Callable[[], object] = lambda: None,
) -> tuple[set[str], int]:
    """Do `target(config, log)` again and again, killed at random but for the last time.

    Each attempt loses no stored judgment and asks about none; `look` is called after it.

    Returns:
        Keys stored in the end, and how many attempts were killed at work.
    """
    place, rng = Path(RunConfig.load(config).run_dir), random.Random(0)
    done: set[str] = set()
    killed = 0
    for attempt in range(attempts):
        log = logs / f"asked-{attempt}"
        process = forked(soon, target, str(config), str(log))
        if attempt < attempts - 1:
            while not log.exists() and process.is_alive():
                time.sleep(0.01)
            process.join(rng.uniform(0.1, 1.0))
            process.kill()
        process.join()
        killed += process.exitcode == -9
        asked = set(log.read_text().split()) if log.exists() else set()
        assert not asked & done, "a stored pair was asked again"
        now = stored(place)
        assert done <= now, "a stored judgment was lost"
        done = now
        look()
    assert process.exitcode == 0
    return done, killed


def faulty(target: Callable[..., object], config: str, log: str, told: str, kind: Kind, at: int) -> None:
    """In a process of its own: work on a disk that fails; `told` gets the error, or the number of touches."""
    torch.set_num_threads(1)
    page._figures = lambda data: defaultdict(str)  # drawing would be most of it
    drift_figures.svg = lambda *parts: "<svg></svg>"
    settings = RunConfig.load(config)
    fault = Fault(Path(settings.run_dir), kind, at)
    try:
        target(settings, teacher=FakeTeacher(topical, log=Path(log)))
    except (EzxmcError, OSError) as error:  # what the command line tells without a traceback
        Path(told).write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(3) from None
    except BaseException:
        Path(told).write_text(traceback.format_exc())
        raise
    Path(told).write_text(str(fault.touches))


def done_on_failing_disks(
    target: Callable[..., object], world: Callable[[str], Path], logs: Path, faults: int
) -> None:
    """Do `target(config)` in one world after the other, each interrupted again and again until it is done.

    What is asked, what is stored, the bundle and the tags are those of a world that nothing interrupted.
    """
    rng, number = random.Random(faults), itertools.count()

    def attempt(config: Path, kind: Kind, at: int) -> tuple[int | None, set[str], str]:
        """One attempt's exit code, what it asked, and what it told."""
        log, told = (logs / f"{name}-{next(number)}" for name in ("asked", "told"))
        process = forked(soon, faulty, target, str(config), str(log), str(told), kind, at)
        process.join()
        asked = log.read_text().split() if log.exists() else []
        assert len(asked) == len(set(asked))
        return process.exitcode, set(asked), told.read_text() if told.exists() else ""

    def place(config: Path) -> Path:
        return Path(RunConfig.load(config).run_dir)

    config = world("whole")
    code, _, told = attempt(config, "full", 0)
    assert code == 0, told
    touches, wanted = int(told), stored(place(config))
    whole = (place(config) / "predictions.jsonl").read_text()
    # Below a page of SQLite, not even an error can be told.
    sizes = [size for file in place(config).rglob("*") if (size := file.stat().st_size) > 8192]
    met, worlds = Counter[str](), itertools.count()
    while met.total() < faults:
        config, left = world(f"world-{next(worlds)}"), touches
        done, code = stored(place(config)), None
        while code != 0:
            kind = KINDS[met.total() % len(KINDS)]
            at = rng.choice(sizes) if kind == "small" else rng.randint(1, max(10, left))
            at = at if met.total() < faults else 0
            code, asked, told = attempt(config, kind, at)
            assert code in (0, 3, KILLED), f"{kind} at {at}: {told}"
            assert not asked & done, f"{kind} at {at}: a stored pair was asked again"
            now = stored(place(config))
            assert done <= now, f"{kind} at {at}: a stored judgment was lost"
            done = now
            if (place(config) / "bundle" / "manifest.json").exists():
                load_bundle(place(config) / "bundle")
            met[kind] += code != 0
            left -= 0 if kind == "small" else at
        assert done == wanted
        assert (place(config) / "predictions.jsonl").read_text() == whole
        RunReport.model_validate_json((place(config) / "report.json").read_bytes())
    assert len(+met) == len(KINDS), met
