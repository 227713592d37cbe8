"""Training shared by two processes over gloo, against the same training in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rank_cases import CONFIGS, every_case
from safetensors.torch import load_file
from spying import spied
from tinyworld import TOPIC_OF, document, topical, write_catalog
from torch import Tensor

from ezxmc.config import RunConfig, TrainingConfig
from ezxmc.errors import ConfigError, ModelError, TrainingError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.launcher import _cause
from ezxmc.models import resolve_model
from ezxmc.pipeline import run
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder
from ezxmc.training import TrainSummary, train_bi_encoder
from ezxmc.training.dataset import Example
from ezxmc.training.job import Job
from ezxmc.training.processes import processes_of
from ezxmc.training.ranks import ALONE, Ranks, enough_gpus

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(300)]

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


@pytest.fixture(scope="module")
def results(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Of every case: alone, on rank 0, on rank 1."""
    out = tmp_path_factory.mktemp("ranks")
    command = [*TORCHRUN, str(HERE / "rank_cases.py"), str(tiny_encoder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=200)
    # The last thing they do is to find out that their inputs differ.
    assert done.returncode and "process 1 of 2 was given other inputs than the first" in done.stderr
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
    pool = [
        Example(row, np.arange(len(chances)), np.array(chances), row % 2, 1, chances[0])
        for row in range(len(words))
    ]
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
    )
    folder = tmp_path_factory.mktemp("job")
    job.save(folder)
    found = Job.load(folder)
    for one, other in ((found.pool, job.pool), (found.judged, job.judged)):
        for read, written in zip(one, other, strict=True):
            assert (read.document, read.positives, read.negatives) == (
                written.document,
                written.positives,
                written.negatives,
            )
            assert np.array_equal(read.labels, written.labels) and read.weight == written.weight
            assert read.probabilities.tobytes() == written.probabilities.tobytes()
    for name in ("documents", "titles", "held_out", "config", "base", "former", "seed", "out"):
        assert getattr(found, name) == getattr(job, name)
    assert found.digest() == job.digest()


def test_an_unjudged_run_dir_stays_valid_when_processes_change() -> None:
    assert TrainingConfig(processes=2).decisive() == TrainingConfig().decisive()
    assert TrainingConfig(epochs=2).decisive() != TrainingConfig().decisive()


def test_processes_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = TrainingConfig(processes="auto")
    for gpus in (0, 1, 3):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert processes_of(auto) == max(1, gpus)
        assert processes_of(TrainingConfig(processes=2)) == 2
    enough_gpus(3)
    with pytest.raises(ConfigError, match=r"4 processes .* here are 3"):
        enough_gpus(4)


def test_a_run_in_two_processes_gives_what_one_gives(tmp_path: Path, tiny_encoder: Path) -> None:
    changes = {"training__learning_rate": 1e-3, "training__precision": "float32", "training__epochs": 2}
    one = spied(write_catalog(tmp_path / "one", tiny_encoder, **changes))
    config = write_catalog(tmp_path / "two", tiny_encoder, training__processes=2, **changes)
    two = spied(config)
    for cycle in (1, 2):
        students = [BiEncoder(spy.place / f"cycles/{cycle}/student") for spy in (one, two)]
        left, right = (student.encode_documents([d.shown for d in DOCUMENTS]) for student in students)
        np.testing.assert_allclose(left, right, atol=1e-4)
        assert [path.name for path in (two.place / f"cycles/{cycle}").iterdir()].count("student.job") == 0
        stages = [
            json.loads((spy.place / f"stages/cycle-{cycle}-train.json").read_text()) for spy in (one, two)
        ]
        left, right = (stage["result"] for stage in stages)
        assert (left["processes"], right["processes"]) == (1, 2)
        assert left["losses"] == pytest.approx(right["losses"], rel=1e-4)
        for name in ("documents", "labels_seen", "held_out", "steps", "best_epoch"):
            assert left[name] == right[name]
        assert left["selection"] == pytest.approx(right["selection"], abs=1e-3)
    assert one.report.cycles[0].pairs_new == two.report.cycles[0].pairs_new

    # Other processes: nothing is done again.
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


