"""A bundle that changes: labels, calibrator, decision and index come and go; whoever is killed, it opens."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from support.heads import with_head
from support.tinyworld import label_rows

from ezxmc.bundle.bundle import (
    add_calibrator,
    add_decision,
    add_head,
    add_student_files,
    load_bundle,
    save_bundle,
)
from ezxmc.bundle.labels import Change, add_labels, rebuild_index, remove_labels
from ezxmc.bundle.predict import Predictor
from ezxmc.calibration import Calibrator, Isotonic
from ezxmc.calibration.decisions import Decision, Guarantee
from ezxmc.errors import BundleError, DataError
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]
NEW = [Label("l-fjord", "fjord 7"), Label("l-yeast", "yeast 9", "for bread", ("ferment",), "l-oven")]
CURVES = [Calibrator("teacher", 5, 100, Isotonic((0.0, 1.0), (0.1, top))) for top in (0.9, 0.8)]

PROMISED = Decision("missed_rate", 25, threshold=0.3, promise=Guarantee(0.2, 60))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """With label vectors that are not those of the titles, and not of unit length."""

    def refine(encoder: BiEncoder, vectors: np.ndarray) -> np.ndarray:
        return (vectors * np.linspace(1, 1.5, len(vectors))[:, None]).astype(np.float32)

    path = tmp_path_factory.mktemp("made") / "bundle"
    save_bundle(path, tiny_encoder, LABELS, max_length=32, k=4, refine=refine)
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def best(bundle: Path, text: str) -> str:
    return Predictor(bundle).predict([Document("d", "", text)], k=1)[0].labels[0]


def vector(bundle: Path, uid: str) -> np.ndarray:
    opened = load_bundle(bundle)
    return opened.index.vectors([opened.rows()[uid]])[0]


def test_new_labels_are_answered_from_their_titles_alone(bundle: Path) -> None:
    before, kept = load_bundle(bundle), vector(bundle, "l-rose")
    assert before.manifest.format == 2 and before.index.kind == "exact"
    assert best(bundle, "fjord 7") != "l-fjord"
    assert add_labels(bundle, NEW) == Change(added=2)
    after = load_bundle(bundle)
    assert after.labels == [*LABELS, *NEW] and after.manifest.labels == 27 == after.index.size
    assert {name: after.rows()[name] for name in before.rows()} == before.rows(), "rows are for good"
    title = after.encoder.encode_labels(["yeast 9"])[0]
    np.testing.assert_allclose(vector(bundle, "l-yeast"), title, atol=1e-6)
    np.testing.assert_array_equal(vector(bundle, "l-rose"), kept)
    scores, rows = after.index.search(title[None], 27)
    assert sorted(rows[0].tolist()) == list(range(27)) and "l-yeast" in {after.labels[r].uid for r in rows[0]}
    exact = after.index.vectors(np.arange(27)) @ title
    np.testing.assert_allclose(scores[0], np.sort(exact)[::-1], atol=1e-5)
    on_disk = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    assert on_disk == {*after.manifest.files, "manifest.json", ".lock"} and after.manifest.format == 2


def test_a_label_is_changed_by_its_uid(bundle: Path) -> None:
    refined = vector(bundle, "l-rose")
    same = [Label("l-rose", "rose", "a flower"), Label("l-boat", "boat")]
    assert add_labels(bundle, same) == Change(changed=2)
    np.testing.assert_array_equal(vector(bundle, "l-rose"), refined)
    opened = load_bundle(bundle)
    assert opened.labels[opened.rows()["l-rose"]].text == "a flower" and opened.index.total == 25
    assert add_labels(bundle, [Label("l-rose", "tulip 5"), NEW[0]]) == Change(added=1, changed=1)
    opened = load_bundle(bundle)
    assert opened.index.total == 27 and opened.index.size == 26 == len(opened.rows())
    assert opened.labels[opened.rows()["l-rose"]].title == "tulip 5"
    found = {uid for p in Predictor(opened).predict([Document("", "", "rose")], k=99) for uid in p.titles}
    assert "rose" not in found and "tulip 5" in found
    with pytest.raises(DataError, match="occurs twice"):
        add_labels(bundle, [NEW[0], NEW[0]])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([Label("rose", "rose")], "label 'rose', 'rose', is label 'l-rose'"),
        ([Label("l-rose ", "another")], "is label 'l-rose'"),
        ([Label("x", "two\ufeff  words"), Label("two words", "two words")], "is label 'x'"),
        ([Label("x", "a"), Label("x", "b")], "'x' occurs twice"),
    ],
)
def test_one_tag_is_not_there_under_two_uids(
    bundle: Path, tiny_encoder: Path, labels: list[Label], said: str
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=re.escape(said)):
        add_labels(bundle, labels)
    assert (bundle / "manifest.json").read_bytes() == before
    with pytest.raises(DataError, match=re.escape(said)):
        save_bundle(bundle.with_name("b"), tiny_encoder, [*LABELS, *labels], max_length=32, k=4)


def test_titles_may_be_shared_by_labels_with_uids_of_their_own(bundle: Path) -> None:
    assert add_labels(bundle, [Label("l-rose-2", "rose"), Label("l-oven", "stove")]).added == 1
    assert add_labels(bundle, [Label("l-boat", "ship"), Label("boat", "boat")]) == Change(added=1, changed=1)


def test_removed_labels_are_answered_no_more(bundle: Path) -> None:
    gone = best(bundle, "guitar melody")
    assert remove_labels(bundle, [gone, gone]) == Change(removed=1)
    opened = load_bundle(bundle)
    answers = Predictor(opened).predict([Document("", "", "guitar melody")], k=99)[0].labels
    assert len(answers) == 24 == opened.manifest.labels and gone not in answers
    with pytest.raises(DataError, match=rf"no label '{gone}'(.|\n)*labels list"):
        remove_labels(bundle, [gone])
    with pytest.raises(BundleError, match="no label left"):
        remove_labels(bundle, opened.rows())
    add_labels(bundle, [label for label in LABELS if label.uid == gone])
    assert set(load_bundle(bundle).rows()) == {label.uid for label in LABELS}


def test_a_rebuilt_index_answers_the_same(bundle: Path) -> None:
    add_labels(bundle, NEW)
    remove_labels(bundle, ["l-rose", "l-fjord"])
    documents = [Document(str(i), "", text) for i, text in enumerate(["rose", "yeast 9", "star comet"])]
    before = Predictor(bundle).predict(documents, k=99)
    index = rebuild_index(bundle)
    opened = load_bundle(bundle)
    assert index.size == index.total == 25 == len(opened.labels) and "25 labels" in opened.index.reason
    assert opened.manifest.index == opened.index.summary and "recall@25" in opened.index.summary
    after = Predictor(opened).predict(documents, k=99)
    assert [p.labels for p in after] == [p.labels for p in before]
    add_labels(bundle, NEW)
    assert load_bundle(bundle).index.size == 26


def test_calibrator_and_decision_come_and_are_replaced(bundle: Path) -> None:
    for curve in CURVES:
        add_calibrator(bundle, curve)
        assert load_bundle(bundle).calibrator == curve and load_bundle(bundle).decision is None
        for decision in (Decision.top_k(2), Decision.top_k(3)):
            add_decision(bundle, decision)
            assert load_bundle(bundle).decision == decision
    add_labels(bundle, NEW)
    opened = load_bundle(bundle)
    assert opened.calibrator == CURVES[1] and opened.decision == Decision.top_k(3).after(2)
    with pytest.raises(BundleError, match="no bundle"):
        add_calibrator(bundle / "student", CURVES[0])
    assert not (bundle / "student" / ".lock").exists()


def converted(bundle: Path, content: bytes = b"new") -> None:
    file = bundle / ".export-1"
    file.write_bytes(content)
    add_student_files(bundle, {"onnx/model.onnx": file})


def test_converted_students_come_and_are_replaced(bundle: Path) -> None:
    for content in (b"one", b"two"):
        converted(bundle, content)
        assert "student/onnx/model.onnx" in load_bundle(bundle).manifest.files
        assert (bundle / "student" / "onnx" / "model.onnx").read_bytes() == content
    (bundle / ".export-2").write_bytes(b"")
    for name in ("onnx/model.py", "../../model.onnx"):
        with pytest.raises(BundleError, match=r"may run code|no plain path"):
            add_student_files(bundle, {name: bundle / ".export-2"})
    assert (bundle / ".export-2").exists() and load_bundle(bundle).index.size == 25


class Killed(BaseException):
    """Stands for a signal that nothing survives."""


def test_a_promise_ends_with_the_labels_it_was_made_for_and_its_rule_goes_on(bundle: Path) -> None:
    add_calibrator(bundle, CURVES[0])
    add_decision(bundle, PROMISED)

    def decision() -> Decision:
        found = load_bundle(bundle).decision
        assert found is not None
        Predictor(bundle).predict(["rose"], decision=found)
        return found

    rebuild_index(bundle)
    add_labels(bundle, [Label("l-rose", "rose", "a flower")])
    assert decision() == PROMISED and "at most 20 %" in decision().guarantee
    add_labels(bundle, [*NEW, Label("l-boat", "ship")])
    assert decision() == PROMISED.after(3)
    assert (
        decision().guarantee.startswith("no rate is guaranteed any more")
        and decision().to_dict()["changed"] == 3
    )
    # Fewer labels are left than the rule looked at.
    remove_labels(bundle, [label.uid for label in [*LABELS[:5], *NEW]])
    assert decision() == replace(PROMISED, depth=20, changed=10)
    assert "(10 added, removed or renamed)" in decision().guarantee
    add_decision(bundle, replace(PROMISED, depth=20))
    assert decision().changed == 0


def test_a_rule_of_an_earlier_release_that_looks_too_deep_looks_at_all_there_are(bundle: Path) -> None:
    """Those did not mark it when labels went."""
    add_calibrator(bundle, CURVES[0])
    for deep in (replace(PROMISED, depth=30), Decision.top_k(30)):
        add_decision(bundle, deep)
        found = load_bundle(bundle).decision
        assert found is not None and found.depth == 25 and found.changed == 5
        assert len(Predictor(bundle).predict(["rose"], decision=found)[0].labels) <= 25


def killing(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Die at the step numbered `after` that touches the disk; a writer dies with half a file."""
    left: Iterator[int] = iter(range(after))

    def dying(owner: Any, name: str, *, half: Callable[..., Path] | None = None) -> None:
        plain = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                if half:
                    half(*arguments).write_bytes(b"half")
                raise Killed
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, step)

    import ezxmc.bundle.bundle
    import ezxmc.bundle.manifest
    from ezxmc.retrieval import LabelIndex

    dying(ezxmc.bundle.bundle, "write_labels", half=lambda file, labels: file)
    dying(LabelIndex, "save", half=lambda index, file: file)
    dying(LabelIndex, "save_changes", half=lambda index, file: file)
    dying(Calibrator, "save", half=lambda curve, file: file)
    dying(Decision, "save", half=lambda decision, file: file)
    dying(ezxmc.bundle.manifest, "hashes")
    dying(Path, "replace")
    dying(Path, "unlink")


