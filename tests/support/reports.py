"""A run report with everything in it, and what a browser would see of a page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from ezxmc.report import RunReport

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "br", "link", "img", "input", "hr"}


def full(**changes: Any) -> RunReport:
    raw: dict[str, Any] = {
        "title": "python packages",
        "created": "2026-05-04T10:00:00+00:00",
        "config": {"run_dir": "run", "teacher": {"kind": "vllm", "prompt": "software"}},
        "data": {
            "documents": {
                "rows": 206,
                "kept": 201,
                "counts": {"empty text": 4, "bad JSON": 1},
                "problems": [{"file": "documents.jsonl", "line": 17, "kind": "bad JSON", "detail": "at 3"}],
            },
            "labels": {"rows": 426, "kept": 426},
            "gold": {"rows": 407, "kept": 407},
        },
        "teacher": {
            "description": {"model": "Qwen2.5-Coder-1.5B-Instruct", "block": 32},
            "judgments": 4012,
            "statuses": {"ok": 4010, "low_mass": 2},
            "failures": 2,
            "sessions": 2,
            "prompt_tokens": 812345,
            "cached_tokens": 700123,
            "cache_share": 0.862,
            "computed_per_pair": 28.0,
            "pairs_per_second": 8.41,
            "seconds": 477.0,
            "problem_docs": ["numpy"],
        },
        "log_odds_histogram": {"edges": [-8, -4, -2, 0, 2, 4], "counts": [700, 1400, 1100, 600, 210]},
        "shortlist": [{"cycle": 1, "documents": 201, "candidates": 2412, "size": 12}],
        "cycles": [
            {
                "number": n,
                "pairs_new": 2412 // n,
                "pairs_known": 812 * (n - 1),
                "training": {
                    "epochs": 3,
                    "losses": [2.31, 1.92, 1.75],
                    "selection": [0.51, 0.58, 0.61, 0.60],
                    "best_epoch": 2,
                    "samples_per_second": 21.4,
                    "seconds": 66.0,
                },
                "held_out": {"nDCG@5": 0.61},
            }
            for n in (1, 2)
        ],
        "calibration": {
            "target": "teacher",
            "n": 400,
            "ece_cross_fitted": 0.041,
            "bins": [
                {"low": i / 10, "high": (i + 1) / 10, "n": 80 - 7 * i, "mean_probability": i / 10 + 0.05}
                | {"hit_rate": min(1, i / 9)}
                for i in range(10)
            ],
        },
        "evaluation": {
            "before": {"P@1": 0.42, "P@3": 0.30, "R@10": 0.41, "ECE@5": 0.20, "NLL": 0.9},
            "after": {"P@1": 0.55, "P@3": 0.28, "R@10": 0.52, "ECE@5": 0.06, "NLL": 0.6},
            "constant": {"P@1": 0.33, "R@10": 0.35},
            "documents": 145,
            "note": "The gold is incomplete.",
        },
        "examples": [
            {
                "uid": "anyio",
                "title": "High-level concurrency",
                "text": "on top of asyncio or Trio",
                "tags": [
                    {"title": "Framework: AsyncIO", "probability": 0.93},
                    {"title": "Framework: Trio", "probability": None},
                ],
                "gold": ["Framework: AsyncIO"],
            },
            {"uid": "ninja", "title": "", "tags": [], "gold": None},
        ],
        "cost": {
            "seconds": {"annotate": 477.0, "train": 132.0},
            "peak_memory": 6_100_000_000,
            "disk": 95_000_000,
        },
        "versions": {"ezxmc": "0.1.0"},
    }
    return RunReport.model_validate(raw | changes)


class Page(HTMLParser):
    """Tags, ids and text of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> list[str]:
        return [attrs["id"] or "" for tag, attrs in self.tags if tag == "section"]
