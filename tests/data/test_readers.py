"""What people bring: columns by any name, stray quotes, delimiters, encodings, shards, workbooks."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet
import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from support.rows import found, put
from typer.testing import CliRunner

from ezxmc.bundle.tagging import row_count
from ezxmc.cli import data as data_cli
from ezxmc.cli.console import columns_of
from ezxmc.config import RunConfig
from ezxmc.data import (
    Catalog,
    RowReport,
    columns_for,
    iter_documents,
    iter_rows,
    read_documents,
    read_gold,
    read_labels,
    read_shortlist,
)
from ezxmc.data.predictions import read_predictions
from ezxmc.errors import ConfigError, DataError, EzxmcError
from ezxmc.feedback.exchange import import_judgments
from ezxmc.feedback.reviews import Reviews
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Label
from ezxmc.review.exchange import import_reviews, read_picks
from ezxmc.teacher.base import ReplayTeacher

CSV = "id,title,text\n1,One,parcel\n2,Zwei,für Größe\n"
DOCUMENTS = [Document("1", "One", "parcel"), Document("2", "Zwei", "für Größe")]


def noted(report: RowReport, *parts: str) -> bool:
    return all(any(part in note for note in report.notes) for part in parts)


def test_a_json_object_on_several_lines_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", json.dumps({"id": 1, "text": "a"}, indent=1))
    with pytest.raises(DataError, match=r"on several lines[\s\S]*jq -c \. "):
        read_documents(path)


def test_aliases_that_are_a_list_written_as_text(tmp_path: Path) -> None:
    for cell in ('["x, y", "z"]', "['x, y', 'z']", "x, y|z"):
        rows = [{"id": 1, "title": "A", "aliases": cell}, {"id": 2, "title": "B", "aliases": "[]"}]
        labels, _ = read_labels(put(tmp_path / "l.jsonl", "\n".join(map(json.dumps, rows))))
        assert labels == [Label("1", "A", "", ("x, y", "z")), Label("2", "B")]
    odd = put(tmp_path / "o.jsonl", json.dumps({"id": 1, "title": "A", "aliases": "[sic] x"}))
    assert read_labels(odd)[0] == [Label("1", "A", "", ("[sic] x",))]


def test_a_header_with_blanks_before_its_quotes(tmp_path: Path) -> None:
    head = '"id", "title", "text"\n'
    documents, report = read_documents(
        put(tmp_path / "d.csv", f'{head}"1", "One", "a, b"\n"2", "Zwei", c "d"\n')
    )
    assert documents == [Document("1", "One", "a, b"), Document("2", "Zwei", 'c "d"')] and not report.bad


def test_a_table_with_a_column_per_label_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = put(tmp_path / "g.csv", "id,L0,L1\n1,1,0\n2,0,1\n")
    with pytest.raises(DataError, match=r"g\.csv:1: field_count[\s\S]*a column for every label"):
        read_gold(path, documents={"1", "2"}, labels={"L0": "a", "L1": "b"})


def test_one_json_array_is_read_and_its_rows_are_numbered(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"id": 1, "title": "One", "text": "parcel"},
        5,
        {"id": 2, "name": "Zwei", "body": "für Größe"},
    ]
    for place, indent in enumerate((None, 0, 2)):
        path = put(tmp_path / f"{place}.json", json.dumps(rows, indent=indent, ensure_ascii=False))
        documents, report = read_documents(path)
        assert documents == DOCUMENTS and noted(report, "one JSON array")
        assert [(one.line, one.kind) for one in report.problems] == [(2, "not_an_object")]
        with gzip.open(tmp_path / "packed.json.gz", "wt", encoding="utf-16") as packed:
            json.dump(rows, packed, indent=indent)
        assert read_documents(tmp_path / "packed.json.gz")[0] == DOCUMENTS
    labels = put(tmp_path / "labels.json", '[\n{"id": 7, "name": "rose"}\n]')
    assert read_labels(labels)[0] == [Label("7", "rose")]
    gold = put(tmp_path / "gold.json", '[{"uid": 1, "labels": ["7"]}, {"uid": 2, "labels": []}]')
    assert read_gold(gold)[0] == {"1": {"7"}, "2": set()}
    documents, report = read_documents(put(tmp_path / "none.json", " [ ]\n"))
    assert not documents and not report.rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_standard_input_in_another_encoding_is_read(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    rows = [{"id": one.uid, "title": one.title, "text": one.text} for one in DOCUMENTS]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    documents, report = read_documents("-")
    assert documents == DOCUMENTS and noted(report, encoding.upper()) == (encoding != "utf-8")


# Columns


@pytest.mark.parametrize(
    "head", ["id,title,Body", "ID, Title , body", "_id,name,TEXT", "Doc-ID,SUBJECT,\tcontent"]
)
def test_column_names_match_whatever_their_case_and_blanks(tmp_path: Path, head: str) -> None:
    documents, report = read_documents(put(tmp_path / "d.csv", f"{head}\n1,One,parcel\n"))
    assert documents == [Document("1", "One", "parcel")]
    assert report.to_dict()["columns"]["unread"] == []


def test_a_text_by_another_name_is_told_and_can_be_named(tmp_path: Path) -> None:
    path = put(tmp_path / "d.csv", "id,title,lang,message\n1,Question,en,parcel never arrived\n")
    documents, report = read_documents(path)
    assert documents[0].text == ""
    assert noted(report, "WARNING", "--column text=message", "unread: message, lang", "title alone")
    empty = put(tmp_path / "e.csv", "id,title,text,message\n1,Question,,parcel never arrived\n")
    assert noted(read_documents(empty)[1], "its cells are empty", "--column text=message")
    documents, report = read_documents(path, columns={"text": " Message"})
    assert documents[0].text == "parcel never arrived"
    assert not noted(report, "WARNING")
    assert report.columns == {"uid": ["id"], "title": ["title"], "text": ["message"], "unread": ["lang"]}
    with pytest.raises(DataError, match="no column 'mesage' to serve as text") as caught:
        read_documents(path, columns={"text": "mesage"})
    assert "message" in caught.value.cure


def test_columns_by_kind() -> None:
    given = columns_of(["text=message", "labels.title=tag name"])
    assert columns_for("documents", given) == {"text": "message"}
    assert columns_for("labels", given) == {"title": "tag name"}
    assert columns_of(["title=tag"], labels_only=True) == {"labels.title": "tag"}
    with pytest.raises(ConfigError, match=r"serve as labels\.txt"):
        columns_for("labels", {"labels.txt": "x"})
    for wrong in ("text", "=x", "text="):
        with pytest.raises(typer.BadParameter, match="text=message"):
            columns_of([wrong])


def test_an_empty_cell_falls_through_to_the_next_filled_one(tmp_path: Path) -> None:
    rows = "id,title,text,description\n1,Q,,parcel\n2,Q, ,invoice\n3,Q,short,long\n"
    documents, report = read_documents(put(tmp_path / "d.csv", rows))
    assert [document.text for document in documents] == ["parcel", "invoice", "short"]
    assert noted(report, "text = text or description")
    lines = [{"id": "1", "text": float("nan"), "body": "b"}, {"id": "", "doc_id": "7", "text": "t"}]
    documents, _ = read_documents(put(tmp_path / "d.jsonl", "\n".join(map(json.dumps, lines))))
    assert documents == [Document("1", "", "b"), Document("7", "", "t")]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("uid,title\n,Billing\n ,Refund\n", [Label("Billing", "Billing"), Label("Refund", "Refund")]),
        ("Label\nBilling\n", [Label("Billing", "Billing")]),
        ("Tag,Description\nBilling,of money\n", [Label("Billing", "Billing", "of money")]),
        ("label_id,label\n7,Billing\n", [Label("7", "Billing")]),
    ],
)
def test_label_columns(tmp_path: Path, text: str, labels: list[Label]) -> None:
    assert read_labels(put(tmp_path / "l.csv", text))[0] == labels


def test_numbers_are_titles_and_texts(tmp_path: Path) -> None:
    path = put(tmp_path / "l.jsonl", '{"uid": 1, "title": 1984}\n{"uid": 2, "title": true}\n')
    labels, report = read_labels(path)
    assert labels == [Label("1", "1984")] and found(report) == [(2, "bad_type")]


def test_documents_without_an_id_get_one_of_their_content(tmp_path: Path) -> None:
    path = put(tmp_path / "d.csv", "title,text\nA,x\nB,y\nA,x\n")
    documents, report = read_documents(path)
    uids = [document.uid for document in documents]
    assert len(set(uids)) == 3 and uids[2] == f"{uids[0]}-2" and not report.bad
    assert noted(report, "ids are made of the content")
    tickets = put(tmp_path / "t.csv", "ticket no,title,text\n7,A,x\n")
    assert noted(read_documents(tickets)[1], "`--column 'uid=ticket no'` names one")
    other = read_documents(put(tmp_path / "e.jsonl", '{"text": "y", "title": "B"}\n'))[0]
    assert other[0].uid == uids[1]


def test_whole_ids_that_pandas_wrote_as_floats(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([1.0, 2.5, None]), "text": ["a", "b", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    documents, report = read_documents(tmp_path / "f.parquet")
    assert [document.uid for document in documents] == ["1", "2.5"] and found(report) == [(3, "no_uid")]
    documents, report = read_documents(put(tmp_path / "f.csv", "id,text\n1.0,a\n2.0,b\n"))
    assert [document.uid for document in documents] == ["1", "2"] and noted(report, "whole numbers")
    documents, _ = read_documents(put(tmp_path / "v.csv", "id,text\n1.0,a\n1.1,b\n"))
    assert [document.uid for document in documents] == ["1.0", "1.1"]


def test_equal_column_names_in_parquet_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["parcel"]), pa.array(["invoice"])]
    table = pa.Table.from_arrays(columns, names=["id", "text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match="two columns have the same name: text"):
        read_documents(tmp_path / "d.parquet")


# Quotes and headers


def swallowing(template: str, first: int = 2, last: int = 9) -> str:
    """Ten rows, of which one opens a quote that another one closes."""
    rows = [template.format(n=n, text=f"parcel late {n}") for n in range(1, 11)]
    rows[first - 1] = template.format(n=first, text='"cut off inside')
    rows[last - 1] = template.format(n=last, text='monitor 27"')
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("header", "template"),
    [
        ("id,text", "{n},{text}"),
        ("id,text", "T-{n},{text}"),
        ("text,id", "{text},{n}"),
        ("id,title,text", "{n},Question,{text}"),
        ("id;text", "{n};{text}"),
        ("title,text", "Question,{text}"),
    ],
)
def test_a_stray_quote_costs_its_own_row_only(tmp_path: Path, header: str, template: str) -> None:
    documents, report = read_documents(put(tmp_path / "d.csv", f"{header}\n{swallowing(template)}"))
    closing_stays = not header.startswith("text")
    assert report.rows == 10 and found(report)[0] == (3, "bad_csv")
    assert len(documents) == (9 if closing_stays else 8 + (report.bad == 1))


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    text = 'id,text\n1,refund\n2,"never closed\n' + "".join(f"{n},parcel {n}\n" for n in range(3, 2_000))
    documents, report = read_documents(put(tmp_path / "d.csv", text))
    assert len(documents) == 1_998 and found(report) == [(3, "bad_csv")]


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines",
        "a, b\nc, d",
        "\n\nblank\n\n",
        "Weight:\n10,5 kg",
        "Acme, Sales, Ltd\n12 Main St, Springfield, IL\n1 A St, B, IL",
        "1\n2\n3",
        'he said "hi"\nand, "bye"',
        "x\r\ny",
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_texts_of_several_lines_stay_whole(tmp_path: Path, text: str, suffix: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="," if suffix == ".csv" else "\t")
    writer.writerows(
        [("id", "title", "text"), (1, "One", text), (2, 'say "hi"', "x\ty"), (3, "o'clock", "z")]
    )
    documents, report = read_documents(put(tmp_path / f"d{suffix}", out.getvalue()))
    assert [document.text for document in documents] == [text, "x\ty", "z"] and not report.bad
    assert documents[1].title == 'say "hi"'


def test_quotes_of_a_plain_tsv_belong_to_the_text(tmp_path: Path) -> None:
    texts = [
        '"Heroes"',
        '"Yes, we can" he said',
        "it's",
        'say "hi"',
        '27" screen',
        '"open',
        "5'11\" tall",
        '"a, b"',
    ]
    rows = "".join(f"{n}\t{text}\n" for n, text in enumerate(texts))
    documents, report = read_documents(put(tmp_path / "d.tsv", f"id\ttext\n{rows}"))
    assert [document.text for document in documents] == texts and not report.bad


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ('id\ttitle\n1\t"Say ""hi"""\n2\t"Tab\tinside"\n', ['Say "hi"', "Tab\tinside"]),
        ('id\ttitle\n1\t"Hello, world"\n2\tplain\n', ["Hello, world", "plain"]),
        ('"id"\t"title"\n"1"\t"One"\n"2"\t"Two"\n', ["One", "Two"]),
    ],
)
def test_quoted_cells_of_a_tsv_are_unquoted(tmp_path: Path, text: str, cells: list[str]) -> None:
    labels, _ = read_labels(put(tmp_path / "l.tsv", text))
    assert [label.title for label in labels] == cells


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("second", ["id,title,text", "ID,Title,Text", "id,text,title"])
def test_two_files_put_together(tmp_path: Path, mark: str, second: str) -> None:
    cells = {"id": "3", "title": "Three", "text": "t"}
    row = ",".join(cells[name.lower()] for name in second.split(","))
    documents, report = read_documents(put(tmp_path / "d.csv", f"{CSV}{mark}{second}\n{row}\n"))
    assert documents == [*DOCUMENTS, Document("3", "Three", "t")]
    assert (report.bad, found(report)) == (0, [(4, "repeated_header")])
    lines = '{"id": 1, "text": "a"}\n\ufeff{"id": 2, "text": "b"}\n'
    assert len(read_documents(put(tmp_path / "d.jsonl", lines))[0]) == 2
    labels, _ = read_labels(put(tmp_path / "l.txt", "Billing\n\ufeffRefund\n"))
    assert [label.title for label in labels] == ["Billing", "Refund"]


