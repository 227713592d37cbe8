"""Every command that reads rows tells of the bad ones by file, line and reason, and exits with 3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tinyworld import document, label_rows, topical, write_catalog, write_rows
from typer.testing import CliRunner

from ezxmc.cli import app as cli
from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import ReplayTeacherConfig
from ezxmc.data import RowReport
from ezxmc.errors import DataError
from ezxmc.records import Document, Label, Pair
from ezxmc.teacher.base import load_teacher

pytestmark = pytest.mark.usefixtures("one_thread")

DOCS, LABELS, GOLD, SAID = "documents.jsonl:13", "labels.jsonl:26", "gold.tsv:1", "said.jsonl:2"


def call(folder: Path, *arguments: str, code: int = 3) -> Any:
    cli._register()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(cli.app, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """A finished run and one more bad row in each of its inputs; its own are there already."""
    folder = tmp_path_factory.mktemp("bad")
    write_catalog(
        folder,
        tiny_encoder,
        documents=12,
        cycles=1,
        training__epochs=1,
        training__positives=3,
        teacher={"kind": "replay", "judgments": "said.jsonl"},
        inference__calibration_depth=10,
    )
    docs = [Document(**document(number)) for number in range(12)]
    labels = [Label(row["uid"], row["title"]) for row in label_rows()]
    said = [
        json.dumps({"doc": d.uid, "label": one.uid, "log_odds": topical(Pair(d, one)), "mass": 0.9}) + "\n"
        for d in docs
        for one in labels
    ]
    (folder / "said.jsonl").write_text("".join([said[0], '{"doc": "d0"}\n', *said[1:]]))
    for name, row in (("documents", '{"uid": "d99"}\n'), ("labels", "{\n")):
        with (folder / f"{name}.jsonl").open("a") as handle:
            handle.write(row)
    gold = (folder / "gold.tsv").read_text()
    (folder / "gold.tsv").write_text(f"d0\tl-guitar\tx\n{gold}")
    call(folder, "run", "config.yaml")
    call(
        folder, "shortlist", "documents.jsonl", "labels.jsonl", "--encoder", str(tiny_encoder), "--size", "3"
    )
    with (folder / "shortlist.jsonl").open("a") as handle:
        handle.write('{"doc": 7}\n')
    call(folder, "predict", "run/bundle", "documents.jsonl", "-o", "tags.jsonl")
    call(folder, "judgments", "export", "run/feedback.sqlite", "kept.jsonl", code=0)
    with (folder / "kept.jsonl").open("a") as handle:
        handle.write('{"key": "x"}\n')
    write_rows(
        folder / "review.jsonl",
        [
            {"doc": "d1", "label": "l-oven", "decision": "yes"},
            {"doc": "d1", "label": "l-oven", "decision": "?"},
        ],
    )
    (folder / "data").mkdir()
    for name in ("documents.jsonl", "labels.jsonl", "gold.tsv"):
        shutil.copy(folder / name, folder / "data")
    return folder


COMMANDS: list[tuple[str, list[str]]] = [
    ("run config.yaml", [DOCS, LABELS, GOLD, SAID]),
    ("plan config.yaml --no-probe", [DOCS, LABELS, GOLD, SAID]),
    ("shortlist documents.jsonl labels.jsonl --encoder {encoder} -o other.jsonl", [DOCS, LABELS]),
    (
        "annotate documents.jsonl labels.jsonl shortlist.jsonl --replay said.jsonl --store new.sqlite",
        [DOCS, LABELS, "shortlist.jsonl:13", SAID],
    ),
    (
        "train documents.jsonl labels.jsonl run/feedback.sqlite --encoder {encoder} --epochs 1 -o student",
        [DOCS, LABELS],
    ),
    ("index {encoder} labels.jsonl -o bundle", [LABELS]),
    ("labels add bundle labels.jsonl", [LABELS]),
    ("calibrate run/bundle documents.jsonl --gold gold.tsv", [DOCS, GOLD]),
    ("decide run/bundle documents.jsonl gold.tsv --f1", [DOCS, GOLD]),
    ("predict run/bundle documents.jsonl -o tags2.jsonl", [DOCS]),
    ("evaluate tags.jsonl gold.tsv --labels labels.jsonl", ["tags.jsonl:13", LABELS, GOLD]),
    ("review export run -o picks.csv", [DOCS, LABELS, GOLD]),
    ("review import run review.jsonl", [DOCS, LABELS, "review.jsonl:2"]),
    ("judgments import other.sqlite kept.jsonl", ["kept.jsonl:"]),
    ("data stats data", [DOCS, LABELS, GOLD]),
    (
        "bench index labels.jsonl documents.jsonl --encoder {encoder} --sizes 100 --methods exact",
        [DOCS, LABELS],
    ),
]
HAVE_NO_JSON = ("predict", "bench", "run", "plan", "review export")


@pytest.mark.parametrize(("line", "places"), COMMANDS, ids=[line.split(" ")[0] for line, _ in COMMANDS])
def test_bad_rows_are_told_by_file_line_and_reason(
    world: Path, tiny_encoder: Path, line: str, places: list[str]
) -> None:
    wanted = line.format(encoder=tiny_encoder).split()
    told = call(world, *wanted, *(["--json"] if not line.startswith("predict") else []))
    for place in places:
        assert any(f"{place}" in one and ": " in one.split(place)[1] for one in told.output.splitlines()), (
            place
        )
    if not line.startswith(HAVE_NO_JSON):
        rows = json.loads(told.stdout)["rows"]
        parts, wanted = (list(rows.values()), places) if "problems" not in rows else ([rows], places[-1:])
        found = [f"{one['file']}:{one['line']}" for part in parts for one in part["problems"]]
        assert all(any(place in one for one in found) for place in wanted)


def test_a_thousand_bad_rows_are_counted_and_the_first_named() -> None:
    report, lines = RowReport(), list[str]()
    for line in range(2, 200):
        report.add("d.csv", line, "equal_title" if line % 2 else "bad_csv", "why")
    report.notes.append("columns are odd")
    report.tell(lines.append, "documents")
    report.tell(lines.append)
    assert lines[0].startswith("documents: 99 rows, 0 kept; 99 bad, 99 warnings")
    assert "columns are odd" in lines[1] and "d.csv:4: bad_csv: why" in lines[2]
    assert "78 more bad rows" in lines[-1] and len(lines) == 23


def test_a_run_stops_before_it_spends_where_gold_is_of_other_labels(world: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "documents.jsonl", "labels.jsonl", "said.jsonl"):
        shutil.copy(world / name, tmp_path)
    (tmp_path / "gold.tsv").write_text("".join(f"d{n}\t{n}\n" for n in range(12)))
    with pytest.raises(
        DataError, match=r"gold.tsv: of 12 pairs 0 have a label that is there.*(\n.*)numbers in"
    ):
        call(tmp_path, "run", "config.yaml")
    assert not list((tmp_path / "run" / "cycles").glob("*"))


def test_a_replay_on_a_cluster_tells_its_bad_rows(world: Path) -> None:
    lines: list[str] = []
    config = ReplayTeacherConfig(judgments=str(world / "said.jsonl"))
    teacher: Any = load_teacher(config, cluster=RayConfig(), say=lines.append)
    assert any(f"{SAID}: bad_judgment: " in line for line in lines)
    assert teacher.report.bad == 1
