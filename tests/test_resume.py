"""A run that is interrupted: by its teacher, by another process, by kill -9."""

from __future__ import annotations

import itertools
import json
import random
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import FakeTeacher
from filelock import FileLock
from spying import Messages, spied
from support.commands import forked
from support.faults import KILLED, KINDS, Fault, Kind
from support.power import Disk, whole_bundle
from tinyworld import topical, write_catalog

import ezxmc.pipeline as pipeline
from ezxmc.bundle import load_bundle
from ezxmc.config import RunConfig
from ezxmc.errors import ConfigError, DataError, EzxmcError, TeacherError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.report import RunReport, drift_figures, page

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_teacher_that_dies_is_closed_and_the_next_run_goes_on(tiny_config: Path) -> None:
    class Dying(FakeTeacher):
        def score(self, pairs, *, expected=None):
            for count, judgment in enumerate(super().score(pairs, expected=expected)):
                if count == 100:
                    raise TeacherError("the engine died")
                yield judgment

    dying = Dying(topical)
    with pytest.raises(TeacherError):
        spied(tiny_config, dying)
    assert dying.closed >= 1
    again = spied(tiny_config)
    assert again.report.cycles[0].pairs_known == 100
    assert not set(again.teacher.asked) & set(dying.asked[:100])


def test_a_run_dir_in_use_is_refused(tiny_config: Path) -> None:
    # The lock of another process is tested in test_rundir; here: that `run` takes it before anything else.
    place = Path(RunConfig.load(tiny_config).run_dir)
    place.mkdir()
    teacher = FakeTeacher(topical)
    with FileLock(place / ".lock"), pytest.raises(ConfigError, match="another process"):
        spied(tiny_config, teacher)
    assert teacher.asked == [] and not (place / "feedback.sqlite").exists()


# A run of three cycles at most that stops after two, each student trained from the former one.
ENDS_EARLY = {"cycles": 3, "min_gain": 1.0, "start": "warm"}


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


def test_interrupted_at_every_point_it_ends_as_if_it_never_was(tmp_path: Path, tiny_encoder: Path) -> None:
    whole = spied(write_catalog(tmp_path / "whole", tiny_encoder, **ENDS_EARLY))
    assert len(whole.report.cycles) == 2 and whole.report.skipped_cycles == 1
    config = write_catalog(tmp_path / "broken", tiny_encoder, **ENDS_EARLY)
    asked: list[str] = []
    points: list[str | int] = [
        "cycle 1/3: shortlist",
        100,  # judgments
        "cycle 1/3: training",
        "cycle 1/3: ",  # said when it is done
        "cycle 2/3: shortlist",
        100,
        "cycle 2/3: training",
        "cycle 2/3: ",
        "cycle 2/3: teacher judges what students answer",
        "no gain since cycle 1",
        "the student of cycle",
        "bundle: label index",
        1,  # of the calibration; among so few labels most of its pairs are known
        "tagging",
    ]
    for point in points:
        teacher = Interrupted(point)
        with pytest.raises(KeyboardInterrupt):
            spied(config, teacher, Interrupting(point))
        assert teacher.closed >= 1
        asked += teacher.asked
    again = spied(config)
    assert again.trained == [] and again.teacher.asked == []
    assert len(asked) == len(set(asked)) and set(asked) == set(whole.teacher.asked)
    assert again.predictions() == whole.predictions()
    assert again.report.skipped_cycles == 1 and again.report.shortlist == whole.report.shortlist
    agreements = [[cycle.held_out for cycle in found.report.cycles] for found in (again, whole)]
    assert agreements[0] == agreements[1] and len(agreements[0]) == 2


def slow_run(config: str, log: str) -> None:
    """In a process of its own: a run whose teacher takes its time and logs what it is asked."""
    torch.set_num_threads(1)
    pipeline.run(RunConfig.load(config), teacher=FakeTeacher(topical, log=Path(log), delay=0.004))


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
        process = forked(target, str(config), str(log))
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


def test_kill_9_at_any_moment_loses_nothing_and_asks_nothing_twice(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    whole = spied(write_catalog(tmp_path / "whole", tiny_encoder, **ENDS_EARLY))
    config = write_catalog(tmp_path / "killed", tiny_encoder, **ENDS_EARLY)
    place = Path(RunConfig.load(config).run_dir)
    done, killed = killed_and_resumed(slow_run, config, tmp_path, attempts=4)
    assert killed >= 2
    assert done == set(whole.teacher.asked)
    # Interrupted or not, the result is the same.
    assert (place / "predictions.jsonl").read_text() == whole.predictions()
    RunReport.model_validate_json((place / "report.json").read_bytes())
    load_bundle(place / "bundle")


STAGES = {
    f"stages/cycle-{number}-{stage}.json": f"cycles/{number}/{output}"
    for number in (1, 2)
    for stage, output in (("shortlist", "shortlist.jsonl"), ("train", "student"))
}
"""What the stages make."""


def test_a_power_cut_at_any_moment_leaves_no_stage_done_without_its_work(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    made: dict[bytes, dict[str, bytes | None]] = {}

    def below(kept: dict[str, bytes | None], place: str) -> dict[str, bytes | None]:
        return {name: data for name, data in kept.items() if name == place or name.startswith(f"{place}/")}

    def look(disk: Disk) -> None:
        kept = disk.kept()
        for stage, output in STAGES.items():
            if record := kept.get(stage):
                # Once recorded, the work is as it was then, for as long as the record is there.
                whole = made.setdefault(record, below(disk.live(), output))
                assert json.loads(record)["inputs"] and whole
                assert below(kept, output) == whole, f"{stage} is there, its work is not"
        whole_bundle(kept, "bundle")

    (tmp_path / "run").mkdir()
    disk = Disk(tmp_path / "run", look)
    with disk.running():
        # Done again with other settings: then the former records are not to come back.
        for epochs in (3, 4):
            spied(write_catalog(tmp_path, tiny_encoder, training__epochs=epochs))
            kept, live = disk.kept(), disk.live()
            assert kept.keys() == live.keys()
            assert [name for name in live if kept[name] != live[name]] == []
    assert len(made) == 7, "of two runs, of which the first shortlist is the same"


def test_a_stage_whose_work_was_cut_off_tells_what_to_delete(tmp_path: Path, tiny_encoder: Path) -> None:
    config = write_catalog(tmp_path, tiny_encoder, cycles=1)
    whole = spied(config)
    listed = whole.place / "cycles" / "1" / "shortlist.jsonl"
    for data in (b"", listed.read_bytes()[:-100], b"[]\n" * 60):
        listed.write_bytes(data)
        with pytest.raises(DataError, match=r"shortlist\.jsonl is damaged(.|\n)*cure: delete this file"):
            spied(config)
    listed.unlink()
    again = spied(config)
    assert again.teacher.asked == [] and again.trained == [] and again.predictions() == whole.predictions()


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
        process = forked(faulty, target, str(config), str(log), str(told), kind, at)
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


@pytest.mark.filterwarnings("ignore:bundle .* not part of it")
@pytest.mark.parametrize("faults", [8, pytest.param(50, marks=pytest.mark.long)])
def test_a_disk_that_fails_at_any_write_of_a_run_costs_nothing_but_time(
    tmp_path: Path, tiny_encoder: Path, faults: int
) -> None:
    def world(name: str) -> Path:
        return write_catalog(tmp_path / name, tiny_encoder, **(ENDS_EARLY if faults > 8 else {"cycles": 1}))

    done_on_failing_disks(pipeline.run, world, tmp_path, faults)