# Delimiters, encodings, packing


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("d.csv", CSV.replace(",", ";").encode(), "semicolons"),
        ("d.csv", CSV.replace(",", "\t").encode(), "tabs"),
        ("d.csv", CSV.replace(",", "|").encode(), "divided by |"),
        ("d.tsv", CSV.encode(), "commas"),
        ("d.csv", ("sep=;\n" + CSV.replace(",", ";")).encode(), "semicolons"),
        ("d.csv", ("\ufeffsep=,\r\n" + CSV.replace("\n", "\r\n")).encode(), "columns"),
        ("d.csv", CSV.encode("utf-16"), "UTF-16"),
        ("d.csv", CSV.encode("utf-16-le"), "UTF-16-LE"),
        ("d.csv", CSV.encode("utf-16-be"), "UTF-16-BE"),
        ("d.csv", CSV.encode("utf-32"), "UTF-32"),
        ("d.csv", CSV.encode("cp1252"), "read as cp1252"),
        ("d.csv", CSV.replace("\n", "\r").encode(), "columns"),
        ("d.csv", gzip.compress(CSV.encode(), mtime=0), "compressed"),
        ("d.csv.gz", CSV.encode(), "not compressed"),
        ("d.csv.gz", gzip.compress(CSV.encode("cp1252"), mtime=0), "read as cp1252"),
        ("d.csv.bz2", bz2.compress(CSV.encode()), "columns"),
        ("d.csv", lzma.compress(CSV.encode()), "compressed"),
    ],
)
def test_files_that_are_not_as_expected_are_recognised_and_told(
    tmp_path: Path, name: str, content: bytes, note: str
) -> None:
    documents, report = read_documents(put(tmp_path / name, content))
    assert documents == DOCUMENTS and not report.bad
    assert noted(report, note)


