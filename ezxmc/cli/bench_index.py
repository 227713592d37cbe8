"""`ezxmc bench index`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, table, watching
from ezxmc.config import TrainingConfig
from ezxmc.errors import DataError


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
    with watching() as watch:
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
        _show(found)
    bad_rows(documents=doc_rows, labels=tag_rows)


def _show(found: dict[str, Any]) -> None:
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
