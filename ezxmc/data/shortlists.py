"""Shortlists as `ezxmc shortlist` writes them."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow

from ezxmc.data.readers import iter_rows
from ezxmc.data.validate import RowReport
from ezxmc.data.writers import row_format, rows_made, whole_rows
from ezxmc.files import Inputs, check_file
from ezxmc.records import Document, Label

SHORTLIST = pyarrow.schema(
    [
        ("doc", pyarrow.string()),
        ("labels", pyarrow.list_(pyarrow.string())),
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("sources", pyarrow.list_(pyarrow.string())),
    ]
)
"""Columns of a file of shortlists."""
_WHAT = "a file of shortlists"


def check_shortlist(out: Path, inputs: Inputs = ()) -> None:
    """Whether shortlists may be written to a file; raises ConfigError as `check_file` and `row_format`."""
    row_format(out)
    check_file(out, _WHAT, made=rows_made(SHORTLIST.names), inputs=inputs)


def write_shortlist(out: Path, rows: Iterable[dict[str, Any]], inputs: Inputs = ()) -> None:
    """Write shortlists in the form that the file's name says; a former file of them is replaced.

    Args:
        out: `.jsonl`, `.csv` (each also `.gz`) or `.parquet`.
        rows: Of `candidate_row`.
        inputs: What they were made from: none of it is replaced.

    Raises:
        ConfigError: As for `check_shortlist`.
        DataError: The file cannot be written.
    """
    with whole_rows(out, _WHAT, SHORTLIST, inputs=inputs) as write:
        write(rows)


def read_shortlist(
    source: str | Path, documents: Sequence[Document], labels: Sequence[Label], report: RowReport
) -> list[list[int]]:
    """Candidate labels of each document, as positions in `labels`.

    Args:
        source: Rows with `doc`, a uid, and `labels`, a list of uids.
        documents: N documents.
        labels: All labels.
        report: Receives lines that do not fit (`bad_shortlist`), and lines with
            a document or a label that is not there (`unknown_document`,
            `unknown_label`); the known labels of such a line are kept.

    Returns:
        N lists; empty for documents without a line.

    Raises:
        DataError: The source cannot be read, or a line is bad and `report` is strict.
    """
    row_of_document = {document.uid: row for row, document in enumerate(documents)}
    row_of_label = {label.uid: row for row, label in enumerate(labels)}
    found: list[list[int]] = [[] for _ in documents]
    for file, line, columns in iter_rows(source, report):
        uid, names = columns.get("doc"), columns.get("labels")
        if isinstance(names, str):  # a cell of CSV
            with suppress(ValueError, RecursionError):
                names = json.loads(names)
        if not isinstance(uid, str) or not isinstance(names, list):
            report.add(file, line, "bad_shortlist", "needs doc, a uid, and labels, a list of uids")
        elif uid not in row_of_document:
            report.add(file, line, "unknown_document", reprlib.repr(uid))
        else:
            known = [row_of_label[name] for name in names if isinstance(name, str) and name in row_of_label]
            found[row_of_document[uid]] = known
            if len(known) < len(names):
                report.add(file, line, "unknown_label", f"{len(names) - len(known)} of {len(names)} labels")
            else:
                report.kept += 1
    return found
