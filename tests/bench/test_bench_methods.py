"""The bench of methods: every method runs, none learns from what is reported on, figures add up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import baselines as dense
import contrastive
import methods as bench
import numpy as np
import pytest
import torch
import typer
from benchmark import Benchmark, difference, human_equivalent, load_benchmark
from contrastive import fit, info_nce
from methods import METHODS
from support.tinyworld import TOPIC_OF, label_rows, topical, write_catalog, write_rows
from task import Task
from typer.testing import CliRunner

from ezxmc.config import TrainingConfig
from ezxmc.data import read_documents, split_documents
from ezxmc.errors import ConfigError, DataError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import judgment_key
from ezxmc.progress import NoProgress
from ezxmc.records import Document, Judgment, Label, Pair, Status
from ezxmc.retrieval import BiEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

SHARE = 0.3
LABELS = [Label(row["uid"], row["title"]) for row in label_rows()]
EVERYWHERE = ("d7", "d8")  # judged on all labels


def judgment_rows(documents: Sequence[Document], size: int = 6) -> list[dict[str, Any]]:
    """The tests' teacher on `size` labels a document, half of them right."""
    rows = []
    for document in documents:
        scored = {label.uid: topical(Pair(document, label)) for label in LABELS}
        order = sorted(scored, key=lambda uid: -scored[uid])
        asked = order if document.uid in EVERYWHERE else order[:3] + order[-(size - 3) :]
        rows += [{"doc": document.uid, "label": uid, "log_odds": scored[uid], "mass": 0.9} for uid in asked]
    return rows


@pytest.fixture
def world(tmp_path: Path, tiny_encoder: Path) -> Path:
    """A catalog with judgments.jsonl (documents outside the report share) and report.jsonl (inside)."""
    write_catalog(tmp_path, tiny_encoder, documents=90)
    documents, _ = read_documents(tmp_path / "documents.jsonl")
    apart = set(split_documents([document.uid for document in documents], SHARE, 0)[1])
    assert not apart & set(EVERYWHERE)
    outside = [document for document in documents if document.uid not in apart]
    write_rows(tmp_path / "judgments.jsonl", judgment_rows(outside[:40]))
    inside = [document for document in documents if document.uid in apart]
    write_rows(tmp_path / "report.jsonl", judgment_rows(inside[:-2]))
    return tmp_path


def loaded(world: Path, encoder: Path, **changes: Any) -> Benchmark:
    given: dict[str, Any] = {
        "proposer": None,
        "report": None,
        "judgments": world / "judgments.jsonl",
        "report_judgments": world / "report.jsonl",
        "config": TrainingConfig(encoder=str(encoder), epochs=1),
        "report_share": SHARE,
        "propensity": (0.55, 1.5),
        "watch": NoProgress(),
    }
    paths = [str(world / name) for name in ("documents.jsonl", "labels.jsonl", "gold.tsv")]
    return load_benchmark(*paths, **{**given, **changes})


def run_command(world: Path, encoder: Path, *options: object) -> Any:
    app = typer.Typer()
    app.command()(bench.methods)
    paths = [world / name for name in ("documents.jsonl", "labels.jsonl", "gold.tsv")]
    common = ["--judgments", world / "judgments.jsonl", "--report-share", SHARE, "--encoder", encoder]
    done = CliRunner().invoke(app, [str(x) for x in (*paths, *common, *options)])
    assert done.exit_code == 0, f"{done.output}\n{done.exception}"
    return done