CHANGES: dict[str, Callable[[Path], object]] = {
    "add": lambda path: add_labels(path, NEW),
    "remove": lambda path: remove_labels(path, ["l-rose"]),
    "rebuild": rebuild_index,
    "calibrate": lambda path: add_calibrator(path, CURVES[1]),
    "convert": converted,
}


def state(path: Path) -> tuple[Any, ...]:
    opened = load_bundle(path)
    curve = opened.calibrator and opened.calibrator.to_dict()
    return sorted(opened.rows()), opened.index.total, curve, opened.decision, len(opened.manifest.files)


@pytest.mark.filterwarnings("ignore:bundle .* not part of it")
@pytest.mark.parametrize("change", CHANGES)
def test_a_killed_change_leaves_the_former_bundle_or_the_new_one(
    bundle: Path, tmp_path: Path, change: str
) -> None:
    if change != "add":  # which is tried on a bundle as it was made
        add_labels(bundle, [Label("l-extra", "extra 1")])
        remove_labels(bundle, ["l-boat"])
        add_calibrator(bundle, CURVES[0])
        add_decision(bundle, PROMISED)
    done = tmp_path / "done"
    shutil.copytree(bundle, done)
    CHANGES[change](done)
    former, new = state(bundle), state(done)
    assert former != new
    seen = []
    for after in range(60):
        place = tmp_path / f"killed-{after}"
        shutil.copytree(bundle, place)
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, after)
            try:
                CHANGES[change](place)
            except Killed:
                finished = False
            else:
                finished = True
        found = state(place)
        assert found in (former, new)
        seen.append(found == new)
        if finished:
            break
        if found == former:
            CHANGES[change](place)
            assert state(place) == new and not load_bundle(place).strays, "the next writer cleans up"
    assert finished and seen == sorted(seen) and seen[-1] and not seen[0]


