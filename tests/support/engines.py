"""The in-process engine of a test session, started once; `vllm_server.shared` is the one behind HTTP."""

from __future__ import annotations

import atexit
from functools import cache
from typing import Any

import psutil

from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.teacher.vllm import VllmEngine, VllmTeacher

MODEL = "SmolLM2-135M-Instruct"
SETTINGS: dict[str, Any] = {"model": MODEL, "kv_cache_gib": 0.5, "max_num_seqs": 16, "min_label_mass": 0.0}


@cache
def _shared() -> VllmEngine:
    made = VllmTeacher(VllmTeacherConfig(**SETTINGS)).engine
    atexit.register(made.close)
    return made


def teacher(**changes: Any) -> VllmTeacher:
    """A teacher on the session's engine; `changes` are settings that the engine does not depend on.

    Whoever closes it or kills the engine costs the next one a start.
    """
    assert not changes.keys() & {"model", "dtype", "kv_cache_gib", "max_num_seqs", "compile"}
    made = VllmTeacher(VllmTeacherConfig(**{**SETTINGS, **changes}))
    assert made.engine.max_tokens <= _shared().max_tokens
    made.engine = _shared()
    return made


def workers() -> list[psutil.Process]:
    """The engine's processes; a server that another test started has its worker further down."""
    return [process for process in psutil.Process().children() if "VLLM::WORKER" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()).upper()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it ended since it was listed
        return ""
