"""The plan of a very large catalog says what its page shows, and its arithmetic is what was measured."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCALE = Path(__file__).parents[1] / "examples" / "scale"


def test_the_page_shows_what_the_plan_prints() -> None:
    said = subprocess.run([sys.executable, SCALE / "plan.py"], check=True, capture_output=True, text=True)
    assert said.stdout in (SCALE / "README.md").read_text(encoding="utf-8")


def test_the_arithmetic_gives_the_measured_rates() -> None:
    plan = runpy.run_path(str(SCALE / "plan.py"))
    assert plan["tokens_per_pair"](20) == pytest.approx(16.4)
    assert plan["tokens_per_pair"](10) == pytest.approx(29.0, rel=0.1)
    measured = plan["Measured"]()
    on_two_cores = 0.645e12 / (measured.flop_per_token * plan["tokens_per_pair"](20))
    assert on_two_cores == pytest.approx(14.8, rel=0.02)


def test_no_stage_gets_slower_with_more_gpus() -> None:
    plan = runpy.run_path(str(SCALE / "plan.py"))
    job = plan["Job"](10_000_000, 1_000_000, 1_000_000, 14)
    few, many = (plan["stages"](job, gpus, 1.54e9) for gpus in (8, 64))
    assert all(many[name] <= few[name] for name in few) and many["teacher"] == pytest.approx(
        few["teacher"] / 8
    )
