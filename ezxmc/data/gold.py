"""Gold tags, used for evaluation only.

Accepted: TSV or CSV with a document and a label per line, with or without a
header line; JSON lines, Parquet or `datasets` rows with a document column and
either `label` or a list `labels`. A benchmark's `trn.json.gz` or `tst.json.gz`
serves as well: its `target_ind` number the lines of the `lbl.json.gz` beside it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ezxmc.data.documents import row_uid
from ezxmc.data.readers import iter_fields, iter_rows, source_kind
from ezxmc.data.validate import RowError, RowReport
from ezxmc.data.xmc_text import targets, uids_by_number

DOCUMENT_COLUMNS = ("uid", "doc", "document", "doc_id", "doc_uid", "id")
LABEL_COLUMNS = ("label", "label_id", "label_uid", "labels")


def read_gold(
    source: str | Path,
    *,
    documents: Collection[str] | None = None,
    labels: Collection[str] | None = None,
    strict: bool = False,
) -> tuple[dict[str, set[str]], RowReport]:
    """Gold label uids of each document uid.

    A document with an empty list of labels is kept with an empty set. In the
    report a row is one pair: a line with three labels counts three.

    Args:
        source: See the module's text.
        documents: Known document uids; pairs of others are dropped as
            `unknown_document`. `None`: any.
        labels: Known label uids; pairs of others are dropped as
            `unknown_label`. `None`: any.
        strict: Raise at the first bad pair.

    Raises:
        DataError: The source cannot be read, or a pair is bad under `strict`.
    """
    report = RowReport(strict=strict)
    known_documents = None if documents is None else frozenset(documents)
    known_labels = None if labels is None else frozenset(labels)
    gold: dict[str, set[str]] = {}
    for file, line, row in _rows(source, report):
        try:
            uid = row_uid(_first(row, DOCUMENT_COLUMNS), "document")
            tags = _first(row, LABEL_COLUMNS)
            if not uid:
                raise RowError("no_document", f"none of {', '.join(DOCUMENT_COLUMNS)}")
            if tags is None:
                raise RowError("no_label", f"none of {', '.join(LABEL_COLUMNS)}")
            if known_documents is not None and uid not in known_documents:
                raise RowError("unknown_document", reprlib.repr(uid))
        except RowError as error:
            report.add(file, line, error.kind, error.detail)
            continue
        if tags == []:
            gold.setdefault(uid, set())
            report.kept += 1
        for tag in tags if isinstance(tags, list) else [tags]:
            try:
                label = row_uid(tag, "label")
                if not label:
                    raise RowError("no_label", f"an empty label of document {reprlib.repr(uid)}")
                if known_labels is not None and label not in known_labels:
                    raise RowError("unknown_label", reprlib.repr(label))
            except RowError as error:
                report.add(file, line, error.kind, error.detail)
                continue
            gold.setdefault(uid, set()).add(label)
            report.kept += 1
    return gold, report


def _rows(source: str | Path, report: RowReport) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if source_kind(source) not in (".csv", ".tsv"):
        uids: list[str | None] | None = None
        for file, line, row in iter_rows(source, report):
            if "target_ind" in row and _first(row, LABEL_COLUMNS) is None:
                uids = uids_by_number(Path(file)) if uids is None else uids
                bad_before = report.bad
                row["labels"] = targets(row, uids, file, line, report)
                if not row["labels"] and report.bad > bad_before:
                    continue  # its labels cannot be read, which is not the same as none
            yield file, line, row
        return
    header = ["doc", "label"]
    for number, (file, line, fields) in enumerate(iter_fields(source, report)):
        names = [name.strip().lower() for name in fields]
        if number == 0 and _has(names, DOCUMENT_COLUMNS) and _has(names, LABEL_COLUMNS):
            header = names
        elif len(fields) == len(header):
            yield file, line, dict(zip(header, fields, strict=True))
        else:
            report.add(file, line, "field_count", f"{len(fields)} fields, not {len(header)}")


def _has(names: list[str], accepted: tuple[str, ...]) -> bool:
    return any(name in accepted for name in names)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
