"""`ezxmc data ...`: answers, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from support.cards import own
from typer.testing import CliRunner, Result

from ezxmc.cli import data as data_cli
from ezxmc.data import card_files, read_gold
from ezxmc.data.inspect import inspect_files
from ezxmc.errors import ConfigError, DataError


def call(*arguments: object) -> Result:
    app = typer.Typer()
    data_cli.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def answered(*arguments: object, code: int = 0) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_list_and_show() -> None:
    assert [card["name"] for card in answered("list")] == list(card_files())
    shown = call("list").stdout
    assert "debtags" in shown and "5,759" in shown
    assert call("show", "debtags").stdout == card_files()["debtags"].read_text()
    card = answered("show", "lf-amazon-131k")
    assert card["sizes"]["labels"] == 131073 and card["prose"].startswith("**What.**")
    assert isinstance(call("show", "nothing").exception, ConfigError)


def test_stats(tmp_path: Path) -> None:
    found = answered("stats", own(tmp_path))
    assert found["labels"] == 4 and found["splits"]["all"]["labels_per_document"]["max"] == 3
    assert found["rows"]["documents.jsonl"]["kept"] == 4
    assert "mean 2, median 2, most 3" in " ".join(call("stats", tmp_path).stdout.split())
    (tmp_path / "documents.jsonl").write_text('{"uid": "a", "title": "A"}\n{\n')
    done = call("stats", tmp_path)
    assert done.exit_code == 3 and "documents.jsonl:2: bad_json" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert isinstance(call("stats", empty).exception, DataError)
    assert call("stats", tmp_path / "nowhere").exit_code == 2


def test_check(tmp_path: Path) -> None:
    folder = own(tmp_path / "Debtags")
    report = answered("check", folder, code=1)
    assert report["card"] == "debtags"
    assert {"figure": "documents", "card": 5759, "here": 4} in report["differences"]
    done = call("check", folder)
    told = " ".join(done.stdout.split())
    assert done.exit_code == 1 and "5 of 5 figures differ from the card debtags" in told and "5,759" in told
    assert answered("check", folder, "--card", "python_packages")["compared"] == 0
    right = tmp_path / "right.md"
    text = card_files()["debtags"].read_text()
    for old, new in (
        ("5759", "4"),
        ("labels: 466", "labels: 4"),
        ("21262", "6"),
        (": 3.69", ": 2.0"),
        (": 45.6", ": 1.25"),
    ):
        assert old in text
        text = text.replace(old, new)
    right.write_text(text)
    assert answered("check", folder, "--card", right)["differences"] == []
    assert "all 5 figures are as the card debtags says" in call("check", folder, "--card", right).stdout
    other = own(tmp_path / "other")
    assert isinstance(call("check", other).exception, ConfigError)


def test_convert(tmp_path: Path) -> None:
    source = tmp_path / "published"
    source.mkdir()
    (source / "X.trn.txt").write_text("a boat\nthe sea\n")
    (source / "Y.trn.txt").write_text("0,1\n7\n")
    (source / "output-items.txt").write_text("boats\nwater\n")
    (source / "filter_labels_train.txt").write_text("0 1\n")
    report = answered("convert", source, tmp_path / "out", code=3)
    assert report["labels"] == 2
    assert report["splits"] == {"train": {"documents": 2, "without_labels": 1, "pairs": 2, "filtered": 1}}
    assert report["rows"]["Y.trn.txt"]["counts"] == {"unknown_label": 1}
    assert read_gold(tmp_path / "out" / "train_gold.tsv")[0] == {"train-0": {"0", "1"}}
    assert (tmp_path / "out" / "train_filter.tsv").read_text() == "doc\tlabel\ntrain-0\t1\n"
    assert answered("stats", tmp_path / "out")["splits"]["train"]["pairs"] == 2
    (source / "Y.trn.txt").write_text("0,1\n1\n")
    done = call("convert", source, tmp_path / "out")
    assert done.exit_code == 0 and "2 labels, in" in done.stdout
    (source / "Y.trn.txt").write_text("0,1\n7\n")
    assert isinstance(call("convert", source, tmp_path / "out", "--strict").exception, DataError)
    assert isinstance(call("convert", tmp_path, tmp_path / "out").exception, DataError)


def test_inspect_is_a_library_call(tmp_path: Path) -> None:
    own(tmp_path)
    files = [str(tmp_path / f"{name}.jsonl") for name in ("documents", "labels")]
    gold = str(next(tmp_path.glob("gold.*")))
    told = answered("inspect", files[0], "--labels", files[1], "--gold", gold, code=3)
    assert told == inspect_files(files[:1], files[1], gold).to_dict() and told["gold"]["pairs"] == 5


@pytest.mark.parametrize("command", ["list", "show", "stats", "check", "convert"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: ezxmc data {command}" in " ".join(call(command, "--help").output.split())
