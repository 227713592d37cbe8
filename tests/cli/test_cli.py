"""The command line as a user sees it: output, messages, exit codes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.fakes import FakeTeacher
from support.program import Ezxmc, recorded
from support.tinyworld import document, label_rows, topical, write_catalog, write_rows
from typer.testing import CliRunner

from ezxmc.bundle.bundle import save_bundle
from ezxmc.bundle.tagging import TaggingOptions, tag_file
from ezxmc.cli import app as program
from ezxmc.cli import console
from ezxmc.cli import run as of_runs
from ezxmc.config import DataConfig, RunConfig, TrainingConfig
from ezxmc.config.teacher import ReplayTeacherConfig
from ezxmc.errors import ConfigError
from ezxmc.feedback.store import FeedbackStore
from ezxmc.files import sole_writer
from ezxmc.models import teachers
from ezxmc.pipeline.calibrate import missing_pairs
from ezxmc.pipeline.plan import plan as ezxmc_plan
from ezxmc.pipeline.steps import annotate_shortlist, train_on_store
from ezxmc.records import Label

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def catalog(tmp_path: Path, tiny_encoder: Path) -> Path:
    """A configuration whose teacher replays recorded judgments."""
    teacher = {"kind": "replay", "judgments": str(recorded(tmp_path))}
    return write_catalog(tmp_path, tiny_encoder, teacher=teacher, cycles=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """An untrained bundle without calibrator, to read only."""
    path = tmp_path_factory.mktemp("cli") / "bundle"
    labels = [Label(**row) for row in label_rows()]
    save_bundle(path, tiny_encoder, labels, max_length=32, k=5)
    return path


def commands() -> list[list[str]]:
    program._register()
    root = typer.main.get_command(program.app)
    found: list[list[str]] = []

    def walk(command: Any, names: list[str]) -> None:
        if subcommands := getattr(command, "commands", None):
            for name, one in subcommands.items():
                walk(one, [*names, name])
        else:
            found.append(names)

    walk(root, [])
    return found


COMMANDS = commands()


def test_all_commands_are_there() -> None:
    alone = {"init", "doctor", "run", "predict", "evaluate", "report"}
    steps = {"plan", "shortlist", "annotate", "train", "index", "calibrate", "decide", "export", "serve"}
    labels = {f"labels {name}" for name in ("list", "add", "remove", "rebuild")}
    models = {"models list", "models pull", "models path"}
    judgments = {f"judgments {name}" for name in ("stats", "failures", "export", "import")}
    prompts = {"prompts list", "prompts show", "prompts check"}
    benches = {f"bench {name}" for name in ("teacher", "index", "encoding", "serving")}
    reviews = {"review export", "review import", "review ui"}
    data = {f"data {name}" for name in ("list", "show", "inspect", "stats", "check", "convert")}
    groups = models | judgments | prompts | labels | data | benches | reviews
    assert {" ".join(names) for names in COMMANDS} == alone | steps | groups


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_with_an_example(names: list[str]) -> None:
    shown = CliRunner().invoke(program.app, [*names, "--help"], prog_name="ezxmc")
    assert shown.exit_code == 0
    assert f"Example: ezxmc {' '.join(names)}" in " ".join(shown.output.split())


def test_init_writes_the_defaults_and_never_overwrites(
    ezxmc: Ezxmc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "machine", lambda: teachers.Machine((), 8e9, cpu_engine=True))
    done = ezxmc("init", "my.yaml", "--documents", "d.csv", "--labels", "l.txt", "--gold", "g.tsv")
    assert done.code == 0 and "ezxmc run my.yaml" in done.err and done.out == ""
    text = (tmp_path / "my.yaml").read_text()
    wanted = RunConfig(data=DataConfig(documents="d.csv", labels="l.txt", gold="g.tsv"))
    found = RunConfig.load(tmp_path / "my.yaml")
    assert found == wanted.model_copy(update={"run_dir": str(tmp_path / "runs" / "default")})
    # Every key is there to be changed, with its meaning.
    assert yaml.safe_load(text) == wanted.model_dump()
    assert text.count("#") > 20

    (tmp_path / "my.yaml").write_text("mine")
    again = ezxmc("init", "my.yaml")
    assert again.code == 2 and again.err.startswith("error: my.yaml exists\n  cure: ")
    assert (tmp_path / "my.yaml").read_text() == "mine"
    assert ezxmc("init", "my.yaml", "--force").code == 0
    assert RunConfig.load(tmp_path / "my.yaml").data.gold is None


def test_init_writes_the_teacher_that_fits_and_why(
    ezxmc: Ezxmc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = (teachers.Gpu("Card", 24 * 2**30),) * 2
    monkeypatch.setattr(teachers, "machine", lambda: teachers.Machine(pair, 64e9, cpu_engine=False))
    monkeypatch.setattr(teachers, "in_reach", lambda model: True)

    def teacher(*options: str) -> Any:
        done = ezxmc("init", "my.yaml", "--force", *options)
        found = RunConfig.load(tmp_path / "my.yaml").teacher
        assert done.code == 0 and found.kind == "vllm" and f"teacher {found.model}: " in done.err
        return found.model, found.tensor_parallel

    assert teacher() == ("Qwen/Qwen3-14B", 2)
    before, _, _ = (tmp_path / "my.yaml").read_text().partition("  model: Qwen/Qwen3-14B")
    why = before.splitlines()[-1]
    assert why.startswith("  # Here: ") and "Apache-2.0" in why and "2 x Card, 26 GB" in why
    # Whoever names one is not asked after: no look at machine or hub.
    monkeypatch.setattr(teachers, "machine", None)
    assert teacher("--model", "org/own") == ("org/own", 1)
    assert "as given with --model" in (tmp_path / "my.yaml").read_text()


def test_the_line_step_by_step(ezxmc: Ezxmc, catalog: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    inputs = ("documents.jsonl", "labels.jsonl")
    short = ezxmc("shortlist", *inputs, "--encoder", tiny_encoder, "--size", 6, "-o", "s.jsonl", "--json")
    assert short.code == 0 and short.json["rows"]["labels"]["kept"] == 25
    assert {**short.json, "rows": 0} == {"documents": 60, "candidates": 360, "out": "s.jsonl", "rows": 0}

    ask = ("annotate", *inputs, "s.jsonl", "--store", "f.sqlite", "--replay", "judgments.jsonl", "--json")
    asked = ezxmc(*ask).json
    assert (asked["wanted"], asked["asked"], asked["statuses"]) == (360, 360, {"ok": 360})
    recorded = ReplayTeacherConfig(judgments="judgments.jsonl")
    by_python = annotate_shortlist(*inputs, "s.jsonl", recorded, "p.sqlite").to_dict()
    timed = {"rows", "store", "seconds", "startup_seconds", "pairs_per_second"}
    assert {name: by_python[name] for name in asked.keys() - timed} == {
        name: asked[name] for name in asked.keys() - timed
    }
    again = ezxmc(*ask).json
    assert (again["known"], again["asked"]) == (360, 0)
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        assert len(list(store.judgments())) == 360

    learn = ("--encoder", tiny_encoder, "--held-out", 0.4, "--batch-size", 8, "--learning-rate", 5e-3)
    trained = ezxmc("train", *inputs, "f.sqlite", "-o", "student", "--epochs", 4, *learn, "--json").json
    assert trained["out"] == "student" and len(trained["losses"]) == 4 and trained["documents"] > 20

    data = DataConfig(documents=inputs[0], labels=inputs[1])
    config = TrainingConfig(
        encoder=str(tiny_encoder), epochs=4, held_out=0.4, batch_size=8, learning_rate=5e-3
    )
    by_python = train_on_store(data, "f.sqlite", "by-python", config=config).to_dict()
    assert list(by_python["losses"]) == trained["losses"] and by_python["unused_judgments"] == 0
    indexed = ezxmc("index", "student", "labels.jsonl", "-o", "bundle", "--k", 5, "--json").json
    assert (indexed["labels"], indexed["dimension"]) == (25, 32)

    part = ("--held-out", 0.4, "--depth", 10)
    fit = ("calibrate", "bundle", "documents.jsonl", "--store", "f.sqlite", *part)
    refused = ezxmc(*fit)
    assert refused.code == 1 and "own top 10 were never judged" in refused.err and "--missing" in refused.err
    lacking = ezxmc(*fit, "--missing", "missing.jsonl", "--json").json
    by_python = missing_pairs("bundle", "documents.jsonl", "f.sqlite", "m.jsonl", held_out=0.4).to_dict()
    assert {**lacking, "rows": 0} == {**by_python, "out": "missing.jsonl", "rows": 0}
    assert (tmp_path / "m.jsonl").read_text() == (tmp_path / "missing.jsonl").read_text()
    asked = ezxmc("annotate", *inputs, "missing.jsonl", *ask[4:]).json
    assert asked["asked"] == lacking["pairs"] > 10
    fitted = ezxmc(*fit, "--json").json
    assert fitted["target"] == "teacher" and fitted["pairs"] == 10 * fitted["documents"]
    human = ezxmc("calibrate", "bundle", "documents.jsonl", "--gold", "gold.tsv", *part, "--json").json
    assert human["target"] == "human" and human["pairs"] >= 20

    tagged = ezxmc("predict", "bundle", "documents.jsonl", "-o", "tags.jsonl", "--k", 10)
    assert tagged.code == 0 and tagged.out == ""
    assert (
        tag_file(TaggingOptions("bundle", k=10), "documents.jsonl", tmp_path / "by-python.jsonl").kept == 60
    )
    assert (tmp_path / "by-python.jsonl").read_text() == (tmp_path / "tags.jsonl").read_text()
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in rows] == [f"d{i}" for i in range(60)]
    assert all(0 <= tag["probability"] <= 1 for row in rows for tag in row["tags"])

    found = ezxmc("evaluate", "tags.jsonl", "gold.tsv", "--json").json
    assert found["n_documents"] == 60 and {"P@1", "R@10", "nDCG@5", "ECE@5"} <= set(found["values"])
    assert found["values"]["P@1"] > 0.6 and found["rows"]["predictions"]["kept"] == 60
    table = ezxmc("evaluate", "tags.jsonl", "gold.tsv")
    assert table.code == 0 and f"{found['values']['P@1']:.4f}" in table.out and "P@1" in table.out


def test_run_and_report(ezxmc: Ezxmc, catalog: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    rows[0]["title"] += "\x1b[2J\n" + "long " * 99
    write_rows(tmp_path / "documents.jsonl", rows)
    done = ezxmc("run", catalog)
    assert done.code == 0, done.err
    for name in ("report.html", "predictions.jsonl", "bundle"):
        assert str(tmp_path / "run" / name) in done.out and (tmp_path / "run" / name).exists()
    assert "most frequent tags" in done.out and "P@1" in done.out
    assert done.out.splitlines()[-1].endswith(f": ezxmc serve {tmp_path / 'run' / 'bundle'}")
    (shown,) = [line for line in done.out.splitlines() if line.startswith("guitar 0")]
    assert shown == "guitar 0 [2J " + "long " * 13 + "l…", "cut, and nothing a terminal would obey"
    assert re.search(r"^  \w+ \d+ %; \w+ \d+ %; \w+ \d+ %$", done.out, re.MULTILINE)
    assert "cycle 1/1: teacher judges" in done.err and "60 rows, 60 kept" in done.err
    again = ezxmc("run", catalog, "--json")
    assert again.code == 0 and again.json["cycles"][0]["pairs_new"] == 0
    assert ezxmc("report", "run", "--json").json == json.loads((tmp_path / "run/report.json").read_text())
    page = ezxmc("report", "run", "-o", "page.html")
    assert page.code == 0 and page.out.strip() == "page.html"
    assert "<html" in (tmp_path / "page.html").read_text()


def test_plan_tells_what_a_run_will_cost(ezxmc: Ezxmc, catalog: Path, tmp_path: Path) -> None:
    counted = ezxmc("plan", catalog, "--no-probe", "--json")
    assert counted.code == 0, counted.err
    assert counted.json["total"]["seconds"] is None and not (tmp_path / "run").exists()
    assert [part["name"] for part in counted.json["parts"]] == ["cycle 1", "calibration"]
    probed = ezxmc("plan", catalog, "--probe-pairs", 40, "--json").json
    assert probed["probe"]["pairs"] == 40 and probed["parts"][0]["known"] == 40
    shown = ezxmc("plan", catalog, "--max-pairs", 100)
    assert shown.code == 0 and "cycle 1" in shown.out and "left unasked by the budget" in shown.out
    default = inspect.signature(ezxmc_plan).parameters["probe_pairs"].default
    assert inspect.signature(of_runs.plan).parameters["probe_pairs"].default == default
    # The run finds what the probe asked.
    assert ezxmc("run", catalog, "--json").json["cycles"][0]["pairs_known"] >= 40


def test_plan_compares_teachers(
    ezxmc: Ezxmc, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.pipeline.plan.load_teacher", lambda *_, **__: FakeTeacher(topical))
    monkeypatch.setattr("ezxmc.pipeline.plan.machine", lambda: teachers.Machine((), 8e9, cpu_engine=True))
    shown = ezxmc("plan", write_catalog(tmp_path, tiny_encoder), "--no-probe").out
    rows = [line for line in shown.splitlines() if "Apache-2.0" in line]
    assert [("processor" in row, "too large" in row) for row in rows] == [(True, False)] + [(False, True)] * 4
    assert "note: other teachers: an estimate" in shown


def test_a_run_and_an_annotation_keep_to_their_budgets(ezxmc: Ezxmc, catalog: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = ezxmc("run", catalog, "--max-pairs", 150, "--json")
        assert done.code == 0, done.err
        assert done.json["teacher"]["judgments"] == 150
        assert done.json["budget"]["unasked_pairs"] > 0 and "The budget left" in done.err
    wider = ezxmc("run", catalog, "--json").json
    assert wider["cycles"][0]["pairs_known"] > 0 and wider["budget"] is None

    inputs = ("documents.jsonl", "labels.jsonl")
    encoder = yaml.safe_load(catalog.read_text())["training"]["encoder"]
    ezxmc("shortlist", *inputs, "--encoder", encoder, "--size", 6, "-o", "s.jsonl")
    ask = ("annotate", *inputs, "s.jsonl", "--replay", "judgments.jsonl", "--store", "f.sqlite", "--json")
    for asked in (240, 0):
        found = ezxmc(*ask, "--max-pairs", 240).json
        assert (found["asked"], found["unasked_by_budget"]) == (asked, 120)
    assert ezxmc(*ask, "--max-pairs", 300).json["asked"] == 60
    assert ezxmc(*ask, "--max-hours", 0).code == 2


def test_run_tells_of_bad_rows_and_strict_stops(ezxmc: Ezxmc, catalog: Path) -> None:
    with (catalog.parent / "documents.jsonl").open("a") as handle:
        handle.write('{"uid": "d0", "text": "again"}\n')
    done = ezxmc("run", catalog, "--json")
    assert done.code == 3 and done.json["data"]["documents"]["problems"][0]["line"] == 61
    assert "documents.jsonl:61: duplicate_uid" in done.err
    strict = yaml.safe_load(catalog.read_text())
    strict["data"]["strict"] = True
    catalog.write_text(yaml.safe_dump(strict))
    stopped = ezxmc("run", catalog)
    assert stopped.code == 1 and "documents.jsonl:61: duplicate_uid" in stopped.err
    assert "cure:" in stopped.err and stopped.err.count("error:") == 1


MIXED = [
    b'{"uid": "a", "text": "guitar melody"}',
    b'{"uid": "a", "text": "again"}',
    b'{"uid": "b"}',
    b"{broken",
    b'\xff\xfe{"uid": "c"}',
    '{"uid": "é😀", "text": "soup 😀"}'.encode(),
]


def test_predict_reads_standard_input_and_answers_every_line(
    ezxmc: Ezxmc, bundle: Path, tmp_path: Path
) -> None:
    done = ezxmc("predict", bundle, stdin=b"\n".join(MIXED) + b"\n")
    assert done.code == 3 and "6 rows, 2 kept" in done.err
    tagged = [row for row in done.lines if "tags" in row]
    assert [row["uid"] for row in tagged] == ["a", "é😀"] and all(len(row["tags"]) == 5 for row in tagged)
    refused = [row for row in done.lines if "error" in row]
    assert [(row["file"], row["line"], row["error"].split(":")[0]) for row in refused] == [
        ("<stdin>", 2, "duplicate_uid"),
        ("<stdin>", 3, "empty_text"),
        ("<stdin>", 4, "bad_json"),
        ("<stdin>", 5, "bad_utf8"),
    ]
    clean = ezxmc("predict", bundle, "-", "--k", 2, stdin=MIXED[0])
    assert clean.code == 0 and [len(row["tags"]) for row in clean.lines] == [2]
    for nothing in (b"", b"\n \n"):
        empty = ezxmc("predict", bundle, stdin=nothing)
        assert (
            empty.code == 1
            and empty.out == ""
            and "standard input holds no usable document: 0 rows" in empty.err
        )
    (tmp_path / "none.csv").write_text("id,text\n")
    tags = tmp_path / "tags.jsonl"
    tags.write_text('{"uid": "former", "tags": []}\n')
    assert ezxmc("predict", bundle, "none.csv", "-o", tags).code == 1
    assert tags.read_text() == '{"uid": "former", "tags": []}\n'
    strict = ezxmc("predict", bundle, "--strict", stdin=b"\n".join(MIXED))
    assert strict.code == 1 and "<stdin>:2: duplicate_uid" in strict.err


def test_predict_says_little_in_a_pipe(ezxmc: Ezxmc, bundle: Path) -> None:
    lines = [json.dumps(document(i)).encode() for i in range(200)]
    done = ezxmc("predict", bundle, stdin=b"\n".join(lines))
    assert [row["uid"] for row in done.lines] == [f"d{i}" for i in range(200)]
    assert len(done.err.splitlines()) <= 4, "a progress line per document"


def test_what_predict_refused_is_counted_by_evaluate(ezxmc: Ezxmc, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(MIXED))
    assert ezxmc("predict", bundle, "in.jsonl", "-o", "tags.jsonl").code == 3
    (tmp_path / "gold.tsv").write_text("a\tl-guitar\n")
    done = ezxmc("evaluate", "tags.jsonl", "gold.tsv", "--json")
    assert done.code == 3 and done.json["n_documents"] == 1
    assert done.json["rows"]["predictions"]["counts"] == {"prediction_error": 4}


FAULTS: list[tuple[str, int, str]] = [
    ("run nowhere.yaml", 2, "nowhere.yaml"),
    ("run wrong.yaml", 2, "training.epochz"),
    ("report .", 1, "holds no finished run"),
    ("predict nowhere documents.jsonl", 1, "no bundle"),
    ("predict {bundle} nowhere.jsonl", 1, "nowhere.jsonl"),
    ("predict {bundle} documents.jsonl --threshold 0.5", 2, "needs probabilities"),
    ("predict {bundle} documents.jsonl -o documents.jsonl/tags.jsonl", 2, "documents.jsonl is a file"),
    ("predict {bundle} documents.jsonl -o tags.txt", 2, "let it end in .jsonl"),
    ("predict {bundle} documents.jsonl -o tags.csv --resume", 2, "only .jsonl can"),
    ("train documents.jsonl labels.jsonl nowhere.sqlite", 1, "nowhere.sqlite"),
    ("train documents.jsonl labels.jsonl empty.sqlite", 1, "nothing to learn from"),
    ("train documents.jsonl labels.jsonl empty.sqlite --held-out 2", 2, "held"),
    ("train documents.jsonl labels.jsonl empty.sqlite --learning-rate 0", 2, "learning"),
    ("index no-such-model labels.jsonl", 1, "no-such-model"),
    ("index {encoder} bad-labels.jsonl", 1, "bad-labels.jsonl holds no usable label"),
    ("calibrate {bundle} documents.jsonl --store empty.sqlite", 1, "too few"),
    ("calibrate {bundle} documents.jsonl", 2, "--store"),
    ("evaluate documents.jsonl nowhere.tsv", 1, "holds no prediction"),
    ("shortlist documents.jsonl labels.jsonl --encoder no-such-model", 1, "no-such-model"),
    ("annotate documents.jsonl labels.jsonl s.jsonl --replay nowhere.jsonl", 1, "nowhere.jsonl"),
    ("annotate documents.jsonl labels.jsonl s.jsonl --replay x --server y", 2, "--server"),
    ("plan nowhere.yaml", 2, "nowhere.yaml"),
    ("plan wrong.yaml --no-probe", 2, "training.epochz"),
    ("models path all-MiniLM-L6-v2", 1, "all-MiniLM-L6-v2"),
    ("models path MiniLM", 1, "MiniLM"),
    ("predict {bundle} --k 0", 2, "--k"),
    ("no-such-command", 2, "no-such-command"),
    ("init . --force", 2, ". is a folder"),
    ("init documents.jsonl --force", 2, "one of the inputs"),
]


@pytest.mark.parametrize(("command", "code", "message"), FAULTS, ids=[command for command, *_ in FAULTS])
def test_faults_are_told_with_a_cure(
    ezxmc: Ezxmc, catalog: Path, bundle: Path, tiny_encoder: Path, command: str, code: int, message: str
) -> None:
    place = catalog.parent
    (place / "wrong.yaml").write_text(catalog.read_text().replace("epochs:", "epochz:"))
    (place / "bad-labels.jsonl").write_text("{}\n")
    (place / "s.jsonl").write_text('{"doc": "d0", "labels": ["l-guitar"]}\n')
    with FeedbackStore(place / "empty.sqlite"):
        pass
    done = ezxmc(*command.format(bundle=bundle, encoder=tiny_encoder).split())
    assert done.code == code, done.err
    assert message in done.err and done.out == ""
    if "Usage:" not in done.err:  # typer's own complaints about options name the help instead
        assert done.err.count("error: ") == 1 and "\n  cure: " in done.err


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ezxmc.errors import ConfigError

    monkeypatch.setenv("EZXMC_DEBUG", "")
    monkeypatch.setattr(sys, "argv", ["ezxmc", "--debug", "run", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(ConfigError):
        program.main()


def test_models_list(ezxmc: Ezxmc, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in ezxmc("models", "list", "--json").json}
    assert {"all-MiniLM-L6-v2", "Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct"} <= set(rows)
    for row in rows.values():
        assert not row["pulled"] and row["path"].startswith(str(tmp_path / "home"))
        assert row["kind"] in ("encoder", "llm") and row["download_mb"] > 0
    assert "all-MiniLM-L6-v2" in ezxmc("models", "list").out
    assert "ezxmc models pull all-MiniLM-L6-v2" in ezxmc("models", "path", "all-MiniLM-L6-v2").err
    assert not (tmp_path / "home").exists()


def test_interrupted_by_the_user(ezxmc: Ezxmc, catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ezxmc.pipeline.run.run", interrupted)
    done = ezxmc("run", catalog)
    assert done.code == 130 and "the same command goes on" in done.err


def test_a_table_in_a_pipe_keeps_its_lines_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    console.table("a long title " * 20, ["model", "here"], [["name" * 100, "yes"]])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "a long title " * 20
    assert [line for line in lines if "name" * 100 in line and "yes" in line]


@pytest.mark.parametrize(
    "line",
    [
        "predict bundle documents.jsonl -o out.jsonl",
        "predict bundle documents.jsonl -o out.jsonl --resume",
        "shortlist documents.jsonl labels.jsonl -o out.jsonl",
        "train documents.jsonl labels.jsonl feedback.sqlite -o out",
        "index student labels.jsonl -o out",
    ],
)
def test_what_another_process_writes_is_refused_at_once(ezxmc: Ezxmc, tmp_path: Path, line: str) -> None:
    write_rows(tmp_path / "documents.jsonl", [document(0)])
    write_rows(tmp_path / "labels.jsonl", label_rows())
    out = tmp_path / line.split("-o ")[1].split()[0]
    with sole_writer(out):
        done = ezxmc(*line.split())
        assert done.code == 2 and "another process is writing out" in done.err and not done.out
    assert {path.name for path in tmp_path.iterdir()} == {"documents.jsonl", "labels.jsonl"}


def test_a_killed_writers_lock_goes_with_it(tmp_path: Path) -> None:
    place = tmp_path / "new" / "out.jsonl"
    code = "import sys, ezxmc.files\nwith ezxmc.files.sole_writer(sys.argv[1]):\n print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, place], stdin=-1, stdout=-1) as holder:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(ConfigError, match="another process is writing"), sole_writer(place):
            pass
        holder.kill()
    with sole_writer(place):
        pass
    assert not any(place.parent.iterdir())
