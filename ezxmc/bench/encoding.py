"""Encoding measured: documents per second, precision lost and latency of each backend, in one run.

The measure is plain float32 `SentenceTransformer.encode`. Backends take turns
over the same documents, so that what else the machine does falls on all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Bundle, load_bundle
from ezxmc.bundle.manifest import STUDENT
from ezxmc.bundle.predict import Predictor
from ezxmc.config import Backend, Precision
from ezxmc.errors import BundleError, DataError, ModelError
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
