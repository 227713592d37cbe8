"""A run directory: one process at a time, stages done once, files written whole.

An update is made beside the run, and takes the place of what was:

    updates/0001/stages/      what is done, as in a run
    updates/0001/ready.json   written last: from here on the update counts
    updates/0001/done.json    the new bundle is in place
    updates/0001/report.html  what happened (report.json: the same as data)
    updates/0001/former/      the bundle before, of the last update only

All is made beside the run and moved when `ready.json` stands. The bundles are
exchanged in one step, so that a reader of `bundle/` finds the former or the new
one. Killed while moving, the next command goes on moving first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ezxmc.bundle.manifest import MANIFEST, Manifest, holding, own_files, read_manifest
from ezxmc.config import RunConfig
from ezxmc.disk import exchange, make_folder, sync, sync_tree
from ezxmc.errors import ConfigError, DataError
from ezxmc.files import Inputs, json_line, json_object, place_of, present, refuse, remove_own, replacing
from ezxmc.hashing import file_hash, json_hash
from ezxmc.models.teachers import version_of
from ezxmc.pipeline.snapshot import CATALOG
from ezxmc.retrieval.encoder import student_files

FRESH = "fresh"
"""A bundle that is made; it takes the place of `bundle` in one step."""
OUTPUTS = (
    *("config.yaml", "stages", "cycles", "bundle", FRESH, "former", "head", "vectors", "updates"),
    *("predictions.jsonl", "catalog.jsonl", "report.json", "report.html"),
)
"""What a run replaces in its directory; the feedback store is only added to."""
ENCODING = ("torch", "transformers", "sentence-transformers")
"""Libraries whose versions a student's weights and vectors depend on; below, an index and a calibrator."""
INDEXING = (*ENCODING, "faiss-cpu")
CALIBRATING = (*INDEXING, "scipy", "scikit-learn")


def check_run_dir(path: str | Path, inputs: Inputs = ()) -> None:
    """Whether a run may keep its things in a folder, before any work.

    Args:
        path: A new folder, a run's, or one that holds none of `OUTPUTS`.
        inputs: What the run reads.

    Raises:
        ConfigError: Something in the folder that is no run's, or an input, would be replaced.
    """
    place = place_of(path)
    taken = [name for name in OUTPUTS if (place / name).exists()]
    if taken and not _is_run(place):
        refuse(
            f"run_dir {path} holds {', '.join(taken)}, which a run would replace, and no run of ezxmc",
            "choose another run_dir",
        )
    for source in present(inputs):
        for name in OUTPUTS:
            if source.resolve().is_relative_to(place / name) or (
                (place / name).is_file() and source.samefile(place / name)
            ):
                refuse(f"the input {source} is {name} of run_dir {path}", "choose another run_dir")


def _is_run(place: Path) -> bool:
    """Whether a folder holds a run: a stage that is done, or the configuration as a run freezes it."""
    for stage in (place / "stages").glob("*.json"):
        if set(json_object(stage)) - {"libraries"} == {"inputs", "result"}:
            return True
    try:
        text = (place / "config.yaml").read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        # A part may lack what has become a setting since.
        whole = set(raw) - RunConfig.former.keys() == set(RunConfig.model_validate(raw).model_dump())
        return whole and yaml.safe_dump(raw, sort_keys=False, allow_unicode=True) == text
    except (OSError, ValueError, yaml.YAMLError):
        return False


