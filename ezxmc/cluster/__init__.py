"""Work shared out over a Ray cluster; Ray itself is imported when a job starts.

`pool` joins or starts a cluster, runs tasks in worker processes and tells who of them is slow.
What a task does is told by `ezxmc.teacher.ray`, `ezxmc.retrieval.ray_encoder` and `ezxmc.bundle.tagging`.
`RayConfig` names the cluster, and how the work is cut.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RayConfig(BaseModel):
    """A Ray cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    address: str | None = Field(
        None, description="running cluster: auto, or HOST:6379; null: one is started on this machine alone"
    )
    workers: int = Field(
        2, ge=1, description="processes, a CPU each, and a GPU for a model where there are any"
    )
    servers: list[str] = Field(
        [], description="teacher of kind openai: its replicas, shared out among workers; []: its base_url"
    )
    shard_pairs: int = Field(
        2048, ge=1, description="pairs in a shard, about; what a killed worker had in hand is asked again"
    )


__all__ = ["RayConfig"]
