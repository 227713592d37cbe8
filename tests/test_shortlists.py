"""Shortlist files: what fits is used, what does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import catalog

from ezxmc.data import RowReport, read_shortlist
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
