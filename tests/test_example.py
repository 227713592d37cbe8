"""The example's catalog: readable texts, decidable labels, gold that fits; the config is valid."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from ezxmc.config import RunConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import read_documents, read_gold, read_labels

EXAMPLE = Path(__file__).parents[1] / "examples" / "python_packages"
pytest.importorskip("trove_classifiers")

MARKDOWN = """<!-- toc -->
<h1 align="center"><img src="https://x.org/logo.svg"></h1>

[![Build](https://ci.org/badge.svg)](https://ci.org)
[![Docs][docs-badge]][docs]

# Fast **tables**

Reads [CSV](https://x.org/csv) and `Parquet` files. See https://x.org/guide for more.

```python
import secret_code
```

After the code.

[docs]: https://docs.org
"""

RST = """=====
Title
=====

.. image:: https://x.org/badge.svg
   :target: https://x.org
   :alt: Build Status
.. |pypi| image:: https://img.org

|pypi|

A `library <https://x.org>`_ for :class:`Thing <x.Thing>` and ``code``, by asyncio_ users. Use::

    import secret_code

    run()

After the code.
"""


@pytest.fixture(scope="module")
def catalog() -> ModuleType:
    spec = importlib.util.spec_from_file_location("catalog", EXAMPLE / "catalog.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_markdown_becomes_prose(catalog: ModuleType) -> None:
    assert catalog.clean(MARKDOWN) == (
        "Fast tables\n\nReads CSV and Parquet files. See for more.\n\nAfter the code."
    )


def test_rst_becomes_prose(catalog: ModuleType) -> None:
    assert catalog.clean(RST) == (
        "Title\n\nA library for Thing and code, by asyncio users. Use:\n\nAfter the code."
    )


def test_long_text_is_cut_between_words(catalog: ModuleType) -> None:
    assert catalog.clean("word " * 1000, longest=12) == "word word"


def test_plain_text_stays(catalog: ModuleType) -> None:
    text = "Compares a < b, keeps snake_case names; costs 5 > 3.\n\n- one point\n- another"
    assert catalog.clean(text) == text


def test_labels_are_decidable(catalog: ModuleType) -> None:
    names = catalog.labels()
    assert names == sorted(set(names)) and len(names) > 300
    assert "Framework :: Django" in names and "Framework :: Django :: 4.2" not in names
    assert not [name for name in names if name.startswith(("Programming Language", "License"))]
    assert catalog.readable("Topic :: Internet :: WWW/HTTP") == "Topic: Internet: WWW/HTTP"


def test_what_many_packages_carry_is_no_label(catalog: ModuleType) -> None:
    several = {"Topic :: Utilities", "Framework :: Flask"}
    chosen = [
        *[{"Intended Audience :: Developers"}] * 16,
        several,
        {"Topic :: Utilities"},
        {"Topic :: Games"},
    ]
    # Of the 19 with any: 16 and 2 are more than a tenth, packages without any do not count.
    wanted = ["Intended Audience :: Developers", "Topic :: Utilities"]
    assert catalog.common([*chosen, *[set()] * 10]) == wanted
    assert catalog.common([]) == []


def test_the_script_writes_a_catalog_that_ezxmc_reads(tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, EXAMPLE / "catalog.py", out], capture_output=True, text=True, check=True
    )
    documents, document_rows = read_documents(out / "documents.jsonl", strict=True)
    labels, label_rows = read_labels(out / "labels.jsonl", strict=True)
    gold, gold_rows = read_gold(
        out / "gold.tsv",
        documents={d.uid for d in documents},
        labels={label.uid for label in labels},
        strict=True,
    )
    assert document_rows.bad == label_rows.bad == gold_rows.bad == 0
    assert f"{len(documents)} documents" in done.stdout and f"{len(labels)} labels" in done.stdout
    assert f"on {len(gold)} documents" in done.stdout
    # A constant answer looks no good.
    used = Counter(label for chosen in gold.values() for label in chosen)
    (most, count), carried = used.most_common(1)[0], {label.uid for label in labels}
    assert count < 0.2 * len(gold) and f"(P@1 {100 * count / len(gold):.1f})" in done.stdout
    assert "Intended Audience :: Developers" not in carried and most in carried
    assert len(documents) > 40 and len(gold) > 20
    assert all(len(d.title) + len(d.text) >= 80 and len(d.text) <= 1500 for d in documents)
    # The gold is nowhere in what the models are shown.
    assert not [d.uid for d in documents if " :: " in d.shown and "Intended Audience ::" in d.shown]
    numpy = next(d for d in documents if d.uid == "numpy")
    assert "array" in numpy.shown and "http" not in numpy.shown and "[![" not in numpy.shown


def test_short_packages_are_left_out(tmp_path: Path, catalog: ModuleType) -> None:
    said = catalog.build(tmp_path, min_chars=1400)
    rows = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text("utf-8").splitlines()]
    assert rows and all(len(row["title"]) + len(row["text"]) >= 1400 for row in rows)
    assert "packages left out: under 1400" in said


def test_config_is_valid_and_within_budget() -> None:
    config = RunConfig.load(EXAMPLE / "config.yaml")
    assert isinstance(config.teacher, VllmTeacherConfig) and config.teacher.prompt == "software"
    assert config.data.gold is not None
    assert Path(config.run_dir) == EXAMPLE / "run"
    calibrating = (config.budget.calibration or 0) * config.inference.calibration_depth
    assert config.training.prior == "estimated" and config.cycles == 1
    assert 230 * config.shortlist.size + calibrating <= 2_000
