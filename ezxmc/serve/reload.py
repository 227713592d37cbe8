"""The bundle that is served, and the change to another one while requests go on."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ezxmc.bundle.labels import Change
from ezxmc.bundle.manifest import MANIFEST
from ezxmc.bundle.predict import Predictor
from ezxmc.errors import BundleError, EzxmcError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A bundle in service.

    Attributes:
        predictor: Opened, verified, and tried on a text.
        version: First 16 hex digits of the manifest's SHA-256.
        since: When it was loaded.
    """

    predictor: Predictor
    version: str
    since: datetime


class BundleHolder:
    """Serves one bundle, and takes the next one only when it is verified.

    Args:
        load: Opens the bundle that lies at `path`.
        path: The bundle's folder; whatever lies there is served.
        observe: Told of every load whether it succeeded.

    Attributes:
        current: What is served now; read it once per use.
        refused: Why the bundle at `path` is not the one served, or `None`.

    Raises:
        BundleError: The folder is no intact bundle.
    """

    def __init__(
        self, load: Callable[[], Predictor], path: Path, observe: Callable[[bool], None] = lambda ok: None
    ) -> None:
        self._load, self._path, self._observe = load, path, observe
        self._lock = threading.Lock()
        self._wake, self._stopping = threading.Event(), False
        self._watcher: threading.Thread | None = None
        self._seen = _fingerprint(path)
        self.refused: str | None = None
        self.current = _tried(load())

    def reload(self) -> Served:
        """Load what lies at the path now; on failure the old bundle stays in service.

        Raises:
            BundleError: It cannot be served.
        """
        with self._lock:
            return self._reload()

    def change(self, act: Callable[[Path], Change]) -> tuple[Change, Served]:
        """Change the bundle's folder, then serve the result; one change at a time.

        Raises:
            EzxmcError: What `act` raised, or as for `reload`.
        """
        with self._lock:
            return act(self._path), self._reload()

    def watch(self, every: float) -> None:
        """Reload by itself, in a thread, whenever the folder has changed and then kept still.

        Args:
            every: Seconds between looks.
        """
        self._watcher = threading.Thread(target=self._look, args=(every,), name="reload", daemon=True)
        self._watcher.start()

    def ask(self) -> None:
        """Have the watching thread reload at once (on a signal, say)."""
        self._wake.set()

    def stop(self) -> None:
        """End the watching."""
        self._stopping = True
        self._wake.set()
        if self._watcher:
            self._watcher.join()

    def _look(self, every: float) -> None:
        before = self._seen
        while True:
            asked = self._wake.wait(every)
            self._wake.clear()
            if self._stopping:
                return
            now = _fingerprint(self._path)
            # A folder that is being copied changes from look to look: not yet.
            if asked or (now == before != self._seen):
                try:
                    self.reload()
                except EzxmcError as error:
                    _log.warning("the bundle was not reloaded: %s", error)
            before = now

    def _reload(self) -> Served:
        seen = _fingerprint(self._path)
        try:
            self.current = _tried(self._load())
        except Exception as error:  # a damaged model can raise anything
            self.refused = str(error)
            self._observe(False)
            if isinstance(error, EzxmcError):
                raise
            raise BundleError(f"bundle {self._path} cannot be served: {error}", "make it again") from error
        finally:
            self._seen = seen
        self.refused = None
        self._observe(True)
        return self.current


def _tried(predictor: Predictor) -> Served:
    predictor.predict(["A text to try it on."])
    manifest = predictor.bundle.manifest.model_dump_json().encode()
    return Served(predictor, hashlib.sha256(manifest).hexdigest()[:16], datetime.now(UTC))


def _fingerprint(path: Path) -> tuple[object, ...]:
    """Changes whenever a file of the bundle does, without reading more than the manifest."""
    try:
        manifest = (path / MANIFEST).read_bytes()
        stats = [(path / name).stat() for name in json.loads(manifest)["files"]]
        return (manifest, *((stat.st_size, stat.st_mtime_ns) for stat in stats))
    except (OSError, ValueError, TypeError, KeyError) as error:
        return (repr(error),)
