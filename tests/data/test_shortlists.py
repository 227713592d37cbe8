"""Shortlist files: what fits is used, what does not is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import forked
from support.fakes import catalog

from ezxmc.data import RowReport, read_shortlist
from ezxmc.data.predictions import write_shortlist
from ezxmc.errors import DataError

LINES = """\
{"doc": "d1", "labels": ["l2", "l0"]}
{"doc": "d9", "labels": ["l0"]}
{"doc": "d0", "labels": ["l1", "gone"]}
{"doc": "d2"}
no json
"""


def test_every_line_is_used_or_reported(tmp_path: Path) -> None:
    file = tmp_path / "shortlist.jsonl"
    file.write_text(LINES)
    documents, labels = catalog(3, 3)
    report = RowReport()
    assert read_shortlist(file, documents, labels, report) == [[1], [2, 0], []]
    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (2, "unknown_document"),
        (3, "unknown_label"),
        (4, "bad_shortlist"),
        (5, "bad_json"),
    ]
    assert (report.rows, report.kept) == (5, 1)
    with pytest.raises(DataError, match="jsonl:2: unknown_document"):
        read_shortlist(file, documents, labels, RowReport(strict=True))


def killed_in_the_middle(out: str) -> None:
    """Write some thousand shortlists, of which the last does not come to be."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(12_000):
            yield {"doc": f"d{number}", "labels": ["l0"], "scores": [1.0], "sources": ["dense"]}
        os.kill(os.getpid(), signal.SIGKILL)

    write_shortlist(Path(out), rows())


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv.gz", "list.parquet"])
def test_a_writer_that_is_killed_leaves_the_former_file_or_none(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    for former in (False, True):
        if former:
            write_shortlist(out, [{"doc": "d1", "labels": ["l2"], "scores": [0.5], "sources": ["dense"]}])
        before = out.read_bytes() if former else None
        process = forked(killed_in_the_middle, str(out))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (out.read_bytes() if out.exists() else None) == before