def test_every_method_runs_through_the_command_line(world: Path, tiny_encoder: Path) -> None:
    options = ("--report-judgments", world / "report.jsonl", "--seeds", 2, "--labelled", "10,9999")
    done = run_command(
        world,
        tiny_encoder,
        *options,
        "--judgments-at",
        60,
        "--pairs-per-second",
        10,
        "--out",
        world / "o.json",
        "--json",
    )
    found = json.loads(done.stdout)
    names = {
        *METHODS,
        "supervised@10",
        "student@60",
        "lmtx@60",
        "lmtx4@60",
        "lmtx-small@60",
        "student-titles@60",
    }
    assert set(found["methods"]) == names and set(found["skipped"]) == {"supervised@9999"}
    for name, row in found["methods"].items():
        method = METHODS[name.partition("@")[0]]
        assert row["seeds"] == (2 if method.seeded or "@" in name else 1), name
        assert all(0 <= value <= 1 for value in row["mean"].values())
        assert set(row["mean"]) >= {"P@1", "P@3", "P@5", "R@5", "R@10", "R@50", "nDCG@5", "PSP@5"}
        assert bool(row["spread"]) == (row["seeds"] == 2)
    assert found["methods"]["student@60"]["judgments"] == 60
    assert found["methods"]["student@60"]["teacher_minutes"] == pytest.approx(0.1)
    assert found["methods"]["supervised@10"]["labelled_documents"] == 10
    # The teacher's rule is the gold rule: its own ranking starts with three right labels of five.
    assert found["methods"]["teacher"]["mean"]["P@3"] == 1.0
    left_out = (
        found["catalog"]["documents reported on"] - found["student_minus"]["teacher"]["P@1"]["documents"]
    )
    assert left_out == 2
    assert set(found["human_equivalent"]) == {
        name for name in names if METHODS[name.partition("@")[0]].needs
    } - {
        "supervised",
        "supervised@10",
    }
    shown = run_command(
        world, tiny_encoder, *options, "--out", world / "o.json", "--methods", "untrained,lmtx,student"
    )
    assert "student minus" in shown.stdout


def test_finished_runs_are_not_run_again(
    world: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ran = world / "out" / "o.json", []

    def counting(name: str) -> Callable[[Task, int], Any]:
        def rank(task: Task, seed: int) -> Any:
            ran.append((name, seed))
            if name == "rts" and seed == 1 and len(ran) < 4:
                raise KeyboardInterrupt
            return [[0, 1]] * len(task.report)

        return rank

    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, replace(method, rank=counting(name)))

    def run(benchmark: Benchmark, seeds: int = 2) -> list[bench.Result]:
        return bench.run_methods(
            benchmark, ["untrained", "rts", "lmtx"], seeds=seeds, out=out, watch=NoProgress()
        )[0]

    benchmark = loaded(world, tiny_encoder)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark)
    assert ran == [("untrained", 0), ("rts", 0), ("rts", 1)]
    ran.clear()
    ran += [("", 0)] * 3
    assert [len(result.runs) for result in run(benchmark)] == [1, 2, 2]
    assert ran[3:] == [("rts", 1), ("lmtx", 0), ("lmtx", 1)]
    assert [len(result.runs) for result in run(benchmark, seeds=1)] == [1, 1, 1]
    assert [len(result.runs) for result in run(benchmark)] == [1, 2, 2]
    assert len(ran) == 6
    # Another answer voids what was fed by judgments, and nothing else.
    rows = judgment_rows([])
    rows = [json.loads(line) for line in (world / "judgments.jsonl").read_text().splitlines()]
    rows[0]["log_odds"] += 1
    write_rows(world / "judgments.jsonl", rows)
    run(loaded(world, tiny_encoder))
    assert ran[6:] == [("lmtx", 0), ("lmtx", 1)]
    out.write_text("{}")
    with pytest.raises(DataError, match="holds no results"):
        run(benchmark)


