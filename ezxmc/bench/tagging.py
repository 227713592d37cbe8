"""How fast documents are tagged: by each backend, and by the service under load on loopback.

Of backends, documents per second, precision lost and latency in one run; the measure is plain float32
`SentenceTransformer.encode`. They take turns over the same documents, so that what else the machine does
falls on all. Of the service, requests a second and latency, with and without batching.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Bundle, load_bundle
from ezxmc.bundle.manifest import STUDENT
from ezxmc.bundle.predict import Predictor
from ezxmc.config import Backend, Precision
from ezxmc.data import RowReport, iter_documents
from ezxmc.errors import BundleError, DataError, EzxmcError, ModelError
from ezxmc.metrics import precision_at_k
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document
from ezxmc.retrieval import BiEncoder

PLAIN = "SentenceTransformer.encode float32"
WAYS: Mapping[str, tuple[Backend, Precision]] = {
    "torch float32": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
    "onnx float32": ("onnx", "float32"),
    "onnx int8": ("onnx", "int8"),
    "openvino float32": ("openvino", "float32"),
    "openvino bfloat16": ("openvino", "bfloat16"),
    "static": ("static", "auto"),
}
_K = 5
_WARM = 8  # documents


@dataclass(frozen=True, slots=True)
class Measured:
    """One way to encode.

    Attributes:
        way: `PLAIN` or one of `WAYS`.
        documents_per_second: By the clock, median of the rounds.
        processor_seconds: Of all threads per 1,000 documents, median of the rounds.
        times_plain: Documents per processor second, against `PLAIN`.
        cosine_mean: Of its vectors with those of `PLAIN`.
        cosine_least: The same, the worst document.
        precision: P@5 against gold; `None` without gold.
        points_lost: P@5 of `PLAIN` minus its own, in points.
        p50_ms: One document end to end (encode, search, calibrate), by the clock.
        p99_ms: The same, the 99th percentile.
        p50_processor_ms: One document end to end, processor time of all threads.
        p99_processor_ms: The same, the 99th percentile.
    """

    way: str
    documents_per_second: float
    processor_seconds: float
    times_plain: float
    cosine_mean: float
    cosine_least: float
    precision: float | None
    points_lost: float | None
    p50_ms: float
    p99_ms: float
    p50_processor_ms: float
    p99_processor_ms: float


class _Plain:
    """Plain `SentenceTransformer.encode` in the place of a `BiEncoder`."""

    def __init__(self, encoder: BiEncoder) -> None:
        self.model, self.dimension = encoder.model, encoder.dimension

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return found


def bench_encoding(
    path: Path,
    documents: Sequence[Document],
    gold: Mapping[str, Collection[str]] | None = None,
    *,
    count: int = 1000,
    singles: int = 500,
    rounds: int = 3,
    seed: int = 0,
    watch: Progress | None = None,
) -> dict[str, Any]:
    """Encode documents in every way that a bundle and this machine allow.

    Args:
        path: The bundle; its converted students are measured too.
        documents: To choose from; with `gold` those that have gold tags.
        gold: Gold tags by document uid.
        count: Documents encoded per round.
        singles: Documents tagged one at a time.
        rounds: Passes over the documents by each way, in turn.
        seed: Which documents.
        watch: Told of progress.

    Returns:
        "rows": `Measured` as dictionaries, `PLAIN` first; "skipped": why, by
        way; "documents", "singles", "threads".

    Raises:
        BundleError: No intact bundle, or one without a calibrator.
        DataError: No documents, or none with gold.
    """
    watch = watch or NoProgress()
    bundle = load_bundle(path, precision="float32")
    if bundle.calibrator is None:
        raise BundleError(f"bundle {path} has no calibrator", "run `ezxmc calibrate` on it")
    pool = [document for document in documents if gold is None or gold.get(document.uid)]
    if not pool:
        raise DataError("no documents to encode" + (", or none with gold" if gold else ""))
    chosen = random.Random(seed).sample(pool, min(count, len(pool)))
    texts = [document.shown for document in chosen]
    encoders, skipped = _encoders(bundle)
    for encoder in encoders.values():
        encoder.encode_documents(texts[:_WARM])
    vectors, seconds, processor = _in_turn(
        {way: encoder.encode_documents for way, encoder in encoders.items()},
        [texts] * rounds,
        watch.stage("documents together"),
    )
    alone = [chosen[number % len(chosen)] for number in range(singles)]
    predictors = {
        way: Predictor(replace(bundle, encoder=encoder)).predict for way, encoder in encoders.items()
    }
    for predict in predictors.values():
        predict(alone[:1])
    _, single, single_processor = _in_turn(
        predictors, [[document] for document in alone], watch.stage("documents one at a time")
    )
    exact = _precision(bundle, chosen, vectors[PLAIN], gold)
    rows = []
    for way in encoders:
        cosines = np.einsum("nd,nd->n", vectors[way], vectors[PLAIN])
        precision = _precision(bundle, chosen, vectors[way], gold)
        rows.append(
            Measured(
                way=way,
                documents_per_second=len(texts) / float(np.median(seconds[way])),
                processor_seconds=1000 * float(np.median(processor[way])) / len(texts),
                times_plain=float(np.median(processor[PLAIN]) / np.median(processor[way])),
                cosine_mean=float(cosines.mean()),
                cosine_least=float(cosines.min()),
                precision=precision,
                points_lost=None if exact is None or precision is None else 100 * (exact - precision),
                p50_ms=_percentile(single[way], 50),
                p99_ms=_percentile(single[way], 99),
                p50_processor_ms=_percentile(single_processor[way], 50),
                p99_processor_ms=_percentile(single_processor[way], 99),
            )
        )
    return {
        "rows": [asdict(row) for row in rows],
        "skipped": skipped,
        "documents": len(texts),
        "singles": len(alone),
        "threads": torch.get_num_threads(),
    }


def _encoders(bundle: Bundle) -> tuple[dict[str, Any], dict[str, str]]:
    """Encoders by way, `PLAIN` first, and why a way has none."""
    found: dict[str, Any] = {PLAIN: _Plain(bundle.encoder), "torch float32": bundle.encoder}
    skipped = {}
    student = bundle.path / STUDENT
    for way, (backend, precision) in WAYS.items():
        if way in found:
            continue
        try:
            if backend == "static":
                found[way] = load_bundle(bundle.path, verify=False, backend=backend).encoder
            elif backend == "torch":
                found[way] = BiEncoder(student, max_length=bundle.manifest.max_length, precision=precision)
            else:
                found[way] = bundle.encoder.converted(student, backend, precision)
        except (BundleError, ModelError) as error:
            skipped[way] = f"{error.message}: {error.cure}"
    return found, skipped


def _in_turn(
    ways: Mapping[str, Callable[[Any], Any]], parts: Sequence[Any], progress: Callable[[int, int], None]
) -> tuple[dict[str, Any], dict[str, list[float]], dict[str, list[float]]]:
    """What each way makes of the last part, and its wall and its processor seconds with each part."""
    made: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for done, part in enumerate(parts, 1):
        for way, act in ways.items():
            wall, busy = time.perf_counter(), time.process_time()
            made[way] = act(part)
            processor[way].append(time.process_time() - busy)
            seconds[way].append(time.perf_counter() - wall)
        progress(done, len(parts))
    return made, seconds, processor


def _precision(
    bundle: Bundle,
    documents: Sequence[Document],
    vectors: NDArray[np.float32],
    gold: Mapping[str, Collection[str]] | None,
) -> float | None:
    if gold is None:
        return None
    _, rows = bundle.search(vectors, _K)
    ranked = [[bundle.labels[row].uid for row in found] for found in rows]
    return precision_at_k(ranked, [gold[document.uid] for document in documents], _K)


def _percentile(seconds: Sequence[float], percent: float) -> float:
    return 1000 * float(np.percentile(seconds, percent))


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
