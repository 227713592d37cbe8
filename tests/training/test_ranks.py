"""Training shared by two processes over gloo, against the same training in one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from support import rank_cases
from support.commands import forked, gone
from support.rank_cases import CONFIGS, every_case
from support.spying import Spy, spied
from support.tinyworld import TOPIC_OF, document, write_catalog
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from ezxmc.cli import app as program
from ezxmc.config import RunConfig, TrainingConfig
from ezxmc.errors import ConfigError, ModelError, TrainingError
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.models import resolve_model
from ezxmc.pipeline.run import run
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder
from ezxmc.training import TrainSummary, train_bi_encoder
from ezxmc.training.dataset import Example
from ezxmc.training.launch import Job, _unsaid, processes_of
from ezxmc.training.ranks import ALONE, Ranks, enough_gpus
from ezxmc.training.worker import _Heard

pytestmark = pytest.mark.usefixtures("one_thread")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

DOCUMENTS = [Document(**document(number)) for number in range(24)]
LABELS = [Label(word, word) for word in TOPIC_OF]


def targets() -> Targets:
    """Six labels judged of each document, those of its topic first."""
    found = []
    for number, one in enumerate(DOCUMENTS):
        words = sorted(
            TOPIC_OF, key=lambda word: (TOPIC_OF[word] not in one.shown, hash((number, len(word))))
        )
        judged = (*words[:3], *words[5 + number % 7 :][:3])
        found.append(DocumentTargets(one.uid, judged, np.linspace(0.95, 0.05, 6), judged[:3], judged[3:]))
    return Targets(found, PriorCorrection({}, 0.0), 0, 0, 0, 0)


def train(out: Path, encoder: Path, processes: int = 2, **options: object) -> TrainSummary:
    changes = options.pop("changes", {})
    config = TrainingConfig(
        **{
            "epochs": 2,
            "batch_size": 6,
            "learning_rate": 1e-3,
            "max_length": 32,
            "precision": "float32",
            "processes": processes,
            **changes,
        }
    )
    documents = {"documents": DOCUMENTS[:17], "held_out": DOCUMENTS[17:], **options}
    return train_bi_encoder(
        labels=LABELS, targets=targets(), config=config, out=out, base=encoder, **documents
    )


def a_rank(environment: dict[str, str], encoder: Path, out: Path) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        rank_cases.main(encoder, out)
    except TrainingError as error:
        (out / f"{environment['RANK']}.error").write_text(str(error))
        raise


@pytest.fixture(scope="module")
def results(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Of every case: alone, on rank 0, on rank 1."""
    out = tmp_path_factory.mktemp("ranks")
    # As torchrun tells its processes; `test_torchrun_trains_by_the_command` has torchrun itself.
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [forked(a_rank, {**meeting, "RANK": str(rank)}, tiny_encoder, out) for rank in range(2)]
    for rank in ranks:
        rank.join()
    # The last thing they do is to find out that their inputs differ.
    assert ranks[1].exitcode
    assert "process 1 of 2 was given other inputs than the first" in (out / "1.error").read_text()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = every_case(ALONE, tiny_encoder)
    torch.set_num_threads(before)
    return [alone, *(load_file(out / f"{rank}.safetensors") for rank in range(2))]


def test_gradients_of_each_loss_are_those_of_one_process(results: list[dict[str, Tensor]]) -> None:
    alone, first, second = results
    names = [name for name in alone if name.split("/")[0] not in CONFIGS]
    assert len({name.split(",")[0] for name in names}) == 7 and len(names) > 2 * 7 * 2 * 3
    assert alone.keys() == first.keys() == second.keys()
    moved = 0
    for name in names:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-12, atol=1e-13)
        assert torch.equal(first[name], second[name])
        moved += bool(alone[name].abs().max() > 1e-3)
    assert moved > len(names) / 2


@pytest.mark.parametrize("case", CONFIGS)
def test_two_ranks_train_the_student_of_one(results: list[dict[str, Tensor]], case: str) -> None:
    alone, first, second = (
        {name: value for name, value in found.items() if name.startswith(f"{case}/")} for found in results
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), "the ranks have drifted apart"
    # Texts are padded with others of their rank: bfloat16 rounds differently then.
    loss, distance = (1e-4, 1e-3) if case == "bfloat16" else (1e-5, 1e-4)
    losses = alone[f"{case}/losses"]
    assert len(losses) == 2 * (12 if case == "a last batch of one" else 4)
    torch.testing.assert_close(first[f"{case}/losses"], losses, rtol=loss, atol=0)
    torch.testing.assert_close(first[f"{case}/vectors"], alone[f"{case}/vectors"], rtol=0, atol=distance)
    learned = [name for name in alone if "/loss " in name]
    assert bool(learned) == (case == "a loss that learns")
    for name in learned:
        torch.testing.assert_close(first[name], alone[name])


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 5))
def test_each_text_is_of_one_rank_and_none_has_much_more_to_do(lengths: list[int], size: int) -> None:
    parts = [Ranks(rank, size).part(lengths).tolist() for rank in range(size)]
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    counts, tokens = [len(part) for part in parts], [sum(lengths[row] for row in part) for part in parts]
    assert max(counts) - min(counts) <= 1 and max(tokens) - min(tokens) <= max(lengths, default=0)
    assert all(part == sorted(part) for part in parts)


