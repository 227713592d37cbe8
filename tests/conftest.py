"""Shared fixtures: a tiny real encoder and a small catalog, both made without a network."""

from __future__ import annotations

import gc
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main
from hypothesis import HealthCheck, settings
from support.browser import Browser
from support.tinyworld import build_encoder, write_catalog

from ezxmc.cluster import RayConfig
from ezxmc.cluster.pool import connect, disconnect

# Few examples find what a change breaks; many (HYPOTHESIS_PROFILE=long) what nobody thought of.
for _name, _examples in (("short", 25), ("long", 400)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        # How long an example takes depends on what else the machine does.
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


# A process that runs many commands need not build the tree of all commands for each: 40 ms a time.
typer.main.get_command = cache(typer.main.get_command)

# What imports and collection make lives to the end: nothing of it is worth looking through again and again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "tx", None):  # the process that leads workers
        from support.workers import fork_workers

        fork_workers()


def pytest_unconfigure() -> None:
    gc.unfreeze()


_LONGEST = (
    *("update", "pipeline", "resume", "http_teacher", "promises", "predict", "serve", "bench_methods"),
    *("review_run", "decisions_risk", "plan", "cli", "people", "encoding", "cli_encoding", "training"),
    *("store_processes", "sparse_head", "drift", "models", "layout", "head_run"),
)
"""Files that take longest: one of them begun last would run alone."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Longest files first; leave out what is marked `long`, unless the marks asked for speak of it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {f"test_{name}": place for place, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if "long" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    left = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each thing that this machine lacks."""
    lacking = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped")
    )
    if lacking:
        terminalreporter.section("not tested on this machine")
    for reason, tests in lacking.items():
        terminalreporter.line(f"{tests} test{'s' * (tests > 1)}: {reason}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayConfig]:
    """One local cluster a session; each pool starts and ends its own workers in it."""
    config = RayConfig(workers=2, shard_pairs=50)
    connect(config)
    yield config
    disconnect()


@pytest.fixture(scope="session")
def one_browser() -> Iterator[Browser]:
    if missing := Browser.missing():
        pytest.skip(f"needs {missing}")
    with Browser() as found:
        yield found


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """The session's browser as it was at its start."""
    one_browser.reset()
    return one_browser


@pytest.fixture
def drawn() -> None:
    """For tests that look at the figures of a report."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as all the rest of a run this small."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("ezxmc.report.page._figures", lambda data: defaultdict(str))
        monkeypatch.setattr("ezxmc.report.figures.svg", lambda *args: "<svg></svg>")


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
