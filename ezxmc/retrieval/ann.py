"""The FAISS structures behind a label index: which one, why, how it is built and how well it finds."""

from __future__ import annotations

import time
from importlib import import_module
from math import log2, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Imported so because its type stubs lack much of what it has.
faiss: Any = import_module("faiss")

Kind = Literal["exact", "hnsw", "ivf"]
Vectors = NDArray[np.float32]

EXACT_UP_TO = 20_000
HNSW_UP_TO = 200_000
DEPTH = 100  # ranks recall is measured on

# A little above the .95 wanted, which other queries must reach too.
_RECALL = 0.96
LINKS, BREADTH = 32, 200  # HNSW's M and efConstruction
_POINTS_PER_LIST = (39, 64)  # FAISS's own minimum for k-means; more than this many gain little
_BREADTHS = (64, 128, 256, 512, 1024)
_REFINED = (2, 4, 8, 16)
_DOCUMENT_NOISE = 1.5
# Lists keep some 65 kB for each query they are asked at once (100,000 queries: 6.6 GB, measured).
_QUERIES_AT_ONCE = 4096


def choose(labels: int, dimension: int, memory: int) -> tuple[Kind, str]:
    """The kind of index for so many labels, and the reason in words.

    Args:
        labels: L.
        dimension: D.
        memory: Bytes the searched structure may take.
    """
    graph = labels * (4 * dimension + 8 * LINKS)
    if labels <= EXACT_UP_TO:
        return "exact", f"{labels:,} labels are searched whole; an approximation pays above {EXACT_UP_TO:,}"
    if labels > HNSW_UP_TO:
        return "ivf", f"{labels:,} labels: above {HNSW_UP_TO:,} a graph takes long to build"
    sizes = f"{graph / 1e9:.2f} GB of {memory / 1e9:.2f} GB allowed"
    if graph > memory:
        return "ivf", f"a graph over {labels:,} labels does not fit: it takes {sizes}"
    return "hnsw", f"{labels:,} labels, and a graph fits: it takes {sizes}"


def build(vectors: Vectors, kind: Kind, memory: int) -> Any:
    """Build a FAISS index that answers with inner products.

    - `exact`: all vectors, one after the other.
    - `hnsw`: the graph of arXiv 1603.09320.
    - `ivf`: inverted lists of 4-bit product-quantised codes (Jégou et al., TPAMI 2011; André et
      al., arXiv 1812.09162), their best answers compared again by the vectors themselves, which
      are kept in half precision where they exceed `memory`.

    Args:
        vectors: (L, D) float32; rows may be of any length.
        kind: Which.
        memory: Bytes the vectors may take in full precision.
    """
    if kind == "exact":
        return flat(vectors)
    return _graph(vectors) if kind == "hnsw" else _lists(vectors, memory)


