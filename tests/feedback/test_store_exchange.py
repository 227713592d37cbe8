"""Judgments out of a store and back: nothing lost, nothing let in that is no judgment."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeTeacher, catalog
from typer.testing import CliRunner

from ezxmc.cli import teacher as commands
from ezxmc.data import RowReport
from ezxmc.errors import ConfigError, DataError, StoreError
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.exchange import export_judgments, import_judgments
from ezxmc.feedback.recall import recall
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import text_hash
from ezxmc.records import Judgment, Status
from ezxmc.teacher.base import ReplayTeacher

DOCS, TAGS = catalog(30, 10)
FORMATS = pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])


def pairs():
    return pairs_of(DOCS, TAGS, [range(10)] * len(DOCS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two teachers' judgments, some without a score, some failed."""
    path = tmp_path / "f.sqlite"
    with FeedbackStore(path) as store:
        for name in ("two", "one"):
            teacher = FakeTeacher(name=name, fails=lambda pair: pair.doc.uid == "d4")
            annotate(pairs, teacher, store)
            session = store.open_session(teacher.fingerprint, teacher.description)
            odd = Judgment(text_hash(name, "odd"), "d\u2028ä", "\U0001f40d", Status.LOW_MASS, None, 0.1, 7, 3)
            store.append(session, [odd], 0.5)
    return path


def everything(path: Path) -> tuple[dict[str, Judgment], list[tuple[str, object]], list[object]]:
    with FeedbackStore(path) as store:
        totals = [store.totals(teacher) for teacher in store.teachers()]
        return (
            {judgment.key: judgment for judgment in store.judgments()},
            list(store.teachers().items()),
            [(t.judgments, t.statuses, t.prompt_tokens, t.cached_tokens) for t in totals],
        )


@FORMATS
def test_an_import_rebuilds_an_equal_store(path: Path, tmp_path: Path, suffix: str) -> None:
    out, copy = tmp_path / f"out{suffix}", tmp_path / "copy.sqlite"
    seen: list[tuple[int, int]] = []
    with FeedbackStore(path) as store:
        assert export_judgments(store, out, progress=lambda *now: seen.append(now)) == 582
    assert seen[-1] == (582, 582)
    report = RowReport()
    with FeedbackStore(copy) as store:
        done = import_judgments(store, out, report)
        again = import_judgments(store, out, RowReport())
    assert (done.new, done.duplicates, report.kept, report.bad) == (582, 0, 582, 0)
    assert (again.new, again.duplicates) == (0, 582)
    assert everything(copy) == everything(path)
    with FeedbackStore(copy) as store:
        assert store.newest_teacher() == FakeTeacher(name="one").fingerprint
        totals = store.totals(FakeTeacher(name="one").fingerprint)
        assert (totals.sessions, totals.judged, totals.pairs_per_second) == (0, 0, None), (
            "nothing was asked here"
        )
        # And it is no different to work with: only what failed is asked.
        assert annotate(pairs, FakeTeacher(name="one"), store).asked == 10
        assert store.newest_teacher() == FakeTeacher(name="one").fingerprint


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
number = st.floats(allow_nan=False, allow_infinity=False)
row = st.tuples(text, text, number, st.floats(0, 1), st.integers(0, 2**40), st.integers(0, 2**40))


@given(rows=st.lists(row, max_size=20), suffix=st.sampled_from([".parquet", ".jsonl"]))
def test_what_is_exported_is_imported_bit_for_bit(tmp_path_factory, rows, suffix: str) -> None:
    folder = tmp_path_factory.mktemp("exchange")
    judgments = [
        Judgment(text_hash(str(i)), doc, label, Status.OK, value, mass, tokens + cached, cached)
        for i, (doc, label, value, mass, tokens, cached) in enumerate(rows)
    ]
    with FeedbackStore(folder / "a") as one, FeedbackStore(folder / "b") as two:
        one.append(one.open_session("teacher", {"a": [1, "ü"]}), judgments, 0.1)
        export_judgments(one, folder / f"f{suffix}")
        import_judgments(two, folder / f"f{suffix}", report := RowReport())
        assert report.bad == 0
        assert sorted(two.judgments(), key=str) == sorted(judgments, key=str)
        assert two.teachers() == ({"teacher": {"a": [1, "ü"]}} if rows else {})


