"""Label indexes measured: build time, memory, recall and speed, against brute force and hnswlib in one run.

Up to the number of real labels the vectors are theirs; beyond it synthetic ones of the same spectrum and
cluster structure are added. Queries are documents, which lie farther from labels than labels from each other.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from ezxmc.config import TrainingConfig
from ezxmc.data import RowReport, iter_documents, read_labels
from ezxmc.errors import ConfigError, DataError
from ezxmc.models import resolve_model
from ezxmc.models.resolve import fitting_encoder
from ezxmc.progress import NoProgress, Progress
from ezxmc.retrieval import BiEncoder
from ezxmc.retrieval.ann import BREADTH, DEPTH, LINKS, Vectors, choose, document_like, recall
from ezxmc.retrieval.index import LabelIndex

METHODS = ("exact", "hnsw", "ivf", "torch", "numpy", "hnswlib")
_BATCH = 64  # queries of one batched search
_LABELS_PER_CLUSTER = 16
_MEASURED = 2.0  # seconds per speed
_ADDED = 10_000
_RECALL = 0.95
_LISTS, _PROBES = 128, (1, 2, 4, 8, 16)
_BREADTHS = (100, 128, 256, 512, 1024)

Search = Callable[[Vectors], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One method at one size.

    Attributes:
        labels: L.
        method: One of `METHODS`.
        chosen: Whether `LabelIndex.build` would choose it here.
        build_seconds: From vectors to a tuned index.
        load_seconds: Memory-mapped, first query answered; `None` where nothing is kept.
        bytes: On disk, or of the vectors where nothing is kept.
        recall: Of the exact best 100.
        single: Queries/s, one at a time.
        batched: Queries/s, 64 at a time.
        add_seconds: 10,000 labels added and saved; `None` where that means to build again.
    """

    labels: int
    method: str
    chosen: bool
    build_seconds: float
    load_seconds: float | None
    bytes: int
    recall: float
    single: float
    batched: float
    add_seconds: float | None


def bench_index(
    vectors: Vectors,
    queries: Vectors,
    sizes: Sequence[int],
    *,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    watch: Progress | None = None,
) -> dict[str, Any]:
    """Measure ways to search label vectors.

    Args:
        vectors: (L, D) float32 unit rows of the real labels.
        queries: (N, D) float32 unit rows of documents; half tune the indexes, half measure.
        sizes: Numbers of labels.
        methods: Some of `METHODS`; hnswlib is left out where it is not installed.
        seed: Of samples and of synthetic labels.
        watch: Sees stages and messages.

    Returns:
        `rows` (`Measured` as dicts, sizes ascending), `difficulty` (see there), and the circumstances.

    Raises:
        ConfigError: An unknown method, or no size that can be measured.
    """
    if unknown := set(methods) - set(METHODS):
        raise ConfigError(f"no index method {', '.join(sorted(unknown))}", f"choose of {', '.join(METHODS)}")
    if not sizes or min(sizes) < DEPTH:
        raise ConfigError(f"sizes must be at least {DEPTH}", "give --sizes 1000,10000")
    watch = watch or NoProgress()
    if "hnswlib" in methods and not _installed("hnswlib"):
        watch.say("hnswlib is not installed and left out (`pip install hnswlib`)")
        methods = [method for method in methods if method != "hnswlib"]
    rows = []
    for size in sorted(sizes):
        labels = labels_of_size(vectors, size, seed=seed)
        wanted = _exact(labels, queries[1::2])
        for method in methods:
            watch.say(f"{size:,} labels, {method}")
            rows.append(asdict(_measure(method, labels, queries, wanted)))
    return {
        "rows": rows,
        "difficulty": difficulty(vectors, queries, seed=seed),
        "real_labels": len(vectors),
        "dimension": vectors.shape[1],
        "queries": len(queries) // 2,
        "cores": psutil.cpu_count(),
    }