def test_no_report_document_is_judged_or_trained_on(
    world: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    ranking_now: list[bool] = []
    features, encode = BiEncoder.features, BiEncoder.encode

    def spy(self: BiEncoder, texts: Sequence[str]) -> dict[str, Any]:
        if not ranking_now:
            seen.extend(texts)
        return features(self, texts)

    def without_gradient(self: BiEncoder, texts: Sequence[str], progress: Any) -> Any:
        ranking_now.append(True)
        try:
            return encode(self, texts, progress)
        finally:
            ranking_now.pop()

    monkeypatch.setattr(BiEncoder, "features", spy)
    monkeypatch.setattr(BiEncoder, "encode", without_gradient)
    # A judged document of the report share is not reported on.
    documents, _ = read_documents(world / "documents.jsonl")
    inside = split_documents([document.uid for document in documents], SHARE, 0)[1]
    judged = next(document for document in documents if document.uid == inside[0])
    rows = [json.loads(line) for line in (world / "judgments.jsonl").read_text().splitlines()]
    write_rows(world / "judgments.jsonl", [*rows, *judgment_rows([judged])])
    task = loaded(world, tiny_encoder).task
    report = {document.uid for document in task.report}
    assert report == set(inside[1:])
    for part in (task.judgments, task.context):
        assert part and not report & {judgment.doc_uid for judgment in part}
    assert {judgment.doc_uid for judgment in task.context} == set(EVERYWHERE)
    assert not report & (task.gold.keys() | {document.uid for document in task.rest})
    assert {judgment.doc_uid for judgment in task.report_judgments} < report
    numbers = {uid[1:] for uid in report}  # each title ends with its document's number
    trained = {name: METHODS[name] for name in ("student", "lmtx", "lmtx4", "lmtx-small", "rts", "maclr")}
    for name, method in trained.items():
        seen.clear()
        ranking = method.rank(task, 0)
        assert len(ranking) == len(report), name
        words = {word for text in seen for word in re.findall(r"\w+", text)}
        assert len(words & {str(n) for n in range(90)}) > 10, name
        assert not words & numbers, name


def test_supervised_learns_what_can_be_learned(world: Path, tiny_encoder: Path) -> None:
    benchmark = loaded(world, tiny_encoder, judgments=None)
    results, skipped = bench.run_methods(
        benchmark,
        ["untrained", "supervised@15", "supervised", "student", "teacher"],
        seeds=2,
        out=None,
        watch=NoProgress(),
    )
    quality = {result.name: result.mean["P@5"] for result in results}
    # The topic's name is in every text, so that a linear model can be perfect.
    assert quality["supervised"] == 1.0
    assert quality["untrained"] < 0.6 < quality["supervised@15"]
    assert set(skipped) == {"student"}  # without judgments; the teacher has those of the report part


def test_judgments_come_from_stores_too(world: Path, tiny_encoder: Path) -> None:
    task = loaded(world, tiny_encoder).task
    documents, _ = read_documents(world / "documents.jsonl")
    shown = {document.uid: document.shown for document in documents}
    shown |= {label.uid: label.title for label in task.labels}
    with FeedbackStore(world / "feedback.sqlite") as store:
        session = store.open_session("f" * 64, {})
        store.append(
            session,
            [
                replace(
                    judgment, key=judgment_key("f" * 64, shown[judgment.doc_uid], shown[judgment.label_uid])
                )
                for judgment in (*task.judgments, *task.context)
            ],
            seconds=30.0,
        )
    other = loaded(world, tiny_encoder, judgments=world / "feedback.sqlite")
    assert other.hashes == loaded(world, tiny_encoder).hashes
    total = len(task.judgments) + len(task.context)
    assert other.seconds_per_judgment == pytest.approx(30 / total)
    with pytest.raises(DataError, match="no judgments at"):
        loaded(world, tiny_encoder, judgments=world / "absent.sqlite")


def test_fewer_judgments_pay_for_priors_first(world: Path, tiny_encoder: Path) -> None:
    task = loaded(world, tiny_encoder).task
    few = task.with_judgments(60, 0, priors=True)
    assert len(few.judgments) == 60 and not few.context  # 2 x 25 would be more than half of 10
    more = task.with_judgments(200, 0, priors=True)
    assert (len(more.judgments), len(more.context)) == (150, 50)
    without = task.with_judgments(200, 0, priors=False)
    assert (len(without.judgments), len(without.context)) == (200, 0)
    # Document by document: all but the last one are complete, and a smaller budget is a part of a larger.
    given = [judgment.doc_uid for judgment in more.judgments]
    whole = [judgment.doc_uid for judgment in task.judgments]
    cut = given[-1]
    assert all(given.count(uid) == whole.count(uid) for uid in set(given) - {cut})
    assert set(few.judgments) < set(more.judgments)
    with pytest.raises(DataError, match="more than"):
        task.with_judgments(10_000, 0, priors=True)


def test_a_part_of_the_training_documents_is_set_apart_for_every_seed(
    world: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[tuple[set[str], set[str]]] = []

    def train(documents: Any, labels: Any, targets: Any, config: Any, out: Path, **how: Any) -> None:
        caught.append(({d.uid for d in documents}, {d.uid for d in how["held_out"]}))
        BiEncoder(tiny_encoder).save(out)

    monkeypatch.setattr(dense, "train_bi_encoder", train)
    task = loaded(world, tiny_encoder).task
    judged = {judgment.doc_uid for judgment in task.judgments}
    for seed in range(3):
        METHODS["student"].rank(task, seed)
        METHODS["student"].rank(task.with_judgments(90, seed, priors=False), seed)
        assert 3 <= len(task.set_apart(list(task.gold), 0.2, seed)) <= len(task.gold) / 2
    for number, (learned, apart) in enumerate(caught):
        assert learned and not learned & apart
        assert learned | apart == judged or number % 2
    assert all(apart for _, apart in caught[::2])


@pytest.mark.parametrize("name", ["nothing", "untrained@10", "student@0", "student@x", "teacher@5"])
def test_unknown_methods_are_refused(name: str, world: Path, tiny_encoder: Path) -> None:
    with pytest.raises(ConfigError, match="no method"):
        bench.run_methods(loaded(world, tiny_encoder), [name], seeds=1, out=None, watch=NoProgress())


def test_lmtx_loss_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 16):
        scores = rng.uniform(-0.2, 0.9, (size, size))
        own = rng.random((size, size)) < 0.2
        np.fill_diagonal(own, True)
        total = 0.0
        for i in range(size):
            hardest = sorted((-10.0 if own[i, j] else scores[i, j] for j in range(size)), reverse=True)[:10]
            costs = [max(0.0, s - scores[i, i] + 0.3) for s in hardest]
            exponents = [math.exp(s / 0.1 if cost else 0.0) for s, cost in zip(hardest, costs, strict=True)]
            total += sum(c * e for c, e in zip(costs, exponents, strict=True)) / sum(exponents) / len(hardest)
        found = contrastive.triplet_ohnm(torch.from_numpy(scores), torch.from_numpy(own))
        assert float(found) == pytest.approx(total / size)


def test_each_published_method_has_its_own_rate(
    world: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(contrastive, "fit", lambda *_, learning_rate, **how: rates.append(learning_rate))
    task = loaded(world, tiny_encoder).task
    for name in ("maclr", "rts", "lmtx", "lmtx-small"):
        METHODS[name].rank(task, 0)
    assert rates == [1e-5, 1e-5, 2e-5, 2e-4, 1e-4]  # MACLR has two stages


def test_lmtx_draws_uncorrected_positives(
    world: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(
        contrastive, "fit", lambda encoder, batches, loss, **how: caught.append((list(batches), how))
    )
    task = loaded(world, tiny_encoder).task
    METHODS["lmtx4"].rank(task, 0)
    (batches, how), titles = caught[0], {label.uid: label.title for label in LABELS}
    yes = {
        (judgment.doc_uid, titles[judgment.label_uid])
        for judgment in task.judgments
        if judgment.log_odds is not None and judgment.log_odds > 0
    }
    uid_of = {document.shown: document.uid for document in task.rest}
    assert how["steps"] == len(batches) == 4 and how["warm_up"] == 2 and how["learning_rate"] == 2e-4
    drawn = set()
    for documents, labels, own in batches:
        assert {uid_of[text] for text in documents} == {uid for uid, _ in yes}
        for i, text in enumerate(documents):
            assert (uid_of[text], labels[i]) in yes
            assert own[i].tolist() == [(uid_of[text], label) in yes for label in labels]
            drawn.add((text, labels[i]))
    assert len(drawn) > len(uid_of.keys() & {text for text, _ in drawn})  # another one in another epoch


def test_info_nce_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    scores, positives, ignored = rng.normal(size=(5, 7)), rng.random((5, 7)) < 0.3, rng.random((5, 7)) < 0.2
    positives[:, 0], ignored = True, ignored & ~positives
    ignored[:, 0] = False
    expected = []
    for i in range(5):
        below = math.log(sum(math.exp(scores[i, j] / 0.05) for j in range(7) if not ignored[i, j]))
        expected.append(np.mean([below - scores[i, j] / 0.05 for j in range(7) if positives[i, j]]))
    found = info_nce(*map(torch.from_numpy, (scores, positives)), 0.05, torch.from_numpy(ignored))
    assert float(found) == pytest.approx(np.mean(expected))


def test_recomputed_activations_give_the_same_gradients(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"guitar {n} great story" for n in range(20)]

    def trained(kept: int) -> list[torch.Tensor]:
        monkeypatch.setattr("contrastive._TEXTS_KEPT", kept)
        encoder = BiEncoder(tiny_encoder, max_length=32)
        fit(
            encoder,
            [texts, texts],
            lambda embed, batch: (embed(batch) @ embed(batch[:3]).T).square().mean(),
            steps=2,
            learning_rate=1e-2,
            warm_up=1,
            seed=3,
            progress=lambda done, total: None,
        )
        assert not encoder.model.training
        return [weight.detach().clone() for weight in encoder.model.parameters()]

    for first, second in zip(trained(0), trained(100), strict=True):
        torch.testing.assert_close(first, second)


def test_maclr_pairs() -> None:
    titled = Document("a", "Fast editor", "A Fast editor for text. It is small.\nNice")
    assert contrastive.title_and_sentences(titled) == (
        "Fast editor",
        ["A Fast editor for text.", "It is small.", "Nice"],
    )
    assert contrastive.title_and_sentences(Document("b", "", "One. Two.")) == ("One.", ["Two."])
    assert contrastive.title_and_sentences(Document("c", "", "only one")) is None
    assert contrastive.title_and_sentences(Document("d", "Title", " ")) is None
    rng = np.random.default_rng(0)
    kept = sum(
        "Fast editor" in contrastive._content("Fast editor", ["A Fast editor."], rng) for _ in range(1000)
    )
    assert 70 < kept < 130  # one in ten
    assert contrastive._content("x", ["x"], np.random.default_rng(1)) == "x"  # never empty


def test_maclr_teaches_itself_from_words_and_from_what_it_is_sure_of(world: Path, tiny_encoder: Path) -> None:
    task = loaded(world, tiny_encoder).task
    pseudo = contrastive.pseudo_positives(task, task.encoder())
    by_words = by_encoder = 0
    for document, labels in zip(task.rest, pseudo, strict=True):
        named = {row for row, title in enumerate(task.titles) if title in document.shown.split()}
        by_words += bool(labels & named)
        by_encoder += bool(labels - named) or len(labels) > 1
        assert 1 <= len(labels) <= 2
    assert by_words == len(task.rest)
    assert 0 < by_encoder <= len(task.rest) / 2


def test_differences_and_their_intervals() -> None:
    rng = np.random.default_rng(0)
    second = rng.random(400)
    first = second + rng.normal(0.1, 0.2, 400)
    first[:5] = np.nan
    found = difference(first, second)
    gap = (first - second)[5:]
    assert found["documents"] == 395 and found["mean"] == pytest.approx(gap.mean())
    error = gap.std(ddof=1) / math.sqrt(395)
    assert found["low"] == pytest.approx(gap.mean() - 1.96 * error, abs=0.15 * error)
    assert found["high"] == pytest.approx(gap.mean() + 1.96 * error, abs=0.15 * error)
    assert difference(np.array([np.nan]), np.array([1.0])) == {"documents": 0}


def test_human_equivalent_reads_the_curve_backwards() -> None:
    curve = {100: 0.3, 1000: 0.5, 300: 0.4, 3000: 0.5}
    assert human_equivalent(0.2, curve) == ("<", 100)
    assert human_equivalent(0.6, curve) == (">", 3000)
    sign, count = human_equivalent(0.35, curve)
    assert sign == "=" and count == pytest.approx(math.sqrt(100 * 300))
    assert human_equivalent(0.5, curve) == ("=", pytest.approx(1000))


def test_topics_are_what_the_world_says() -> None:
    """The gold of this file's world: five labels a document, those of its topic."""
    assert len(TOPIC_OF) == len(LABELS) == 25
    document = Document("d0", "", "guitar music")
    right = [label for label in LABELS if topical(Pair(document, label)) > 0]
    assert {TOPIC_OF[label.title] for label in right} == {"music"}
    assert Judgment("0" * 64, "d0", right[0].uid, Status.OK, 1.0).log_odds == 1.0
