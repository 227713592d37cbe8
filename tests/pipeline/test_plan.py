"""The plan of a run: counts that are exact, times that come true, and a probe that wastes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import engines
from support.commands import gone
from support.fakes import FakeTeacher
from support.spying import spied
from support.tinyworld import document, topical, write_catalog, write_rows

from ezxmc.config import RunConfig
from ezxmc.config.teacher import HttpTeacherConfig, VllmTeacherConfig
from ezxmc.feedback.annotate import annotate
from ezxmc.feedback.probe import probe
from ezxmc.feedback.store import FeedbackStore
from ezxmc.models.teachers import Gpu, Machine
from ezxmc.pipeline.plan import plan
from ezxmc.records import Document, Judgment, Label, Pair, Status

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """Time that passes only when somebody sleeps: the same on any machine, however busy."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    if not request.node.get_closest_marker("llm"):
        for module in ("probe", "annotate"):
            monkeypatch.setattr(f"ezxmc.feedback.{module}.time", clock)
        monkeypatch.setattr(EngineTeacher, "clock", clock, raising=False)
    return clock


class Words:
    """Counts words: a document's are shared, a label's are not."""

    def prefix(self, document: str) -> list[int]:
        return [0] * (4 + len(document.split()))

    def suffix(self, label: str) -> list[int]:
        return [0] * 3


class EngineTeacher(FakeTeacher):
    """Starts, then answers in steps; a step takes as long as its uncached tokens."""

    renderer = Words()
    clock: Clock

    def __init__(self, *, startup: float, tokens_per_second: float, step: int = 32, **options: Any) -> None:
        super().__init__(topical, **options)
        self.startup, self.rate, self.step = startup, tokens_per_second, step
        self.expected: list[int | None] = []
        self.running = False

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        self.expected.append(expected)
        cached: set[str] = set()
        batch: list[Judgment] = []
        for pair in pairs:
            if not self.running:
                self.running = True
                self.clock.sleep(self.startup)
            prefix, suffix = len(self.renderer.prefix(pair.doc.shown)), len(self.renderer.suffix(""))
            hit = prefix if pair.doc.shown in cached else 0
            cached.add(pair.doc.shown)
            key = self.key(pair)
            self.asked.append(key)
            batch.append(
                Judgment(
                    key, pair.doc.uid, pair.label.uid, Status.OK, topical(pair), 0.9, prefix + suffix, hit
                )
            )
            if len(batch) == self.step:
                yield from self.answered(batch)
                batch = []
        yield from self.answered(batch)

    def answered(self, batch: list[Judgment]) -> list[Judgment]:
        self.clock.sleep(sum(j.prompt_tokens - j.cached_tokens for j in batch) / self.rate)
        return batch

    def close(self) -> None:
        super().close()
        self.running = False


def uneven(config: Path, count: int) -> None:
    """Documents of very different lengths."""
    rows = [document(i) for i in range(count)]
    for i, row in enumerate(rows):
        row["text"] += " story" * ((i * 7) % 90)
    write_rows(config.parent / "documents.jsonl", rows)


def stored(config: RunConfig) -> set[str]:
    with FeedbackStore(Path(config.run_dir) / "feedback.sqlite") as store:
        return {judgment.key for judgment in store.judgments()}


def test_without_a_probe_nothing_is_asked_written_or_timed(tiny_config: Path) -> None:
    config, teacher = RunConfig.load(tiny_config), EngineTeacher(startup=9, tokens_per_second=1)
    found = plan(config, teacher=teacher, probe_pairs=0)
    assert teacher.asked == [] and teacher.closed and not Path(config.run_dir).exists()
    assert (found.documents, found.labels) == (60, 25)
    assert [(part.name, part.documents, part.pairs) for part in found.parts[:2]] == [
        ("cycle 1", 60, 240),
        ("cycle 2", 60, 240),
    ]
    comparison, calibration = found.parts[2:]
    # Two students' first five labels, but no more than a tenth of what the cycles ask.
    assert comparison.name == "comparison" and comparison.pairs == 48 < 10 * comparison.documents
    assert calibration.name == "calibration" and calibration.pairs == 6 * calibration.documents > 0
    assert found.total.pairs == 480 + 48 + calibration.pairs and found.total.known == 0
    assert found.total.seconds is None and found.pairs_per_second is None and found.probe is None

    # Every document of this catalog has 2 + 7 words, its frame 4, each label 3.
    assert found.parts[0].prompt_tokens == 240 * (13 + 3)
    assert found.parts[0].computed_tokens == 60 * 13 + 240 * 3
    assert found.parts[0].cache_share == pytest.approx(1 - 1500 / 3840)
    assert found.disk["students"] > found.disk["bundle"] > 0 and found.memory["training"]
    assert json.loads(json.dumps(found.to_dict()))["total"]["asked"] == found.total.asked


