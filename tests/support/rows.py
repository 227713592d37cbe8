"""Files with rows, and what is read of them."""

from __future__ import annotations

from pathlib import Path

from ezxmc.data import (
    RowReport,
)


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(report: RowReport) -> list[tuple[int, str]]:
    return [(problem.line, problem.kind) for problem in report.problems]
