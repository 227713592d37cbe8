"""`ezxmc bench serving`: the service under load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, table, watching


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
    with watching() as watch:
        found = bench_serving(
            bundle, documents, seconds=seconds, connections=counts, watch=watch, report=rows
        )
    if json:
        emit(found)
    else:
        _show(found)
    bad_rows(documents=rows)


def _show(found: dict[str, Any]) -> None:
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