def test_latin_1_after_much_ascii(tmp_path: Path) -> None:
    rows = "".join(f"{n},plain text\n" for n in range(5_000))
    content = f"id,text\n{rows}x,Größe\n".encode("latin-1")
    documents, report = read_documents(put(tmp_path / "d.csv", content))
    assert documents[-1].text == "Größe" and len(documents) == 5_001 and noted(report, "not UTF-8")


def test_cyrillic(tmp_path: Path) -> None:
    text = "Посылка так и не пришла, верните деньги, пожалуйста. Счёт оплачен дважды, жду ответа. " * 4
    documents, report = read_documents(put(tmp_path / "d.csv", f'id,text\n1,"{text}"\n'.encode("cp1251")))
    assert documents[0].text == text and noted(report, "read as cp1251")


# Many files, workbooks


def test_shards_patterns_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").mkdir()
    for n in (2, 1):
        table = pa.table({"id": [n], "text": [f"text {n}"]})
        pyarrow.parquet.write_table(table, tmp_path / f"s/part-{n}.parquet")
    put(tmp_path / "s/_SUCCESS", "")
    for source in (tmp_path / "s", tmp_path / "s/*.parquet"):
        documents, report = read_documents(source)
        assert [document.uid for document in documents] == ["1", "2"]
        assert noted(report, "2 files, part-1.parquet to part-2.parquet") and row_count(source) == 2
    rows = [(Path(file).name, line) for file, line, _ in iter_rows(tmp_path / "s", RowReport())]
    assert rows == [("part-1.parquet", 1), ("part-2.parquet", 1)]
    put(tmp_path / "l.csv", "label\nBilling\n")
    config = "data: {documents: s/*.parquet, labels: l.csv, columns: {text: text, labels.title: label}}\n"
    settings = RunConfig.load(put(tmp_path / "c.yaml", config))
    assert settings.data.documents == str(tmp_path / "s/*.parquet")
    monkeypatch.chdir("/")
    assert len(Catalog.load(settings.data, 0.5, 0).documents) == 2
    put(tmp_path / "s/more.csv", CSV)
    with pytest.raises(DataError, match="several formats"):
        read_documents(tmp_path / "s")
    with pytest.raises(DataError, match="no file at"):
        read_documents(tmp_path / "t*.csv")


