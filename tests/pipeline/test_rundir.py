"""The run directory: stages done once, files whole or absent, one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ezxmc.config import DataConfig, RunConfig
from ezxmc.errors import ConfigError
from ezxmc.pipeline.rundir import RunDir, check_run_dir


class Work:
    """A stage that counts how often it is done."""

    def __init__(self, place: RunDir) -> None:
        self.place, self.output, self.done = place, place.path / "out.txt", 0

    def make(self) -> dict[str, Any]:
        self.done += 1
        self.output.write_text(str(self.done))
        return {"done": self.done}

    def __call__(self, inputs: Any, libraries: Sequence[str] = ()) -> dict[str, Any]:
        return self.place.stage("work", inputs, [self.output], self.make, libraries=libraries)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(RunDir(tmp_path / "run"))


def test_a_stage_is_done_once_per_inputs(work: Work) -> None:
    first = work(["a", {"x": 1, "y": 2}])
    assert first["done"] == 1 and first["wall_seconds"] >= 0
    # Another process, and the same values in another order of keys.
    again = Work(RunDir(work.place.path))
    assert again(["a", {"y": 2, "x": 1}]) == first and again.done == 0
    assert again.place.spent == 0
    assert again(["b"])["done"] == 1 and again.done == 1
    assert Work(RunDir(work.place.path))(["a", {"x": 1, "y": 2}]) != first


def test_a_stage_of_other_libraries_is_kept_and_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doing it again would have other pairs asked, and paid for, because somebody upgraded a library."""
    versions = {"torch": "2.11.0+cpu", "scipy": "1.17.1"}
    monkeypatch.setattr("ezxmc.pipeline.rundir.version_of", versions.get)
    work("in", ["torch", "scipy"])

    def again() -> list[str]:
        later = Work(RunDir(work.place.path))
        later("in", ["torch", "scipy"])
        assert later.done == 0
        return list(later.place.lines())

    assert again() == []
    versions["torch"] = "2.11.9"
    assert again() == [], "a patch changes no numbers"
    versions["torch"] = "2.12.0"
    (line,) = again()
    assert "torch 2.11 (now 2.12): work." in line and "scipy" not in line
    assert f"delete its file in {work.place.path / 'stages'}" in line
    # An earlier release noted nothing: its stages count as done.
    file = work.place.path / "stages" / "work.json"
    record = json.loads(file.read_text())
    del record["libraries"]
    file.write_text(json.dumps(record))
    (line,) = again()
    assert "a release that did not note its libraries" in line and "work" in line


def test_a_run_of_an_earlier_release_is_known_by_its_configuration(tmp_path: Path) -> None:
    """Which lacks what has become a setting since."""
    raw = RunConfig(data=DataConfig(documents="d", labels="l")).model_dump()
    del raw["training"]["revision"]
    frozen = tmp_path / "config.yaml"
    frozen.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    check_run_dir(tmp_path)
    for mine in ({"data": raw["data"]}, {**raw, "cycles": "many"}):
        frozen.write_text(yaml.safe_dump(mine, sort_keys=False))
        with pytest.raises(ConfigError, match="no run of ezxmc"):
            check_run_dir(tmp_path)
    frozen.write_text("# mine\n" + yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(ConfigError, match="no run of ezxmc"):
        check_run_dir(tmp_path)


def test_a_stage_is_done_again_when_its_output_is_gone(work: Work) -> None:
    work("same")
    work.output.unlink()
    assert work("same")["done"] == 2 and work.output.exists()


def test_a_stage_that_failed_is_not_done(work: Work) -> None:
    work("old")
    make = work.make

    def fail() -> dict[str, Any]:
        work.output.write_text("half")
        raise RuntimeError("killed")

    work.make = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        work("new")
    work.make = make  # type: ignore[method-assign]
    # The former inputs must not count as done either: their output was touched.
    assert work("old")["done"] == 2
    assert work.output.read_text() == "2"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"result": {}}', '"inputs"'])
def test_a_stage_whose_record_cannot_be_read_is_not_done(work: Work, text: str) -> None:
    work("in")
    (work.place.path / "stages" / "work.json").write_text(text)
    assert work("in")["done"] == 2 and work("in")["done"] == 2


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    place = RunDir(tmp_path)
    place.write("a/report.json", "old")

    def rows():
        yield {"n": 1, "text": "ü 😀"}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        place.write_lines(tmp_path / "a" / "report.json", rows())
    assert (tmp_path / "a" / "report.json").read_text() == "old"
    place.write_lines(tmp_path / "lines.jsonl", [{"text": "ü 😀"}, {"n": 2}])
    lines = (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == [{"text": "ü 😀"}, {"n": 2}] and "😀" in lines[0]
    assert not [path for path in tmp_path.rglob("*.new") if path.parent == tmp_path]


_HOLD = """
import sys, time
from ezxmc.pipeline.rundir import RunDir
with RunDir(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_cannot_share_a_directory_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"another process is working in {tmp_path}\n.*cure"),
            RunDir(tmp_path).locked(),
        ):
            pass
        assert holder.poll() is None, "the second waits instead of telling"
    finally:
        holder.kill()
        holder.wait()
    with RunDir(tmp_path).locked():
        pass
    with RunDir(tmp_path).locked():
        pass


def test_a_place_that_cannot_be_a_folder_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        RunDir(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match="file"):
        RunDir(tmp_path / "file")
