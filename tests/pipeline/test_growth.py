"""What has changed in a catalog, and how one folder takes another's place."""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.fakes import FakeTeacher

import ezxmc.disk as disk
import ezxmc.pipeline.rundir as growth_history
from ezxmc.bundle.manifest import Manifest, read_manifest
from ezxmc.config import RunConfig
from ezxmc.data import Catalog, RowReport
from ezxmc.data.catalog import parts
from ezxmc.disk import exchange
from ezxmc.errors import DataError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import context_of
from ezxmc.pipeline.rundir import History, RunDir
from ezxmc.pipeline.snapshot import Changes, Snapshot
from ezxmc.pipeline.update_pairs import PRIORS, select
from ezxmc.pipeline.update_steps import CatalogChange, known_judgments
from ezxmc.records import Document, Judgment, Label, Pair, Status
from ezxmc.retrieval import BiEncoder


def catalog(documents: dict[str, str], labels: dict[str, str]) -> Catalog:
    docs = [Document(uid, "", text) for uid, text in documents.items()]
    tags = [Label(uid, title) for uid, title in labels.items()]
    return Catalog(docs, tags, {}, list(range(len(docs))), [], [], RowReport(), RowReport(), None)


def seen(now: Catalog, former: Snapshot | None = None) -> Snapshot:
    return Snapshot.of(now, 0, 0.2, former)


OLD = catalog({"a": "apple", "b": "pear", "c": "plum", "d": "fig"}, {"x": "red", "y": "green", "z": "blue"})


def test_every_kind_of_change_is_told_apart() -> None:
    now = catalog(
        {"d": "fig", "a": "apple pie", "q": "pear", "n": "nut"},
        {"z": "blue", "y": "dark green", "r": "red", "w": "white"},
    )
    now.labels[0] = replace(now.labels[0], text="a colour")
    found = Changes.between(seen(OLD), now)
    uids = [[now.documents[i].uid for i in rows] for rows in (found.new, found.edited, found.moved)]
    assert uids == [["n"], ["a"], ["q"]] and found.gone == ["c"]
    parts = (found.new_labels, found.renamed_labels, found.described_labels, found.moved_labels)
    assert [[now.labels[i].uid for i in rows] for rows in parts] == [["w"], ["y"], ["z"], ["r"]]
    assert found.gone_labels == [] and found.any
    assert sum(found.counts().values()) == 8


class AnyEncoder:
    """Vectors that say nothing, the same for the same text."""

    def encode_documents(self, texts: Sequence[str], progress: Any = None) -> NDArray[np.float32]:
        seeds = [zlib.crc32(text.encode()) for text in texts]
        found = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds], dtype=np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))

    encode_labels = encode_documents


def test_a_limit_pays_for_the_priors_of_whole_labels_and_the_next_update_for_the_rest() -> None:
    documents = {f"d{i}": f"document {i}" for i in range(60)}
    old = {f"l{i}": f"old {i}" for i in range(40)}
    now = catalog(documents, old | {f"n{i}": f"new {i}" for i in range(6)})
    config = RunConfig.model_validate(
        {
            "data": {"documents": "documents.jsonl", "labels": "labels.jsonl"},
            "shortlist": {"size": 5, "explore": 1, "lexical": False},
        }
    )
    asked_on = [f"d{i}" for i in (3, 14, 15, 9)]

    def judged(docs: Iterable[str], labels: Iterable[str]) -> list[Judgment]:
        pairs = itertools.product(docs, labels)
        return [Judgment(f"{doc} {label}", doc, label, Status.OK, 0.0, 1.0) for doc, label in pairs]

    known = judged(asked_on, old) + judged(["d20", "d21"], ["l1", "l2", "l3"])

    def selected(known: list[Judgment], former: Catalog, limit: int | None) -> dict[str, set[str]]:
        changes = Changes.between(seen(former), now)
        found = select(config, now, changes, cast(BiEncoder, AnyEncoder()), known, (), limit)
        assert limit is None or sum(found.counts().values()) <= limit
        pairs = [(i, row) for rows in found.parts.values() for i, labels in enumerate(rows) for row in labels]
        assert len(pairs) == len(set(pairs)), "a pair stands twice"
        priors = enumerate(found.parts[PRIORS])
        return {now.documents[i].uid: {now.labels[row].uid for row in rows} for i, rows in priors if rows}

    def on(labels: set[str]) -> dict[str, set[str]]:
        return {uid: labels for uid in asked_on}

    first = catalog(documents, old)
    new = {f"n{i}" for i in range(6)}
    assert selected(known, first, None) == on(new)
    # A quarter of the limit pays for 3 of the 6 labels on the 4 documents.
    part = selected(known, first, 55)
    assert part == on({"n0", "n1", "n2"})
    after = known + judged(asked_on, ["n0", "n1", "n2"])
    assert {(j.doc_uid, j.label_uid) for j in context_of(after, 46)} == {
        (doc, label) for doc in asked_on for label in [*old, "n0", "n1", "n2"]
    }
    # Next time these labels are not new.
    later = catalog(dict(list(documents.items())[:50]), old | {f"n{i}": f"new {i}" for i in range(6)})
    assert selected(after, later, None) == on({"n3", "n4", "n5"})


texts = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), st.sampled_from(["one", "two", "three"]), max_size=6
)