@contextmanager
def reading(file: Path) -> Iterator[Iterator[Any]]:
    """The rows that `RunDir.write_lines` wrote; what is odd about them means that the file is damaged.

    Raises:
        DataError: A row is no JSON, or the block cannot use it.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            yield map(json.loads, lines)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        cure = "delete this file: its stage is then done again"
        raise DataError(f"{file} is damaged: {error}", cure) from None


class RunDir:
    """The folder a run keeps everything in.

    Args:
        path: Made if absent.

    Raises:
        ConfigError: The folder cannot be made or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spent = 0.0  # seconds of the stages done by this process
        self._others: dict[str, list[str]] = {}  # stages made with other libraries, by which
        try:
            make_folder(self.path)
        except OSError as error:
            raise ConfigError(f"run_dir {path} cannot be made: {error}", "choose a writable folder") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; the lock goes with the process, however it ends.

        Raises:
            ConfigError: Another process holds it, or it is not writable.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is working in {self.path}", "wait for it, or choose another run_dir"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run_dir {self.path} is not writable: {error}", "choose another run_dir"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def cycle(self, number: int) -> Path:
        """The folder of one cycle, counted from 1."""
        folder = self.path / "cycles" / str(number)
        make_folder(folder)
        return folder

    def write(self, name: str, text: str) -> None:
        """Write a file in one step: a reader sees the old one or the new one."""
        with replacing(self.path / name) as fresh:
            fresh.write_text(text, encoding="utf-8")

    def write_lines(self, target: Path, rows: Iterable[Any]) -> None:
        """Write JSON lines in one step."""
        with replacing(target) as fresh, fresh.open("wb") as handle:
            handle.writelines(map(json_line, rows))

    def forget(self, name: str) -> None:
        """Have a stage done again the next time."""
        (self.path / "stages" / f"{name}.json").unlink(missing_ok=True)

    def stage(
        self,
        name: str,
        inputs: Any,
        outputs: Sequence[Path],
        make: Callable[[], dict[str, Any]],
        *,
        libraries: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Do a stage, or return what it gave when its inputs were the same.

        Args:
            name: The stage's file below `stages/`.
            inputs: JSON of everything the result depends on.
            outputs: Files or folders the stage makes; if one is gone it is done again.
            make: Does the work; its files must be complete when it returns.
            libraries: Distributions whose numbers the result depends on, too. They are no reason
                to do it again: another student has other shortlists, and who upgrades a library
                did not ask for those to be paid for. But `lines` tells.

        Returns:
            What `make` returned, with the `wall_seconds` it took.
        """
        wanted, present = json_hash(inputs), {name: _minor(name) for name in libraries}
        path = self.path / "stages" / f"{name}.json"
        # What is missing or cannot be read is not done.
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            recorded = json.loads(path.read_text(encoding="utf-8"))
            if recorded["inputs"] == wanted and all(output.exists() for output in outputs):
                self._compare(name, recorded.get("libraries"), present)
                return dict(recorded["result"])
        # From here on the outputs may be half new: nothing may call them done, not even after a power cut.
        self.forget(name)
        sync(path.parent)
        started = time.monotonic()
        result = make()
        for output in outputs:
            sync_tree(output)
        result["wall_seconds"] = time.monotonic() - started
        self.spent += result["wall_seconds"]
        record = {"inputs": wanted, "libraries": present, "result": result}
        self.write(f"stages/{name}.json", json.dumps(record, indent=1))
        return result

    def _compare(self, stage: str, former: dict[str, str] | None, present: dict[str, str]) -> None:
        if former is None:
            why = "a release that did not note its libraries, as if they were the present ones"
        else:
            others = [name for name, now in present.items() if former.get(name, now) != now]
            why = ", ".join(f"{name} {former[name]} (now {present[name]})" for name in others)
        if present and why:
            self._others.setdefault(why, []).append(stage)

    def lines(self) -> Iterator[str]:
        """Which stages were not done again, though they were made with other libraries."""
        for why, stages in self._others.items():
            yield (
                f"kept from {why}: {', '.join(stages)}. To have a stage done again, and what follows from "
                f"it, delete its file in {self.path / 'stages'}"
            )


def _minor(distribution: str) -> str:
    """Major and minor version of a library; empty where it came by another way than its distribution."""
    return ".".join((version_of(distribution) or "").split(".")[:2])


UPDATES, BUNDLE, FORMER = "updates", "bundle", "former"
_READY, _DONE = "ready.json", "done.json"
_MOVED = ("predictions.jsonl", CATALOG, "config.yaml")


@dataclass(frozen=True, slots=True)
class History:
    """The updates of one run.

    Attributes:
        run: The run directory, held by this process.
    """

    run: RunDir

    @property
    def bundle(self) -> Path:
        """The run's bundle."""
        return self.run.path / BUNDLE

    @property
    def folders(self) -> list[Path]:
        """Of all updates, begun ones included, in order."""
        return sorted(
            path
            for path in (self.run.path / UPDATES).glob("[0-9]*")
            if path.name.isdecimal() and path.is_dir()
        )

    @property
    def reports(self) -> list[Path]:
        """Of the updates that are done, in order."""
        return [folder / "report.json" for folder in self.folders if (folder / _DONE).exists()]

    def finish_pending(self, say: Callable[[str], None]) -> None:
        """Finish moving what a killed process left ready, if what it was made from is still there."""
        for folder in self.folders:
            ready = json_object(folder / _READY)  # One that cannot be read is not there: nothing is ready.
            if (folder / _DONE).exists() or not isinstance(ready.get("manifest"), str):
                continue
            with holding(self.bundle):
                if self._stale(folder, ready):
                    (folder / _READY).unlink()
                    say(f"{self.bundle} was changed since update {folder.name} was made: it is made again")
                else:
                    self._install(folder, ready)

    def open(self) -> RunDir:
        """The update under way, else a new one; call `finish_pending` first."""
        number = len(self.reports) + 1
        return RunDir(self.run.path / UPDATES / f"{number:04}")

    def complete(self, update: RunDir, former: Manifest) -> None:
        """Put a finished update in the place of what was; `former` is of the bundle it was made from.

        Raises:
            DataError: Somebody changed that bundle meanwhile: their work is not undone.
            BundleError: Another process is changing it.
        """
        sync_tree(update.path)
        with holding(self.bundle):
            if read_manifest(self.bundle) != former:
                raise DataError(
                    f"{self.bundle} was changed while the update was made, which would undo that",
                    "give the same command again: it goes on from the bundle there is now",
                )
            places = {"manifest": update.path / BUNDLE, "former": self.bundle}
            ready = {name: file_hash(place / MANIFEST) for name, place in places.items()}
            update.write(_READY, json.dumps(ready))
            self._install(update.path, ready)

    def _stale(self, folder: Path, ready: dict[str, str]) -> bool:
        """Whether a bundle that waits to be moved was made from another than the one there is."""
        there = self.bundle / MANIFEST
        return _is_bundle(folder / BUNDLE, ready["manifest"]) and (
            # Earlier releases did not tell; where folders cannot be exchanged, none is there for a moment.
            "former" in ready and there.exists() and file_hash(there) != ready["former"]
        )

    def _install(self, folder: Path, ready: dict[str, str]) -> None:
        fresh = folder / BUNDLE
        # What lies there may be the former bundle already.
        if _is_bundle(fresh, ready["manifest"]):
            exchange(fresh, self.bundle)
        if fresh.exists():
            fresh.rename(folder / FORMER)
        for name in _MOVED:
            if (folder / name).exists():
                (folder / name).replace(self.run.path / name)
        # The run's own records of its bundle are of another one now.
        for stage in ("bundle", "calibrate"):
            self.run.forget(stage)
        for place in (folder / "student", *(one / FORMER for one in self.folders if one != folder)):
            known = set(own_files(place) or student_files(place) or ())
            remove_own(place, known.__contains__)
        for place in (self.run.path, self.run.path / "stages", folder):
            sync(place)
        RunDir(folder).write(_DONE, "{}")


def _is_bundle(place: Path, manifest: str) -> bool:
    return (place / MANIFEST).exists() and file_hash(place / MANIFEST) == manifest