def test_a_process_that_is_killed_ends_the_training(tiny_encoder: Path, tmp_path: Path) -> None:
    me, seen = psutil.Process(), {}

    def kill(step: int, steps: int, loss: float) -> None:
        if not seen:
            seen.update(workers(me))
            seen["1"].kill()

    began = time.monotonic()
    with pytest.raises(TrainingError, match=r"process 1 of 2 .* was ended by SIGKILL") as caught:
        train(tmp_path / "s", tiny_encoder, changes={"epochs": 2000}, progress=kill)
    assert time.monotonic() - began < 60 and len(seen) == 2 and not workers(me)
    assert [path.name for path in tmp_path.iterdir()] == ["s.log"] and "s.log" in caught.value.cure


def test_an_error_of_one_process_is_the_error_of_the_training(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    former = tmp_path / "former"
    encoder = BiEncoder(tiny_encoder)
    encoder.model[0].auto_model.resize_token_embeddings(7)
    encoder.save(former)
    # Only the first process averages.
    with pytest.raises(ModelError, match="another architecture") as caught:
        train(
            tmp_path / "s",
            tiny_encoder,
            former=former,
            changes={"epochs": 1},
            progress=lambda step, total, loss: steps.append(step),
        )
    assert caught.value.cure.startswith("set training.average") and steps == [1, 2, 3]
    assert not workers(psutil.Process()) and not (tmp_path / "s").exists()


def test_who_failed_first() -> None:
    def failure(code: int, when: int, message: object = "") -> SimpleNamespace:
        name = signal.Signals(-code).name if code < 0 else "<N/A>"
        return SimpleNamespace(exitcode=code, timestamp=when, message=message, signal_name=lambda: name)

    lost = failure(1, 5, {"message": "RuntimeError: Connection closed by peer"})
    ended, killed = failure(-signal.SIGTERM, 5), failure(-signal.SIGSEGV, 6)
    assert "process 2 of 3 (the first is 0) was ended by SIGSEGV" in _cause({0: lost, 1: ended, 2: killed}, 3)
    assert "process 0 of 3 (the first is 0) failed: RuntimeError: Conn" in _cause({0: lost, 1: ended}, 3)
    assert "process 1 of 2 (the first is 0) failed: exit code 9" in _cause({0: lost, 1: failure(9, 4)}, 2)


_TRAIN = """
import sys
from pathlib import Path
from test_ranks import train
train(Path(sys.argv[2]), Path(sys.argv[1]), changes={"epochs": 2000}, progress=lambda *step: print(step, flush=True))
"""


def test_processes_end_with_the_one_that_started_them(tiny_encoder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TRAIN, str(tiny_encoder), str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as caller:
        assert caller.stdout is not None and caller.stdout.readline()
        children = psutil.Process(caller.pid).children(recursive=True)
        assert len(children) >= 3
        caller.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_torchrun_trains_by_the_command(tmp_path: Path, tiny_encoder: Path) -> None:
    write_catalog(tmp_path, tiny_encoder, documents=40)
    with (tmp_path / "documents.jsonl").open("a") as file:
        file.write("no document\n")
    with FeedbackStore(tmp_path / "f.sqlite"):
        pass
    options = ["documents.jsonl", "labels.jsonl", "f.sqlite", "--encoder", str(tiny_encoder), "--json"]
    options += ["--epochs", "2", "--batch-size", "7", "--learning-rate", "0.001", "-o"]
    done = [
        subprocess.run(
            [*launcher, "-m", "ezxmc", "train", *options, name],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            cwd=tmp_path,
            timeout=200,
        )
        for launcher, name in (([sys.executable], "one"), (TORCHRUN, "two"))
    ]
    assert [one.returncode for one in done] == [3, 0], done[1].stderr
    ...


@pytest.mark.encoder
def test_two_processes_train_a_real_encoder(tmp_path: Path) -> None:
    encoder = resolve_model("all-MiniLM-L6-v2", kind="encoder")
    one, two = (train(tmp_path / f"{n}", encoder, n, changes={"learning_rate": 1e-4}) for n in (1, 2))
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.best_epoch == one.best_epoch > 0
    left, right = (BiEncoder(tmp_path / n).encode_documents([d.shown for d in DOCUMENTS]) for n in ("1", "2"))
    np.testing.assert_allclose(left, right, atol=1e-4)
    assert np.abs(left - BiEncoder(encoder).encode_documents([d.shown for d in DOCUMENTS])).max() > 1e-2
