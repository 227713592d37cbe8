"""Shared fixtures: a tiny real encoder and a small catalog, both made without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tinyworld import build_encoder, write_catalog

# How long an example takes depends on what else the machine does.
settings.register_profile("ezxmc", deadline=None)
settings.load_profile("ezxmc")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentenceTransformer folder of a few kilobytes; untrained, but everything about it is real."""
    return build_encoder(tmp_path_factory.mktemp("tiny_encoder"))


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_encoder: Path) -> Path:
    """config.yaml beside documents.jsonl, labels.jsonl and gold.tsv, in `tmp_path`."""
    return write_catalog(tmp_path, tiny_encoder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: a model this small only waits for the others, for minutes on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
