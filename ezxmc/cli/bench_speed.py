"""`ezxmc bench encoding`, `index` and `serving`: the encoder, the search, and the service under load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, show_progress, table
from ezxmc.config import TrainingConfig
from ezxmc.errors import DataError


def encoding(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, calibrated.")],
    documents: Annotated[str, typer.Argument(help="Documents.")],
    gold: Annotated[str | None, typer.Option(help="Gold tags: measure P@5 too.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Documents encoded per round.")] = 1000,
    singles: Annotated[int, typer.Option(min=1, help="Documents tagged one at a time.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Which documents.")] = 0,
    json: Json = False,
) -> None:
    """Encode with each backend and say what it gains and loses against plain float32 `encode`.

    Run it with nothing else running, after `ezxmc export` for the backends that need it.

    Example: ezxmc bench encoding run/bundle documents.jsonl --gold gold.tsv
    """
    from ezxmc.bench.encoding import bench_encoding
    from ezxmc.bundle.bundle import load_bundle
    from ezxmc.data import read_documents, read_gold

    docs, doc_rows = read_documents(documents)
    tags, gold_rows = None, None
    if gold:
        uids, titles = [document.uid for document in docs], load_bundle(bundle, verify=False).titles()
        tags, gold_rows = read_gold(gold, documents=uids, labels=titles, more_documents=True)
    with show_progress() as watch:
        found = bench_encoding(
            bundle, docs, tags, count=count, singles=singles, rounds=rounds, seed=seed, watch=watch
        )
    if json:
        emit(found)
    else:
        _show_encoding(found)
    bad_rows(documents=doc_rows, gold=gold_rows)


def _show_encoding(found: dict[str, Any]) -> None:
    table(
        f"{found['documents']:,} documents together, {found['singles']:,} alone, {found['threads']} threads",
        [
            "",
            "documents/s",
            "processor s/1,000",
            "times plain",
            "cosine, least",
            "P@5, %",
            "points lost",
            "alone p50, ms",
            "p99, ms",
            "processor p50, ms",
            "p99, ms",
        ],
        [
            [
                row["way"],
                f"{row['documents_per_second']:,.1f}",
                f"{row['processor_seconds']:,.2f}",
                f"{row['times_plain']:.2f}",
                f"{row['cosine_least']:.5f}",
                "" if row["precision"] is None else f"{100 * row['precision']:.2f}",
                "" if row["points_lost"] is None else f"{row['points_lost']:+.2f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['p50_processor_ms']:.1f}",
                f"{row['p99_processor_ms']:.1f}",
            ]
            for row in found["rows"]
        ],
    )
    if found["skipped"]:
        table("", ["not measured", "why"], [list(item) for item in found["skipped"].items()])


def index(
    labels: Annotated[
        str, typer.Argument(help="Real labels; synthetic ones are added to reach larger sizes.")
    ],
    documents: Annotated[str, typer.Argument(help="Real documents: the queries.")],
    encoder: Annotated[str, typer.Option(help="Encoder: name, folder or hub id.")] = TrainingConfig().encoder,
    sizes: Annotated[str, typer.Option(help="Numbers of labels.")] = "1000,10000,100000,1000000",
    methods: Annotated[str, typer.Option(help="What to measure.")] = "exact,hnsw,ivf,torch,numpy,hnswlib",
    count: Annotated[int, typer.Option(min=64, help="Documents asked about.")] = 1000,
    seed: Annotated[int, typer.Option(help="Which documents, and of the synthetic labels.")] = 0,
    json: Json = False,
) -> None:
    """Search 10³ to 10⁶ labels in every way there is: time to build, memory, recall, queries per second.

    Run it with nothing else running.

    Example: ezxmc bench index labels.jsonl documents.jsonl --sizes 1000,100000
    """
    import random
    from itertools import islice

    from ezxmc.bench.index import bench_index
    from ezxmc.data import RowReport, iter_documents, read_labels
    from ezxmc.models import resolve_model
    from ezxmc.retrieval import BiEncoder

    try:
        wanted = [int(float(size)) for size in sizes.split(",")]
    except (ValueError, OverflowError):
        raise typer.BadParameter("give whole numbers, with commas", param_hint="--sizes") from None
    tags, tag_rows = read_labels(labels)
    doc_rows = RowReport()
    docs = list(islice(iter_documents(documents, doc_rows), 20 * count))
    if not tags or len(docs) < 2:
        raise DataError(
            f"{labels} and {documents} hold {len(tags)} usable labels and {len(docs)} documents",
            "give real ones of both; `ezxmc data inspect` shows what a file holds",
        )
    docs = random.Random(seed).sample(docs, min(count, len(docs)))
    with show_progress() as watch:
        model = BiEncoder(resolve_model(encoder, kind="encoder"), max_length=TrainingConfig().max_length)
        vectors = model.encode_labels([tag.title for tag in tags], progress=watch.stage("labels"))
        queries = model.encode_documents([doc.shown for doc in docs], progress=watch.stage("documents"))
        found = bench_index(
            vectors,
            queries,
            wanted,
            methods=[name.strip() for name in methods.split(",")],
            seed=seed,
            watch=watch,
        )
    if json:
        emit(found)
    else:
        _show_index(found)
    bad_rows(documents=doc_rows, labels=tag_rows)


def _show_index(found: dict[str, Any]) -> None:
    table(
        f"{found['real_labels']:,} real labels, {found['queries']} documents, {found['cores']} cores",
        ["labels", "method", "build, s", "load, s", "MB", "recall@100", "queries/s", "by 64", "+10,000, s"],
        [
            [
                f"{row['labels']:,}",
                row["method"] + (" (chosen)" if row["chosen"] else ""),
                f"{row['build_seconds']:,.2f}",
                "" if row["load_seconds"] is None else f"{row['load_seconds']:.3f}",
                f"{row['bytes'] / 1e6:,.1f}",
                f"{row['recall']:.3f}",
                f"{row['single']:,.0f}",
                f"{row['batched']:,.0f}",
                "" if row["add_seconds"] is None else f"{row['add_seconds']:.2f}",
            ]
            for row in found["rows"]
        ],
    )
    probes = next(iter(found["difficulty"].values()))
    table(
        "recall@100 of 128 lists by lists visited: are synthetic labels as hard as real ones?",
        ["labels", *probes],
        [[name, *(f"{value:.3f}" for value in row.values())] for name, row in found["difficulty"].items()],
    )


def serving(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    documents: Annotated[str, typer.Argument(help="Documents to send, one a request.")],
    seconds: Annotated[float, typer.Option(min=1, help="Of each load.")] = 10.0,
    connections: Annotated[str, typer.Option(help="Clients at once, with commas.")] = "1,8,32",
    json: Json = False,
) -> None:
    """Load the service on loopback, with and without batching: requests a second, p50, p99.

    Run it with nothing else running. wrk sends the requests where it is
    installed, else a client on httpx.

    Example: ezxmc bench serving run/bundle documents.jsonl --connections 1,8,32
    """
    from ezxmc.bench.serving import bench_serving
    from ezxmc.data import RowReport

    try:
        counts = [int(part) for part in connections.split(",")]
        if min(counts) < 1:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            "give whole numbers from 1, with commas", param_hint="--connections"
        ) from None
    rows = RowReport()
    with show_progress() as watch:
        found = bench_serving(
            bundle, documents, seconds=seconds, connections=counts, watch=watch, report=rows
        )
    if json:
        emit(found)
    else:
        _show_serving(found)
    bad_rows(documents=rows)


def _show_serving(found: dict[str, Any]) -> None:
    table(
        f"{found['generator']} {found['version']}, one document a request, {found['bytes']:,} bytes",
        ["batching", "connections", "requests/s", "p50, ms", "p99, ms", "documents a batch", "errors"],
        [
            [
                "on" if row["batching"] else "off",
                str(row["connections"]),
                f"{row['per_second']:.1f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['batch_documents']:.1f}",
                str(row["errors"]),
            ]
            for row in found["runs"]
        ],
    )
