"""`ezxmc serve`: a bundle over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ezxmc.cli.inference import ComputedIn, Runtime
from ezxmc.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(serve)


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
        from ezxmc.serve.limits import TOKEN_VARIABLE, Limits, read_token
        from ezxmc.serve.server import serve as run
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