def test_it_tells_what_calibrates_and_what_serves_nothing(tmp_path: Path, tiny_encoder: Path) -> None:
    config = write_catalog(
        tmp_path, tiny_encoder, documents=90, budget={"calibration": 5}, training__held_out=0.6
    )
    found = plan(RunConfig.load(config), teacher=FakeTeacher(), probe_pairs=0)
    calibration = found.parts[-1]
    assert (calibration.name, calibration.documents, calibration.pairs) == ("calibration", 5, 30)
    assert "5 of " in found.notes[0] and "budget.calibration" in found.notes[0]
    idle = int(found.notes[1].split()[0])
    assert idle > 0 and found.parts[0].documents < 90 - idle and found.unasked_documents == 0


def test_label_priors_are_planned_and_share_the_first_engine_start(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    changes = {"training__prior": "contextual", "training__prior_documents": 4}
    config = RunConfig.load(write_catalog(tmp_path, tiny_encoder, **changes))
    found = plan(config, teacher=EngineTeacher(startup=0.2, tokens_per_second=1e5), probe_pairs=60)
    priors, first = found.parts[:2]
    assert (priors.name, priors.documents, priors.pairs, priors.starts) == ("label priors", 4, 100, 0)
    assert first.name == "cycle 1" and first.starts == 1 and first.known == 60
    assert found.speed is not None and found.total.starts == 5 - 1
    assert 0 < (priors.seconds or 0) < found.speed.startup < (first.seconds or 0)
    assert found.total.known >= 60 and found.total.pairs == sum(part.pairs for part in found.parts)


def test_the_least_of_budgets_can_be_planned(tmp_path: Path, tiny_encoder: Path) -> None:
    config = RunConfig.load(write_catalog(tmp_path, tiny_encoder, budget={"max_pairs": 1}))
    teacher = EngineTeacher(startup=0.0, tokens_per_second=1e5)
    found = plan(config, teacher=teacher)
    assert found.total.pairs <= 1 and len(teacher.asked) <= 1


def test_a_teacher_without_tokens_is_planned_by_pairs(tiny_config: Path) -> None:
    found = plan(RunConfig.load(tiny_config), teacher=FakeTeacher(topical), probe_pairs=0)
    assert found.total.prompt_tokens is None and found.total.cache_share is None
    assert found.total.pairs > 480


def test_the_probe_asks_pairs_of_the_run_and_the_run_finds_them(
    tiny_config: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    whole = spied(write_catalog(tmp_path / "whole", tiny_encoder))
    config = RunConfig.load(tiny_config)
    teacher = EngineTeacher(startup=0.0, tokens_per_second=1e5)
    found = plan(config, teacher=teacher, probe_pairs=50)
    # Whole documents, the engine started as for the whole cycle, nothing left running.
    assert len(teacher.asked) == 52 and teacher.expected == [240] and not teacher.running
    assert stored(config) == set(teacher.asked) <= set(whole.teacher.asked)
    assert found.parts[0].known == 52 and found.parts[0].asked == 188
    again = plan(config, teacher=EngineTeacher(startup=0.0, tokens_per_second=1e5), probe_pairs=50)
    assert again.parts[0].known == 104
    run = spied(tiny_config)
    assert run.report.cycles[0].pairs_known == 104
    assert run.predictions() == whole.predictions()
    # All is known: nothing to probe, nothing to wait for.
    idle = FakeTeacher(topical)
    done = plan(config, teacher=idle)
    assert idle.asked == [] and done.probe is None
    assert [part.asked for part in done.parts[:2]] == [0, 0]


def test_times_come_true_though_the_probe_s_documents_are_not_the_mean(
    tmp_path: Path, tiny_encoder: Path, clock: Clock
) -> None:
    config_file = write_catalog(tmp_path, tiny_encoder, documents=500, cycles=1)
    uneven(config_file, 500)
    config = RunConfig.load(config_file)
    speed = {"startup": 0.5, "tokens_per_second": 12_000.0}
    found = plan(config, teacher=EngineTeacher(**speed), probe_pairs=160)
    assert found.probe is not None and found.probe.steady and found.probe.pairs == 160
    assert found.probe.startup_seconds == pytest.approx(0.5)
    assert found.parts[0].known == 160 and found.speed is not None
    assert found.speed.computed == pytest.approx(12_000)

    pairs = list(pairs_of_cycle(config))
    started = clock.now
    with FeedbackStore(Path(config.run_dir) / "feedback.sqlite") as store:
        summary = annotate(lambda: pairs, EngineTeacher(**speed), store)
    truth = clock.now - started
    assert summary.known == 160 and summary.asked == found.parts[0].asked == 1840
    assert found.parts[0].seconds == pytest.approx(truth, rel=0.02)


def pairs_of_cycle(config: RunConfig) -> Iterator[Pair]:
    from ezxmc.data import Catalog
    from ezxmc.models import resolve_model
    from ezxmc.retrieval import BiEncoder, shortlist

    catalog = Catalog.load(config.data, config.training.held_out, config.seed)
    base = resolve_model(config.training.encoder, kind="encoder")
    encoder = BiEncoder(base, max_length=config.training.max_length)
    found = shortlist(catalog.documents, catalog.labels, encoder, config.shortlist, seed=config.seed)
    for one, candidates in zip(catalog.documents, found, strict=True):
        for row in candidates.labels:
            yield Pair(one, catalog.labels[row])


def test_a_budget_is_planned_as_the_run_spends_it(tmp_path: Path, tiny_encoder: Path) -> None:
    config_file = write_catalog(tmp_path, tiny_encoder, budget={"max_pairs": 160})
    config = RunConfig.load(config_file)
    found = plan(config, teacher=EngineTeacher(startup=0.0, tokens_per_second=1e5), probe_pairs=40)
    assert found.total.pairs == 160 and [part.pairs for part in found.parts] == [60, 60, 16, 24]
    assert found.unasked_documents > 0 and found.unasked_pairs > 0
    run = spied(config_file)
    assert [cycle.pairs_new + cycle.pairs_known for cycle in run.report.cycles] == [60, 60]
    assert run.report.cycles[0].pairs_known == 40
    assert len(stored(config)) == 160


def test_a_limit_of_documents_is_planned_as_the_run_asks(tmp_path: Path, tiny_encoder: Path) -> None:
    changes = {"budget": {"documents": 20}, "cycles": 3}
    config_file = write_catalog(tmp_path, tiny_encoder, **changes)
    found = plan(
        RunConfig.load(config_file),
        teacher=EngineTeacher(startup=0.0, tokens_per_second=1e5),
        probe_pairs=40,
    )
    assert [(part.documents, part.pairs) for part in found.parts[:3]] == [(20, 80)] * 3
    assert found.unasked_pairs == 0 and found.unasked_documents > 20
    assert "cycles without gain end the run: it may do 2 of 3" in found.notes
    run = spied(config_file)
    assert run.report.cycles[0].pairs_known == 40 and run.report.cycles[0].pairs_new == 40


def test_hours_that_do_not_suffice_are_told(tmp_path: Path, tiny_encoder: Path) -> None:
    config_file = write_catalog(tmp_path, tiny_encoder, budget={"max_hours": 0.3 / 3600})
    teacher = EngineTeacher(startup=0.0, tokens_per_second=2000, step=8)
    found = plan(RunConfig.load(config_file), teacher=teacher, probe_pairs=24)
    assert any("budget.max_hours ends the judging after about" in note for note in found.notes)


def test_other_teachers_are_estimated_from_the_measured_one(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(*gpus: Gpu) -> None:
        monkeypatch.setattr("ezxmc.pipeline.plan.machine", lambda: Machine(gpus, 14e9, cpu_engine=False))

    config = RunConfig.load(write_catalog(tmp_path, tiny_encoder))
    engine = {"startup": 9.0, "tokens_per_second": 1000.0}
    on()
    unmeasured = plan(config, teacher=EngineTeacher(**engine), probe_pairs=0)
    assert [cost.seconds for cost in unmeasured.teachers] == [None] * 5
    assert unmeasured.notes[-1].endswith("none of them was measured here, so there are no times")

    on(Gpu("Card", 24 * 2**30))
    assumed = plan(config, teacher=EngineTeacher(**engine), probe_pairs=0)
    tokens = assumed.total.computed_tokens
    # 4.0B: two operations a parameter and token, at 100 TFLOP/s.
    assert tokens and assumed.teachers[1].seconds == pytest.approx(tokens * 8e9 / 100e12)
    assert [cost.runs_on for cost in assumed.teachers] == ["1 GPU"] * 3 + [""] * 2
    assert assumed.notes[-1].endswith("none of them was measured on this GPU: times assume 100 TFLOP/s")

    on()
    measured = plan(config, teacher=EngineTeacher(**engine), probe_pairs=60)
    own, four, *_, thirty = measured.teachers
    # Nothing that this teacher has judged already is known of another; starts are not counted.
    assert measured.total.known == 60 and own.seconds == pytest.approx(tokens / 1000, rel=0.02)
    assert four.seconds and thirty.seconds and own.seconds
    assert four.seconds / own.seconds == pytest.approx(4.0 / 1.54)
    assert thirty.seconds / own.seconds == pytest.approx(3.3 / 1.54)
    assert [cost.runs_on for cost in measured.teachers] == ["processor"] * 2 + [""] * 3
    assert "scaled from the measured speed of Qwen2.5-Coder-1.5B-Instruct" in measured.notes[-1]
    assert measured.to_dict()["teachers"][0]["runs_on"] == "processor"

    other = config.model_copy(update={"teacher": VllmTeacherConfig(model="org/other")})
    assert {cost.seconds for cost in plan(other, teacher=EngineTeacher(**engine)).teachers} == {None}
    served = config.model_copy(update={"teacher": HttpTeacherConfig(model="org/other")})
    elsewhere = plan(served, teacher=EngineTeacher(**engine), probe_pairs=0)
    assert elsewhere.teachers == [] and not any("other teachers" in note for note in elsewhere.notes)


def test_a_large_catalog_is_sampled_and_says_so(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.pipeline.plan._SHORTLISTS", 30)
    config = RunConfig.load(write_catalog(tmp_path, tiny_encoder, documents=400, cycles=1))
    found = plan(config, teacher=EngineTeacher(startup=0.0, tokens_per_second=1e5), probe_pairs=60)
    assert found.parts[0].pairs == 1600
    # Half of the sampled pairs are known now, and still not half of all.
    assert found.parts[0].known == 60
    assert any("30 of 400 documents" in note for note in found.notes)


def test_earlier_sessions_tell_the_speed_without_a_probe(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.feedback.probe._LONG_SESSION", 100)
    config = RunConfig.load(tiny_config)
    plan(config, teacher=EngineTeacher(startup=0.0, tokens_per_second=4000, step=8), probe_pairs=200)
    found = plan(config, teacher=EngineTeacher(startup=9.0, tokens_per_second=1), probe_pairs=0)
    assert found.speed is not None and found.speed.computed == pytest.approx(4000, rel=0.1)
    assert found.total.seconds and any("earlier judgments" in note for note in found.notes)


def test_a_probe_in_one_step_is_marked_as_rough(tmp_path: Path) -> None:
    teacher = EngineTeacher(startup=0.2, tokens_per_second=1e6)
    pairs = [Pair(Document("d", "", "guitar music"), Label(w, w)) for w in ("guitar", "melody")]
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        found = probe(pairs, teacher, store, expected=2)
        assert found is not None and not found.steady and found.steps == 1
        assert found.pairs_per_second < 2 / 0.2
        assert probe(pairs, teacher, store, expected=2) is None
    assert teacher.closed == 2


class Telling(EngineTeacher):
    """One that tells how long its starts took."""

    startup_seconds = 0.0

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        idle = not self.running
        for judgment in super().score(pairs, expected=expected):
            if idle and self.running:
                idle, self.startup_seconds = False, self.startup_seconds + self.startup
            yield judgment


@pytest.mark.parametrize("pairs", [1, 40, 64, 200])
@pytest.mark.parametrize("step", [32, 128])
def test_the_clock_of_a_small_job_starts_with_its_first_question(
    tmp_path: Path, pairs: int, step: int
) -> None:
    """A job of one batch takes time too; store, probe and plan count the same seconds."""
    catalog = [Pair(Document(f"d{n}", "", f"guitar {n}"), Label("melody", "melody")) for n in range(pairs)]
    tokens = pairs * (4 + 2 + 3)
    for start in (0.0, 30.0):
        told = Telling(startup=start, tokens_per_second=tokens / 8.0, step=step)
        with FeedbackStore(tmp_path / f"annotated-{start}.sqlite") as store:
            summary = annotate(lambda: catalog, told, store)
            assert store.judging_seconds(told.fingerprint) == pytest.approx(8.0)
            assert store.totals(told.fingerprint).pairs_per_second == pytest.approx(pairs / 8.0)
        assert (summary.startup_seconds, summary.seconds) == (start, pytest.approx(8.0 + start))
        told = Telling(startup=start, tokens_per_second=tokens / 8.0, step=step)
        with FeedbackStore(tmp_path / f"probed-{start}.sqlite") as store:
            found = probe(catalog, told, store, expected=pairs)
            assert found is not None and found.pairs_per_second == pytest.approx(pairs / 8.0)
            assert store.judging_seconds(told.fingerprint) == pytest.approx(8.0)
        if start:
            assert found.steady and found.startup_seconds == start


_HOLDS = """
import sys, time
held = b"x" * int(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def test_the_probe_sees_the_memory_of_child_processes(tmp_path: Path, clock: Clock) -> None:
    size = 300_000_000

    class Heavy(FakeTeacher):
        def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
            child = subprocess.Popen([sys.executable, "-c", _HOLDS, str(size)], stdout=subprocess.PIPE)
            assert child.stdout is not None and child.stdout.readline()
            time.sleep(1.0)  # memory is looked at from time to time
            clock.sleep(1.0)
            yield from super().score(pairs, expected=expected)
            child.kill()
            child.communicate()

    pairs = [Pair(Document("d", "", "guitar music"), Label("guitar", "guitar"))]
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        found = probe(pairs, Heavy(topical), store, expected=1)
    assert found is not None and found.memory_bytes > size + 100_000_000


@pytest.mark.llm
@pytest.mark.encoder
def test_the_plan_of_a_real_engine_comes_true(tmp_path: Path) -> None:
    """Counts and tokens; a machine busy with tests is no place to time anything."""
    topics = ("guitar", "melody", "soup", "boat", "wind", "comet", "rose", "planet")
    rows = [
        {
            "uid": f"d{i}",
            "title": "",
            "text": f"Entry {i} is about {topics[i % 8]} " + "and so on " * (i % 30),
        }
        for i in range(60)
    ]
    write_rows(tmp_path / "documents.jsonl", rows)
    write_rows(tmp_path / "labels.jsonl", [{"uid": topic, "title": topic} for topic in topics])
    path = tmp_path / "config.yaml"
    path.write_text(
        "run_dir: run\ndata: {documents: documents.jsonl, labels: labels.jsonl}\n"
        "teacher: {model: SmolLM2-135M-Instruct, kv_cache_gib: 0.5, max_num_seqs: 16, min_label_mass: 0.0}\n"
        "shortlist: {size: 8, explore: 0}\ntraining: {held_out: 0.2, prior: estimated}\n"
    )
    config = RunConfig.load(path)
    before = set(engines.workers())
    found = plan(config, probe_pairs=160)
    assert found.probe is not None and found.probe.pairs == 160 and found.probe.steady
    gone(list(set(engines.workers()) - before))
    assert found.probe.memory_bytes > 5e8
    cycle = found.parts[0]
    assert (cycle.pairs, cycle.known) == (480, 160)

    pairs = list(pairs_of_cycle(config))
    started = time.monotonic()
    with FeedbackStore(Path(config.run_dir) / "feedback.sqlite") as store:
        summary = annotate(lambda: pairs, engines.teacher(), store)
    truth = time.monotonic() - started
    print(
        f"\nplanned {cycle.seconds:.1f} s, took {truth:.1f} s; start-up {found.probe.startup_seconds:.1f} s"
    )
    assert summary.asked == 320
    computed = summary.prompt_tokens - summary.cached_tokens
    assert cycle.computed_tokens == pytest.approx(computed, rel=0.1)
    assert cycle.prompt_tokens == pytest.approx(summary.prompt_tokens, rel=0.05)
    assert (cycle.seconds or 0) > found.probe.startup_seconds > 1