def test_workbooks(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        [None],
        ["id", "Title", "Text"],
        [1, "One", "parcel"],
        [],
        [2.0, 1984, None],
        [3, "x", "y", "z"],
    ):
        book.active.append(row)
    book.create_sheet("notes")
    book.save(tmp_path / "d.xlsx")
    documents, report = read_documents(tmp_path / "d.xlsx")
    assert documents == [Document("1", "One", "parcel"), Document("2", "1984", "")]
    assert found(report) == [(6, "field_count")] and noted(report, "unread: notes")


def test_a_workbook_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(DataError, match="needs openpyxl") as caught:
        read_documents(put(tmp_path / "d.xlsx", b"PK\x03\x04"))
    assert "ezxmc[xlsx]" in caught.value.cure


# Looking first


def inspected(*arguments: object) -> Any:
    app = typer.Typer()
    data_cli.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["data", "inspect", *map(str, arguments)])


def test_inspect(tmp_path: Path) -> None:
    documents = put(tmp_path / "d.csv", "id;title;message\n1;Question;parcel\n2;Ask;invoice\n")
    labels = put(tmp_path / "l.csv", "tag\nBilling\nShipping\n")
    gold = put(tmp_path / "g.csv", "uid,label\n1,Shipping\n2,Nothing\n")
    done = inspected(documents, "--labels", labels, "--gold", gold, "--json")
    answer = json.loads(done.stdout)
    columns = {one["name"]: one["serves"] for one in answer["documents"][0]["columns"]}
    assert columns == {"id": "uid", "title": "title", "message": None}
    assert answer["labels"]["columns"][0] == {
        "name": "tag",
        "serves": "title",
        "filled": 2,
        "example": "Billing",
    }
    assert answer["gold"]["pairs"] == 1 and done.exit_code == 3
    done = inspected(documents, "--column", "text=message")
    assert done.exit_code == 0 and "message" in done.stdout and "semicolons" in done.stderr
    assert "text = message" in done.stderr and "repeat another's text" not in done.stderr
    put(documents, "id;title;message\n1;Question;parcel\n2;Ask;invoice\n3;ask,;Invoice!\n")
    done = inspected(documents, "--column", "text=message", "--json")
    assert json.loads(done.stdout)["documents"][0]["repeats"] == 1
    assert "1 documents repeat another's text" in inspected(documents, "--column", "text=message").stderr


