"""Readers, documents, labels, gold and split: rows are kept or named, never lost."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import found, put

from ezxmc import errors
from ezxmc.config import DataConfig
from ezxmc.data import (
    Catalog,
    RowReport,
    calibration_part,
    iter_documents,
    iter_rows,
    read_documents,
    read_gold,
    read_labels,
    split_documents,
)
from ezxmc.data.catalog import Places
from ezxmc.errors import DataError
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label

ROWS = [{"uid": "a", "title": "One", "text": "x, y"}, {"uid": "b", "title": "Zwei 🦊", "text": 'say "hi"'}]
DOCUMENTS = [Document("a", "One", "x, y"), Document("b", "Zwei 🦊", 'say "hi"')]


def as_jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def as_csv() -> bytes:
    return 'uid,title,text\na,One,"x, y"\nb,Zwei 🦊,"say ""hi"""\n'.encode()


def as_tsv() -> bytes:
    return 'uid\ttitle\ttext\na\tOne\tx, y\nb\tZwei 🦊\tsay "hi"\n'.encode()


def as_parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", as_jsonl()),
        ("d.json", as_jsonl()),
        ("d.jsonl.gz", gzip.compress(as_jsonl(), mtime=0)),
        ("bom.jsonl", b"\xef\xbb\xbf" + as_jsonl()),
        ("crlf.jsonl", as_jsonl().replace(b"\n", b"\r\n\r\n")),
        ("d.csv", as_csv()),
        ("d.csv.gz", gzip.compress(as_csv(), mtime=0)),
        ("bom.csv", b"\xef\xbb\xbf" + as_csv()),
        ("crlf.csv", as_csv().replace(b"\n", b"\r\n")),
        ("d.tsv", as_tsv()),
        ("d.parquet", as_parquet()),
    ],
)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, content: bytes) -> None:
    documents, report = read_documents(put(tmp_path / name, content))
    assert documents == DOCUMENTS
    assert (report.rows, report.kept, report.bad) == (2, 2, 0)


def test_stdin_and_txt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(as_jsonl() + b"{\n")))
    documents, report = read_documents("-")
    assert documents == DOCUMENTS
    assert str(report.problems[0]).startswith("<stdin>:3: bad_json")
    labels, _ = read_labels(put(tmp_path / "l.txt", "Foxes\n\n  Red pandas \n"))
    assert labels == [Label("Foxes", "Foxes"), Label("Red pandas", "Red pandas")]


def test_datasets_folder(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert read_documents(tmp_path / "one")[0] == DOCUMENTS
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "only")
    assert read_documents(tmp_path / "only")[0] == DOCUMENTS
    both = {"train": data, "test": data.select([0])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "train")
    assert read_documents(tmp_path / "train")[0] == DOCUMENTS
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="splits a, b, not train"):
        read_documents(tmp_path / "none")


