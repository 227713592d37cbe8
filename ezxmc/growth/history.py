"""The updates of a run: where one is made, and how it takes the place of what was.

    updates/0001/stages/      what is done, as in a run
    updates/0001/ready.json   written last: from here on the update counts
    updates/0001/done.json    the new bundle is in place
    updates/0001/report.html  what happened (report.json: the same as data)
    updates/0001/former/      the bundle before, of the last update only

All is made beside the run and moved when `ready.json` stands. The bundles are
exchanged in one step, so whoever opens `bundle/` finds the former or the new
one. Killed while moving, the next command goes on moving first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ezxmc.data.growth import CATALOG
from ezxmc.disk import exchange, sync, sync_tree
from ezxmc.errors import DataError
from ezxmc.files import remove_own
from ezxmc.hashing import file_hash
from ezxmc.manifest import MANIFEST, Manifest, holding, own_files, read_manifest
from ezxmc.retrieval.encoder import student_files
from ezxmc.rundir import RunDir

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

    def settle(self, say: Callable[[str], None]) -> None:
        """Finish moving what a killed process left ready, if what it was made from is still there."""
        for folder in self.folders:
            if (folder / _DONE).exists() or (ready := _read(folder / _READY)) is None:
                continue
            with holding(self.bundle):
                if self._stale(folder, ready):
                    (folder / _READY).unlink()
                    say(f"{self.bundle} was changed since update {folder.name} was made: it is made again")
                else:
                    self._install(folder, ready)

    def open(self) -> RunDir:
        """The update under way, else a new one; call `settle` first."""
        number = len(self.reports) + 1
        return RunDir(self.run.path / UPDATES / f"{number:04}")

    def complete(self, update: RunDir, former: Manifest) -> None:
        """Put a finished update in the place of what was.

        Args:
            update: Its folder.
            former: Of the bundle it was made from.

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


def _read(file: Path) -> dict[str, str] | None:
    """What `ready.json` says; one that cannot be read is not there: its update is not finished."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found["manifest"], str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