texts = st.text(st.characters(codec="utf-8") | st.just("\ud800"))


@given(st.lists(texts, min_size=2, max_size=5), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_job_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], chances: list[float]
) -> None:
    pool = [Example(row, np.arange(len(chances)), np.array(chances), row % 2, 1) for row in range(len(words))]
    job = Job(
        words,
        words[::-1],
        pool,
        words[:1],
        pool[:1],
        TrainingConfig(matryoshka=[8]),
        "a",
        None,
        3,
        Path("b", "c"),
        {"judgments": 3, "teacher": words[0]},
    )
    folder = tmp_path_factory.mktemp("job")
    job.save(folder)
    found = Job.load(folder)
    assert found.card == job.card
    for one, other in ((found.pool, job.pool), (found.judged, job.judged)):
        for read, written in zip(one, other, strict=True):
            assert (read.document, read.positives, read.negatives) == (
                written.document,
                written.positives,
                written.negatives,
            )
            assert np.array_equal(read.labels, written.labels)
            assert read.probabilities.tobytes() == written.probabilities.tobytes()
    for name in ("documents", "titles", "held_out", "config", "base", "former", "seed", "out"):
        assert getattr(found, name) == getattr(job, name)
    assert found.digest() == job.digest()


def test_processes_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = TrainingConfig(processes="auto")
    for gpus in (0, 1, 3):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert processes_of(auto) == max(1, gpus)
        assert processes_of(TrainingConfig(processes=2)) == 2
    enough_gpus(3)
    with pytest.raises(ConfigError, match=r"4 processes .* here are 3"):
        enough_gpus(4)


TRAINING = {"learning_rate": 1e-4, "precision": "float32", "epochs": 2}
CHANGES = {"documents": 40, "cycles": 1, **{f"training__{name}": value for name, value in TRAINING.items()}}


@pytest.fixture(scope="module")
def encoder() -> Path:
    """What is launched below trains real weights."""
    return Path(resolve_model("all-MiniLM-L6-v2", kind="encoder"))


@pytest.fixture(scope="module")
def alone(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Spy:
    """A run that trains in one process."""
    return spied(write_catalog(tmp_path_factory.mktemp("alone"), encoder, **CHANGES))


def vectors(student: Path | str) -> NDArray[np.float32]:
    return BiEncoder(student).encode_documents([document.shown for document in DOCUMENTS])


@pytest.mark.encoder
def test_a_run_in_two_processes_gives_what_one_gives(tmp_path: Path, encoder: Path, alone: Spy) -> None:
    config = write_catalog(tmp_path, encoder, training__processes=2, **CHANGES)
    two = spied(config)
    students = [vectors(spy.place / "cycles/1/student") for spy in (alone, two)]
    np.testing.assert_allclose(*students, atol=1e-4)
    assert np.abs(students[0] - vectors(encoder)).max() > 1e-2
    assert {path.name for path in (two.place / "cycles/1").iterdir()} == {"student", "shortlist.jsonl"}
    cards = [(spy.place / "cycles/1/student/README.md").read_text() for spy in (alone, two)]
    told = [card.partition("## Training")[2].partition("## Evaluation")[0] for card in cards]
    assert told[0] == told[1] and "backend fake" in told[0]
    found = [
        json.loads((spy.place / "stages/cycle-1-train.json").read_text())["result"] for spy in (alone, two)
    ]
    assert [one["processes"] for one in found] == [1, 2]
    for name in ("documents", "labels_seen", "held_out", "steps", "best_epoch"):
        assert found[0][name] == found[1][name]
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], rel=1e-5)
    assert found[1]["selection"] == pytest.approx(found[0]["selection"], abs=1e-4)
    assert two.report.evaluation and alone.report.evaluation
    # A pair on the edge of two bins may be in either.
    after = [
        {name: value for name, value in spy.report.evaluation.after.items() if not name.startswith("ACE")}
        for spy in (two, alone)
        if spy.report.evaluation
    ]
    assert after[0] == pytest.approx(after[1], abs=5e-3)

    # As many processes as before or not: nothing is trained again.
    settings = yaml.safe_load(config.read_text())
    settings["training"]["processes"] = 1
    config.write_text(yaml.safe_dump(settings))
    assert spied(config).trained == []


def test_under_torchrun_a_run_is_refused(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"training\.processes"):
        run(RunConfig.load(tiny_config))


def workers(of: psutil.Process) -> dict[str, psutil.Process]:
    found = {}
    for process in of.children(recursive=True):
        try:
            if "ezxmc.training.worker" in process.cmdline() and "RANK" in process.environ():
                found[process.environ()["RANK"]] = process
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.mark.encoder
def test_a_process_that_is_killed_ends_the_training(encoder: Path, tmp_path: Path) -> None:
    me, seen = psutil.Process(), {}

    def kill(step: int, steps: int, loss: float) -> None:
        if not seen:
            seen.update(workers(me))
            seen["1"].kill()

    # Not killed, they would train for hours.
    with pytest.raises(TrainingError, match=r"process 1 of 2 .* was killed by SIGKILL") as caught:
        train(tmp_path / "s", encoder, changes={"epochs": 20_000}, progress=kill)
    assert len(seen) == 2 and not workers(me)
    assert [path.name for path in tmp_path.iterdir()] == ["s.log"] and "s.log" in caught.value.cure


