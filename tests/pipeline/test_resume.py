"""A run that is interrupted: by its teacher, by another process, by kill -9."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from support.fakes import FakeTeacher
from support.interrupted import Interrupted, Interrupting, done_on_failing_disks, killed_and_resumed
from support.power import Disk, whole_bundle
from support.spying import spied
from support.tinyworld import topical, write_catalog

import ezxmc.pipeline.run as pipeline
from ezxmc.bundle.bundle import load_bundle
from ezxmc.config import RunConfig
from ezxmc.errors import ConfigError, DataError, TeacherError
from ezxmc.report import RunReport

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


# A run of three cycles at most that stops after two, each student averaged with the former one.
ENDS_EARLY = {"cycles": 3, "min_gain": 1.0}


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


@pytest.mark.filterwarnings("ignore:bundle .* not part of it")
@pytest.mark.parametrize("faults", [8, pytest.param(50, marks=pytest.mark.long)])
def test_a_disk_that_fails_at_any_write_of_a_run_costs_nothing_but_time(
    tmp_path: Path, tiny_encoder: Path, faults: int
) -> None:
    def world(name: str) -> Path:
        return write_catalog(tmp_path / name, tiny_encoder, **(ENDS_EARLY if faults > 8 else {"cycles": 1}))

    done_on_failing_disks(pipeline.run, world, tmp_path, faults)