def test_a_folder_replaced_while_it_is_read_is_read_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ezxmc.bundle.bundle as module

    plain, calls = module.check_files, 0

    def check(path: Path, manifest: Any, **options: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            monkeypatch.setattr(module, "check_files", plain)
            add_labels(bundle, NEW)
        return plain(path, manifest, **options)

    monkeypatch.setattr(module, "check_files", check)
    assert "l-fjord" in load_bundle(bundle).rows()


def test_one_writer_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ezxmc.bundle.manifest._PATIENCE", 0.05)
    with FileLock(bundle / ".lock"), pytest.raises(BundleError, match="another process"):
        add_labels(bundle, NEW)
    assert load_bundle(bundle).index.size == 25


def test_a_bundle_that_is_replaced_while_another_waits_for_it_is_changed_in_its_new_form(
    bundle: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ezxmc labels add` beside a run that writes its bundle anew."""
    acquire, waiting = FileLock.acquire, threading.Event()
    errors: list[BaseException] = []

    def told(lock: FileLock, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is other:
            waiting.set()
        return acquire(lock, *arguments, **options)

    def add() -> None:
        try:
            add_labels(bundle, NEW)
        except BaseException as error:
            errors.append(error)

    def write(encoder: BiEncoder, path: Path) -> None:
        other.start()
        assert waiting.wait(60)
        plain(encoder, path)

    other, plain = threading.Thread(target=add), BiEncoder.write
    monkeypatch.setattr(FileLock, "acquire", told)
    monkeypatch.setattr(BiEncoder, "write", write)
    save_bundle(bundle, tiny_encoder, LABELS[:20], max_length=32, k=4)
    other.join()
    assert errors == []
    assert load_bundle(bundle).rows().keys() == {label.uid for label in [*LABELS[:20], *NEW]}


def test_a_new_bundle_waits_for_who_changes_the_former_one(
    bundle: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.bundle.manifest._PATIENCE", 0.05)
    with FileLock(bundle / ".lock"), pytest.raises(BundleError, match="another process"):
        save_bundle(bundle, tiny_encoder, LABELS[:20], max_length=32, k=4)
    assert load_bundle(bundle).index.size == 25


@pytest.mark.parametrize("verify", [True, False])
def test_files_that_go_while_a_bundle_is_opened_are_looked_for_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    """Another process commits after the check and before the reading."""
    import ezxmc.bundle.bundle as module

    plain, count = module.read_labels, iter(range(2))

    def read(file: Path) -> list[Label]:
        if next(count, None) == 0:
            monkeypatch.setattr(module, "read_labels", plain)
            add_labels(bundle, NEW)
            monkeypatch.setattr(module, "read_labels", read)
        return plain(file)

    monkeypatch.setattr(module, "read_labels", read)
    assert "l-fjord" in load_bundle(bundle, verify=verify).rows()


def test_a_bundle_that_is_replaced_while_it_is_opened_is_never_half_of_each(
    bundle: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ezxmc.bundle.bundle as module

    # Of the same labels, so that no size tells.
    turned = [LABELS[-1], *LABELS[:-1]]
    plain, done = module.read_labels, list[bool]()

    def read(file: Path) -> list[Label]:
        found = plain(file)
        if not done:
            done.append(True)
            save_bundle(bundle, tiny_encoder, turned, max_length=32, k=4)
        return found

    monkeypatch.setattr(module, "read_labels", read)
    assert load_bundle(bundle).labels == turned


def test_a_bundle_that_cannot_be_read_is_an_error_with_a_cure(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: Path) -> list[Label]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ezxmc.bundle.bundle.read_labels", failing)
    with pytest.raises(BundleError, match=r"Input/output error(.|\n)*cure"):
        load_bundle(bundle)


def test_a_full_disk_is_an_error_with_a_cure(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ezxmc.bundle.labels.write_labels", full)
    with pytest.raises(BundleError, match=r"No space left(.|\n)*cure"):
        add_labels(bundle, NEW)
    monkeypatch.undo()
    assert load_bundle(bundle).index.size == 25


def scored(bundle: Path, text: str = "rose and soil") -> dict[str, float]:
    found = Predictor(bundle).predict([text], k=40)[0]
    return dict(zip(found.labels, found.scores, strict=True))


def test_a_head_voids_what_was_fitted_without_it(bundle: Path) -> None:
    add_calibrator(bundle, CURVES[0])
    add_decision(bundle, Decision("expected_document_f1", 3))
    before = scored(bundle)
    with_head(bundle)
    opened = load_bundle(bundle)
    assert opened.head is not None and opened.calibrator is None and opened.decision is None
    assert opened.manifest.format == 3 and opened.manifest.files["head.safetensors"]
    assert scored(bundle) == pytest.approx({uid: -score for uid, score in before.items()}, abs=1e-5)
    with_head(bundle)
    assert load_bundle(bundle).manifest.holding(["head.safetensors"]) == ["head.r1.safetensors"]
    assert not (bundle / "head.safetensors").exists()


def test_labels_come_and_go_beside_a_head(bundle: Path) -> None:
    """Who is new or changed has no row in the head: the bi-encoder ranks it; the others stay as they were."""
    before = scored(bundle)
    with_head(bundle)
    add_labels(bundle, [*NEW, Label("l-rose", "rosebush")])
    remove_labels(bundle, ["l-soup"])
    opened = load_bundle(bundle)
    assert opened.head is not None and len(opened.head.rows) == 23
    found = scored(bundle)
    assert found.keys() == (before.keys() | {"l-fjord", "l-yeast"}) - {"l-soup"}
    query = opened.encoder.encode_documents(["rose and soil"])[0]
    for uid in ("l-fjord", "l-yeast", "l-rose"):
        assert found[uid] == pytest.approx(float(vector(bundle, uid) @ query), abs=1e-5)
    for uid in before.keys() - {"l-rose", "l-soup"}:
        assert found[uid] == pytest.approx(-before[uid], abs=1e-5)
    rebuild_index(bundle)
    assert load_bundle(bundle).index.total == 26 and scored(bundle) == pytest.approx(found, abs=1e-5)


def test_a_head_is_checked_when_the_bundle_is_opened(bundle: Path) -> None:
    head = with_head(bundle)
    add_head(bundle, replace(head, rows=head.rows + 1))
    with pytest.raises(BundleError, match="the index has"):
        load_bundle(bundle)
    file = bundle / "head.r1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="not the file the manifest describes"):
        load_bundle(bundle)
