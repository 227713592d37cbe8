"""Tagging with a bundle: texts, decisions, whole files, and files begun by a job that was killed."""

from __future__ import annotations

import itertools
import json
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Command
from support.tinyworld import document, label_rows, write_rows

from ezxmc.bundle.bundle import add_calibrator, add_decision, save_bundle
from ezxmc.bundle.predict import MOST_PARTS, Predictor, occlusions, prediction_row, rounded
from ezxmc.bundle.tagging import Tagger, row_count, tag_rows
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.decisions import Decision
from ezxmc.data import RowReport
from ezxmc.data.predictions import WINDOW, RowFile, predictions_dataset
from ezxmc.errors import ConfigError, DataError
from ezxmc.files import json_line
from ezxmc.records import Document, Label, Prediction, Tag
from ezxmc.retrieval import BiEncoder
from ezxmc.retrieval.bert import PlainBert

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENTS = [Document(**document(number)) for number in range(40)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """Calibrated so that scores spread over (0, 1), with a decision that looks at six labels."""
    path = tmp_path_factory.mktemp("predict") / "bundle"
    save_bundle(path, tiny_encoder, [Label(**row) for row in label_rows()], max_length=32, k=4)
    found = Predictor.load(path).predict(DOCUMENTS, k=25)
    scores = np.unique([score for prediction in found for score in prediction.scores])
    curve = Isotonic(tuple(scores.tolist()), tuple(np.linspace(0.05, 0.95, len(scores)).tolist()))
    add_calibrator(path, Calibrator("teacher", 25, 100, curve))
    add_decision(path, Decision.at_threshold(0.6, depth=6))
    return path


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    """In float32: what a document is batched with must not matter to its scores."""
    return Predictor(bundle)


def test_texts_and_documents_are_tagged_alike(predictor: Predictor) -> None:
    from_documents = predictor.predict(DOCUMENTS, k=5)
    from_texts = predictor.predict([one.shown for one in DOCUMENTS], k=5)
    assert [one.uid for one in from_texts] == [str(number) for number in range(40)]
    assert [one.labels for one in from_texts] == [one.labels for one in from_documents]
    mixed = predictor.predict([DOCUMENTS[0], DOCUMENTS[1].shown])
    assert [one.uid for one in mixed] == ["d0", "1"]
    with pytest.raises(TypeError, match="brackets"):
        predictor.predict("one text")


def test_a_decision_keeps_what_it_says(predictor: Predictor) -> None:
    decision = predictor.bundle.decision
    assert decision is not None
    deep = predictor.predict(DOCUMENTS, k=25)
    found = predictor.predict(DOCUMENTS, decision=decision)
    for kept, whole in zip(found, deep, strict=True):
        wanted = [uid for uid, p in zip(whole.labels[:6], whole.probabilities[:6], strict=True) if p >= 0.6]
        assert list(kept.labels) == wanted
    assert len({len(one.labels) for one in found}) > 2, "the threshold cuts nowhere"


def test_what_contradicts_a_decision_is_refused(predictor: Predictor) -> None:
    decision = Decision.top_k(3)
    for wrong in ({"k": 2}, {"threshold": 0.5}):
        with pytest.raises(ConfigError, match="decision chooses"):
            predictor.predict(DOCUMENTS, decision=decision, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="looks at 26"):
        predictor.predict(DOCUMENTS, decision=Decision.top_k(26))


def test_long_and_short_texts_come_back_in_order(predictor: Predictor) -> None:
    texts = [
        " ".join(["guitar", "soup", "anchor", "rose", "comet"][: 1 + n % 5] * (1 + n * 7 % 9))
        for n in range(90)
    ]
    together = predictor.predict(texts, k=3)
    alone = [predictor.predict([text], k=3)[0] for text in texts]
    np.testing.assert_allclose([one.scores for one in together], [one.scores for one in alone], atol=1e-5)


class Nobody:
    """Answers at once: what is left is what streaming itself costs."""

    def check(self, **options: Any) -> None:
        pass

    def predict(self, documents: list[Document], **options: Any) -> list[Any]:
        from ezxmc.records import Prediction

        return [Prediction(one.uid, ("l",), ("label",), (0.5,)) for one in documents]


def lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield (
            b"{broken\n"
            if number % 7 == 3
            else json.dumps({"uid": str(number), "text": "x " * 200}).encode() + b"\n"
        )


def peak_of(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Peak of Python's memory while `count` lines stream through, and how many came out."""
    monkeypatch.setattr("ezxmc.data.sources.Lines._open", lambda self: nullcontext(lines(count)))
    written = 0

    def write(rows: list[dict[str, Any]]) -> None:
        nonlocal written
        written += len(rows)

    tracemalloc.start()
    tag_rows(Tagger(Nobody()), "-", RowReport(), write)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, written


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = 2_000, 40_000
    small, out = peak_of(few, monkeypatch)
    large, out_many = peak_of(many, monkeypatch)
    assert (out, out_many) == (few, many)
    # 38,000 lines of 400 characters are 15 MB; a digest of each uid (a set of 16 bytes) is all that stays.
    assert large - small < (many - few) * 160


def test_many_bad_rows_in_a_row_are_not_hoarded(monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[int] = []
    bad = itertools.repeat(b"{\n", 20 * WINDOW)
    monkeypatch.setattr("ezxmc.data.sources.Lines._open", lambda self: nullcontext(bad))
    nobody = Tagger(Nobody())  # type: ignore[arg-type]
    tag_rows(nobody, "-", RowReport(), lambda rows: windows.append(len(rows)))
    assert windows == [WINDOW] * 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three windows and a half, with bad rows in the middle, at a window's edge and at the end."""
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    rows = [json.dumps(document(number)).encode() for number in range(3 * WINDOW + WINDOW // 2)]
    for place, bad in (
        (10, b"{"),
        (WINDOW - 1, b"[]"),
        (2 * WINDOW, b'{"uid": "x"}'),
        (len(rows) - 1, b"\xff"),
    ):
        rows[place] = bad
    path.write_bytes(b"\n".join(rows))
    return path


def tag(predictor: Predictor, source: Path, out: Path, *, resume: bool = False, **options: Any) -> RowReport:
    report = RowReport()
    with RowFile(out, resume=resume) as file:
        tag_rows(Tagger(predictor, **options), source, report, file.write, skip=file.skip)
    return report


@pytest.fixture(scope="module")
def whole(predictor: Predictor, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an uninterrupted job writes."""
    path = tmp_path_factory.mktemp("whole") / "out.jsonl"
    report = tag(predictor, source, path, k=3)
    assert report.bad == 4 and report.rows == 3 * WINDOW + WINDOW // 2
    return path.read_bytes()


def test_every_row_is_answered_in_its_place(whole: bytes) -> None:
    rows = [json.loads(line) for line in whole.splitlines()]
    bad = {number: row["line"] for number, row in enumerate(rows) if "error" in row}
    assert bad == {n: n + 1 for n in (10, WINDOW - 1, 2 * WINDOW, 3 * WINDOW + WINDOW // 2 - 1)}
    assert all(row["uid"] == f"d{number}" for number, row in enumerate(rows) if number not in bad)


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.29, 0.5, 0.75, 0.98, 1])
def test_a_file_cut_anywhere_is_finished_the_same(
    predictor: Predictor, source: Path, whole: bytes, tmp_path: Path, share: float
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(whole[: round(share * len(whole))])
    with RowFile(out, resume=True) as file:
        file._due = []
        whole_lines = out.read_bytes().count(b"\n")
    assert file.skip == max(whole_lines // WINDOW - 1, 0) * WINDOW
    tag(predictor, source, out, resume=True, k=3)
    assert out.read_bytes() == whole


def test_without_resume_a_file_is_begun_again(
    predictor: Predictor, source: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b'{"uid": "old", "tags": []}\n' * 10_000)
    tag(predictor, source, out, k=3)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("change", ["k", "threshold", "documents", "fewer", "not ours"])
def test_a_file_of_something_else_is_refused_and_kept(
    predictor: Predictor, source: Path, whole: bytes, tmp_path: Path, change: str
) -> None:
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    begun = whole[: int(0.9 * len(whole))] if change != "not ours" else b"my thesis\n" * 2 * WINDOW
    out.write_bytes(begun)
    other.write_bytes(source.read_bytes())
    options: dict[str, Any] = {"k": 3}
    if change == "k":
        options = {"k": 2}
    elif change == "threshold":
        options = {"k": 3, "threshold": 0.7}
    elif change == "documents":
        write_rows(other, [document(number + 1) for number in range(4 * WINDOW)])
    elif change == "fewer":
        write_rows(other, [document(number) for number in range(WINDOW // 2)])
    refused = r"cannot be continued.*\n.*cure.*--resume|is not a file of tags"
    with pytest.raises((ConfigError, DataError), match=refused):
        tag(predictor, other, out, resume=True, **options)
    assert out.read_bytes() == begun


def test_a_killed_job_goes_on_and_ends_the_same(bundle: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [document(number) for number in range(9 * WINDOW)])
    options = ("predict", bundle, source, "--k", 3, "--resume", "-o")
    out = tmp_path / "killed.jsonl"
    part = tmp_path / "killed.jsonl.part"
    kills = 0
    for enough in (1, 4):
        before = part.stat().st_size if part.exists() else 0
        job = Command(*options, out)
        while job.running and not (part.exists() and part.stat().st_size > before + enough * WINDOW * 100):
            time.sleep(0.005)
        job.kill()
        kills += job.wait() == -signal.SIGKILL
        # What a dying disk may do to the line being written.
        with part.open("ab") as handle:
            handle.write(b'{"uid": "d77", "ta')
    assert kills, "the job was over before it could be killed"
    for path in (out, tmp_path / "whole.jsonl"):
        assert Command(*options, path).wait() == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert out.read_bytes().count(b"\n") == 9 * WINDOW


@given(st.lists(st.sampled_from(["row\n", "\n", "last"]), max_size=30))
def test_rows_are_counted_as_lines(parts: list[str]) -> None:
    import tempfile

    text = "".join(parts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_text(text)
        assert row_count(path) == len(text.split("\n")) - (not text or text.endswith("\n"))


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"uid": ["a", "b"], "text": ["x", "y"]}), tmp_path / "a.parquet"
    )
    assert row_count(tmp_path / "a.parquet") == 2
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b\n\n\n")
    assert row_count(tmp_path / "a.jsonl.gz") == 0 == row_count("-")


def test_progress_knows_the_end(predictor: Predictor, source: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    tag_rows(Tagger(predictor), source, RowReport(), lambda rows: None, progress=progress)
    end = 3 * WINDOW + WINDOW // 2
    assert seen == [(n, end) for n in (WINDOW, 2 * WINDOW, 3 * WINDOW, end)]


def test_a_line_is_utf8_whatever_it_holds() -> None:
    assert json_line({"a": "é😀"}) == '{"a": "é😀"}\n'.encode()
    assert json.loads(json_line({"file": "\udcff.jsonl"})) == {"file": "?.jsonl"}


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_rounded_probability_is_never_a_certainty(probability: float) -> None:
    kept = rounded(probability)
    assert 0 < kept < 1
    rarer = min(probability, 1 - probability)
    assert abs(kept - probability) <= max(5e-4 * rarer, 5e-5 * min(1, 10 * rarer)) + 1e-16


@given(st.text(alphabet="ab .,!\n。é", max_size=80), st.integers(0, 12))
def test_a_text_taken_apart_is_whole_without_overlap(text: str, heading: int) -> None:
    title = text[:heading].strip()
    text = text.strip()
    parts = occlusions(text, title)
    assert len(parts) <= MOST_PARTS and len(parts) != 1
    for one in parts:
        assert one.part.strip() == one.part != "" and one.rest.strip() and one.part in text
        assert len(one.part) + len(one.rest) <= len(text)
    # Every letter is left out just once.
    letters = Counter(text.translate(str.maketrans("", "", " \n")))
    if parts:
        left_out = sum((Counter(one.part) for one in parts), Counter())
        assert {c: n for c, n in left_out.items() if not c.isspace()} == dict(letters)


def test_a_long_text_has_few_parts_and_what_the_model_does_not_read_is_none(tiny_encoder: Path) -> None:
    assert [one.part for one in occlusions("One is here. Two are not! Three?")] == [
        "One is here.",
        "Two are not!",
        "Three?",
    ]
    assert [one.part for one in occlusions("A parser, fast and small")] == ["A parser,", "fast and small"]
    assert [one.part for one in occlusions("Fast parser\nIt parses", "Fast parser")] == [
        "Fast parser",
        "It parses",
    ]
    assert len(occlusions("So it is. " * 100)) == MOST_PARTS and occlusions("word") == [] == occlusions("")
    encoder = BiEncoder(tiny_encoder, max_length=8)
    read = encoder.read_of("guitar melody drums concert singer recipe oven flour soup spice")
    assert read == "guitar melody drums concert singer recipe"
    assert isinstance(encoder.runner, PlainBert), "an explanation need not open another model"
    assert (encoder.encode_documents([read]) == encoder.encode_documents([f"{read} oven flour"])).all()


def test_tags_and_dicts_and_data_sets_say_what_the_tuples_say(tmp_path: Path) -> None:
    whole = Prediction("d1", ("a", "b"), ("A", "B"), (0.9, 0.5), (0.8, 0.1))
    bare, empty = Prediction("d2", ("a",), ("A",), (0.5,)), Prediction("d3", (), (), ())
    assert whole.tags == (Tag("a", "A", 0.9, 0.8), Tag("b", "B", 0.5, 0.1)) and empty.tags == ()
    assert [tag.probability for tag in bare.tags] == [None]
    assert Prediction("d", ("a",), (), ()).tags == (Tag("a", "a", None, None),)
    assert bare.to_dict() == {
        "uid": "d2",
        "tags": [{"label": "a", "title": "A", "score": 0.5, "probability": None}],
    }
    assert prediction_row(whole, 1)["tags"] == whole.to_dict()["tags"][:1]
    data = predictions_dataset(iter([whole, bare, empty]))
    assert data.column_names == ["uid", "labels", "titles", "scores", "probabilities"]
    assert data[0]["labels"] == ["a", "b"] and data["scores"][:] == [[0.9, 0.5], [0.5], []]
    assert data["probabilities"][:] == [[0.8, 0.1], None, []]
    assert len(predictions_dataset([])) == 0 and predictions_dataset([]).features == data.features
    # As any other data set: to a file and back.
    data.to_parquet(tmp_path / "tags.parquet")
    assert type(data).from_parquet(str(tmp_path / "tags.parquet"))[:] == data[:]
