"""Label Studio: pairs as its tasks, its exports as rows.

The formats are those of https://labelstud.io/guide/task_format: a task holds `data`, and in an export
`annotations`, each with `result`, a list of regions with `from_name`, `type` and `value`, and `was_cancelled`
for a task that was skipped. Its JSON-MIN, CSV and TSV hold a flat row per annotation, in
which `id` is the task's number there: our `id` is lost, so texts tell whether they are the exported ones.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ezxmc.data import RowReport
from ezxmc.errors import DataError

TEXTS_TELL = "label studio: texts tell"
"""A column of rows whose texts, not an `id`, tell whether they are those that were exported."""
CONFIG = """<View>
  <Header value="Does this label fit the document?"/>
  <Text name="label_title" value="$label_title"/>
  <Text name="label_text" value="$label_text"/>
  <Choices name="decision" toName="text" choice="single" required="true" showInline="true">
    <Choice value="yes" hotkey="y"/>
    <Choice value="no" hotkey="n"/>
    <Choice value="skip" hotkey="s"/>
  </Choices>
  <Header value="$title"/>
  <Text name="text" value="$text"/>
</View>
"""
_TASK = frozenset(("label_title", "label_text", "title", "text", "reason", "doc", "label", "id"))


def is_tasks(path: Path) -> bool:
    """Whether a file holds pairs as tasks, decided or not."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
        return isinstance(tasks, list) and all(one["data"].keys() >= _TASK for one in tasks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def is_config(path: Path) -> bool:
    """Whether a file is the labeling configuration of such tasks."""
    return path.read_bytes() == CONFIG.encode()


def as_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as a task. What teacher and student say is left out: it would lead the annotator."""
    return {
        "data": {name: value for name, value in row.items() if name not in ("decision", "teacher", "student")}
    }


def is_export(source: Path) -> bool:
    """Whether a file holds one JSON array, as Label Studio's exports do."""
    try:
        with source.open("rb") as handle:
            return (
                source.suffix == ".json"
                and handle.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
            )
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}", "check the path") from None


def labelled_tasks(source: Path, report: RowReport) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The annotations of an export as rows: `(file, number of the task, columns)`.

    Args:
        source: The export.
        report: Receives tasks that cannot be read (`bad_task`).

    Raises:
        DataError: The file is no JSON.
    """
    file = str(source)
    try:
        tasks = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no readable JSON: {error}", "export it from Label Studio again") from None
    for number, one in enumerate(tasks, start=1):
        try:
            yield from ((file, number, row) for row in _task_rows(one))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            report.add(file, number, "bad_task", f"no task of Label Studio: {reprlib.repr(error)}")


def _task_rows(one: dict[str, Any]) -> list[dict[str, Any]]:
    if "data" not in one and is_flat(one):
        return [flat_row(one)]
    data = dict(one["data"])
    annotations = one.get("annotations") or []
    return [{**data, **_said(annotation)} for annotation in annotations] or [{**data, "decision": None}]


def is_flat(row: Mapping[str, Any]) -> bool:
    """Whether a row is of Label Studio's JSON-MIN, CSV or TSV."""
    return "annotation_id" in row or "lead_time" in row


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of these as columns."""
    said = row.get("decision")
    if isinstance(said, dict):
        said = said.get("choices")
    if isinstance(said, list):
        said = " ".join(map(str, said))
    who = row.get("annotator")
    return {
        **{name: value for name, value in row.items() if name != "id"},
        "decision": said or None,
        "at": row.get("updated_at") or row.get("created_at"),
        "reviewer": who.get("email") if isinstance(who, dict) else who,
        TEXTS_TELL: True,
    }


def _said(annotation: dict[str, Any]) -> dict[str, Any]:
    choices = [
        choice
        for region in annotation.get("result") or []
        if region.get("from_name") == "decision"
        for choice in region["value"]["choices"]
    ]
    who = annotation.get("completed_by")
    return {
        # A task that was skipped there has no choice.
        "decision": "skip" if annotation.get("was_cancelled") else " ".join(map(str, choices)) or None,
        "at": annotation.get("updated_at") or annotation.get("created_at"),
        "reviewer": who.get("email") if isinstance(who, dict) else who,
    }