@FORMATS
def test_the_export_is_a_replay_file(path: Path, tmp_path: Path, suffix: str) -> None:
    teacher, out = FakeTeacher(name="one"), tmp_path / f"one{suffix}"
    with FeedbackStore(path) as store:
        export_judgments(store, out, teacher=teacher.fingerprint[:8])
        wanted = {(j.doc_uid, j.label_uid): j for j in recall(pairs(), teacher, store)}
    replay = ReplayTeacher(out)
    assert (replay.report.kept, replay.report.bad) == (291, 0)
    for judgment in replay.score(pairs()):
        found = wanted.get((judgment.doc_uid, judgment.label_uid))
        assert judgment.status is (found.status if found else Status.NOT_RECORDED)
        assert judgment.log_odds == (found.log_odds if found else None)


def test_replay_keeps_a_status_and_refuses_a_mixture(path: Path, tmp_path: Path) -> None:
    rows = [
        {"doc": "d0", "label": "l0", "status": "low_mass", "log_odds": None, "mass": 0.2},
        {"doc": "d0", "label": "l1", "status": "ok", "log_odds": None},
        {"doc": "d0", "label": "l2", "status": "marvellous", "log_odds": 1.0},
        {"doc": "d0", "label": "l3", "log_odds": 1.0},
    ]
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    replay = ReplayTeacher(file)
    assert [problem.line for problem in replay.report.problems] == [2, 3]
    found = [(j.status.value, j.log_odds, j.label_mass) for j in replay.score(list(pairs())[:4])]
    assert found == [("low_mass", None, 0.2), *[("not_recorded", None, None)] * 2, ("ok", 1.0, None)]
    with FeedbackStore(path) as store:
        export_judgments(store, tmp_path / "both.jsonl")
    with pytest.raises(DataError, match=r"both\.jsonl:292: .*second teacher"):
        ReplayTeacher(tmp_path / "both.jsonl")


GOOD = {"doc": "d", "label": "l", "status": "ok", "log_odds": 1.5, "mass": 0.9, "prompt_tokens": 9,
        "cached_tokens": 3, "key": "a" * 64, "teacher": "t"}  # fmt: skip
BAD = [
    ({"key": None}, "must be text"),
    ({"key": "a" * 63}, "64 lower-case hex"),
    ({"key": "g" * 64}, "hexadecimal"),
    ({"key": "A" * 64}, "64 lower-case hex"),
    ({"doc": 5}, "must be text"),
    ({"teacher": ""}, "must be text"),
    ({"status": "fine"}, "'fine' is not a valid Status"),
    ({"status": "engine_error", "log_odds": None}, "failed attempt"),
    ({"status": "low_mass"}, "does not fit"),
    ({"log_odds": None}, "does not fit"),
    ({"log_odds": "much"}, "could not convert"),
    ({"log_odds": float("nan")}, "log_odds nan"),
    ({"log_odds": float("inf")}, "log_odds inf"),
    ({"log_odds": True, "mass": [1]}, "float"),
    ({"mass": 1.5}, "mass 1.5"),
    ({"mass": -0.1}, "mass -0.1"),
    ({"cached_tokens": 10}, "10 cached of 9"),
    ({"prompt_tokens": 1e400}, "infinity"),
    ({"prompt_tokens": 1 << 70}, "cached of"),
    ({"doc": "\ud800"}, "surrogates"),
    ({"description": "[1]"}, "JSON object"),
    ({"description": "{"}, "Expecting"),
    ({"description": 7}, "JSON object"),
]