def flat(vectors: Vectors) -> Any:
    """All vectors, searched one after the other."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _graph(vectors: Vectors) -> Any:
    """HNSW by inner product, for rows of any length.

    The graph is built by inner products too (ip-NSW, Morozov and Babenko, NeurIPS 2018), not by
    the Euclidean distances of rows padded to one length (Bachrach et al., RecSys 2014). On unit
    rows the two are the same graph; with lengths from .7 to 1.6, as refined label vectors have,
    3,000 rows, efSearch 24, this one found .92 of the best 20 and the padded one .74.
    """
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BREADTH
    index.add(vectors)
    return index


def _lists(vectors: Vectors, memory: int) -> Any:
    count, dimension = vectors.shape
    fewest, most = _POINTS_PER_LIST
    lists = max(1, min(2 ** round(log2(4 * sqrt(count))), count // fewest))
    parts = dimension // 2 if dimension % 2 == 0 else dimension
    kept = "RFlat" if vectors.nbytes <= memory else "Refine(SQfp16)"
    index = faiss.index_factory(dimension, f"IVF{lists},PQ{parts}x4fs,{kept}", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index.base_index).cp.max_points_per_centroid = most
    index.train(vectors)
    index.add(vectors)
    return index


def kind_of(index: Any) -> Kind | None:
    """The kind of a FAISS index made by `build`; None for any other."""
    if getattr(index, "metric_type", None) != faiss.METRIC_INNER_PRODUCT:
        return None
    if isinstance(index, faiss.IndexFlatIP):
        return "exact"
    if isinstance(index, faiss.IndexHNSWFlat) and isinstance(stored(index), faiss.IndexFlat):
        return "hnsw"
    if isinstance(index, faiss.IndexRefine) and isinstance(
        faiss.downcast_index(index.base_index), faiss.IndexIVFPQFastScan
    ):
        return "ivf"
    return None


def stored(index: Any) -> Any:
    """The vectors themselves, as an index that is searched whole."""
    if isinstance(index, faiss.IndexHNSW):
        return faiss.downcast_index(index.storage)
    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.refine_index)
    return index


def selector(live: NDArray[np.bool_]) -> Any:
    """A FAISS selector of the rows (L,) that are true."""
    return faiss.IDSelectorBitmap(np.packbits(live, bitorder="little"))


def search(index: Any, queries: Vectors, k: int, live: Any | None) -> tuple[Vectors, NDArray[np.int64]]:
    """The k best rows of each query, exactly k where so many are live.

    Args:
        index: Made by `build`.
        queries: (N, D) float32.
        k: How many, at most the live rows.
        live: A `selector` of the rows that may be answered; None allows all.
    """
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    parameters = _parameters(index, k, live)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        index.search(queries[part], k, params=parameters, D=scores[part], I=rows[part])
    # A graph or its lists may end before k rows are found, when k is large or many are gone.
    short = (rows < 0).any(axis=1)
    if short.any():
        whole = stored(index)
        scores[short], rows[short] = whole.search(queries[short], k, params=_parameters(whole, k, live))
    return scores, rows


def _parameters(index: Any, k: int, live: Any | None) -> Any:
    allowed = {"sel": live} if live else {}
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=index.hnsw.efSearch, **allowed)
    if isinstance(index, faiss.IndexRefine):
        inner = faiss.SearchParametersIVF(nprobe=faiss.extract_index_ivf(index.base_index).nprobe, **allowed)
        # Codes are coarse: for the best few as many candidates are compared as for the best DEPTH.
        factor = index.k_factor * max(1.0, DEPTH / k)
        return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
    return faiss.SearchParameters(**allowed)


def tune(index: Any, queries: Vectors) -> float:
    """Set how hard the index searches: the fastest setting that finds enough.

    Half of the queries choose, the other half measure. FAISS keeps the setting in its file.

    Args:
        index: Made by `build`.
        queries: (N, D) float32, like the documents to come; at least 2.

    Returns:
        Mean share of the exact best `DEPTH` labels found.
    """
    choosing, measuring = np.ascontiguousarray(queries[::2]), np.ascontiguousarray(queries[1::2])
    k = min(DEPTH, index.ntotal)
    if stored(index) is index:
        return 1.0
    wanted = stored(index).search(choosing, k)[1]
    trials = []
    for setting in _settings(index):
        _set(index, setting)
        started = time.perf_counter()
        rows = search(index, choosing, k, None)[1]
        trials.append((time.perf_counter() - started, recall(rows, wanted), setting))
    enough = [trial for trial in trials if trial[1] >= _RECALL]
    _set(index, (min(enough) if enough else max(trials, key=lambda trial: trial[1]))[2])
    return recall(search(index, measuring, k, None)[1], stored(index).search(measuring, k)[1])


def _settings(index: Any) -> list[tuple[int, int]]:
    """Pairs of efSearch and nothing, or of lists visited and candidates compared again per answer."""
    if isinstance(index, faiss.IndexHNSW):
        return [(breadth, 1) for breadth in _BREADTHS]
    lists = faiss.extract_index_ivf(index.base_index).nlist
    visited = [2**power for power in range(2, 9) if 2**power < lists]
    return [(visits, factor) for visits in [*visited, min(lists, 512)] for factor in _REFINED]


def _set(index: Any, setting: tuple[int, int]) -> None:
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = setting[0]
    else:
        faiss.extract_index_ivf(index.base_index).nprobe, index.k_factor = setting


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Mean share of each row of `wanted` (N, k) that is in the same row of `found` (N, k)."""
    hits = [np.isin(best, rows).mean() for best, rows in zip(wanted, found, strict=True)]
    return float(np.mean(hits))


def document_like(vectors: Vectors, count: int, *, seed: int = 0) -> Vectors:
    """Stand-ins for documents: unit vectors around labels, as far from them as documents are.

    Each is a label's vector plus 1.5 times a draw from the Gaussian of all labels' covariance:
    a cosine near .55. Labels' own vectors would be found far too easily.

    Args:
        vectors: (L, D) label vectors.
        count: N.
        seed: Of the draw.

    Returns:
        (N, D) float32.
    """
    rng = np.random.default_rng(seed)
    picked = vectors[rng.integers(len(vectors), size=count)]
    some = vectors[rng.integers(len(vectors), size=4096)]
    # Random sums of centred rows have the rows' covariance: no factorisation is needed.
    weights = rng.standard_normal((count, len(some)), dtype=np.float32) / np.float32(sqrt(len(some)))
    queries: Vectors = picked + np.float32(_DOCUMENT_NOISE) * (weights @ (some - some.mean(axis=0)))
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.float32(1e-12))
    return queries