# Whatever comes


_cell = st.text(st.sampled_from("ab1 ,;\t\"'\n\r|éЖ\ufeff\0"), max_size=8)
_head = st.sampled_from(["id", "ID ", "uid", "title", "text", "Body", "message", "label", "", "sep=;"])


@given(
    header=st.lists(_head, min_size=1, max_size=4),
    rows=st.lists(st.lists(_cell, min_size=1, max_size=4), max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1251"]),
    name=st.sampled_from(["f.csv", "f.tsv", "f.jsonl", "f.txt", "f.csv.gz"]),
    written=st.booleans(),
)
def test_any_table_is_read_or_refused_and_every_row_told(
    tmp_path: Path,
    header: list[str],
    rows: list[list[str]],
    delimiter: str,
    encoding: str,
    name: str,
    written: bool,
) -> None:
    if written:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
        text = out.getvalue()
    else:
        text = "".join(delimiter.join(row) + "\n" for row in [header, *rows])
    path = put(tmp_path / name, text.encode(encoding, "replace"))
    raw, report = RowReport(), RowReport()
    try:
        seen = sum(1 for _ in iter_rows(path, raw))
        documents = list(iter_documents(path, report))
        read_labels(path)
    except DataError as error:
        assert error.cure and str(path) in error.message
        return
    # What the reader gave is kept or bad; what it could not give is bad there and here.
    assert report.rows == seen + raw.bad and report.kept == len(documents)
    assert report.counts["repeated_header"] == raw.counts["repeated_header"]


_COLUMNS = (
    *(
        "uid",
        "doc",
        "doc_id",
        "label",
        "labels",
        "tags",
        "error",
        "scores",
        "sources",
        "key",
        "log_odds",
        "mass",
    ),
    *(
        "status",
        "teacher",
        "fingerprint",
        "decision",
        "reviewer",
        "time",
        "data",
        "annotations",
        "id",
        "title",
    ),
    *("Choice", "text", "label_title", "label_text", "reason", "", "é"),
)
_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400),
    st.sampled_from(["1", "l", "L", "yes", "no", "skip", "ok", "0.5", "[1]", "{}", "['l']", "2026-01-01"]),
    st.sampled_from(["0" * 64, "\ud800", "a\0"]),
)  # fmt: skip
_JSON = st.recursive(
    _VALUE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_COLUMNS), inner, max_size=3)
    ),
    max_leaves=5,
)
_ROWS = st.lists(st.one_of(st.dictionaries(st.sampled_from(_COLUMNS), _JSON, max_size=6), _JSON), max_size=5)


