"""Configuration: what a user may leave out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezxmc.config import RunConfig
from ezxmc.config.teacher import ReplayTeacherConfig, VllmTeacherConfig
from ezxmc.errors import ConfigError
from ezxmc.pipeline.deliver import keyed

DATA = "data: {documents: d.jsonl, labels: l.jsonl}\n"
KEY = DATA + "teacher: {kind: openai, model: m, api_key_env: K, base_url: "


def load(folder: Path, text: str) -> RunConfig:
    path = folder / "config.yaml"
    path.write_text(text)
    return RunConfig.load(path)


def test_only_the_data_must_be_named(tmp_path: Path) -> None:
    config = load(tmp_path, DATA)
    assert config.teacher == VllmTeacherConfig()
    assert load(tmp_path, config.dump()) == config


def test_a_teacher_is_vllm_unless_said_otherwise(tmp_path: Path) -> None:
    assert load(tmp_path, DATA + "teacher: {model: some/model}\n").teacher == VllmTeacherConfig(
        model="some/model"
    )
    replay = load(tmp_path, DATA + "teacher: {kind: replay, judgments: j.jsonl}\n").teacher
    assert isinstance(replay, ReplayTeacherConfig)


def test_files_beside_the_config_are_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").touch()
    config = load(tmp_path, DATA + "run_dir: out\n")
    assert config.data.documents == str(tmp_path / "d.jsonl")
    assert config.data.labels == "l.jsonl", "no such file here: it may be a hub id"
    assert config.run_dir == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings"),
        ("- a list", "holds no settings"),
        ("data: [", "not readable YAML"),
        ("run_dir: x\n", "data: Field required"),
        (DATA + "cycle: 2\n", "cycle: Extra inputs"),
        (DATA + "start: warm\n", "the setting start is gone, for it gained nothing: leave it out"),
        (DATA + "training: {confidence: yes}\n", "training: .*the setting confidence is gone"),
        (DATA + "cycles: 0\n", "cycles: Input should be greater"),
        (DATA + "teacher: {kind: oracle}\n", "teacher: .*oracle"),
        (DATA + "teacher: {model: m, tempreature: 1}\n", "tempreature: Extra inputs"),
        (
            KEY + "'http://gpu.example.org:8000/v1'}\n",
            "api_key_env: .*gpu.example.org.* read the API key: make it https",
        ),
        (KEY + "'http://127.0.0.1.example.org/v1'}\n", "read the API key"),
        (KEY + "'http://[2001:db8::1]/v1'}\n", "read the API key"),
        (
            KEY + "'http://localhost'}\nray: {servers: ['http://10.0.0.7:8000']}\n",
            "10.0.0.7.* read the API key",
        ),
    ],
)
def test_faults_are_named_with_a_cure(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"config.yaml.*{message}[\s\S]*cure"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "url", ["https://gpu.example.org/v1", "http://127.0.0.2:8000", "http://[::1]/v1", "http://LOCALHOST/v1"]
)
def test_a_key_may_go_where_nobody_else_reads_it(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, KEY + f"'{url}'}}\n").teacher.kind == "openai"


def test_settings_that_are_gone_may_stand_as_they_were_by_default(tmp_path: Path) -> None:
    former = load(tmp_path, DATA + "start: initial\ntraining: {confidence: false, epochs: 3}\n")
    assert former == load(tmp_path, DATA + "training: {epochs: 3}\n")


def test_a_missing_file_is_an_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file[\s\S]*ezxmc init"):
        RunConfig.load(tmp_path / "none.yaml")


def test_a_run_keeps_the_encoder_it_began_with(tmp_path: Path) -> None:
    """`auto` chooses once; runs from before there was a choice keep theirs."""
    run_dir = tmp_path / "run"
    config = load(tmp_path, DATA + "run_dir: run\n")
    assert config.training.encoder == "auto" and config.as_begun() == config
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(config.with_encoder("all-MiniLM-L6-v2").dump())
    assert config.as_begun().training.encoder == "all-MiniLM-L6-v2"
    named = load(tmp_path, DATA + "run_dir: run\ntraining: {encoder: org/other}\n")
    assert named.as_begun().training.encoder == "org/other"


def test_prompts_of_an_encoder_count_where_they_are_given(tmp_path: Path) -> None:
    """A stage that was done before there were any stays done."""
    plain = load(tmp_path, DATA).training
    assert "encoder_prompts" not in keyed(plain)
    given = load(tmp_path, DATA + "training: {encoder_prompts: {label: 'query: '}}\n").training
    assert keyed(given)["encoder_prompts"] == {"document": "", "label": "query: "}
    with pytest.raises(ConfigError, match=r"encoder_prompts\.query: Extra inputs"):
        load(tmp_path, DATA + "training: {encoder_prompts: {query: x}}\n")