def test_hub_split(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.IterableDatasetDict(
        {
            name: datasets.Dataset.from_list([row]).to_iterable_dataset()
            for name, row in zip("xy", ROWS, strict=True)
        }
    )
    asked: list[tuple[Any, Any]] = []

    def load(*args: Any, **named: Any) -> Any:
        asked.append((args, named))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_documents("org/name:y")[0] == DOCUMENTS[1:]
    assert asked == [(("org/name",), {"streaming": True})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.docx", b"x", "no supported format"),
        ("d.jsonl.gz", gzip.compress(as_jsonl() * 50, mtime=0)[:-20], "cannot be read to its end"),
        ("d.csv", b"PK\x03\x04....", "zip archive or a workbook"),
        ("d.csv", b"\xd0\xcf\x11\xe0....", "old Excel"),
        ("d.parquet", b"PAR1 no", "not readable Parquet"),
        ("d.json", b'[{"uid": 1, "text": "a"},\n{"uid": 2', "one JSON array that cannot be read.*line 2"),
        ("d.json", b"[\n", "one JSON array that cannot be read"),
        ("d.json", b'[{"text": "a",\n"title": "caf\xe9",\n"key": "\xc3\xa9"}]', "read: .*d.json:2: bad_utf8"),
        ("d.csv", b"u\xffid,text\na,\xc3\xa9\n", "d.csv:1: bad_utf8.*no readable header"),
        ("d.csv", b"uid,text,text\na,b,c\n", "same name"),
    ],
)
def test_unreadable_files_are_errors_with_a_cure(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_documents(put(tmp_path / name, content))
    assert name in caught.value.message and caught.value.cure


def test_missing_sources(tmp_path: Path) -> None:
    for source in (tmp_path / "no.jsonl", "data/no.csv", "no", "a/b/c"):
        with pytest.raises(DataError, match="no file at"):
            read_documents(source)
    with pytest.raises(DataError, match="save_to_disk"):
        read_documents(tmp_path)


def test_bad_json_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [
        '{"uid": "ok1", "text": "fine: é"}'.encode(),
        b"{oops",
        b"[1, 2]",
        b'{"uid": "a", "text": "\xff"}',
        b"",
        b'{"text": "nobody"}',
        b'{"uid": " ", "text": "blank uid"}',
        b'{"uid": "e", "title": " ", "text": "\\n"}',
        b'{"uid": "t", "text": ["list"]}',
        b'{"uid": "n", "text": null}',
        b'{"uid": "s", "text": "\\ud83d"}',
        b'{"uid": "0", "text": "nul \\u0000"}',
        b'{"uid": "ok1", "text": "again"}',
        b'{"uid": true, "text": "x"}',
        b'{"uid": 7, "text": "number"}',
        b'{"uid": NaN, "text": "x"}',
        b'{"uid": "deep", "text": ' + b"[" * 100_000,
        b'{"uid": ' + b"9" * 5_000 + b', "text": "x"}',
        b'{"uid": "ok2", "text": "\\ud83e\\udd8a"}',
    ]
    documents, report = read_documents(put(tmp_path / "d.jsonl", b"\n".join(lines)))
    assert [document.uid for document in documents] == ["ok1", "7", "ok2"]
    assert documents[2].text == "🦊"
    assert found(report) == [
        (2, "bad_json"),
        (3, "not_an_object"),
        (4, "bad_utf8"),
        (6, "no_uid"),
        (7, "no_uid"),
        (8, "empty_text"),
        (9, "bad_type"),
        (10, "empty_text"),
        (11, "bad_unicode"),
        (12, "bad_unicode"),
        (13, "duplicate_uid"),
        (14, "bad_type"),
        (16, "no_uid"),
        (17, "bad_json"),
        (18, "bad_json"),
    ]
    assert (report.rows, report.kept, report.bad) == (18, 3, 15)
    assert report.to_dict()["counts"]["bad_json"] == 3
    assert "d.jsonl:2: bad_json" in report.summary()


def test_bad_csv_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    text = 'uid,text\n1,"two\nlines"\n2\n\n3,"bad" quote\n4,c\x00\n5,ok\n6,"never\nclosed\n'
    documents, report = read_documents(put(tmp_path / "d.csv", text))
    assert documents == [Document("1", "", "two\nlines"), Document("5", "", "ok")]
    assert found(report) == [
        (4, "field_count"),
        (6, "bad_csv"),
        (7, "bad_unicode"),
        (9, "bad_csv"),
        (10, "field_count"),
    ]
    assert "opened here and not closed" in report.problems[-2].detail


def test_an_undecodable_csv_row_costs_one_row(tmp_path: Path) -> None:
    documents, report = read_documents(put(tmp_path / "d.csv", b"uid,text\n1,\xc3\xa9\n2,\xe9t\xe9\n3,b\n"))
    assert [document.uid for document in documents] == ["1", "3"]
    assert found(report) == [(3, "bad_utf8")]
    assert any("mixes UTF-8 with another encoding" in note for note in report.notes)


def test_an_undecodable_parquet_row_costs_one_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff", b"too"], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pa.table({"uid": [1, 2, 3], "text": text}), tmp_path / "d.parquet")
    documents, report = read_documents(tmp_path / "d.parquet")
    assert [document.uid for document in documents] == ["1", "3"]
    assert found(report) == [(2, "bad_utf8")]


@pytest.mark.parametrize(
    ("cell", "count"), [(12, 12.0), ("3.5", 3.5), ("", None), (None, None), (0, 0.0), ("1e6", 1e6)]
)
def test_how_often_a_label_was_used(tmp_path: Path, cell: object, count: float | None) -> None:
    labels, report = read_labels(
        put(tmp_path / "l.jsonl", json.dumps({"uid": "a", "title": "A", "count": cell}))
    )
    assert labels == [Label("a", "A", count=count)] and not report.counts


@pytest.mark.parametrize("cell", ["many", -1, True, "nan", "inf", [3]])
def test_a_count_that_is_none_is_told(tmp_path: Path, cell: object) -> None:
    rows = [{"uid": "a", "title": "A", "count": cell}, {"uid": "b", "title": "B"}]
    labels, report = read_labels(put(tmp_path / "l.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert [label.uid for label in labels] == ["b"] and report.counts == {"bad_count": 1}


def test_column_aliases_in_order_of_the_table(tmp_path: Path) -> None:
    rows = [
        {"key": "k", "_id": "i", "subject": "s", "name": "n", "summary": "sum", "body": "b"},
        {"id": 3, "heading": "h", "text": None, "abstract": "abs"},
    ]
    path = put(tmp_path / "d.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_documents(path)[0] == [Document("i", "n", "b"), Document("3", "h", "abs")]


def test_strict_stops_at_the_first_bad_row_but_not_at_a_warning(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", '{"uid": 1, "text": "x"}\n{"uid": 1, "text": "y"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:2: duplicate_uid"):
        read_documents(path, strict=True)
    labels = put(tmp_path / "l.jsonl", '{"uid": 1, "title": "X"}\n{"uid": 2, "title": "x"}\n')
    assert len(read_labels(labels, strict=True)[0]) == 2


def test_an_unclosed_quote_costs_its_own_line(tmp_path: Path) -> None:
    path = put(tmp_path / "d.csv", 'uid,text\n0,"oops\n' + "".join(f"{n},text\n" for n in range(1, 500)))
    documents, report = read_documents(path)
    assert found(report) == [(2, "bad_csv")]
    assert [document.uid for document in documents] == [str(n) for n in range(1, 500)]


def test_long_documents_pass(tmp_path: Path) -> None:
    text = "wörter 🦊 " * 100_000
    jsonl = put(tmp_path / "d.jsonl", json.dumps({"uid": "a", "text": text}))
    sheet = put(tmp_path / "d.csv", f'uid,text\na,"{text}"\n')
    for path in (jsonl, sheet):
        documents, report = read_documents(path)
        assert documents == [Document("a", "", text)] and not report.bad


def test_labels(tmp_path: Path) -> None:
    rows = [
        {"uid": 1, "name": "Red  Fox", "description": "an animal", "aliases": ["vulpes", " "], "parent": 9},
        {"title": "Cats"},
        {"uid": 3, "title": "red fox"},
        {"uid": 4, "text": "untitled"},
        {"uid": 5, "title": "Dogs", "aliases": "hound | pup"},
        {"uid": "Cats", "title": "cats!"},
        {"uid": 6, "title": "Owls", "aliases": [True]},
    ]
    labels, report = read_labels(put(tmp_path / "l.jsonl", "\n".join(map(json.dumps, rows))))
    assert labels == [
        Label("1", "Red  Fox", "an animal", ("vulpes",), "9"),
        Label("Cats", "Cats"),
        Label("3", "red fox"),
        Label("5", "Dogs", aliases=("hound", "pup")),
    ]
    assert found(report) == [(3, "equal_title"), (4, "no_title"), (6, "duplicate_uid"), (7, "bad_type")]
    assert "label '3' has the title of label '1'" in report.problems[0].detail
    assert (report.rows, report.kept, report.bad, report.warnings) == (7, 4, 3, 1)


def test_the_problem_list_is_bounded_and_the_counts_exact(tmp_path: Path) -> None:
    _, report = read_documents(put(tmp_path / "d.jsonl", "x\n" * 1_500))
    assert len(report.problems) == errors.PROBLEMS_KEPT == 1_000
    assert report.counts["bad_json"] == report.bad == 1_500


@given(content=st.binary(max_size=400), suffix=st.sampled_from([".jsonl", ".txt", ".tsv", ".csv"]))
def test_arbitrary_bytes_never_crash(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = put(tmp_path / f"f{suffix}", content)
    report = RowReport()
    try:
        documents = list(iter_documents(path, report))
    except DataError as error:
        assert str(path) in error.message
        return
    assert report.kept == len(documents)
    if suffix in (".jsonl", ".txt"):
        assert report.rows == sum(1 for raw in content.split(b"\n") if _is_row(raw))
    read_labels(path)
    read_gold(path)


def _is_row(raw: bytes) -> bool:
    """Whether a line is not blank, told without the reader."""
    return bool(raw.decode("utf-8", "replace").removeprefix("\ufeff").strip())


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)


@given(texts=st.lists(words, max_size=8), junk=st.lists(st.sampled_from([b"{", b"3", b"\xff"]), max_size=8))
def test_each_row_is_kept_or_reported_at_its_line(
    tmp_path: Path, texts: list[str], junk: list[bytes]
) -> None:
    good = [json.dumps({"uid": str(n), "text": text}).encode() for n, text in enumerate(texts)]
    lines = [line for pair in zip(good, junk, strict=False) for line in pair]
    lines += good[len(junk) :] + junk[len(good) :]
    documents, report = read_documents(put(tmp_path / "d.jsonl", b"\n".join(lines)))
    assert [document.text for document in documents] == texts
    assert [line for line, _ in found(report)] == [n for n, line in enumerate(lines, 1) if line in junk]
    assert report.rows == len(lines)


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("w") as handle:
        handle.writelines(f'{{"uid": "{n}", "text": "{"word " * 20}"}}\n' for n in range(200_000))
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        rows = sum(1 for _ in iter_rows(path, RowReport()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 200_000
    assert peak < 2_000_000


GOLD = {"a": {"1", "2"}, "b": {"3"}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.tsv", "a\t1\na\t2\nb\t3\n"),
        ("g.tsv", "doc\tlabel\na\t1\na\t2\nb\t3\n"),
        ("g.csv", "a,1\na,2\nb,3\n"),
        ("g.csv", "Label,score,UID\n1,0.5,a\n2,1,a\n3,1,b\n"),
        ("g.jsonl", '{"doc": "a", "label": 1}\n{"document": "a", "label": "2"}\n{"uid": "b", "label": 3}\n'),
        ("g.jsonl", '{"uid": "a", "labels": ["1", 2]}\n{"uid": "b", "labels": ["3"]}\n'),
    ],
)
def test_gold_formats(tmp_path: Path, name: str, text: str) -> None:
    gold, report = read_gold(put(tmp_path / name, text))
    assert gold == GOLD
    assert (report.rows, report.bad) == (3, 0)


def test_gold_problems_are_named_and_dropped(tmp_path: Path) -> None:
    path = put(tmp_path / "g.tsv", 'a\t1\nz\t1\na\t9\na\n\t1\na\t\n"b\t2\n')
    gold, report = read_gold(path, documents={"a", '"b'}, labels=["1", "2"])
    assert gold == {"a": {"1"}, '"b': {"2"}}
    assert found(report) == [
        (2, "unknown_document"),
        (3, "unknown_label"),
        (4, "field_count"),
        (5, "no_document"),
    ]
    assert any("1 documents with an empty label cell" in note for note in report.notes)
    with pytest.raises(DataError, match=r"g\.tsv:2: unknown_document"):
        read_gold(path, documents=["a"], strict=True)


def test_a_header_is_one_on_the_first_line_only(tmp_path: Path) -> None:
    gold, _ = read_gold(put(tmp_path / "g.tsv", "a\t1\nuid\tlabel\n"))
    assert gold == {"a": {"1"}, "uid": {"label"}}


def test_gold_lists_count_each_pair(tmp_path: Path) -> None:
    text = '{"uid": "a", "labels": ["1", null, [2]]}\n{"uid": "b", "labels": []}\n{"uid": "c"}\n'
    gold, report = read_gold(put(tmp_path / "g.jsonl", text))
    assert gold == {"a": {"1"}, "b": set()}
    assert found(report) == [(1, "no_label"), (1, "bad_type"), (3, "no_label")]
    assert (report.rows, report.kept) == (5, 2)


def test_split_is_stable_and_close_to_its_share() -> None:
    uids = [f"doc-{n}" for n in range(4_000)]
    rest, held_out = split_documents(uids, 0.15, seed=3)
    assert sorted(rest + held_out) == sorted(uids)
    assert 0.12 < len(held_out) / len(uids) < 0.18
    fewer = split_documents(uids[::3], 0.15, seed=3)[1]
    assert fewer == [uid for uid in uids[::3] if uid in set(held_out)]
    assert set(held_out) <= set(split_documents(uids, 0.3, seed=3)[1])
    assert split_documents(uids, 0.15, seed=4)[1] != held_out
    assert split_documents(uids, 0.0, 0)[1] == [] and split_documents(uids, 1.0, 0)[0] == []
    with pytest.raises(ValueError, match="share"):
        split_documents(uids, 1.5, 0)


def a_catalog(folder: Path, texts: dict[str, str], former: Places | None = None) -> tuple[Catalog, list[str]]:
    """A catalog of these texts by uid, and what was said of it."""
    rows = [{"uid": uid, "title": "", "text": text} for uid, text in texts.items()]
    put(folder / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    put(folder / "l.jsonl", '{"uid": "l", "title": "a label"}\n')
    config = DataConfig(documents=str(folder / "d.jsonl"), labels=str(folder / "l.jsonl"))
    said: list[str] = []
    return Catalog.load(config, 0.4, 0, said.append, former=former or {}), said


def parts_of(catalog: Catalog) -> dict[str, int]:
    kept = (catalog.to_train, catalog.to_select, catalog.to_calibrate)
    return {catalog.documents[i].uid: part for part, some in enumerate(kept) for i in some}


ONCE = {f"d{i}": f"The text of number {i}." for i in range(300)}
TWICE = ONCE | {f"e{i}": f"the TEXT of, number\n{i}" for i in range(300)}


def test_documents_of_one_text_serve_one_part(tmp_path: Path) -> None:
    catalog, said = a_catalog(tmp_path, TWICE)
    part = parts_of(catalog)
    assert len(part) == 600 and all(part[f"d{i}"] == part[f"e{i}"] for i in range(300))
    assert (catalog.repeats, catalog.divided) == (300, 0)
    assert any(line.startswith("300 documents repeat another's text") for line in said)
    assert set(calibration_part(catalog.documents, 0.4, 0)) == {uid for uid in part if part[uid] == 2}
    # Texts of punctuation alone have no words to be alike in.
    signs, _ = a_catalog(tmp_path, {"a": "?!", "b": "...", "c": "?!"})
    assert signs.repeats == 1 and signs.placed_by == {"c": "a"}


def test_without_equal_texts_the_split_is_what_it_was(tmp_path: Path) -> None:
    catalog, said = a_catalog(tmp_path, ONCE)
    rest, apart = split_documents(list(ONCE), 0.4, 0)
    part = parts_of(catalog)
    assert [[uid for uid in ONCE if part[uid] == wanted] for wanted in range(3)] == [
        rest,
        *split_documents(apart, 0.5, 1),
    ]
    assert not catalog.placed_by and not catalog.repeats and not any("repeat" in line for line in said)
    # Stages of finished runs are keyed by this.
    assert catalog.hash == text_hash(*(p for item in ONCE.items() for p in item), "l", "a label", "")


def test_what_a_run_has_seen_stays_in_its_part(tmp_path: Path) -> None:
    # A run of a release that split equal texts by uid: nothing moves, and it is told.
    by_uid = {uid: (text_hash(text), uid) for uid, text in TWICE.items()}
    catalog, said = a_catalog(tmp_path, TWICE, by_uid)
    alone = parts_of(a_catalog(tmp_path, {uid: f"unlike {uid}" for uid in TWICE})[0])
    assert parts_of(catalog) == alone and not catalog.placed_by and catalog.divided > 100
    assert any("have theirs both in training and kept apart" in line for line in said)

    # A text joins the one that is known, stays when that goes, and leaves when it becomes another.
    part = parts_of(a_catalog(tmp_path, ONCE)[0])
    seen = {uid: (text_hash(text), uid) for uid, text in ONCE.items()}
    grown = a_catalog(tmp_path, {f"a{i}": f"THE text of number {i}" for i in range(300)} | ONCE, seen)[0]
    after = parts_of(grown)
    assert all(after[f"a{i}"] == after[f"d{i}"] == part[f"d{i}"] for i in range(300))
    seen = {d.uid: (text_hash(d.shown), grown.placed_by.get(d.uid, d.uid)) for d in grown.documents}
    left = {f"a{i}": f"THE text of number {i}" if i % 2 else f"other {i}" for i in range(300)}
    last = a_catalog(tmp_path, left, seen)[0]
    assert all(parts_of(last)[f"a{i}"] == part[f"d{i}"] for i in range(1, 300, 2))
    assert set(last.placed_by) == {f"a{i}" for i in range(1, 300, 2)}


DOCS = ["1", "2", "3"]
TITLES = {
    "L0": "Billing and invoices",
    "L1": "Refund request",
    "L2": "Café",
    "L3": "Slow, very slow",
    "L4": "us",
}
RIGHT = {"1": {"L0", "L1"}, "2": {"L2"}, "3": {"L3"}}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.csv", "uid,label\n1,L0\n1,L1\n2,L2\n3,L3\n", ""),
        ("g.csv", "uid,labels\n1,L0;L1\n2,L2\n3,L3\n", "1 cells with several labels, divided at ';'"),
        ("g.csv", 'id,tags\n1,"L0, L1"\n2,L2\n3,L3\n', "divided at ','"),
        ("g.csv", "id,tag\n1,Billing and invoices|Refund request\n2,L2\n3,L3\n", "divided at '|'"),
        ("g.csv", "id,tag\n1,L0 L1\n2,L2\n3,L3\n", "divided at ' '"),
        ("g.csv", 'uid,label\n1,"[\'L0\', \'L1\']"\n2,[\'L2\']\n3,"[""L3""]"\n', "3 lists of labels written"),
        ("g.csv", "uid,label\n1,['L0' 'L1']\n2,<L2>\n3,\"('L3',)\"\n", "3 lists of labels written"),
        ("g.csv", 'uid,label\n1,"{L0,L1}"\n2,L2\n3,L3\n', "divided at ','"),
        (
            "g.tsv",
            "uid\tlabel\n1\tBilling and invoices\n1\tRefund request\n2\tCafé\n3\tSlow, very slow\n",
            "4 labels given by their title, such as 'Billing and invoices' for 'L0'",
        ),
        (
            "g.tsv",
            "uid\tlabel\n1\tl0\n1\trefund REQUEST\n2\tCafe\u0301\n3\t l3 \n",
            "2 labels found by another case",
        ),
        (
            "g.csv",
            "uid,label\n1.0,L0\n1.0,L1\n02,L2\n3.0,L3\n",
            "4 documents found by another number in another",
        ),
        (
            "g.csv",
            "ticket_id,category\n1,L0\n1,L1\n2,L2\n3,L3\n",
            "g.csv:1 is taken for the header: 'ticket_id'",
        ),
        ("g.csv", "who,ticket,category\nx,1,L0\ny,1,L1\nx,2,L2\nx,3,L3\n", "'ticket' names the document"),
        ("g.csv", "1,L0\n1,L1\n2,L2\n3,L3\n", ""),
        ("g.csv", "id,doc_id,label\n1,x,L0\n1,x,L1\n2,y,L2\n3,z,L3\n", "'id' is the document"),
        ("g.csv", "id,doc_id,label\nx,1,L0\nx,1,L1\ny,2,L2\nz,3,L3\n", "'doc_id' is the document"),
        (
            "g.csv",
            "ID,Tag 1,Tag-2,by\n1,L0,L1,x\n2,L2,,y\n3,,L3,z\n",
            "'tag_1', 'tag_2' the label; not read: 'by'",
        ),
        (
            "g.jsonl",
            '{"n": 1, "labels": ["L0", "L1"]}\n{"n": 2, "labels": "L2"}\n{"n": 3.0, "labels": "l3"}\n',
            "found by another case",
        ),
    ],
)
def test_gold_takes_what_can_mean_one_thing_only(tmp_path: Path, name: str, text: str, said: str) -> None:
    gold, report = read_gold(put(tmp_path / name, text), documents=DOCS, labels=TITLES)
    assert gold == RIGHT and report.bad == 0 and report.kept == 4
    notes = " ".join(report.notes)
    assert said in notes and (said or not notes)


def test_gold_without_a_right_label(tmp_path: Path) -> None:
    for name, text in (("g.csv", "uid,label\n1,L0\n2,\n3, \n"), ("g.tsv", "1\tL0\n2\t\n3\t[]\n")):
        gold, report = read_gold(put(tmp_path / name, text), documents=DOCS, labels=TITLES)
        assert gold == {"1": {"L0"}, "2": set(), "3": set()} and report.bad == 0
        assert any("taken as reviewed, no label being right" in note for note in report.notes)
    pyarrow.parquet.write_table(pa.table({"uid": ["1", "2"], "label": ["L0", None]}), tmp_path / "g.parquet")
    assert read_gold(tmp_path / "g.parquet", documents=DOCS, labels=TITLES)[0] == {"1": {"L0"}, "2": set()}


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("1,7\n2,8\n3,9\n", False, "of 3 pairs 0 have a label that is there; unknown labels: '7', '8', '9'"),
        ("1,7\n2,8\n3,9\n", False, "numbers in place of label ids"),
        (
            "1,Taxes\n2,Law\n3,War\n",
            True,
            "labels that exist but were not predicted are known by the whole list",
        ),
        ("a,L0\nb,L1\nc,L2\n", True, "unknown documents: 'a', 'b', 'c'; there are '1', '2', '3'"),
        ("1,A; B\n2,C; D\n", False, "several labels in one cell?"),
        ("1,L0,1\n2\n", False, "holds no usable gold: 2 rows, 0 kept"),
    ],
)
def test_gold_of_which_hardly_anything_is_known_is_refused(
    tmp_path: Path, text: str, more: bool, said: str
) -> None:
    path = put(tmp_path / "g.csv", f"uid,label\n{text}")
    with pytest.raises(DataError) as refused:
        read_gold(path, documents=DOCS, labels=TITLES, more_documents=more, more_labels=more)
    assert said in str(refused.value)
    assert read_gold(path, documents=DOCS, labels=TITLES, refuse=False)[1].bad


def test_gold_that_two_labels_could_mean_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "g.csv", "uid,label\n1,same\n2,Y; Z\n3,U\n1,Y;Q\n")
    labels = {"Y": "y", "Z": "z", "a": "same", "b": "same", "u": "ü"}
    gold, report = read_gold(path, documents=DOCS, labels=labels)
    assert gold == {"1": {"Y"}, "2": {"Y", "Z"}, "3": {"u"}}
    assert found(report) == [(2, "unknown_label"), (5, "unknown_label")]
    assert any("2 labels that nobody has: 'same', 'Q'" in note for note in report.notes)
    more, report = read_gold(path, documents=DOCS[:2], labels=labels, more_documents=True, more_labels=True)
    assert more == {"1": {"same", "Y", "Q"}, "2": {"Y", "Z"}, "3": {"u"}} and report.bad == 0
    assert any("1 documents that are not among those at hand: '3'" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "text", "uids", "problems"),
    [
        (
            "l.txt",
            "café\ncafe\u0301\n\ufeffRefund\nRefund\nRed  fox\nRed fox\n",
            ["café", "Refund", "Red  fox"],
            [(2, "same_label"), (4, "duplicate_uid"), (6, "same_label")],
        ),
        (
            "l.csv",
            "id,title\nL0,Tax\nTax,Tax\nL1,Tax\nL2, tax\n",
            ["L0", "L1", "L2"],
            [(3, "same_label"), (4, "equal_title"), (5, "equal_title")],
        ),
        ("l.csv", "id,title\na\u0301,One\n\u00e1,Two\n", ["a\u0301"], [(3, "same_label")]),
        ("l.txt", "Apple\nＡpple\n", ["Apple", "Ａpple"], [(2, "equal_title")]),
    ],
)
def test_one_label_is_not_there_twice(
    tmp_path: Path, name: str, text: str, uids: list[str], problems: list[tuple[int, str]]
) -> None:
    labels, report = read_labels(put(tmp_path / name, text))
    assert [label.uid for label in labels] == uids and found(report) == problems
    assert report.kept == len(labels)
