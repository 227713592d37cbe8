"""`ezxmc predict`: tagging with a bundle."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.console import Column, bad_rows, columns_of, standard_output, stderr, watching
from ezxmc.cli.engine import Address, Engine, Workers, cluster
from ezxmc.config import Backend, Precision

Runtime = Annotated[Backend, typer.Option(help="What runs the encoder.")]
ComputedIn = Annotated[
    Precision, typer.Option(help="What the encoder computes in; auto: the fastest of little loss.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


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
    from ezxmc.data import RowReport, columns_for
    from ezxmc.files import json_line, sole_writer
    from ezxmc.predict import WINDOW
    from ezxmc.tagging import RowFile, Rule, Tagging, check_tags, tag_rows
    from ezxmc.tagging_ray import RayTagger

    ray = cluster(engine, workers, ray_address)
    if out is None and (resume or ray):
        raise typer.BadParameter("--resume and --engine ray need --out")
    inputs: list[str | Path] = [bundle, documents]
    if out:
        check_tags(out, resume=resume, inputs=inputs)
    else:
        standard_output()

    def show(rows: list[dict[str, Any]]) -> None:
        standard_output().write(b"".join(map(json_line, rows)).decode())
        standard_output().flush()

    rows = RowReport(strict=strict)
    columns = columns_for("documents", columns_of(column))
    with ExitStack() as stack:
        if out:
            stack.enter_context(sole_writer(out))
        rule = Rule(str(bundle), backend, precision, k, threshold, decide)
        tagger = rule.tagger()
        if out:
            stack.callback(_tell_of_part, out)
        file = stack.enter_context(RowFile(out, resume=resume, inputs=inputs)) if out else None
        watch = stack.enter_context(watching())
        rows.say = watch.say
        if tagger.decision and tagger.decision.changed:
            watch.say(f"decision: {tagger.decision.guarantee}")
        if file and file.skip:
            watch.say(f"{out}: going on after row {file.skip:,}")
        skip = file.skip if file else 0
        tagging: Tagging = tagger
        if ray and out:
            shards = out.with_name(f"{out.name}-shards")
            start = skip // WINDOW
            tagging = stack.enter_context(RayTagger(rule, ray, shards, start=start, say=watch.say))
        tag_rows(
            tagging,
            documents,
            rows,
            file.write if file else show,
            skip=skip,
            columns=columns,
            progress=watch.stage("tagging"),
        )
        rows.tell(watch.say, "documents")
        # Bad rows have their answers; where there are none either, former tags stay.
        rows.refuse_empty(documents, "document", range(rows.rows))
    bad_rows(documents=rows)


def _tell_of_part(out: Path) -> None:
    """Where an interrupted job's tags are."""
    from ezxmc.tagging import part_of

    if (part := part_of(out)).is_file():
        stderr.print(
            f"what was tagged so far is in {part}; --resume goes on from there",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
