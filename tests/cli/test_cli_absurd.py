"""Absurd arguments of every command: an error with its cure and the right exit code, and no file touched."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from support.program import Ezxmc, recorded
from support.serving import write_bundle
from support.tinyworld import write_catalog

from ezxmc.cli import app as program

pytestmark = pytest.mark.usefixtures("one_thread")

EMPTY = {
    "empty.jsonl": b"",
    "empty.csv": b"",
    "blank.txt": b"\n\n",
    "bytes.jsonl": bytes(range(256)),
    "header.csv": b"id,text\n",
}


@pytest.fixture
def world(tmp_path: Path, tiny_encoder: Path, world_bundle: Path) -> Path:
    """A catalog, a bundle, a store, tags, and files that hold nothing."""
    write_catalog(tmp_path / "cat", tiny_encoder, documents=20)
    recorded(tmp_path / "cat", documents=20)
    for name, content in EMPTY.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bundle").symlink_to(world_bundle)
    (tmp_path / "encoder").symlink_to(tiny_encoder)
    with sqlite3.connect(tmp_path / "foreign.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    (tmp_path / "tags.jsonl").write_text('{"uid": "d0", "tags": [{"label": "l-soup", "score": 0.5}]}\n')
    return tmp_path


@pytest.fixture(scope="module")
def world_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    return write_bundle(tmp_path_factory.mktemp("absurd") / "bundle", tiny_encoder)


_D, _L, _G = "cat/documents.jsonl", "cat/labels.jsonl", "cat/gold.tsv"
_REPLAY = ("--replay", "cat/judgments.jsonl", "--store", "new.sqlite")


def _lines() -> list[str]:
    lines = [
        "predict bundle {} --k 0",
        "predict bundle {} --k 2.5",
        *(f"predict bundle {{}} --threshold {n}" for n in ("nan", "50", "-1", "inf", "x")),
        "predict absent {}",
        "predict folder {}",
        "predict cat/gold.tsv {}",
        "predict bundle folder",
        "predict bundle absent.jsonl",
        *(
            f"shortlist {{}} {_L} --encoder encoder --{o} {n}"
            for o, n in (("size", 0), ("descriptions", "nan"))
        ),
        f"shortlist {{}} {_L} --encoder folder",
        *(f"annotate {{}} {_L} cat/shortlist.jsonl --max-hours {n}" for n in ("nan", "inf", "0")),
        *(
            f"train {{}} {_L} store.sqlite --{option}"
            for option in ("held-out nan", "held-out 0", "seed -1", "learning-rate inf", "batch-size 1")
        ),
        f"train {{}} {_L} folder",
        f"train {{}} {_L} empty.jsonl",
        f"train {{}} {_L} foreign.sqlite",
        f"index encoder {_L} --k 0",
        f"index folder {_L}",
        *(f"calibrate bundle {{}} --gold {_G} --held-out {n}" for n in ("nan", "-1", "50")),
        *(f"decide bundle {{}} {_G} --missed-rate {n}" for n in ("nan", "0", "2")),
        *(f"decide bundle {{}} {_G} --false-tag-rate .1 --confidence {n}" for n in ("nan", "1")),
        *(f"evaluate tags.jsonl {_G} --threshold {n}" for n in ("nan", "50")),
        *(f"evaluate tags.jsonl {_G} --train-gold {_G} --propensity {n} 1" for n in ("nan", "1e308", "0")),
        *(
            f"{command} {store}"
            for command in ("judgments stats", "judgments failures")
            for store in ("empty.jsonl", "folder", "foreign.sqlite", "absent", _D)
        ),
        "judgments export empty.jsonl out.jsonl",
        *(f"data show {name}" for name in ("bytes.jsonl", "folder", "empty.csv")),
        "data stats empty.csv",
        "data stats folder",
        "report empty.jsonl",
        "report folder",
        "review export folder",
        "review ui empty.jsonl",
        "run folder",
        "run empty.csv",
        "plan bytes.jsonl",
        "prompts show folder",
        "models path folder",
        "labels list folder",
        "labels remove bundle nobody",
        "serve folder --port 0",
        "serve bundle --port 70000",
        "serve bundle --max-body-mb inf",
        "serve bundle --rate nan",
        *(f"bench index {_L} {{}} --encoder encoder --sizes {n}" for n in ("nan", "inf", "x", "0")),
    ]
    found = [line.format(_D) for line in lines]
    for name in EMPTY:
        found += [
            f"shortlist {name} {_L} --encoder encoder",
            f"shortlist {_D} {name} --encoder encoder",
            f"annotate {name} {_L} cat/shortlist.jsonl {' '.join(_REPLAY)}",
            f"annotate {_D} {name} cat/shortlist.jsonl {' '.join(_REPLAY)}",
            f"annotate {_D} {_L} {name} {' '.join(_REPLAY)}",
            f"train {name} {_L} store.sqlite",
            f"index encoder {name}",
            f"labels add bundle {name}",
            f"calibrate bundle {_D} --gold {name}",
            f"decide bundle {_D} {name} --f1",
            f"evaluate tags.jsonl {name}",
            f"evaluate {name} {_G}",
            f"bench index {_L} {name} --encoder encoder --sizes 100",
            f"bench index {name} {_D} --encoder encoder --sizes 100",
        ]
    return found


def test_absurd_arguments_are_refused_with_a_cure(world: Path, ezxmc: Ezxmc) -> None:
    (world / "cat" / "shortlist.jsonl").write_text('{"doc": "d0", "labels": ["l-soup"]}\n')
    (world / "store.sqlite").write_bytes(b"")
    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
    wrong = []
    for line in _lines():
        try:
            done = ezxmc(*line.split())
        except Exception as error:
            wrong.append(f"{line}: {error!r}")
            continue
        usage = done.code == program.USAGE and "--help" in done.err
        told = "error: " in done.err.lower() and ("cure: " in done.err or usage)
        if done.code not in (program.FAILED, program.USAGE) or not told:
            wrong.append(f"{line}: exit code {done.code}: {done.err[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert {path: path.read_bytes() for path in before} == before
