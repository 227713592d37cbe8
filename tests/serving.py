"""A service for tests: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from tinyworld import document, label_rows

from ezxmc.bundle import add_calibrator, save_bundle
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.predict import Predictor
from ezxmc.records import Document, Label

PATIENCE = 600.0  # seconds; a busy machine takes minutes to import torch
DOCUMENTS = [Document(**document(number)) for number in range(40)]
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
_RUN = "from ezxmc.cli.app import main; main()"


def write_bundle(path: Path, encoder: Path, *, calibrated: bool = True) -> Path:
    """The tests' small world; one label's title is an attack on the page that shows it."""
    labels = [Label(**row) for row in label_rows()] + [Label("evil", EVIL, "", ("alias",))]
    save_bundle(path, encoder, labels, max_length=32, k=4)
    if calibrated:
        found = Predictor(path).predict(DOCUMENTS, k=26)
        scores = np.unique([score for prediction in found for score in prediction.scores])
        curve = Isotonic(tuple(scores.tolist()), tuple(np.linspace(0.05, 0.95, len(scores)).tolist()))
        add_calibrator(path, Calibrator("teacher", 26, 100, curve))
    return path


@contextmanager
def served(app: object) -> Iterator[httpx.Client]:
    """An ASGI application on loopback; a client of it."""
    import socket

    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


class ServeProcess:
    """`ezxmc serve` as a process; `url` is where it answers."""

    def __init__(self, bundle: Path, *options: str, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, "serve", str(bundle), "--port", str(port), *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if " at http://" in line:
                break
        else:
            raise AssertionError("".join(self.said))
        self.url = line.rsplit(" ", 1)[1].strip()
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()))
        self._reader.start()

    def end(self, signal: int) -> int:
        """Send a signal, wait for the end, return the exit code."""
        self.process.send_signal(signal)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code


def until(true: object, patience: float = PATIENCE) -> None:
    """Wait until a call answers something true."""
    end = time.monotonic() + patience
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
