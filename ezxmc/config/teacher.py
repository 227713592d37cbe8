"""Settings of the teacher: an engine of our own, a server, or recorded judgments."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Part(BaseModel):
    """A part of the configuration: unknown keys are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    former: ClassVar[dict[str, Any]] = {}
    """Settings that are gone, with their former defaults: with these they stand in configurations of runs."""

    @model_validator(mode="before")
    @classmethod
    def _without_former(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not cls.former.keys() & values.keys():
            return values
        for name, default in cls.former.items():
            if values.get(name, default) != default:
                raise ValueError(f"the setting {name} is gone, for it gained nothing: leave it out")
        return {name: value for name, value in values.items() if name not in cls.former}


class VllmTeacherConfig(Part):
    """An LLM run by vLLM inside this process's child engine."""

    kind: Literal["vllm"] = Field(
        "vllm", description="vllm; openai: a server; replay: recorded judgments from a file"
    )
    model: str = Field(
        "Qwen2.5-Coder-1.5B-Instruct",
        description="a name of `ezxmc models list`, a local folder, or a hub id",
    )
    revision: str | None = Field(None, description="hub revision; pinned revisions keep judgments valid")
    prompt: str = Field("generic", description="a name in prompts/ or a path to a prompt file")
    max_document_tokens: int = Field(256, ge=16, description="documents are cut here, by tokens")
    min_label_mass: float = Field(
        0.1, ge=0, le=1, description="below this p(yes)+p(no) an answer counts as low_mass, not as a score"
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="sequences in one engine step; null: 128 on a CPU, 1024 on a GPU"
    )
    max_batched_tokens: int | None = Field(
        None, ge=256, description="tokens in one engine step; null: 4096 on a CPU, 16384 on a GPU"
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache, GiB (CPU only); null: what a step needs, at most 1/12 of free memory",
    )
    gpu_memory: float = Field(0.85, gt=0, le=1, description="share of GPU memory vLLM may take")
    tensor_parallel: int = Field(
        1, ge=1, description="GPUs that share the model: what is too large for one of them"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of the weights: auto, bfloat16, float16 or float32"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the model; auto: only for jobs long enough to earn the start-up back"
    )


class HttpTeacherConfig(Part):
    """An LLM behind an OpenAI-compatible server: `vllm serve` first of all."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field(
        "http://127.0.0.1:8000/v1",
        description="where the server answers; with an API key, https unless it is this machine",
    )
    model: str = Field(description="the model's name on the server")
    tokenizer: str | None = Field(
        None, description="whose tokenizer renders prompts (name, folder or hub id); null: `model`"
    )
    revision: str | None = Field(None, description="hub revision of the tokenizer")
    prompt: str = Field("generic", description="a name in prompts/ or a path to a prompt file")
    max_document_tokens: int = Field(256, ge=16, description="documents are cut here, by tokens")
    min_label_mass: float = Field(0.1, ge=0, le=1, description="as for vllm")
    api_key_env: str | None = Field(None, description="environment variable that holds the API key")
    concurrency: int = Field(32, ge=1, description="requests under way at once, a document's pairs in each")
    timeout: float = Field(300.0, gt=0, description="seconds one request may take")
    patience: float = Field(
        600.0, ge=0, description="seconds without any answer after which the job stops (it can go on later)"
    )

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must have the form http://HOST:PORT/v1")
        if parts.username is not None:
            raise ValueError("must hold no password; name its environment variable in api_key_env")
        return value.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"

    @field_validator("api_key_env")
    @classmethod
    def _key_in_secret(cls, value: str | None, info: ValidationInfo) -> str | None:
        url = info.data.get("base_url", "")
        parts = urlsplit(url)
        if value and parts.scheme == "http" and not is_loopback(str(parts.hostname)):
            raise ValueError(
                f"on its way to {url} everybody could read the API key: make it https, reach the server "
                "through a tunnel to this machine (ssh -L), or give no key"
            )
        return value


class ReplayTeacherConfig(Part):
    """Recorded judgments instead of an LLM: reproducible experiments."""

    kind: Literal["replay"] = "replay"
    judgments: str = Field(description="JSONL or Parquet with doc, label, log_odds, mass")


TeacherConfig = Annotated[
    VllmTeacherConfig | HttpTeacherConfig | ReplayTeacherConfig, Field(discriminator="kind")
]
