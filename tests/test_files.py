"""A user's files: no writer loses what it did not make, and what fails leaves what was there."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ezxmc.bundle.manifest import check_bundle_place
from ezxmc.calibration.decisions import Decision
from ezxmc.cli.console import standard_output, utf8_output
from ezxmc.data import RowReport, iter_rows
from ezxmc.data.predictions import TAGS, RowFile, is_tags, part_of, read_predictions, write_shortlist
from ezxmc.data.rows import row_format, rows_made, whole_rows
from ezxmc.errors import ConfigError, DataError, EzxmcError, StoreError
from ezxmc.feedback.exchange import export_judgments
from ezxmc.feedback.store import FeedbackStore
from ezxmc.files import check_file, check_folder, remove_own, sign, unchanged, whole_file, whole_folder
from ezxmc.pipeline.rundir import OUTPUTS, RunDir, check_run_dir
from ezxmc.report.page import is_page, replace_page
from ezxmc.review.exchange import write_picks

TAG = {"label": "a", "title": "é", "score": 0.5, "probability": None}
ROWS: list[dict[str, Any]] = [
    {"uid": "1", "tags": [TAG]},
    {"error": "bad_json: é", "file": "x", "line": 2},
    {"uid": "3", "tags": []},
]


def own(folder: Path) -> list[str] | None:
    return unchanged(folder, "test")


def write_folder(place: Path, text: str = "new") -> None:
    with whole_folder(place, "test", own) as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "a.txt").write_text(text)
        sign(fresh, "test")


def write_tags(path: Path) -> None:
    with RowFile(path) as file:
        file.write(ROWS)


def write_store(path: Path) -> None:
    with FeedbackStore(path):
        pass


def export(path: Path) -> None:
    store = path.parent / ".store"
    with FeedbackStore(store) as opened:
        export_judgments(opened, path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "tags": write_tags,
    "shortlist": lambda path: write_shortlist(
        path, [{"doc": "1", "labels": ["a"], "scores": [0.5], "sources": ["dense"]}]
    ),
    "pairs to review": lambda path: write_picks(path, []),
    "judgments": export,
    "page": lambda path: replace_page(path, "<html>"),
    "decision": lambda path: Decision.top_k(1).save(path),
    "folder": write_folder,
    "bundle": check_bundle_place,
    "store": write_store,
}
_TEXTS = [
    b"my thesis\n",
    b'{"uid": "1", "title": "a document"}\n',
    b'{"uid": "1", "tags": ["people", "chose", "these"]}\n',
    b'{"uid": "1", "tags": []}\nand a note\n',
    b'{"uid": "1", "tags": []}\n{"uid": "2", "tags": [], "comment": "mine"}',
    b"uid,tags\n1,a;b\n",
    b"<html><title>ezxmc</title></html>",
    b"SQLite format 3\0 or not",
    b"{}\n",
    b"\n",
]
_CONTENTS = st.one_of(st.sampled_from(_TEXTS), st.binary(min_size=1, max_size=200))
_NAMES = st.sampled_from(
    ["x.jsonl", "x.csv", "x.parquet", "x.jsonl.gz", "x.json", "x", "manifest.json", "x.html"]
)


def held(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@example(writer="store", name="x.jsonl", content=b"\n", inside=False, link=False)
@example(writer="pairs to review", name="x.json", content=b"{}\n", inside=False, link=False)
@given(
    writer=st.sampled_from(list(WRITERS)),
    name=_NAMES,
    content=_CONTENTS,
    inside=st.booleans(),
    link=st.booleans(),
)
def test_no_writer_loses_a_foreign_file(
    tmp_path_factory: pytest.TempPathFactory, writer: str, name: str, content: bytes, inside: bool, link: bool
) -> None:
    """Whatever lies in the place, as a file, behind a link, or in a folder of that name."""
    place = tmp_path_factory.mktemp("place")
    out = place / name
    foreign = out / "manifest.json" if inside else out
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(content)
    assume(not is_page(foreign))  # hypothesis takes our own mark from the source
    if link:
        out = place / f"link-{name}"
        out.symlink_to(place / name)
    before = held(place)
    with suppress(EzxmcError):
        WRITERS[writer](out)
    after = held(place)
    assert {path: after.get(path) for path in before} == before
    assert link is out.is_symlink() and not [path for path in after if Path(path).name.startswith(".ezxmc-")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.jsonl.gz", "x.csv.gz", "x.ndjson"])
def test_rows_are_what_the_name_says_come_back_and_may_be_written_again(tmp_path: Path, name: str) -> None:
    for _ in range(2):  # what was written is known again
        write_tags(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    raw = (tmp_path / name).read_bytes()
    assert raw.startswith(b"\x1f\x8b") == name.endswith(".gz")
    if name.endswith(".parquet"):
        assert pyarrow.parquet.read_table(tmp_path / name).schema.names == TAGS.names
    report = RowReport()
    found = list(read_predictions(tmp_path / name, report))
    assert [(one.uid, one.labels, one.titles) for one in found] == [("1", ("a",), ("é",)), ("3", (), ())]
    assert report.counts == {"prediction_error": 1}


@pytest.mark.parametrize("name", ["x.txt", "x", "x.xlsx", "x.parquet.gz", "x.json", "x.tsv"])
def test_a_name_of_no_form_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"let it end in \.jsonl"):
        row_format(tmp_path / name)


def test_half_characters_and_nested_values_survive_every_form(tmp_path: Path) -> None:
    schema = pyarrow.schema([("a", pyarrow.string()), ("b", pyarrow.list_(pyarrow.string()))])
    rows = [{"a": '\ud83d, "x"\r\ny', "b": ["1", "é"]}, {"a": None, "b": []}]
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        with whole_rows(tmp_path / name, "test", schema) as write:
            write(rows)
        first = next(iter_rows(tmp_path / name, RowReport()))[2]
        assert first["a"] == '?, "x"\r\ny'
        assert (json.loads(first["b"]) if name == "x.csv" else first["b"]) == ["1", "é"]
        assert rows_made(schema.names)(tmp_path / name)


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_tags(pipe)
    assert os.read(reader, 1 << 16).count(b"\n") == len(ROWS) and pipe.is_fifo()
    os.close(reader)


def test_an_input_is_refused_by_any_name(tmp_path: Path) -> None:
    source, folder = tmp_path / "in.jsonl", tmp_path / "folder"
    source.write_bytes(b"")  # even an empty one
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    folder.mkdir()
    for name in ("in.jsonl", "link", "hard", "folder/../in.jsonl"):
        with pytest.raises(ConfigError, match="one of the inputs"):
            check_file(tmp_path / name, "test", made=lambda _: True, inputs=["-", None, "nowhere", source])
    with pytest.raises(ConfigError, match="into the input"):
        check_file(folder / "new.jsonl", "test", inputs=[folder])
    write_folder(tmp_path / "made")
    with pytest.raises(ConfigError, match="which would be replaced"):
        check_folder(tmp_path / "made", "test", own, inputs=[tmp_path / "made" / "sub" / "a.txt"])


def test_the_present_folder_a_file_for_a_folder_and_a_folder_for_a_file_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", "..", tmp_path, "../here"):
        with pytest.raises(ConfigError, match="the folder you are in"):
            check_folder(place, "test", own)
        with pytest.raises(ConfigError, match="is a folder"):
            check_file(place, "test", made=lambda _: True)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file"):
            check_folder(place, "test", own)
    with pytest.raises(ConfigError, match="is a file"):
        check_file(tmp_path / "file" / "below", "test")


def test_a_folder_is_replaced_if_all_in_it_is_its_makers(tmp_path: Path) -> None:
    place = tmp_path / "place"
    write_folder(place, "old")
    write_folder(place, "new")
    assert (place / "sub" / "a.txt").read_text() == "new"
    (place / "sub" / "a.txt").write_text("mended by hand")
    with pytest.raises(ConfigError, match=r"changed since: sub/a\.txt"):
        write_folder(place)
    write_folder(tmp_path / "other")
    (tmp_path / "other" / "NOTES.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"NOTES\.md"):
        write_folder(tmp_path / "other")
    remove_own(tmp_path / "other", set(own(tmp_path / "other") or ()).__contains__)
    assert held(tmp_path / "other") == {str(tmp_path / "other" / "NOTES.md"): b"mine"}


def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")
    write_tags(tmp_path / "tags.csv")
    (tmp_path / "file").write_text("old")
    before = held(tmp_path)
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder", "test", own) as fresh:
        (fresh / "a.txt").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file", "t", made=lambda _: True) as new:
        new.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), RowFile(tmp_path / "tags.csv") as rows:
        rows.write(ROWS)
        raise ZeroDivisionError
    assert held(tmp_path) == before


def test_what_comes_while_one_works_is_not_lost(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="not test that ezxmc wrote"),
        whole_file(tmp_path / "file", "test") as fresh,
    ):
        fresh.write_text("new")
        (tmp_path / "file").write_text("mine")
    assert (tmp_path / "file").read_text() == "mine"
    with (
        pytest.raises(ConfigError, match="the new test is in ") as told,
        whole_folder(tmp_path / "folder", "test", own) as made,
    ):
        (made / "a.txt").write_text("hours of work")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "mine").write_text("mine")
    assert (tmp_path / "folder" / "mine").read_text() == "mine"
    saved = Path(str(told.value).split("the new test is in ")[1].split("\n")[0])
    assert (saved / "a.txt").read_text() == "hours of work"


def test_tags_of_other_documents_are_not_continued_however_few(tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    write_tags(out)
    before = out.read_bytes()
    others: list[list[dict[str, Any]]] = [[{"uid": "x", "tags": [TAG]}, *ROWS[1:]], ROWS[:2], []]
    for rows in others:
        with pytest.raises(DataError, match=r"cannot be continued.*"), RowFile(out, resume=True) as file:
            if rows:
                file.write(rows)
        assert out.read_bytes() == before and not part_of(out).exists()
    with RowFile(out, resume=True) as file:
        file.write([*ROWS, {"uid": "4", "tags": []}])
    assert out.read_bytes() == before + b'{"uid": "4", "tags": []}\n' and is_tags(out)


def test_an_interrupted_job_keeps_the_former_tags_and_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    write_tags(out)
    before, many = out.read_bytes(), [{"uid": str(number), "tags": [TAG]} for number in range(300)]
    with pytest.raises(ZeroDivisionError), RowFile(out) as file:
        file.write(many[:256])
        raise ZeroDivisionError
    assert out.read_bytes() == before and part_of(out).read_bytes().count(b"\n") == 256
    with RowFile(out, resume=True) as file:
        file.write(many[:256])
        file.write(many[256:])
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == many
    assert not part_of(out).exists()
    part_of(out).write_text("my own part\n")
    with pytest.raises(ConfigError, match=r"tags\.jsonl\.part exists and is not"):
        RowFile(out)


def test_a_run_takes_no_folder_in_which_it_would_replace_something(tmp_path: Path) -> None:
    for name in OUTPUTS:
        place = tmp_path / name
        place.mkdir()
        (place / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"holds {name}"):
            check_run_dir(place)
    place = tmp_path / "run"
    check_run_dir(place)
    RunDir(place).stage("one", [], [], dict)
    (place / "predictions.jsonl").write_text("")
    check_run_dir(place, [tmp_path / "config.yaml"])
    with pytest.raises(ConfigError, match=r"the input .* is predictions\.jsonl of run_dir"):
        check_run_dir(place, [place / "predictions.jsonl"])


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "mine.sqlite"
    opened = sqlite3.connect(path)
    opened.execute("CREATE TABLE notes (text)")
    opened.commit()
    opened.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no feedback store"):
        FeedbackStore(path)
    assert path.read_bytes() == before


def test_standard_output_is_utf_8_and_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    utf8_output()
    standard_output().write("é \ud83d")
    standard_output().flush()
    assert raw.getvalue() == "é ?".encode()
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(DataError, match="standard output is closed"):
        standard_output()


def test_the_same_rows_make_the_same_gzip(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_tags(tmp_path / name)
    one, other = ((tmp_path / name).read_bytes() for name in ("a.jsonl.gz", "b.jsonl.gz"))
    assert one == other and gzip.decompress(one).count(b"\n") == len(ROWS)