def test_rows_that_are_no_judgments_are_named_and_left_out(tmp_path: Path) -> None:
    file, report = tmp_path / "j.jsonl", RowReport()
    lines = [json.dumps({**GOOD, **change}) for change, _ in BAD]
    missing = [
        json.dumps({k: v for k, v in GOOD.items() if k != gone}) for gone in ("key", "teacher", "status")
    ]
    file.write_text("\n".join([*lines, *missing, "not JSON", json.dumps(GOOD)]) + "\n")
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        done = import_judgments(store, file, report)
        assert [j.key for j in store.judgments()] == ["a" * 64]
    assert (done.new, report.kept, report.bad) == (1, 1, len(BAD) + 4)
    for line, ((_, detail), problem) in enumerate(zip(BAD, report.problems, strict=False), start=1):
        assert (problem.line, problem.kind) == (line, "bad_judgment")
        assert detail in problem.detail
    assert [p.detail for p in report.problems[len(BAD) :][:3]] == [
        "no column 'key'", "no column 'teacher'", "no column 'status'",
    ]  # fmt: skip


def test_an_interrupted_export_leaves_the_old_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    with FeedbackStore(path) as store:
        export_judgments(store, out)
        before = out.read_bytes()

        def dies(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export_judgments(store, out, progress=dies)
        assert out.read_bytes() == before and not list(tmp_path.glob(".*"))
        with pytest.raises(ConfigError, match=r"end in \.jsonl"):
            export_judgments(store, tmp_path / "out.txt")
        for unclear in ("", "0000"):
            with pytest.raises(StoreError, match="judgments stats"):
                export_judgments(store, out, teacher=unclear)


def test_an_empty_store_makes_an_empty_file(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        for name in ("e.parquet", "e.jsonl", "e.jsonl.gz", "e.csv"):
            assert export_judgments(store, tmp_path / name) == 0
            assert import_judgments(store, tmp_path / name, RowReport()).new == 0
    assert pyarrow.parquet.read_table(tmp_path / "e.parquet").num_rows == 0


def ezxmc(*arguments: object):
    app = typer.Typer()
    commands.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["judgments", *map(str, arguments)])


def test_the_commands(path: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "out.parquet", tmp_path / "copy.sqlite"
    teacher = FakeTeacher(name="one").fingerprint
    done = ezxmc("export", path, out, "--teacher", teacher, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["judgments"] == 291
    done = ezxmc("import", copy, out, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["new"] == 291

    found = json.loads(ezxmc("stats", path, "--json").stdout)
    assert found["judgments"] == 582 and found["bytes_per_judgment"] > 50
    one = found["teachers"][-1]
    assert one["teacher"] == teacher and one["description"] == {"backend": "one"}
    assert one["statuses"] == {"low_mass": 1, "ok": 290}
    assert one["failures_by_kind"] == {"engine_error": 10}
    assert (one["sessions"], one["prompt_tokens"]) == (2, 29_007)
    assert one["cache_share"] == pytest.approx((290 * 64 + 3) / 29_007)
    shown = ezxmc("stats", path)
    assert (
        shown.exit_code == 0
        and "582 judgments of 2 teachers" in shown.stdout
        and "low_mass 1" in shown.stdout
    )

    failed = json.loads(ezxmc("failures", path, "--json").stdout)[-1]
    assert failed["counts"] == {"engine_error": 10}
    assert failed["pairs"][0] == {"status": "engine_error", "doc": "d4", "label": "l0", "attempts": 2}
    assert "10 engine_error" in ezxmc("failures", path).stdout
    assert "no pair failed" in ezxmc("failures", copy).stdout


def test_bad_rows_give_exit_code_3_and_a_misspelt_name_makes_no_store(tmp_path: Path) -> None:
    file, store = tmp_path / "j.jsonl", tmp_path / "f.sqlite"
    assert isinstance(ezxmc("import", store, file).exception, DataError) and not store.exists()
    assert isinstance(ezxmc("stats", store).exception, StoreError) and not store.exists()
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "mass": 2}) + "\n")
    done = ezxmc("import", store, file, "--json")
    assert done.exit_code == 3
    rows = json.loads(done.stdout)["rows"]
    assert rows["bad"] == 1 and rows["problems"][0]["line"] == 2
