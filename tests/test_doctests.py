"""Every example in a docstring runs, in a folder as a user has it after a run; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fakes import FakeTeacher
from support.tinyworld import document, label_rows, topical, write_catalog, write_rows

import ezxmc
from ezxmc.bundle.bundle import add_calibrator, save_bundle
from ezxmc.bundle.predict import Predictor, prediction_row
from ezxmc.calibration import Calibrator, Platt
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Label, Pair

PACKAGE = Path(ezxmc.__file__).parent
FLAGS = doctest.NORMALIZE_WHITESPACE


def names_with_examples() -> list[str]:
    files = [file for file in PACKAGE.rglob("*.py") if ">>>" in file.read_text(encoding="utf-8")]
    modules = sorted(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files)
    return [module.removesuffix(".__init__") for module in modules]


def needs_weights(module: str) -> bool:
    source = inspect.getsource(importlib.import_module(module))
    return any('BiEncoder("all-MiniLM-L6-v2")' in line for line in source.splitlines() if ">>>" in line)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """A catalog with gold and recorded judgments, a configuration, a store, a bundle and its tags."""
    folder = tmp_path_factory.mktemp("examples")
    config = yaml.safe_load(write_catalog(folder, Path("encoder"), cycles=1).read_text())
    config["teacher"] = {"kind": "replay", "judgments": "judgments.jsonl"}
    config["run_dir"] = "runs/first"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name in ("encoder", "student"):
        (folder / name).symlink_to(tiny_encoder)
    documents = [Document(**document(number)) for number in range(60)]
    labels = [Label(row["uid"], row["title"]) for row in label_rows()]
    rows = [
        {
            "doc": doc.uid,
            "label": label.uid,
            "status": "ok",
            "log_odds": topical(Pair(doc, label)),
            "mass": 1.0,
        }
        for doc in documents
        for label in labels
    ]
    write_rows(folder / "judgments.jsonl", rows)
    with FeedbackStore(folder / "feedback.sqlite") as store:
        every = [range(len(labels))] * len(documents)
        annotate(lambda: pairs_of(documents, labels, every), FakeTeacher(topical), store)
    save_bundle(folder / "run/bundle", tiny_encoder, labels, max_length=32, k=5)
    add_calibrator(folder / "run/bundle", Calibrator("human", 25, 100, Platt(5.0, -2.0)))
    tags = Predictor(folder / "run/bundle").predict(documents)
    write_rows(folder / "tags.jsonl", [prediction_row(one) for one in tags])
    return folder


@pytest.fixture
def there(made: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(made)
    yield made
    os.chdir(before)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(name, marks=pytest.mark.encoder) if needs_weights(name) else name
        for name in names_with_examples()
    ],
)
def test_the_examples_of_a_module_run(module: str, there: Path) -> None:
    found = importlib.import_module(module)
    given: dict[str, Any] = {**vars(ezxmc), **{name: getattr(ezxmc, name) for name in ezxmc.__all__}}
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(found, globs={**given, **vars(found)}) if test.examples]
    assert tests
    runner, told = doctest.DocTestRunner(optionflags=FLAGS), list[str]()
    for test in tests:
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)


@pytest.mark.parametrize("name", ezxmc.__all__)
def test_every_public_name_has_an_example_that_is_run(name: str) -> None:
    public = getattr(ezxmc, name)
    examples = doctest.DocTestParser().get_examples(public.__doc__ or "")
    assert examples, "write one into its docstring"
    assert public.__module__ in names_with_examples()


def test_no_example_is_skipped() -> None:
    assert not [file for file in PACKAGE.rglob("*.py") if "doctest: +SKIP" in file.read_text()]


def test_a_wrong_example_would_be_seen() -> None:
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    (test,) = doctest.DocTestFinder().find(wrong, "wrong", globs={})
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=lambda text: None)
    assert runner.failures == 1
