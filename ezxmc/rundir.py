"""A run directory: one process at a time, stages done once, files written whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ezxmc.config import RunConfig
from ezxmc.errors import ConfigError, DataError
from ezxmc.files import Inputs, json_line, make_folder, place_of, present, refuse, replacing, sync, sync_tree
from ezxmc.hashing import json_hash

OUTPUTS = (
    *("config.yaml", "stages", "cycles", "bundle", "head", "vectors", "updates"),
    *("predictions.jsonl", "catalog.jsonl", "report.json", "report.html"),
)
"""What a run replaces in its directory; the feedback store is only added to."""


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
        with suppress(OSError, ValueError, RecursionError):
            if set(json.loads(stage.read_text(encoding="utf-8"))) == {"inputs", "result"}:
                return True
    try:
        text = (place / "config.yaml").read_text(encoding="utf-8")
        return RunConfig.model_validate(yaml.safe_load(text)).dump() == text
    except (OSError, ValueError, yaml.YAMLError):
        return False


def damaged(file: Path, error: Exception) -> DataError:
    """What to raise where a stage's output cannot be read."""
    return DataError(f"{file} is damaged: {error}", "delete this file: its stage is then done again")


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

    def stage(
        self, name: str, inputs: Any, outputs: Sequence[Path], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do a stage, or return what it gave when its inputs were the same.

        Args:
            name: The stage's file below `stages/`.
            inputs: JSON of everything the result depends on.
            outputs: Files or folders the stage makes; if one is gone it is done again.
            make: Does the work; its files must be complete when it returns.

        Returns:
            What `make` returned, with the `wall_seconds` it took.
        """
        wanted = json_hash(inputs)
        path = self.path / "stages" / f"{name}.json"
        # What is missing or cannot be read is not done.
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            recorded = json.loads(path.read_text(encoding="utf-8"))
            if recorded["inputs"] == wanted and all(output.exists() for output in outputs):
                return dict(recorded["result"])
        # From here on the outputs may be half new: nothing may call them done, not even after a power cut.
        path.unlink(missing_ok=True)
        sync(path.parent)
        started = time.monotonic()
        result = make()
        for output in outputs:
            sync_tree(output)
        result["wall_seconds"] = time.monotonic() - started
        self.spent += result["wall_seconds"]
        self.write(f"stages/{name}.json", json.dumps({"inputs": wanted, "result": result}, indent=1))
        return result