def bench_files(
    labels: str,
    documents: str,
    sizes: Sequence[int],
    *,
    encoder: str,
    methods: Sequence[str] = METHODS,
    count: int = 1000,
    seed: int = 0,
    watch: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, RowReport]]:
    """`bench_index` on the labels and some documents of files, and how reading these went.

    `labels` and `documents` are real ones, of which `count` are asked about, drawn by `seed`; `encoder` is a
    name, a folder or a hub id; the other arguments are those of `bench_index`.

    Raises:
        DataError: A file cannot be read, or there are not a label and two documents.
        ConfigError: As for `bench_index`.
    """
    watch, config = watch or NoProgress(), TrainingConfig()
    tags, tag_rows = read_labels(labels)
    doc_rows = RowReport()
    docs = list(islice(iter_documents(documents, doc_rows), 20 * count))
    if not tags or len(docs) < 2:
        raise DataError(
            f"{labels} and {documents} hold {len(tags)} usable labels and {len(docs)} documents",
            "give real ones of both; `ezxmc data inspect` shows what a file holds",
        )
    docs = random.Random(seed).sample(docs, min(count, len(docs)))
    name = fitting_encoder(encoder, [doc.shown for doc in docs], say=watch.say)
    model = BiEncoder(resolve_model(name, kind="encoder"), max_length=config.max_length)
    vectors = model.encode_labels([tag.title for tag in tags], progress=watch.stage("labels"))
    queries = model.encode_documents([doc.shown for doc in docs], progress=watch.stage("documents"))
    found = bench_index(vectors, queries, sizes, methods=methods, seed=seed, watch=watch)
    return found, {"documents": doc_rows, "labels": tag_rows}


def labels_of_size(vectors: Vectors, size: int, *, seed: int = 0) -> Vectors:
    """So many label vectors: a sample of the real ones, or all of them and synthetic ones."""
    if size <= len(vectors):
        chosen = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
        return vectors[np.sort(chosen)]
    return np.vstack([vectors, synthetic(vectors, size - len(vectors), seed=seed)])


