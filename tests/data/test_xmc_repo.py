"""Files of public XMC benchmarks: every layout gives the same data, bad rows are named, files come back."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from support.commands import forked
from support.xmc_files import write_label_text, write_pairs, write_raw_text, write_sparse

from ezxmc.config import DataConfig
from ezxmc.data import Catalog, RowReport, XmcRepo, convert, read_documents, read_gold, read_labels
from ezxmc.data.xmc_files import (
    PairFile,
    iter_gold,
    iter_sparse,
    label_columns,
)
from ezxmc.errors import DataError
from ezxmc.records import Document, Label

LABELS = ["boats", "garden_tools", "music", "stars"]
TRAIN = [
    ("Red boat /SEP/ floats, mostly", [0]),
    ("Rake and spade", [1, 3]),
    ("Nothing fits", []),
    ("Ω sky", [3]),
]
TEST = [("Guitar", [2, 0])]
FILTER = [(0, 3), (1, 1)]


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def lines(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def texts(folder: Path, train: str, test: str) -> None:
    put(folder / train, lines([text for text, _ in TRAIN]))
    put(folder / test, lines([text for text, _ in TEST]))


def x_y(rows: list[tuple[str, list[int]]]) -> str:
    return f"{len(rows)} {len(LABELS)}\n" + lines(
        [" ".join(f"{c}:1.0" for c in labels) for _, labels in rows]
    )


def npz(path: Path, rows: list[tuple[str, list[int]]]) -> None:
    matrix = np.zeros((len(rows), len(LABELS)), dtype=np.float32)
    for row, (_, labels) in enumerate(rows):
        matrix[row, labels] = 1
    sp.save_npz(path, sp.csr_matrix(matrix))


def json_rows(prefix: str, rows: list[tuple[str, list[int]]]) -> str:
    found = []
    for number, (text, labels) in enumerate(rows):
        title, _, content = text.rpartition("/SEP/")
        row = {"uid": f"{prefix}-{number}", "title": title, "content": content}
        found.append(json.dumps({**row, "target_ind": labels, "target_rel": [1.0] * len(labels)}))
    return lines(found)


def raw_text(folder: Path) -> None:
    put(folder / "trn.json.gz", gzip.compress(json_rows("train", TRAIN).encode()))
    put(folder / "tst.json.gz", gzip.compress(json_rows("test", TEST).encode()))
    labels = [json.dumps({"uid": str(i), "title": name, "content": ""}) for i, name in enumerate(LABELS)]
    put(folder / "lbl.json.gz", gzip.compress(lines(labels).encode()))


def unzipped(folder: Path) -> None:
    raw_text(folder)
    for path in list(folder.glob("*.gz")):
        put(path.with_suffix(""), gzip.decompress(path.read_bytes()))
        path.unlink()


def pyxclib(folder: Path) -> None:
    texts(folder, "trn.raw.txt", "tst.raw.txt")
    put(folder / "lbl.raw.txt", lines(LABELS))
    put(folder / "trn_X_Y.txt", x_y(TRAIN))
    put(folder / "tst_X_Y.txt", x_y(TEST))


def dexml(folder: Path) -> None:
    texts(folder, "raw/trn_X.txt", "raw/tst_X.txt")
    put(folder / "raw/Y.txt", lines(LABELS))
    npz(folder / "Y.trn.npz", TRAIN)
    npz(folder / "Y.tst.npz", TEST)


def pecos(folder: Path) -> None:
    texts(folder, "X.trn.txt", "X.tst.txt")
    put(folder / "output-items.txt", lines(LABELS))
    put(folder / "Y.trn.txt", lines([",".join(map(str, labels)) for _, labels in TRAIN]))
    put(folder / "Y.tst.txt", lines([",".join(map(str, labels)) for _, labels in TEST]))


def x_transformer(folder: Path) -> None:
    texts(folder, "train_raw_texts.txt", "test_raw_texts.txt")
    put(folder / "label_map.txt", lines(LABELS))
    npz(folder / "Y.trn.npz", TRAIN)
    npz(folder / "Y.tst.npz", TEST)


def attention_xml(folder: Path) -> None:
    texts(folder, "train_texts.txt", "test_texts.txt")
    put(folder / "train_labels.txt", lines([" ".join(LABELS[c] for c in labels) for _, labels in TRAIN]))
    put(folder / "test_labels.txt", lines([" ".join(LABELS[c] for c in labels) for _, labels in TEST]))


LAYOUTS = [raw_text, unzipped, pyxclib, dexml, pecos, x_transformer, attention_xml]


def repo(folder: Path, *, strict: bool = False) -> XmcRepo:
    found = XmcRepo.find(folder, strict=strict)
    assert found is not None
    return found


def found_in(data: XmcRepo) -> dict[str, list[tuple[int, int, str]]]:
    """Of each file with problems: lines and kinds."""
    return {
        name: [(problem.line, 0, problem.kind) for problem in report.problems]
        for name, report in data.rows.items()
        if report.problems
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_every_layout_gives_the_same_data(
    tmp_path: Path, layout: Callable[[Path], None], zipped: bool
) -> None:
    layout(tmp_path)
    put(tmp_path / "filter_labels_train.txt", lines([f"{doc} {label}" for doc, label in FILTER]))
    if zipped:
        for path in [path for path in tmp_path.rglob("*.txt")]:
            put(path.with_name(path.name + ".gz"), gzip.compress(path.read_bytes()))
            path.unlink()
    data = repo(tmp_path)
    assert data.splits == ("train", "test")
    labels = data.labels()
    shown = {label.uid: label.title.replace(" ", "_") for label in labels}
    assert sorted(shown.values()) == LABELS
    for split, rows in (("train", TRAIN), ("test", TEST)):
        examples = list(data.examples(split))
        assert [one.document.uid for one in examples] == [f"{split}-{i}" for i in range(len(rows))]
        assert [
            " ".join(f"{one.document.title} /SEP/ {one.document.text}".removeprefix(" /SEP/").split())
            for one in examples
        ] == [text for text, _ in rows]
        assert [{shown[uid] for uid in one.labels or ()} for one in examples] == [
            {LABELS[c] for c in columns} for _, columns in rows
        ]
        if split == "train":
            assert [(one.line - 1, shown[uid]) for one in examples for uid in one.filtered] == [
                (doc, LABELS[label]) for doc, label in FILTER
            ]
    assert not any(report.counts for report in data.rows.values())
    assert sum(report.kept for name, report in data.rows.items() if "filter" in name) == len(FILTER)


def test_what_is_no_benchmark_and_what_lacks_labels(tmp_path: Path) -> None:
    assert XmcRepo.find(tmp_path) is None
    put(tmp_path / "X.trn.txt", "a\n")
    with pytest.raises(DataError, match=r"no labels[\s\S]*lbl.json"):
        XmcRepo.find(tmp_path)


def test_bad_json_rows_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = {"uid": "a", "title": "A", "content": "x", "target_ind": [0, 0, 1], "target_rel": [1, 1, 0]}
    rows = [
        json.dumps(good),
        "{broken",
        json.dumps({**good, "uid": "b", "target_ind": [7, -1, 2], "target_rel": [1, 1, 1]}),
        json.dumps({**good, "uid": "c", "target_ind": ["0"]}),
        json.dumps({**good, "uid": "d", "target_rel": [1]}),
        json.dumps({**good, "uid": "e", "title": " ", "content": ""}),
        json.dumps({**good, "uid": "a"}),
        json.dumps({"uid": "f", "title": "F"}),
        json.dumps({**good, "uid": "g", "target_ind": [3], "target_rel": [1.0]}),
        json.dumps({**good, "uid": "h", "target_ind": [True], "target_rel": None}),
    ]
    put(tmp_path / "trn.json", lines(rows).encode() + b'{"uid": "\xff"}\n')
    put(tmp_path / "lbl.json", lines(['{"uid": "L0", "title": "zero"}', '{"title": "one"}', "[]"]))
    put(tmp_path / "lbl.json", (tmp_path / "lbl.json").read_text() + '{"uid": "L3", "title": "three"}\n')
    data = repo(tmp_path)
    examples = {one.document.uid: one.labels for one in data.examples("train")}
    assert examples == {"a": ("L0",), "b": (), "c": None, "d": None, "f": None, "g": ("L3",), "h": None}
    assert [label.uid for label in data.labels()] == ["L0", "one", "L3"]
    assert {name: [(line, kind) for line, _, kind in rows] for name, rows in found_in(data).items()} == {
        "lbl.json": [(3, "not_an_object")],
        "trn.json": [(2, "bad_json"), (6, "empty_text"), (7, "duplicate_uid"), (11, "bad_utf8")],
        "trn.json: targets": [(3, "unknown_label")] * 3
        + [(4, "bad_type"), (5, "bad_type"), (10, "bad_type")],
    }
    gold, report = read_gold(tmp_path / "trn.json")
    assert gold == {"a": {"L0"}, "e": {"L0"}, "g": {"L3"}}  # "e" has no text, which is the documents' matter
    assert report.counts["bad_type"] == 3 and report.counts["unknown_label"] == 3
    with pytest.raises(DataError, match=r"lbl.json:3: not_an_object"):
        repo(tmp_path, strict=True).labels()


def test_gold_of_a_benchmark_needs_its_label_file(tmp_path: Path) -> None:
    put(tmp_path / "tst.json", '{"uid": "a", "title": "t", "target_ind": [0]}\n')
    with pytest.raises(DataError, match=r"no lbl\.json"):
        read_gold(tmp_path / "tst.json")


def test_bad_lines_of_a_sparse_file(tmp_path: Path) -> None:
    text = "5 3\n0:1.0 2:0.5\n1:x\n\n9:1 1:0 2:1\n1\n0:1\n\n"
    put(tmp_path / "a_X_Y.txt", text)
    report = RowReport()
    found = [(line, entries) for _, line, entries in iter_sparse(tmp_path / "a_X_Y.txt", report)]
    assert found == [(2, [(0, 1.0), (2, 0.5)]), (3, None), (4, []), (5, [(1, 0.0), (2, 1.0)]), (6, None)]
    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (3, "bad_entry"),
        (5, "unknown_label"),
        (6, "bad_entry"),
        (7, "row_count"),
    ]
    gold = {row: columns for row, _, columns in iter_gold(tmp_path / "a_X_Y.txt", RowReport())}
    assert gold == {0: [0, 2], 1: None, 2: [], 3: [2], 4: None}


@pytest.mark.parametrize(
    "value", ["nan:1", "1:nan", "1:inf", "-1:1", "+1:1", "1_0:1", "٣:1", ":1", "1:", "1:1:1"]
)
def test_odd_entries_are_bad(tmp_path: Path, value: str) -> None:
    put(tmp_path / "a_X_Y.txt", f"1 99\n{value}\n")
    report = RowReport()
    assert [entries for *_, entries in iter_sparse(tmp_path / "a_X_Y.txt", report)] == [None]
    assert report.counts == {"bad_entry": 1}


@pytest.mark.parametrize("header", ["", "0:1.0\n", "3\n", "a b\n", "1 2 3\n", "-1 2\n"])
def test_a_sparse_file_needs_its_header(tmp_path: Path, header: str) -> None:
    put(tmp_path / "a_X_Y.txt", header)
    with pytest.raises(DataError, match="header line"):
        list(iter_sparse(tmp_path / "a_X_Y.txt", RowReport()))


def test_files_cut_short(tmp_path: Path) -> None:
    put(tmp_path / "a_X_Y.txt", "3 2\n0:1\n")
    report = RowReport()
    list(iter_sparse(tmp_path / "a_X_Y.txt", report))
    assert str(report.problems[0]).endswith("a_X_Y.txt:2: row_count: the file ends after 1 of 3 rows")
    whole = gzip.compress(b"1 1\n0:1\n" * 999)
    put(tmp_path / "b_X_Y.txt.gz", whole[: len(whole) - 9])
    with pytest.raises(DataError, match="cannot be read to its end"):
        list(iter_sparse(tmp_path / "b_X_Y.txt.gz", RowReport()))
    put(tmp_path / "Y.trn.npz", b"PK no")
    with pytest.raises(DataError, match="no sparse matrix"):
        list(iter_gold(tmp_path / "Y.trn.npz", RowReport()))


@pytest.mark.parametrize(
    ("texts", "gold", "told"), [("a\nb\n", "0\n", 1), ("a\n", "0\n0\n0\n", 3), ("a\n \n", "0\n0\n", 0)]
)
def test_gold_and_texts_of_different_length(tmp_path: Path, texts: str, gold: str, told: int) -> None:
    put(tmp_path / "X.trn.txt", texts)
    put(tmp_path / "Y.trn.txt", gold)
    put(tmp_path / "output-items.txt", "only\n")
    data = repo(tmp_path)
    examples = list(data.examples("train"))
    assert examples[0].labels == ("0",) and all(one.labels is None for one in examples[1:])
    assert [problem.line for problem in data.rows["Y.trn.txt"].problems] == [told] * bool(told)


def test_a_bad_row_on_either_side_shifts_nothing(tmp_path: Path) -> None:
    put(tmp_path / "X.trn.txt", b"a\n\xff\nc\nd\n\ne\n")
    put(tmp_path / "Y.trn.txt", b"0\n1\n2\n\xff\n0\n1,x\n")
    put(tmp_path / "output-items.txt", "A\n\nC\n")
    data = repo(tmp_path)
    found = {one.document.text: one.labels for one in data.examples("train")}
    assert found == {"a": ("0",), "c": ("2",), "d": None, "e": None}
    assert {name: [(line, kind) for line, _, kind in rows] for name, rows in found_in(data).items()} == {
        "output-items.txt": [(2, "no_title")],
        "X.trn.txt": [(2, "bad_utf8"), (5, "empty_text")],
        "Y.trn.txt": [(2, "unknown_label"), (4, "bad_utf8"), (6, "bad_entry")],
    }


def test_bad_pairs_are_named(tmp_path: Path) -> None:
    raw_text(tmp_path)
    put(tmp_path / "filter_labels_train.txt", "0 3\n\n1\n1 a\n0 99\n50 0\n1 1 1\n")
    data = repo(tmp_path)
    assert [one.filtered for one in data.examples("train")] == [("3",), (), (), ()]
    report = data.rows["filter_labels_train.txt"]
    assert sorted((problem.line, problem.kind) for problem in report.problems) == [
        (3, "bad_pair"),
        (4, "bad_pair"),
        (5, "unknown_label"),
        (6, "unknown_document"),
        (7, "bad_pair"),
    ]
    assert report.kept == 1 and report.rows == 6


ENTRIES = st.lists(
    st.dictionaries(st.integers(0, 49), st.floats(allow_nan=False, allow_infinity=False), max_size=6).map(
        lambda row: sorted(row.items())
    ),
    max_size=12,
)


@given(rows=ENTRIES)
def test_sparse_files_come_back(tmp_path: Path, rows: list[list[tuple[int, float]]]) -> None:
    path = tmp_path / "m_X_Y.txt"
    write_sparse(path, rows, 50)
    report = RowReport()
    assert [entries for *_, entries in iter_sparse(path, report)] == rows and not report.counts
    # As pyxclib's C reader does: header, then column:value by white space.
    head, *body = path.read_text().split("\n")
    assert head == f"{len(rows)} 50"
    assert [
        [(int(c), float(v)) for c, v in (e.split(":") for e in line.split())] for line in body[:-1]
    ] == rows


@given(pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10**9)), max_size=30))
def test_pair_files_come_back(tmp_path: Path, pairs: list[tuple[int, int]]) -> None:
    path = tmp_path / "filter.txt"
    write_pairs(path, pairs)
    # numpy reads it as the public evaluation code does.
    read = np.fromfile(path, sep=" ").astype(int).reshape(-1, 2)
    assert read.tolist() == [list(pair) for pair in pairs]
    report = RowReport()
    found = PairFile(path, report)
    for document in range(0, 21, 2):
        assert found.take(document) == [
            (label, line) for line, (doc, label) in enumerate(pairs, start=1) if doc == document
        ]
    left = [(doc, line) for line, (doc, _) in enumerate(pairs, start=1) if doc % 2]
    assert sorted(found.left()) == sorted(left) and not report.counts


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
WORDS = TEXT.filter(lambda text: bool(text.strip()))


@given(
    titles=st.lists(WORDS, min_size=1, max_size=5),
    rows=st.lists(st.tuples(WORDS, TEXT, st.sets(st.integers(0, 4))), max_size=8),
)
def test_raw_text_files_come_back(
    tmp_path: Path, titles: list[str], rows: list[tuple[str, str, set[int]]]
) -> None:
    labels = [Label(f"l{i}", title.strip()) for i, title in enumerate(titles)]
    documents = [
        # A blank cell is no text.
        (
            Document(f"d{i}", title.strip(), text if text.strip() else ""),
            sorted(c for c in columns if c < len(labels)),
        )
        for i, (title, text, columns) in enumerate(rows)
    ]
    write_label_text(tmp_path / "lbl.json.gz", labels)
    write_raw_text(tmp_path / "trn.json.gz", documents)
    data = repo(tmp_path)
    assert data.labels() == labels == label_columns(tmp_path / "lbl.json.gz", RowReport())
    assert [(one.document, list(one.labels or ())) for one in data.examples("train")] == [
        (document, [f"l{c}" for c in columns]) for document, columns in documents
    ]
    assert read_documents(tmp_path / "trn.json.gz")[0] == [document for document, _ in documents]
    for line in gzip.decompress((tmp_path / "trn.json.gz").read_bytes()).split(b"\n")[:-1]:
        assert list(json.loads(line)) == ["uid", "title", "content", "target_ind", "target_rel"]
    out = tmp_path / "out"
    written = convert(data, out)["train"]
    assert read_documents(out / "train.jsonl")[0] == [document for document, _ in documents]
    assert read_labels(out / "labels.jsonl")[0] == labels
    gold, report = read_gold(out / "train_gold.tsv")
    assert gold == {d.uid: {f"l{c}" for c in columns} for d, columns in documents if columns}
    assert not report.bad and written.pairs == report.kept
    assert written.documents == written.without_labels + len(gold)


NOISE = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"0:1", b"1:2 0:1", b"0,1", b"0 1", b"5", b"", b'{"uid": "u", "title": "t"}']),
    ),
    max_size=8,
).map(b"\n".join)
# A file that begins as a JSON array is read or refused as a whole.
NOISE = NOISE.filter(lambda text: b"[" not in text.partition(b"\n")[0])


MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@given(
    noise=st.fixed_dictionaries({name: NOISE for name in ("texts", "gold", "labels", "pairs")}),
    kind=st.integers(0, 2),
)
def test_noise_is_told_and_never_breaks_the_reader(
    tmp_path: Path, noise: dict[str, bytes], kind: int
) -> None:
    names = [("X.trn.txt", "Y.trn.txt"), ("trn.raw.txt", "trn_X_Y.txt"), ("trn.json", "none.txt")][kind]
    for old in tmp_path.glob("*.*"):
        old.unlink()
    put(tmp_path / names[0], noise["texts"])
    put(tmp_path / names[1], (b"3 2\n" if kind == 1 else b"") + noise["gold"])
    put(tmp_path / ("lbl.json" if kind == 2 else "output-items.txt"), noise["labels"])
    put(tmp_path / "filter_labels_train.txt", noise["pairs"])
    data = repo(tmp_path)
    try:
        examples = list(data.examples("train"))
    except DataError as error:
        assert error.cure  # noise may begin as a compressed file does, or one of another kind
        return
    report = data.rows[names[0]]
    filled = [line for line in noise["texts"].split(b"\n") if kind != 2 or line.strip()]
    if kind != 2 and filled[-1] == b"":
        filled.pop()  # no line of its own
    assert report.kept == len(examples)
    # bytes.strip and str.strip differ on lines of odd white space only; marks at the start tell the encoding.
    texts = [line.decode("latin-1") for line in filled]
    if not any(text.strip() != text for text in texts) and not any(line.startswith(MARKS) for line in filled):
        assert report.rows == len(filled)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    row = json.dumps({"title": "t", "content": "word " * 400, "target_ind": [0], "target_rel": [1.0]})
    with gzip.open(tmp_path / "trn.json.gz", "wt", compresslevel=1) as out:
        out.writelines(f'{{"uid": "{i}", {row[1:]}\n' for i in range(10_000))
    put(tmp_path / "lbl.json", '{"uid": "l", "title": "label"}\n')
    data = repo(tmp_path)
    tracemalloc.start()
    convert(data, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 20 MB of text; what stays is a digest a document.
    assert peak < 4e6
    assert sum(1 for _ in (tmp_path / "out" / "train.jsonl").open()) == 10_000


def killed_in_the_test_split(folder: str, out: str) -> None:
    """Convert a benchmark; the process dies when the first split is written."""
    from ezxmc.data import xmc as xmc_repo

    plain = xmc_repo._convert_split

    def dying(repo: XmcRepo, split: str, fresh: Any) -> Any:
        if split == "test":
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(repo, split, fresh)

    xmc_repo._convert_split = dying
    convert(repo(Path(folder)), out)


def test_a_conversion_that_is_killed_leaves_the_former_files_or_none(tmp_path: Path) -> None:
    pyxclib(tmp_path / "from")
    out = tmp_path / "to"

    def files() -> dict[str, bytes]:
        # What a killed writer leaves has a name that nobody reads.
        return {path.name: path.read_bytes() for path in out.glob("*") if not path.name.startswith(".")}

    for former in (False, True):
        if former:
            convert(repo(tmp_path / "from"), out)
        before = files()
        assert bool(before) == former
        put(tmp_path / "from" / "lbl.raw.txt", lines([*LABELS[:3], f"planets {former}"]))
        process = forked(killed_in_the_test_split, str(tmp_path / "from"), str(out))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert files() == before
    assert set(convert(repo(tmp_path / "from"), out)) == {"train", "test"} and files() != before


def test_a_uid_that_fits_no_table_is_left_out(tmp_path: Path) -> None:
    put(
        tmp_path / "trn.json",
        lines([json.dumps({"uid": u, "title": "x", "target_ind": [0]}) for u in ("a\tb", "c")]),
    )
    put(tmp_path / "lbl.json", '{"uid": "l", "title": "label"}\n')
    data = repo(tmp_path)
    assert convert(data, tmp_path / "out")["train"].documents == 1
    (problem,) = data.rows["train, written"].problems
    assert (problem.line, problem.kind) == (1, "bad_uid")


def test_a_run_takes_the_published_files_as_they_are(tmp_path: Path) -> None:
    raw_text(tmp_path)
    names = {"documents": "trn.json.gz", "labels": "lbl.json.gz", "gold": "trn.json.gz"}
    config = DataConfig(**{part: str(tmp_path / name) for part, name in names.items()})
    catalog = Catalog.load(config, 0.5, 0)
    assert catalog.gold == {"train-0": {"0"}, "train-1": {"1", "3"}, "train-2": set(), "train-3": {"3"}}
    assert [label.title for label in catalog.labels] == LABELS
    assert catalog.gold_rows is not None and not catalog.gold_rows.bad
