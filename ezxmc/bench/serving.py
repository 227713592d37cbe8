"""Load test of the service on loopback: requests a second and latency, with and without batching."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from ezxmc.data import RowReport, iter_documents
from ezxmc.errors import DataError, EzxmcError
from ezxmc.progress import Progress

_BODIES = 1_000
_ENDPOINT = "/predict"
_SERVE = "from ezxmc.cli.app import main; main()"


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What one load found.

    Attributes:
        batching: Whether requests were computed together.
        connections: Clients, each sending its next request when it has its answer.
        requests: Answered in all.
        errors: Answers other than 200, and broken connections.
        per_second: Requests.
        p50_ms: Median time to the answer.
        p99_ms: 99th percentile.
        batch_documents: Mean size of the batches computed.
    """

    batching: bool
    connections: int
    requests: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float
    batch_documents: float


def bench_serving(
    bundle: Path,
    documents: str | Path,
    *,
    seconds: float,
    connections: Sequence[int],
    watch: Progress,
    report: RowReport | None = None,
) -> dict[str, Any]:
    """Serve a bundle in a process of its own and load it, one document a request.

    The generator is wrk where it is installed, else an asyncio client on
    httpx, which costs the machine more than the service's own HTTP does.

    Args:
        bundle: What to serve.
        documents: Of which up to 1,000 are sent, over and over.
        seconds: Of each load; a second of warm-up goes before it.
        connections: A load for each of these numbers.
        watch: Told of each load.
        report: Receives the bad rows among the documents sent.

    Returns:
        "generator", its "version", "bytes" of a mean request, and "runs", each a `LoadRun` as a dict.

    Raises:
        DataError: No usable document.
        EzxmcError: The service does not start.
    """
    bodies = [
        json.dumps({"documents": [{"title": one.title, "text": one.text}]})
        for one in islice(iter_documents(documents, report or RowReport()), _BODIES)
    ]
    if not bodies:
        raise DataError(f"{documents} holds no usable document", "give documents to send")
    wrk = shutil.which("wrk")
    runs = []
    for batching in (False, True):
        with _service(bundle, batching) as url:
            for count in connections:
                watch.say(f"batching {'on' if batching else 'off'}, {count} connections, {seconds:g} s")
                _load(wrk, url, bodies, count, 1.0)
                before = _batches(url)
                found = _load(wrk, url, bodies, count, seconds)
                batches, sent = (after - first for after, first in zip(_batches(url), before, strict=True))
                runs.append(
                    LoadRun(batching, count, **found, batch_documents=sent / batches if batches else 0.0)
                )
    return {
        "generator": "wrk" if wrk else "httpx",
        "version": _wrk_version(wrk) if wrk else version("httpx"),
        "bytes": round(sum(map(len, bodies)) / len(bodies)),
        "runs": [asdict(run) for run in runs],
    }


@contextmanager
def _service(bundle: Path, batching: bool) -> Iterator[str]:
    options = ["--port", "0", "--rate", "1e9", "--burst", "1000000000", "--queue", "1000000"]
    if not batching:
        options += ["--batch-documents", "1", "--batch-wait-ms", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, "serve", str(bundle), *options], stderr=subprocess.PIPE, text=True
    )
    try:
        said = []
        for line in process.stderr or ():
            said.append(line)
            if found := re.search(r" at (http://\S+)$", line):
                yield found[1]
                return
        raise EzxmcError(f"the service did not start: {''.join(said)[-2000:]}", "try `ezxmc serve` by hand")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _batches(url: str) -> tuple[float, float]:
    """How many batches were computed so far, and the documents in them."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    count, total = (
        float(found[1]) if (found := re.search(rf"^ezxmc_batch_documents_{name} (\S+)$", text, re.M)) else 0.0
        for name in ("count", "sum")
    )
    return count, total


def _load(wrk: str | None, url: str, bodies: list[str], count: int, seconds: float) -> dict[str, Any]:
    if wrk:
        return _wrk(wrk, url, bodies, count, seconds)
    return asyncio.run(_httpx(url, bodies, count, seconds))


_LUA = """
local bodies = {}
for line in io.lines(os.getenv("EZXMC_BODIES")) do bodies[#bodies + 1] = line end
local at = 0
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request()
  at = at % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('FOUND {"requests": %d, "errors": %d, "micros": %d, "p50": %f, "p99": %f}\\n',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.duration,
    latency:percentile(50), latency:percentile(99)))
end
"""


def _wrk(wrk: str, url: str, bodies: list[str], count: int, seconds: float) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        script, lines = Path(folder, "post.lua"), Path(folder, "bodies")
        script.write_text(_LUA, encoding="utf-8")
        lines.write_text("\n".join(bodies), encoding="utf-8")
        command = [wrk, "-t1", f"-c{count}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"]
        done = subprocess.run(
            [*command, "-s", str(script), url + _ENDPOINT],
            env={**os.environ, "EZXMC_BODIES": str(lines)},
            capture_output=True,
            text=True,
        )
    found = re.search(r"^FOUND (.*)$", done.stdout, re.M)
    if done.returncode or not found:
        raise EzxmcError(f"wrk failed: {done.stdout}{done.stderr}", "look at its message")
    figures = json.loads(found[1])
    return {
        "requests": figures["requests"],
        "errors": figures["errors"],
        "per_second": figures["requests"] / (figures["micros"] / 1e6),
        "p50_ms": figures["p50"] / 1e3,
        "p99_ms": figures["p99"] / 1e3,
    }


def _wrk_version(wrk: str) -> str:
    said = subprocess.run([wrk, "-v"], capture_output=True, text=True)
    found = re.search(r"wrk (\S+)", said.stdout + said.stderr)
    return found[1] if found else "unknown"


async def _httpx(url: str, bodies: list[str], count: int, seconds: float) -> dict[str, Any]:
    times: list[float] = []
    errors = 0
    began = time.perf_counter()

    async def client(first: int, http: httpx.AsyncClient) -> None:
        nonlocal errors
        number = first
        while (sent := time.perf_counter()) - began < seconds:
            try:
                answer = await http.post(
                    url + _ENDPOINT,
                    content=bodies[number % len(bodies)],
                    headers={"Content-Type": "application/json"},
                )
                errors += answer.status_code != 200
            except httpx.TransportError:
                errors += 1
            times.append(time.perf_counter() - sent)
            number += count

    async with httpx.AsyncClient(
        timeout=60, trust_env=False, limits=httpx.Limits(max_connections=count)
    ) as http:
        await asyncio.gather(*(client(first, http) for first in range(count)))
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {
        "requests": len(times),
        "errors": errors,
        "per_second": len(times) / (time.perf_counter() - began),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }
