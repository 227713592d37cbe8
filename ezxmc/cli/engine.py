"""Options that put a command's work on a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from ezxmc.cluster import RayConfig
from ezxmc.config import RunConfig

Name = Literal["local", "ray"]
Engine = Annotated[Name | None, typer.Option(help="Who works: this machine, or a Ray cluster.")]
Workers = Annotated[int | None, typer.Option(min=1, help="With --engine ray: processes at work.")]
Address = Annotated[
    str | None,
    typer.Option("--ray-address", help="With --engine ray: auto or HOST:6379; default: this machine alone."),
]


def with_engine(
    config: RunConfig, engine: Name | None, workers: int | None, address: str | None
) -> RunConfig:
    """The configuration with the engine given on the command line."""
    engine = engine or config.engine
    return config.model_copy(update={"engine": engine, "ray": _ray(config.ray, engine, workers, address)})


def cluster(
    engine: Name | None, workers: int | None, address: str | None, servers: Sequence[str] = ()
) -> RayConfig | None:
    """The cluster of a command without a configuration; `None`: this process works.

    Args:
        engine: As given.
        workers: As given.
        address: As given.
        servers: Replicas of the teacher's server.
    """
    ray = _ray(RayConfig(servers=list(servers)), engine or "local", workers, address)
    return ray if engine == "ray" else None


def _ray(config: RayConfig, engine: Name, workers: int | None, address: str | None) -> RayConfig:
    if engine != "ray" and (workers or address):
        raise typer.BadParameter("--workers and --ray-address go with --engine ray")
    given = {"workers": workers, "address": address}
    return config.model_copy(update={name: value for name, value in given.items() if value is not None})
