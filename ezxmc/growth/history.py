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
from dataclasses import dataclass
from pathlib import Path

from ezxmc.data.growth import CATALOG
from ezxmc.files import exchange, remove_own
from ezxmc.hashing import file_hash
from ezxmc.manifest import MANIFEST, own_files
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

    def settle(self) -> None:
        """Finish moving what a killed process left ready."""
        for folder in self.folders:
            if (folder / _READY).exists() and not (folder / _DONE).exists():
                self._install(folder)

    def open(self) -> RunDir:
        """The update under way, else a new one; call `settle` first."""
        number = len(self.reports) + 1
        return RunDir(self.run.path / UPDATES / f"{number:04}")

    def complete(self, update: RunDir) -> None:
        """Put a finished update in the place of what was."""
        manifest = file_hash(update.path / BUNDLE / MANIFEST)
        update.write(_READY, json.dumps({"manifest": manifest}))
        self._install(update.path)

    def _install(self, folder: Path) -> None:
        wanted = json.loads((folder / _READY).read_text(encoding="utf-8"))["manifest"]
        current, fresh, former = self.run.path / BUNDLE, folder / BUNDLE, folder / FORMER
        # What lies there may be the former bundle already.
        if (fresh / MANIFEST).exists() and file_hash(fresh / MANIFEST) == wanted:
            exchange(fresh, current)
        if fresh.exists():
            fresh.rename(former)
        for name in _MOVED:
            if (folder / name).exists():
                (folder / name).replace(self.run.path / name)
        # The run's own records of its bundle are of another one now.
        for stage in ("bundle", "calibrate"):
            self.run.forget(stage)
        for place in (folder / "student", *(one / FORMER for one in self.folders if one != folder)):
            known = set(own_files(place) or student_files(place) or ())
            remove_own(place, known.__contains__)
        RunDir(folder).write(_DONE, "{}")
