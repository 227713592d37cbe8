"""The program's entry point run in this process, and a catalog whose judgments are all recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.tinyworld import document, label_rows, topical, write_rows

from ezxmc.records import Document, Label, Pair


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Ezxmc = Callable[..., Done]


def recorded(folder: Path, documents: int = 60) -> Path:
    """Every pair of the catalog as a recorded judgment."""
    return write_rows(
        folder / "judgments.jsonl",
        [
            {"doc": row["uid"], "label": label["uid"], "log_odds": topical(Pair(doc, Label(**label)))}
            for row in map(document, range(documents))
            for doc in [Document(**row)]
            for label in label_rows()
        ],
    )