@given(texts, texts, texts, texts)
def test_any_two_catalogs_account_for_every_row(
    documents: dict[str, str],
    labels: dict[str, str],
    documents_now: dict[str, str],
    labels_now: dict[str, str],
) -> None:
    former, now = seen(catalog(documents, labels)), catalog(documents_now, labels_now)
    found = Changes.between(former, now)
    same = {uid for uid in documents_now if documents.get(uid) == documents_now[uid]}
    changed = [now.documents[i].uid for i in (*found.new, *found.edited, *found.moved)]
    assert len(changed) == len(set(changed)) and set(changed) == documents_now.keys() - same
    assert set(found.gone) == {
        uid
        for uid, text in documents.items()
        if uid not in documents_now and text not in documents_now.values()
    }
    assert not Changes.between(seen(now), now).any
    assert Changes.between(former, catalog(documents, labels)).any is False


@given(texts, texts)
def test_a_snapshot_survives_its_file(documents: dict[str, str], labels: dict[str, str]) -> None:
    import tempfile

    former = seen(catalog(documents, labels))
    now = catalog({f"{uid}!": text for uid, text in documents.items()}, labels)
    now.placed_by.update({f"{uid}!": uid for uid in list(documents)[1:]})
    renamed = seen(now, former)
    with tempfile.TemporaryDirectory() as folder:
        place = RunDir(folder)
        place.write_lines(Path(folder, "catalog.jsonl"), renamed.rows())
        assert Snapshot.load(Path(folder, "catalog.jsonl")) == renamed


def test_only_a_text_that_served_another_part_is_in_doubt() -> None:
    train, select, calibrate = (
        [uid for uid, part in parts([f"d{i}" for i in range(90)], 0.5, 0).items() if part == wanted]
        for wanted in range(3)
    )
    here, there, moved = calibrate[:3]
    known = {here: "one", train[0]: "one", there: "two", "twin": "two", moved: "three", select[0]: "three"}
    former = Snapshot.of(catalog(known, {"x": "red"}), 0, 0.5)
    former.placed_by["twin"] = there
    now = Snapshot.of(catalog({here: "one", there: "two", moved: "three"}, {"x": "red"}), 0, 0.5, former)
    assert set(now.also) == {here, there, moved}
    grown = CatalogChange(former, now, Changes.between(former, catalog({}, {})))
    assert grown.elsewhere == {here, moved}


@pytest.mark.parametrize(
    "text", ["", "{}\n", '{"seed": 0, "held_out": 0.1}\n{"document": "a"}\n', "[1]\n", "\x00"]
)
def test_a_damaged_snapshot_is_an_error_with_a_cure(tmp_path: Path, text: str) -> None:
    (tmp_path / "catalog.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"damaged[\s\S]*cure"):
        Snapshot.load(tmp_path / "catalog.jsonl")


def test_judgments_are_found_under_whatever_uid_they_were_asked(tmp_path: Path) -> None:
    teacher = FakeTeacher()
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        every = [Pair(document, label) for document in OLD.documents for label in OLD.labels]
        store.append(store.open_session(teacher.fingerprint, {}), list(teacher.score(every)), 1.0)
        once = catalog({"A": "apple", "b": "pear now", "c": "plum"}, {"X": "red", "y": "green", "z": "navy"})
        first = seen(once, seen(OLD))
        # Once more under other uids: what was asked under the first ones still counts.
        twice = catalog({"AA": "apple", "C": "plum"}, {"XX": "red", "y": "green"})
        found = {(j.doc_uid, j.label_uid) for j in known_judgments(once, first, teacher, store)}
        assert found == {(doc, label) for doc in ("A", "c") for label in ("X", "y")}
        found = {(j.doc_uid, j.label_uid) for j in known_judgments(twice, seen(twice, first), teacher, store)}
        assert found == {(doc, label) for doc in ("AA", "C") for label in ("XX", "y")}


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(content)
    return path


def test_who_looks_while_folders_change_places_always_finds_one(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    stop, missing = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                (other / "manifest.json").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(501):
        exchange(one, other)
    stop.set()
    watcher.join()
    assert missing == []
    assert (other / "manifest.json").read_text() == "1" and (one / "manifest.json").read_text() == "2"


def test_where_the_system_cannot_exchange_they_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    monkeypatch.setattr(disk.ctypes, "CDLL", lambda name: object())
    exchange(one, other)
    assert (other / "manifest.json").read_text() == "1" and (one / "manifest.json").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


@pytest.mark.parametrize("killed", ["before", "exchange", "rename", "unlink", "remove_own"])
def test_killed_while_it_is_put_in_place_the_next_one_finishes(
    tmp_path: Path, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    manifest = Manifest(
        format=2, created="former", versions={}, labels=1, dimension=1, max_length=1, k=1, origin={}, files={}
    )
    folder(tmp_path / "bundle", manifest.model_dump_json())
    (tmp_path / "predictions.jsonl").write_text("former")
    history = History(run)
    update = history.open()
    assert update.path.name == "0001"
    folder(update.path / "bundle", manifest.model_copy(update={"created": "new"}).model_dump_json())
    (update.path / "predictions.jsonl").write_text("new")
    (update.path / "report.json").write_text("{}")

    said: list[str] = []

    class KilledError(Exception):
        pass

    def kill(*args: object, **options: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        targets = {
            "before": (History, "_install"),
            "exchange": (growth_history, "exchange"),
            "remove_own": (growth_history, "remove_own"),
        }
        patch.setattr(*targets.get(killed, (Path, killed)), kill)
        with pytest.raises(KilledError):
            history.complete(update, manifest)
    assert read_manifest(tmp_path / "bundle").created in ("former", "new")
    assert history.reports == []
    history.finish_pending(said.append)
    assert read_manifest(tmp_path / "bundle").created == "new"
    assert (tmp_path / "predictions.jsonl").read_text() == "new"
    assert read_manifest(update.path / "former").created == "former"
    assert history.reports == [update.path / "report.json"]
    history.finish_pending(said.append)
    assert read_manifest(tmp_path / "bundle").created == "new"
    assert history.open().path.name == "0002" and said == []