def synthetic(vectors: Vectors, count: int, *, seed: int = 0) -> Vectors:
    """Vectors like the given ones: the same clusters, in proportion, and the same spread within them.

    A draw is the centre of a real vector's k-means cluster (16 labels each) plus a Gaussian with the pooled
    covariance within clusters, scaled to that cluster's own radius, of unit length in the end. So spectrum
    and clusters are those of the real vectors; what is finer than a cluster is not.

    Args:
        vectors: (L, D) float32 unit rows.
        count: How many.
        seed: Of the draw.

    Returns:
        (count, D) float32 unit rows.
    """
    rng = np.random.default_rng(seed)
    dimension = vectors.shape[1]
    clusters = max(1, len(vectors) // _LABELS_PER_CLUSTER)
    kmeans: Any = faiss.Kmeans(dimension, clusters, niter=10, seed=seed, min_points_per_centroid=1)
    kmeans.train(vectors)
    home = kmeans.index.search(vectors, 1)[1][:, 0]
    inner = vectors - kmeans.centroids[home]
    squares = np.bincount(home, np.einsum("ij,ij->i", inner, inner), clusters) / np.maximum(
        np.bincount(home, minlength=clusters), 1
    )
    radius = np.sqrt(squares / squares[home].mean()).astype(np.float32)
    values, axes = np.linalg.eigh(np.cov(inner, rowvar=False))
    spread = (axes * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    picked = home[rng.integers(len(vectors), size=count)]
    made = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, 1 << 16):
        here = picked[start : start + (1 << 16)]
        noise = rng.standard_normal((len(here), dimension), dtype=np.float32) @ spread.T
        part = kmeans.centroids[here] + radius[here, None] * noise
        made[start : start + len(here)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return made


def difficulty(vectors: Vectors, queries: Vectors, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Whether synthetic labels are as hard to search as as many real ones.

    Returns:
        Recall@100 of 128 inverted lists by lists visited, for `real` and
        `synthetic` labels, with the documents as queries and with stand-ins for them
        (`..., stand-ins`): close curves mean close difficulty.
    """
    found: dict[str, dict[str, float]] = {}
    for name, labels in (("real", vectors), ("synthetic", synthetic(vectors, len(vectors), seed=seed))):
        stand_ins = document_like(labels, len(queries), seed=seed)
        for kind, asked in (("", queries), (", stand-ins", stand_ins)):
            found[name + kind] = _curve(labels, asked)
    return found


def _curve(labels: Vectors, queries: Vectors) -> dict[str, float]:
    lists = min(_LISTS, max(1, len(labels) // 39))
    index: Any = faiss.index_factory(labels.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(labels)
    index.add(labels)
    wanted = _exact(labels, queries)
    curve = {}
    for index.nprobe in _PROBES:
        curve[str(index.nprobe)] = recall(index.search(queries, DEPTH)[1], wanted)
    return curve


def _measure(method: str, labels: Vectors, queries: Vectors, wanted: NDArray[np.int64]) -> Measured:
    tuning, asked = queries[::2], queries[1::2]
    load = add = None
    size = labels.nbytes
    started = time.perf_counter()
    search: Search
    if method in ("exact", "hnsw", "ivf"):
        index = LabelIndex.build(labels, queries=tuning, kind=method)  # type: ignore[arg-type]
        build = time.perf_counter() - started
        search = _rows_of(index)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "index.faiss"
            index.save(file)
            size = sum(one.stat().st_size for one in Path(folder).iterdir())
            started = time.perf_counter()
            loaded = LabelIndex.load(file)
            loaded.search(asked[:1], DEPTH)
            load = time.perf_counter() - started
            more = np.resize(labels[::-1], (_ADDED, labels.shape[1]))
            started = time.perf_counter()
            loaded.add(more)
            loaded.save_changes(file.with_suffix(".npz"))
            add = time.perf_counter() - started
    else:
        search, size = _OTHERS[method](labels, tuning)
        build = time.perf_counter() - started
    found = np.vstack([search(part) for part in _batches(asked)])
    kind, _ = choose(len(labels), labels.shape[1], psutil.virtual_memory().available // 2)
    single = _speed(search, [asked[i : i + 1] for i in range(len(asked))])
    batched = _speed(search, list(_batches(asked)))
    return Measured(
        len(labels), method, method == kind, build, load, size, recall(found, wanted), single, batched, add
    )


def _rows_of(index: LabelIndex) -> Search:
    return lambda queries: index.search(queries, DEPTH)[1]


def _torch(labels: Vectors, tuning: Vectors) -> tuple[Search, int]:
    matrix = torch.from_numpy(labels)

    def search(queries: Vectors) -> NDArray[np.int64]:
        found: NDArray[np.int64] = torch.topk(torch.from_numpy(queries) @ matrix.T, DEPTH).indices.numpy()
        return found

    return search, labels.nbytes


def _numpy(labels: Vectors, tuning: Vectors) -> tuple[Search, int]:
    def search(queries: Vectors) -> NDArray[np.int64]:
        scores = -(queries @ labels.T)
        best = np.argpartition(scores, DEPTH - 1, axis=1)[:, :DEPTH]
        order = np.argsort(np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)

    return search, labels.nbytes


def _hnswlib(labels: Vectors, tuning: Vectors) -> tuple[Search, int]:
    """The library the graph index is usually compared with, at the same M, efConstruction and recall."""
    index = import_module("hnswlib").Index(space="ip", dim=labels.shape[1])
    index.init_index(max_elements=len(labels), M=LINKS, ef_construction=BREADTH, random_seed=0)
    index.add_items(labels)
    wanted = _exact(labels, tuning)

    def search(queries: Vectors) -> NDArray[np.int64]:
        return np.asarray(index.knn_query(queries, k=DEPTH)[0], dtype=np.int64)

    for breadth in _BREADTHS:
        index.set_ef(breadth)
        if recall(search(tuning), wanted) >= _RECALL:
            break
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.bin"
        index.save_index(str(file))
        return search, file.stat().st_size


_OTHERS: dict[str, Callable[[Vectors, Vectors], tuple[Search, int]]] = {
    "torch": _torch,
    "numpy": _numpy,
    "hnswlib": _hnswlib,
}


def _exact(labels: Vectors, queries: Vectors) -> NDArray[np.int64]:
    return LabelIndex(labels).search(queries, DEPTH)[1]


def _batches(queries: Vectors) -> Iterator[Vectors]:
    for start in range(0, len(queries), _BATCH):
        yield queries[start : start + _BATCH]


def _speed(search: Search, parts: Sequence[Vectors]) -> float:
    """Queries per second over the parts, round and round for about two seconds."""
    search(parts[0])
    started, done, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - started < _MEASURED:
        part = parts[turn % len(parts)]
        search(part)
        done, turn = done + len(part), turn + 1
    return done / (time.perf_counter() - started)


def _installed(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True