@pytest.mark.encoder
def test_an_error_of_one_process_is_the_error_of_the_training(
    encoder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    steps: list[int] = []
    # Only the first process averages.
    with pytest.raises(ModelError, match="another architecture") as caught:
        train(
            tmp_path / "s",
            encoder,
            former=tiny_encoder,
            changes={"epochs": 1},
            progress=lambda step, total, loss: steps.append(step),
        )
    assert caught.value.cure.startswith("set training.average") and steps == [1, 2, 3]
    assert not workers(psutil.Process()) and not (tmp_path / "s").exists()


def throw(error: Exception) -> None:
    raise error


def test_the_first_to_fail_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for name, error, said in (
        (
            "a",
            MemoryError("full"),
            {"message": "training process 1 of 3 (the first is 0): MemoryError('full')"},
        ),
        ("b", ConfigError("no", "so"), {"kind": "ConfigError", "message": "no", "cure": "so"}),
    ):
        heard = _Heard(tmp_path / name)
        assert record(lambda: 7, heard)() == 7 and not (tmp_path / name).exists()
        for each in (error, RuntimeError("connection lost")):
            with pytest.raises(type(each)):
                record(partial(throw, each), heard)()
        assert json.loads((tmp_path / name).read_text()) == said


def test_what_a_process_could_not_say_itself() -> None:
    lost, ended, segfault = 1, -signal.SIGTERM, -signal.SIGSEGV
    assert "process 2 of 3 (the first is 0) was killed by SIGSEGV" in str(
        _unsaid({0: lost, 1: ended, 2: segfault}, 3, True)
    )
    assert _unsaid({0: ended, 1: 1, 2: -signal.SIGABRT}, 3, True) is None
    assert "process 1 of 2 (the first is 0) left with 9" in str(_unsaid({1: 9}, 2, False))
    assert _unsaid({}, 2, False) is None, "torchrun itself was killed"


_TRAIN = """
import sys
from functools import partial
from pathlib import Path
from test_ranks import train
shown = lambda *step: print(step, flush=True)
train(Path(sys.argv[2]), Path(sys.argv[1]), changes={"epochs": 20_000}, progress=shown)
"""


@pytest.mark.encoder
def test_processes_end_with_the_one_that_started_them(encoder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TRAIN, str(encoder), str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as caller:
        assert caller.stdout is not None and caller.stdout.readline()
        children = psutil.Process(caller.pid).children(recursive=True)
        assert len(children) >= 3
        caller.kill()
    gone(children)


@pytest.mark.encoder
def test_torchrun_trains_by_the_command(
    tmp_path: Path,
    encoder: Path,
    alone: Spy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    catalog = alone.place.parent
    documents = tmp_path / "documents.jsonl"
    documents.write_text((catalog / "documents.jsonl").read_text() + "no document\n")
    command = ["train", str(documents), str(catalog / "labels.jsonl"), str(alone.place / "feedback.sqlite")]
    command += [
        "--encoder",
        str(encoder),
        "--epochs",
        "2",
        "--batch-size",
        "7",
        "--held-out",
        "0.4",
        "--json",
        "-o",
    ]

    monkeypatch.setattr(sys, "argv", ["ezxmc", *command, str(tmp_path / "one")])
    with pytest.raises(SystemExit) as left:
        program.main()
    one = json.loads(capsys.readouterr().out)
    done = subprocess.run(
        [*TORCHRUN, "-m", "ezxmc", *command, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert (left.value.code, done.returncode) == (3, 0), done.stderr
    two = json.loads(done.stdout)  # of one process, and nothing else
    assert (one["processes"], two["processes"]) == (1, 2) and two["steps"] == one["steps"] > 5
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-2)  # perhaps in bfloat16
    assert done.stderr.count("41 rows, 40 kept") == 1
    np.testing.assert_allclose(vectors(tmp_path / "two"), vectors(tmp_path / "one"), atol=1e-2)


@pytest.mark.encoder
def test_two_processes_train_a_real_encoder(tmp_path: Path, encoder: Path) -> None:
    options = {"former": encoder, "documents": DOCUMENTS[:11], "changes": {"learning_rate": 1e-4}}
    one, two = (train(tmp_path / f"{n}", encoder, n, **dict(options)) for n in (1, 2))
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.selection == pytest.approx(one.selection, abs=1e-4)
    assert (two.best_epoch, two.steps) == (one.best_epoch, one.steps) and one.best_epoch > 0
    np.testing.assert_allclose(vectors(tmp_path / "2"), vectors(tmp_path / "1"), atol=1e-4)
    assert np.abs(vectors(tmp_path / "1") - vectors(encoder)).max() > 1e-3
