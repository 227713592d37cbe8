"""`ezxmc bench encoding`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, table, watching


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
    from ezxmc.bundle import load_bundle
    from ezxmc.data import read_documents, read_gold

    docs, doc_rows = read_documents(documents)
    tags, gold_rows = None, None
    if gold:
        uids, titles = [document.uid for document in docs], load_bundle(bundle, verify=False).titles()
        tags, gold_rows = read_gold(gold, documents=uids, labels=titles, more_documents=True)
    with watching() as watch:
        found = bench_encoding(
            bundle, docs, tags, count=count, singles=singles, rounds=rounds, seed=seed, watch=watch
        )
    if json:
        emit(found)
    else:
        _show(found)
    bad_rows(documents=doc_rows, gold=gold_rows)


def _show(found: dict[str, Any]) -> None:
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
