"""A service for tests: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from support.commands import Command
from support.tinyworld import document, label_rows

from ezxmc.bundle.bundle import add_calibrator, save_bundle
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.records import Document, Label

PATIENCE = 600.0  # seconds; a busy machine takes minutes to import torch
DOCUMENTS = [Document(**document(number)) for number in range(40)]
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'


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
    # Of an extra, which may be missing where other tests of this module's users run.
    from ezxmc.serve import web as listen

    with listen.listener("127.0.0.1", 0) as listening:
        server = listen.server(app)  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


class ServeProcess(Command):
    """`ezxmc serve` as a process; `url` is where it answers."""

    def __init__(self, bundle: Path, *options: str, port: int = 0) -> None:
        super().__init__("serve", bundle, "--port", port, *options)
        self.url = self.said(" at http://").rsplit(" ", 1)[1]
