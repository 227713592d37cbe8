"""What Python users have in hand: understood, or refused by name with a cure, in every public function."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from support.fakes import FakeTeacher, catalog
from support.serving import write_bundle

import ezxmc
from ezxmc import BiEncoder, Document, Label, LabelIndex, Predictor, RunConfig
from ezxmc.calibration import JudgedRows
from ezxmc.calibration.decisions import Decision
from ezxmc.config import BudgetConfig, ShortlistConfig, TrainingConfig
from ezxmc.data import columns_for, split_documents
from ezxmc.data.in_memory import as_documents, as_gold, as_labels
from ezxmc.errors import EzxmcError
from ezxmc.metrics import (
    RankingMetrics,
    brier,
    ece_at_k,
    encode,
    frequency_groups,
    inverse_propensities,
    inverse_propensity,
    ndcg_at_k,
    precision_at_k,
    psp_at_k,
    recall_at_k,
    top_labels,
)
from ezxmc.records import Judgment, Pair, Prediction, Status

pytestmark = pytest.mark.usefixtures("one_thread")
NAN = float("nan")
TEXTS = ["guitar melody", "oven soup"]
FRAME = pd.DataFrame({"id": [7, 8], "title": ["concert", None], "text": TEXTS, "price": [1.5, NAN]})


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Predictor:
    return Predictor(write_bundle(tmp_path_factory.mktemp("values") / "bundle", tiny_encoder))


@pytest.mark.parametrize(
    "values",
    [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        dict.fromkeys(TEXTS).keys(),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS, index=[10, 20]),
        pd.Series(TEXTS, dtype="string"),
        FRAME["text"],
        FRAME[["text"]],
        pa.array(TEXTS),
        pa.chunked_array([TEXTS]),
        pa.table({"text": TEXTS}),
        datasets.Dataset.from_dict({"text": TEXTS}),
        datasets.Dataset.from_dict({"text": TEXTS})["text"],
        datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
        [{"text": TEXTS[0]}, {"body": np.str_(TEXTS[1]), "uid": None, "title": NAN}],
        [Document("0", "", TEXTS[0]), TEXTS[1]],
    ],
    ids=lambda values: type(values).__name__,
)
def test_texts_columns_and_tables_are_documents(values: Any) -> None:
    assert as_documents(values) == [Document("0", "", TEXTS[0]), Document("1", "", TEXTS[1])]


def test_a_text_under_another_name_is_told() -> None:
    with pytest.warns(UserWarning, match="titles alone: none of the columns message .*rename"):
        as_documents(pd.DataFrame({"title": ["soup"], "message": ["a long text"]}))
    with warnings.catch_warnings(action="error"):
        as_documents([{"title": "soup", "text": None, "price": 1.5}, {"name": "rose"}])


def test_a_table_is_read_by_the_columns_of_files() -> None:
    wanted = [Document("7", "concert", TEXTS[0]), Document("8", "", TEXTS[1])]
    for table in (FRAME, pa.Table.from_pandas(FRAME), datasets.Dataset.from_pandas(FRAME)):
        assert as_documents(table) == wanted
    assert as_documents([{"uid": np.int64(7), "text": "x"}])[0].uid == "7"
    assert as_labels(["soup", {"id": 3, "name": "rose"}, Label("l", "mast")]) == [
        Label("soup", "soup"),
        Label("3", "rose"),
        Label("l", "mast"),
    ]
    assert as_gold({1: ["a", np.int64(2)], "1": {"b"}}) == {"1": {"a", "2", "b"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("one text", "brackets"),
        (Document("1", "", "x"), "brackets"),
        ({"text": "x"}, "brackets"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": TEXTS})),
            "'train'.*of splits give one",
        ),
        (b"bytes", "bytes"),
        ({"a", "b"}, "order"),
        (None, "None.*give a list of texts"),
        (5, "give a list of texts"),
        (Path("documents.jsonl"), "read_documents"),
        (io.StringIO("x"), "read_documents"),
        ([""], r"documents\[0\]: empty_text: document '0' has neither title nor text"),
        (["x", " \n", "y", ""], "1 more of 4 cannot be used, at 3"),
        ([Document("7", "", " ")], "document '7' has neither title nor text"),
        ([None], r"documents\[0\] is None"),
        (pd.Series(["x", None]), r"documents\[1\] is nan.*dropna"),
        ([pd.NA], "dropna"),
        ([5], "a int"),
        ([b"x"], "decode"),
        ([["x"]], "a list"),
        (np.array([["x"]]), "2 dimensions"),
        (np.array("x"), "0 dimensions"),
        ([{}], "neither title nor text in the columns"),
        ([{"price": 5}], "price"),
        ([{"text": ["a"]}], "text is not a string"),
        ([{"uid": " ", "text": "x"}], "no_uid"),
        (FRAME[["price"]], "price"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "several columns 'text'"),
        (["a\ud800b"], r"U\+D800 at character 2"),
        ([{"text": "a\0"}], r"U\+0000"),
        ([Document("\udfff", "", "x")], r"U\+DFFF"),
    ],
)
def test_what_is_no_document_is_refused_by_name(predictor: Predictor, values: Any, message: str) -> None:
    with pytest.raises(EzxmcError, match=f"(?s){message}") as refused:
        predictor.predict(values, k=1)
    assert refused.value.cure
    if not isinstance(values, str | Path):
        with pytest.raises(EzxmcError):
            list(predictor.stream(values, k=1))


@pytest.mark.parametrize("k", [0, -1, 2.0, NAN, "3", True, [1]])
def test_k_is_a_whole_number_from_1(predictor: Predictor, k: Any) -> None:
    with pytest.raises(EzxmcError, match=r"k is .*\n.*1 or more"):
        predictor.predict(TEXTS, k=k)


@pytest.mark.parametrize("threshold", [50, -0.1, NAN, float("inf"), "0.5", True, [0.5]])
def test_a_threshold_is_a_number_from_0_to_1(predictor: Predictor, threshold: Any) -> None:
    with pytest.raises(EzxmcError, match=r"threshold is .*\n.*from 0 to 1"):
        predictor.predict(TEXTS, threshold=threshold)


def test_numpy_scalars_are_taken_as_plain_ones(predictor: Predictor) -> None:
    assert predictor.predict(TEXTS, k=np.int64(2)) == predictor.predict(TEXTS, k=2)  # type: ignore[arg-type]
    half = predictor.predict(TEXTS, threshold=0.5)
    assert predictor.predict(TEXTS, threshold=np.float32(0.5)) == half  # type: ignore[arg-type]
    assert len(predictor.predict(TEXTS, k=10**30)[0].labels) == predictor.bundle.index.size
    assert predictor.predict([]) == predictor.predict(FRAME[:0]) == []


CONFIG = TrainingConfig()
_DOCS, _LABELS = catalog(2, 3)
_GUESS = Prediction("d0", ("l0",), ("Label 0",), (0.5,), (0.5,))
_UNIT = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda e, t: Document("1", None, "x"),  # type: ignore[arg-type]
        lambda e, t: Document(1, "", "x"),  # type: ignore[arg-type]
        lambda e, t: Label("1", NAN),  # type: ignore[arg-type]
        lambda e, t: Label("1", "x", "", "alias"),  # type: ignore[arg-type]
        lambda e, t: Label("1", "x", parent=5),  # type: ignore[arg-type]
        lambda e, t: Predictor(None),  # type: ignore[arg-type]
        lambda e, t: Predictor.load(5),  # type: ignore[arg-type]
        lambda e, t: Predictor.load(t / "absent"),
        lambda e, t: BiEncoder(None),  # type: ignore[arg-type]
        lambda e, t: BiEncoder(t),
        lambda e, t: BiEncoder("x", max_length=0),
        lambda e, t: BiEncoder("x", max_length=NAN),  # type: ignore[arg-type]
        lambda e, t: e.encode_documents("one text"),
        lambda e, t: e.encode_documents(["x", None]),
        lambda e, t: e.encode_documents(5),
        lambda e, t: e.encode_labels(_LABELS),
        lambda e, t: LabelIndex([]),  # type: ignore[arg-type]
        lambda e, t: LabelIndex([["a"]]),  # type: ignore[arg-type]
        lambda e, t: LabelIndex(np.full((2, 2), NAN)),  # type: ignore[arg-type]
        lambda e, t: LabelIndex(None),  # type: ignore[arg-type]
        lambda e, t: LabelIndex(_UNIT).search(_UNIT, 0),
        lambda e, t: LabelIndex(_UNIT).search(_UNIT, NAN),  # type: ignore[arg-type]
        lambda e, t: LabelIndex(_UNIT).search(_UNIT[:, :2], 1),
        lambda e, t: LabelIndex(_UNIT).search(_UNIT * NAN, 1),
        lambda e, t: LabelIndex(_UNIT).search(_UNIT[0], 1),
        lambda e, t: LabelIndex(_UNIT).search("text", 1),  # type: ignore[arg-type]
        lambda e, t: LabelIndex.load(t / "absent"),
        lambda e, t: ezxmc.shortlist("text", _LABELS, e, ShortlistConfig()),
        lambda e, t: ezxmc.shortlist([""], _LABELS, e, ShortlistConfig()),
        lambda e, t: ezxmc.shortlist(_DOCS, ["a", "a"], e, ShortlistConfig()),
        lambda e, t: ezxmc.shortlist(_DOCS, [""], e, ShortlistConfig()),
        lambda e, t: ezxmc.shortlist(_DOCS, _LABELS, e, {"size": 3}),  # type: ignore[arg-type]
        lambda e, t: ezxmc.train_bi_encoder("text", _LABELS, None, CONFIG, t),  # type: ignore[arg-type]
        lambda e, t: ezxmc.train_bi_encoder(_DOCS, _LABELS, None, CONFIG, t),  # type: ignore[arg-type]
        lambda e, t: ezxmc.load_teacher("vllm"),  # type: ignore[arg-type]
        lambda e, t: ezxmc.load_teacher({"kind": "replay"}),  # type: ignore[arg-type]
        lambda e, t: ezxmc.FeedbackStore(None),  # type: ignore[arg-type]
        lambda e, t: ezxmc.FeedbackStore(t),
        lambda e, t: _annotate(t, []),
        lambda e, t: _annotate(t, lambda: [("d", "l")]),
        lambda e, t: _annotate(t, lambda: [Pair(_DOCS[0], _LABELS[0])], teacher=None),
        lambda e, t: ezxmc.annotate(lambda: [], FakeTeacher(), t / "f.sqlite"),
        lambda e, t: ezxmc.run("ezxmc.yaml"),  # type: ignore[arg-type]
        lambda e, t: RunConfig.load(None),  # type: ignore[arg-type]
        lambda e, t: RunConfig.load(t),
        lambda e, t: ezxmc.Calibrator.load(t / "absent"),
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": "l0"}),
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": None}),  # type: ignore[dict-item]
        lambda e, t: ezxmc.evaluate([_GUESS], [("d0", "l0")]),  # type: ignore[arg-type]
        lambda e, t: ezxmc.evaluate([{"uid": "d0"}], {"d0": ["l0"]}),  # type: ignore[list-item]
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": ["l0"]}, precision_ks=[0]),
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": ["l0"]}, threshold=NAN),
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": ["l0"]}, threshold=50),
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": ["l0"]}, propensity=(NAN, 1.5)),
        lambda e, t: Decision.top_k(0),
        lambda e, t: LabelIndex.build(_UNIT, kind="tree"),  # type: ignore[arg-type]
        lambda e, t: LabelIndex(_UNIT).remove(["x"]),
        lambda e, t: LabelIndex(_UNIT).vectors([99]),
        lambda e, t: LabelIndex.load(None),  # type: ignore[arg-type]
        lambda e, t: ezxmc.Calibrator.fit(None, target="human"),  # type: ignore[arg-type]
        lambda e, t: ezxmc.Calibrator.load(None),  # type: ignore[arg-type]
        lambda e, t: ezxmc.shortlist(_DOCS, _LABELS, None, ShortlistConfig()),  # type: ignore[arg-type]
        lambda e, t: ezxmc.evaluate(None, {"d0": ["l0"]}),  # type: ignore[arg-type]
        lambda e, t: ezxmc.evaluate([_GUESS], {"d0": ["l0"]}, precision_ks=5),  # type: ignore[arg-type]
        lambda e, t: top_labels(None, 1),  # type: ignore[arg-type]
        lambda e, t: top_labels(_UNIT, NAN),  # type: ignore[arg-type]
        lambda e, t: Decision.at_threshold(NAN),
    ],
)
def test_public_functions_refuse_what_they_cannot_use(
    tiny_encoder: Path, tmp_path: Path, call: Callable[[BiEncoder, Path], Any]
) -> None:
    with pytest.raises(EzxmcError) as refused:
        call(_encoder(tiny_encoder), tmp_path)
    assert refused.value.cure, refused.value


JUNK: list[Any] = [
    None, NAN, {}, {"a": 1}, "text", "", 5, -1, 1.5, [None], ["zz"], [[1], [1, 2]], b"x", object(), True,
    np.array(["a"]), np.full((2, 2), NAN), 2**80,
]  # fmt: skip
_RANKED, _GOLD = [["a", "b"], ["c"]], [{"a"}, {"c", "d"}]
_JUDGMENT = Judgment("0" * 64, "d", "l", Status.OK, 0.5, 0.9)
_P = np.linspace(0.9, 0.1, 40).reshape(8, 5)


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:12])
def test_the_store_refuses_junk_by_name(tmp_path: Path, junk: Any) -> None:
    with ezxmc.FeedbackStore(tmp_path / "f.sqlite") as store:
        session = store.open_session("f", {})
        for call in (
            lambda: store.append(junk, [_JUDGMENT], 1.0),
            lambda: store.append(session, junk, 1.0),
            lambda: store.append(session, [_JUDGMENT, junk], 1.0),
            lambda: store.append(session, [], junk),
            lambda: store.merge(session, junk),
            lambda: store.known(junk),
            lambda: store.get(junk),
            lambda: store.given_up(session, junk, 1),
            lambda: store.open_session(junk, {}),
            lambda: store.open_session("f", junk),
            lambda: list(store.judgments(junk)),
            lambda: list(store.batches("f", junk)),
            lambda: store.judged(junk),
            lambda: store.totals(junk),
            lambda: store.failed_documents(session, junk, 1),
        ):
            with suppress(EzxmcError):
                call()
        assert store.known(["0" * 64]) == set() and not list(store.judgments())
        for wrong in ("0" * 64, ["zz"], None):
            with pytest.raises(EzxmcError, match=r"keys are .*[\s\S]*64 hex digits"):
                store.known(wrong)  # type: ignore[arg-type]
        with pytest.raises(EzxmcError, match=r"there is no session 9[\s\S]*open_session"):
            store.append(9, [_JUDGMENT], 1.0)


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:12])
def test_metrics_refuse_junk_by_name(junk: Any) -> None:
    predicted, gold = encode(_RANKED, _GOLD, {})
    for call in (
        lambda: precision_at_k(junk, _GOLD, 2),
        lambda: precision_at_k(_RANKED, junk, 2),
        lambda: precision_at_k([["a"], junk], _GOLD, 2),
        lambda: recall_at_k(_RANKED, [{"a"}, junk], 2),
        lambda: ndcg_at_k(_RANKED, _GOLD, junk),
        lambda: encode(junk, _GOLD, {}),
        lambda: psp_at_k(_RANKED, _GOLD, junk, 2),
        lambda: inverse_propensities(junk, 9),
        lambda: inverse_propensity(np.ones(2, np.int64), junk),
        lambda: frequency_groups(junk),
        lambda: top_labels(junk, 2),
        lambda: RankingMetrics(precision_ks=junk),
        lambda: RankingMetrics().update(junk, gold),
        lambda: RankingMetrics().update(predicted, junk),
        lambda: RankingMetrics().update(predicted, gold, kept=junk),
        lambda: RankingMetrics().update(predicted, gold, documents=junk),
        lambda: ece_at_k(junk, _P),
        lambda: ece_at_k(_P, _P, junk),
        lambda: brier(_P, junk),
        lambda: JudgedRows.of(junk, _P),
        lambda: JudgedRows.of(_P, junk),
        lambda: LabelIndex(_UNIT).vectors(junk),
        lambda: LabelIndex(_UNIT).remove(junk),
        lambda: Judgment("0" * 64, "d", "l", Status.OK, junk),
        lambda: split_documents(junk, 0.5, 0),
        lambda: columns_for("documents", junk),
    ):
        with suppress(EzxmcError):
            call()
    for wrong in ("ab", {"a": 1}, None, 5):
        with pytest.raises(EzxmcError, match=r"ranked\[1\] is .*[\s\S]*list of label uids"):
            precision_at_k([["a"], wrong], _GOLD, 1)  # type: ignore[list-item]


def test_depths_beyond_all_labels_cost_nothing() -> None:
    predicted, values = top_labels(csr_array(_UNIT), 10**12)
    assert predicted.tolist() == [[0, -1, -1], [1, -1, -1], [2, -1, -1]] and values.shape == (3, 3)
    deep, least = 10**12, 1e-11
    assert 0 < precision_at_k(_RANKED, _GOLD, deep) < least and recall_at_k(_RANKED, _GOLD, deep) == 0.75
    assert ndcg_at_k(_RANKED, _GOLD, deep) == pytest.approx(ndcg_at_k(_RANKED, _GOLD, 2))
    weights = dict.fromkeys("abcd", 1.0)
    assert psp_at_k(_RANKED, _GOLD, weights, deep) == pytest.approx(2 / 3)


def test_a_calibrator_takes_rows_of_numbers_only(predictor: Predictor) -> None:
    calibrator = predictor.bundle.calibrator
    assert calibrator is not None
    for scores in ([[NAN, 0.1]], "text", None, 0.5, [["a"]]):
        with pytest.raises(EzxmcError, match="rows of numbers"):
            calibrator.transform(scores)
    with pytest.raises(EzxmcError, match="decision is"):
        predictor.predict(TEXTS, decision=0.5)  # type: ignore[arg-type]


def test_settings_are_finite() -> None:
    for wrong in (NAN, float("inf")):
        with pytest.raises(ValueError, match="finite"):
            BudgetConfig(max_hours=wrong)


def test_texts_and_titles_are_shortlisted(tiny_encoder: Path) -> None:
    found = ezxmc.shortlist(
        TEXTS, ["music", "cooking"], _encoder(tiny_encoder), ShortlistConfig(size=2, explore=0)
    )
    assert [one.doc_uid for one in found] == ["0", "1"] and {*found[0].labels} == {0, 1}


_CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from([pd.NA, np.float32(1), np.str_("soup"), np.array(["x"]), object()]),
)
_VALUES = st.recursive(
    _CELLS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["text", "title", "uid", "ID", 5, "price"]), inner, max_size=3),
        st.tuples(inner),
    ),
    max_leaves=6,
)


@given(values=st.one_of(_VALUES, st.lists(_VALUES, max_size=3)), k=_CELLS, threshold=_CELLS)
def test_any_value_is_tagged_or_refused(predictor: Predictor, values: Any, k: Any, threshold: Any) -> None:
    """No other error than ours, and no tag for nothing."""
    for options in ({}, {"k": k, "threshold": threshold}):
        try:
            found = predictor.predict(values, **options)
        except EzxmcError as error:
            assert error.cure
        else:
            assert len(found) == len(values) == len(as_documents(values))
            assert all(document.shown for document in as_documents(values))


def _encoder(folder: Path, known: list[BiEncoder] = []) -> BiEncoder:  # noqa: B006
    if not known:
        known.append(BiEncoder(folder))
    return known[0]


def _annotate(folder: Path, pairs: Any, teacher: Any = FakeTeacher()) -> Any:  # noqa: B008
    with ezxmc.FeedbackStore(folder / "feedback.sqlite") as store:
        return ezxmc.annotate(pairs, teacher, store)
