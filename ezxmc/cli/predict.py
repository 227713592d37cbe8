"""`ezxmc predict`, `serve` and `evaluate`: a bundle tags files or over HTTP; predictions against gold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import (
    Address,
    Column,
    Engine,
    Json,
    Untagged,
    Workers,
    bad_rows,
    cluster,
    columns_of,
    emit,
    show_progress,
    standard_output,
    table,
)
from ezxmc.config import Backend, Precision
from ezxmc.errors import ConfigError

if TYPE_CHECKING:
    from ezxmc.metrics import Difference
    from ezxmc.pipeline.steps import EvaluatedFiles

Runtime = Annotated[Backend, typer.Option(help="What runs the encoder.")]
ComputedIn = Annotated[
    Precision, typer.Option(help="What the encoder computes in; auto: the fastest of little loss.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    for command in (predict, evaluate, serve):
        app.command()(command)


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    documents: Annotated[
        str, typer.Argument(help="Documents; `-` reads JSON lines from standard input.")
    ] = "-",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help=".jsonl, .csv (also .gz) or .parquet; else JSONL on standard output."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on after what --out holds already, of the same documents and options.")
    ] = False,
    k: Annotated[int | None, typer.Option(min=1, help="Labels per document.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out tags less probable than this.")
    ] = None,
    decide: Annotated[bool, typer.Option(help="Keep what the bundle's decision keeps.")] = False,
    leaves: Annotated[
        bool, typer.Option("--leaves", help="In a hierarchy: no tag that is above another one.")
    ] = False,
    with_ancestors: Annotated[
        bool, typer.Option("--with-ancestors", help="In a hierarchy: all labels above a tag, too.")
    ] = False,
    backend: Runtime = "torch",
    precision: ComputedIn = "auto",
    engine: Engine = None,
    workers: Workers = None,
    ray_address: Address = None,
    column: Column = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first bad row.")] = False,
) -> None:
    """Tag documents, one JSON line each, in their order and in bounded memory.

    A row that cannot be used gives a line with "error", its file and line, in
    its place, and exit code 3 at the end. With --engine ray the workers of a
    cluster tag, each with the bundle opened for itself.

    Example: ezxmc predict run/bundle new.jsonl --threshold 0.5 -o tags.jsonl --resume
    """
    from ezxmc.bundle.tagging import TaggingOptions, tag_file
    from ezxmc.files import json_line

    def show(rows: list[dict[str, Any]]) -> None:
        standard_output().write(b"".join(map(json_line, rows)).decode())
        standard_output().flush()

    ray = cluster(engine, workers, ray_address)
    if out is None:
        if resume or ray:
            raise typer.BadParameter("--resume and --engine ray need --out")
        standard_output()
    options = TaggingOptions(str(bundle), backend, precision, k, threshold, decide, leaves, with_ancestors)
    how: dict[str, Any] = {"resume": resume, "cluster": ray, "columns": columns_of(column), "strict": strict}
    with show_progress() as watch:
        rows = tag_file(options, documents, out or show, **how, watch=watch)
    bad_rows(documents=rows)


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; a new bundle there is taken up by itself.")],
    host: Annotated[str, typer.Option(help="Address; one others can reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="Bearer token; or in the variable EZXMC_SERVE_TOKEN.")
    ] = None,
    batch_documents: Annotated[int, typer.Option(min=1, help="Computed together; 1: no batching.")] = 32,
    batch_wait_ms: Annotated[float, typer.Option(min=0, help="The first of a batch waits so long.")] = 2.0,
    max_documents: Annotated[int, typer.Option(min=1, help="Documents in a request.")] = 256,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of a document.")] = 200_000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, max=1e6, help="Of a request.")] = 8.0,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second of a client.")] = 100.0,
    burst: Annotated[int, typer.Option(min=1, help="Requests of a client at once.")] = 200,
    backend: Runtime = "torch",
    precision: ComputedIn = "auto",
    queue: Annotated[int, typer.Option(min=1, help="Documents that may wait.")] = 1_024,
) -> None:
    """Tag documents over HTTP, and let labels come and go; http://127.0.0.1:8000 is a page to try it.

    Ctrl-C or SIGTERM ends it after the requests in hand; SIGHUP or POST
    /reload takes up a changed bundle at once.

    Example: ezxmc serve run/bundle --port 8000
    """
    try:
        from ezxmc.serve.app import serve as run
        from ezxmc.serve.guard import TOKEN_VARIABLE, Limits, read_token
        from ezxmc.serve.service import Settings
    except ModuleNotFoundError as error:
        raise ConfigError(f"the service needs {error.name}", "pip install 'ezxmc[serve]'") from None
    limits = Limits(
        body_bytes=int(max_body_mb * 1e6),
        documents=max_documents,
        characters=max_characters,
        rate=rate,
        burst=burst,
        queue=queue,
    )
    settings = Settings(
        bundle,
        limits,
        backend=backend,
        precision=precision,
        batch_documents=batch_documents,
        batch_wait=batch_wait_ms / 1e3,
        token=read_token(token_file, os.environ.get(TOKEN_VARIABLE)),
    )
    run(settings, host, port, lambda url: typer.echo(f"serving {bundle} at {url}", err=True))


def evaluate(
    predictions: Annotated[str, typer.Argument(help="What `ezxmc predict` wrote.")],
    gold: Annotated[str, typer.Argument(help="Gold: TSV or JSONL pairs.")],
    train_gold: Annotated[
        str | None,
        typer.Option(help="Gold of training documents: adds PSP, PSnDCG, and head, torso and tail."),
    ] = None,
    propensity: Annotated[
        tuple[float, float] | None,
        typer.Option(help="A and B of PSP: .55 1.5 if not given; .5 .4 for Wikipedia, .6 2.6 for Amazon."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Adds F1 of the tags at least this probable.")
    ] = None,
    filter_pairs: Annotated[
        str | None,
        typer.Option("--filter", help="Pairs, as TSV or JSONL, that count neither as predicted nor as gold."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The label list: gold of others is left out and told; of a hierarchy hP, hR, hF1 and P@5 by "
            "level. Default: what was predicted."
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Predictions of another run, subtracted document by document.")
    ] = None,
    without_gold: Untagged = "unreviewed",
    json: Json = False,
) -> None:
    """Compare predictions with gold tags: P@k, R@k, nDCG@k, coverage, ECE@k, with 95% intervals.

    Gold labels are held against the labels that were predicted, or against all
    with --labels: a title, several in one cell and the like are taken and told.
    Documents that nothing fits (an empty label cell, "labels": [] in JSON, or
    --without-gold none) count in F1 and the calibration metrics.

    Intervals and p values are of the bootstrap over documents, paired where
    two runs are compared.

    Example: ezxmc evaluate tags.jsonl gold.tsv --train-gold train.tsv --threshold 0.5 --compare old.jsonl
    """
    from ezxmc.pipeline.steps import evaluate_files

    with show_progress() as watch:
        found = evaluate_files(
            predictions,
            gold,
            train_gold=train_gold,
            propensity=propensity,
            threshold=threshold,
            filtered=filter_pairs,
            labels=labels,
            compared=compare,
            without_gold=without_gold or "unreviewed",
            watch=watch,
        )
    if json:
        emit(found.to_dict())
    else:
        _show_evaluation(found)
    bad_rows(**found.rows)


def _show_evaluation(found: EvaluatedFiles) -> None:
    first, other = found.evaluation, found.other
    metrics = [["metric", "value", "95% interval"], *map(list, first.rows())]
    counts = [["", "count"], *([name, f"{count:,}"] for name, count in first.counts().items())]
    if other:
        beside = {name: value for name, value, _ in other.rows()}
        metrics = [["metric", "value", "other", "difference", "95% interval", "p"]]
        for name, value, _ in first.rows():
            metrics.append([name, value, beside.get(name, ""), *_cells(found.differences.get(name))])
        for row, count in zip(counts, ["other", *(f"{n:,}" for n in other.counts().values())], strict=True):
            row.append(count)
    for columns, *rows in (metrics, counts):
        table("", columns, rows)


def _cells(gap: Difference | None) -> list[str]:
    if gap is None:
        return ["", "", ""]
    from ezxmc.metrics.evaluation import roughly

    ends = f"{gap.low:+.4f} to {gap.high:+.4f}{roughly(gap.rows)}"
    return [f"{gap.value:+.4f}", ends, f"{gap.p:.3f}"]
