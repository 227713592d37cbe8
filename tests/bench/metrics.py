"""How fast the metrics are, against napkinXC and pyxclib, and what memory they take on streams.

First P, R, nDCG, PSP and PSnDCG at 1 to 5 of the same sparse scores, 50 a
document, by every library that is installed: seconds, the ratio to ours, and
the largest difference of any value. Then 10^6 documents over 10^6 labels in
chunks, in a process of its own: seconds and peak memory.

    python tests/bench/metrics.py
    python tests/bench/metrics.py --documents 2000 --labels 2000 --stream 50000

pyxclib is on no package index: `pip install git+https://github.com/kunaldahiya/pyxclib`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ezxmc.metrics import RankingMetrics, intervals, inverse_propensity, top_labels

K, PREDICTED, CHUNK = 5, 50, 10_000
Values = dict[str, NDArray[np.float64]]


def chunk(rng: np.random.Generator, documents: int, labels: int) -> tuple[csr_matrix, csr_matrix]:
    """Scores of 50 labels a document, 1 to 9 gold labels, half of them predicted; few are frequent."""
    first = (labels * rng.power(0.3, documents)).astype(np.int64)
    predicted = (first[:, None] + np.arange(PREDICTED)) % labels
    scores = csr_matrix(
        (
            rng.normal(size=documents * PREDICTED),
            predicted.ravel(),
            np.arange(0, documents * PREDICTED + 1, PREDICTED),
        ),
        (documents, labels),
    )
    sizes = rng.integers(1, 10, documents)
    rows = np.repeat(np.arange(documents), sizes)
    known = rng.random(len(rows)) < 0.5
    places = rng.integers(PREDICTED, size=len(rows))
    right = np.where(known, predicted[rows, places], rng.integers(labels, size=len(rows)))
    gold = csr_matrix((np.ones(len(rows)), (rows, right)), (documents, labels))
    gold.data[:] = 1
    return scores, gold


def ours(scores: csr_matrix, gold: csr_matrix, inverse: NDArray[np.float64]) -> Values:
    ks = range(1, K + 1)
    metrics = RankingMetrics(precision_ks=ks, recall_ks=ks, ndcg_ks=ks, coverage_ks=(), inverse=inverse)
    for start in range(0, gold.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        metrics.update(top_labels(scores[rows], K)[0], gold[rows])
    found = metrics.result().values
    names = ("P", "R", "nDCG", "PSP", "PSnDCG")
    return {name: np.array([found[f"{name}@{k}"] for k in ks]) for name in names}


def napkinxc(scores: csr_matrix, gold: csr_matrix, inverse: NDArray[np.float64]) -> Values:
    from napkinxc import metrics

    return {
        "P": metrics.precision_at_k(gold, scores, k=K),
        "R": metrics.recall_at_k(gold, scores, k=K),
        "nDCG": metrics.ndcg_at_k(gold, scores, k=K),
        "PSP": metrics.psprecision_at_k(gold, scores, inverse, k=K),
        "PSnDCG": metrics.psndcg_at_k(gold, scores, inverse, k=K),
    }


def pyxclib(scores: csr_matrix, gold: csr_matrix, inverse: NDArray[np.float64]) -> Values:
    from xclib.evaluation import xc_metrics

    found = xc_metrics.Metrics(gold, inverse).eval(scores, K)
    return {
        **dict(zip(("P", "nDCG", "PSP", "PSnDCG"), found, strict=True)),
        "R": xc_metrics.recall(scores, gold, k=K),
    }


def timed(
    method: Callable[..., Values], scores: csr_matrix, gold: csr_matrix, inverse: NDArray[np.float64]
) -> tuple[Values, float]:
    method(scores[:100], gold[:100], inverse)  # imports, compilation
    started = time.process_time()
    found = method(scores, gold, inverse)
    return found, time.process_time() - started


def compared(documents: int, labels: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    scores, gold = chunk(rng, documents, labels)
    train = chunk(rng, documents, labels)[1]
    inverse = inverse_propensity(np.asarray(train.sum(axis=0)).ravel(), documents)
    wanted, seconds = timed(ours, scores, gold, inverse)
    report: dict[str, Any] = {"documents": documents, "labels": labels, "ezxmc_seconds": seconds}
    for method in (napkinxc, pyxclib):
        name = method.__name__
        try:
            found, took = timed(method, scores, gold, inverse)
        except ImportError as error:
            report[name] = f"not installed: {error}"
            continue
        apart = max(float(abs(found[metric] - wanted[metric]).max()) for metric in wanted)
        report[name] = {"seconds": took, "ratio": took / seconds, "largest_difference": apart}
    return report


def streamed(documents: int, labels: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = (labels / np.arange(1, labels + 1)).astype(np.int64)
    group = (3 * np.arange(labels) // labels).astype(np.int8)
    metrics = RankingMetrics(inverse=inverse_propensity(counts, documents), group=group)
    seconds = 0.0
    for start in range(0, documents, CHUNK):
        scores, gold = chunk(rng, min(CHUNK, documents - start), labels)
        started = time.process_time()
        predicted, values = top_labels(scores, PREDICTED)
        metrics.update(predicted, gold, kept=values > 0.5)
        seconds += time.process_time() - started
    started = time.process_time()
    found = metrics.result()
    ends = intervals(found.terms)
    return {
        "documents": found.documents,
        "labels": labels,
        "seconds": seconds,
        "intervals_seconds": time.process_time() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "of_these_libraries_mb": before / 1024,
        "values": {name: [value, *ends.get(name, ())] for name, value in found.values.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--stream", type=int, default=1_000_000, help="documents and labels of the stream")
    options = parser.parse_args()
    # A process of its own, so that peak memory is the stream's alone.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        stream = apart.submit(streamed, options.stream, options.stream).result()
    print(json.dumps({"compared": compared(options.documents, options.labels), "stream": stream}, indent=2))


if __name__ == "__main__":
    main()