def _table(head: list[str], rows: list[list[Any]], delimiter: str, encoding: str, quoted: bool) -> bytes:
    out = io.StringIO(newline="")
    quoting: Literal[0, 1] = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, quoting=quoting).writerows([head, *rows])
    return out.getvalue().encode(encoding, "replace")


_BODIES = st.one_of(
    st.binary(max_size=60),
    _ROWS.map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()),
    _ROWS.map(lambda rows: json.dumps(rows, indent=1).encode()),
    st.builds(
        _table,
        st.lists(st.sampled_from(_COLUMNS), min_size=1, max_size=5, unique=True),
        st.lists(st.lists(_VALUE, min_size=1, max_size=5), max_size=5),
        st.sampled_from(",;\t|"),
        st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
        st.booleans(),
    ),
)


@given(body=_BODIES, suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz"]))
def test_every_reader_takes_or_refuses_whatever_comes(tmp_path: Path, body: bytes, suffix: str) -> None:
    path = put(tmp_path / f"f{suffix}", body)
    documents, labels = [Document("1", "", "a")], [Label("l", "L")]
    readers: list[Callable[[RowReport], object]] = [
        lambda report: list(read_predictions(path, report)),
        lambda report: read_shortlist(path, documents, labels, report),
        lambda report: import_judgments(store, path, report),
        lambda report: import_reviews(reviews, path, report, documents, labels),
        lambda _: ReplayTeacher(path),
        lambda _: read_gold(path),
        lambda _: read_gold(path, documents={"1"}, labels={"l": "L"}),
        lambda _: read_picks(path),
    ]
    with FeedbackStore(tmp_path / "f.sqlite") as store, Reviews(tmp_path / "r.sqlite") as reviews:
        for read in readers:
            report = RowReport()
            try:
                read(report)
            except EzxmcError as error:
                assert error.cure
            assert all(problem.line >= 1 and problem.detail for problem in report.problems)


@given(
    texts=st.lists(st.text(st.sampled_from("ab ,;'\"\n\té"), min_size=1).filter(str.strip), max_size=6),
    delimiter=st.sampled_from(",\t"),
)
def test_what_the_csv_module_writes_comes_back(tmp_path: Path, texts: list[str], delimiter: str) -> None:
    # A line of a text that has as many cells as a row may be one; that is told, not guessed.
    assume(all(line.count(delimiter) != 2 for text in texts for line in text.split("\n")))
    out = io.StringIO(newline="")
    rows = [("id", "title", "text"), *((f"{n}x", "T", text) for n, text in enumerate(texts))]
    csv.writer(out, delimiter=delimiter).writerows(rows)
    documents, report = read_documents(
        put(tmp_path / ("d.csv" if delimiter == "," else "d.tsv"), out.getvalue())
    )
    assert [document.text for document in documents] == texts and not report.bad


@given(stray=st.integers(0, 19), closing=st.integers(0, 19), rows=st.integers(6, 20))
def test_no_stray_quote_costs_another_row(tmp_path: Path, stray: int, closing: int, rows: int) -> None:
    lines = [f"k{n},parcel {n}" for n in range(rows)]
    stray, closing = stray % rows, closing % rows
    lines[stray] = f'k{stray},"parcel'
    if closing > stray:
        lines[closing] = f'k{closing},27"'
    documents, report = read_documents(put(tmp_path / "d.csv", "id,text\n" + "\n".join(lines) + "\n"))
    assert len(documents) == rows - 1 and found(report) == [(stray + 2, "bad_csv")]
