"""A teacher made of recorded judgments: experiments that need no LLM and repeat exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ezxmc.data import RowReport, iter_rows
from ezxmc.errors import DataError
from ezxmc.hashing import file_hash, judgment_key
from ezxmc.records import Judgment, Pair, Status


class ReplayTeacher:
    """Answers from a JSONL, CSV or Parquet file of judgments.

    Columns: `doc` and `label` (uids), `log_odds` (nats), `mass` (optional). A
    pair that was not recorded gets the status `not_recorded`, never a guess.

    Args:
        path: The recorded judgments.

    Raises:
        DataError: The file is missing or holds no usable judgment.
    """

    def __init__(self, path: Path) -> None:
        report = RowReport()
        self._recorded: dict[tuple[str, str], tuple[float, float | None]] = {}
        for file, line, row in iter_rows(path, report):
            answer = _answer(row)
            if answer is None:
                report.add(file, line, "bad_judgment", "needs doc, label and a finite log_odds")
            else:
                self._recorded[str(row["doc"]), str(row["label"])] = answer
                report.kept += 1
        if not self._recorded:
            raise DataError(f"{path} holds no judgment", "columns are doc, label, log_odds and mass")
        self.report = report
        self._hash = file_hash(path)

    @property
    def fingerprint(self) -> str:
        """See `Teacher`: the recording's hash."""
        return self._hash

    @property
    def description(self) -> dict[str, Any]:
        """See `Teacher`."""
        return {"backend": "replay", "judgments": len(self._recorded), "sha256": self._hash}

    def key(self, pair: Pair) -> str:
        """See `Teacher`. Recordings are matched by uid, so uids are what is shown."""
        return judgment_key(self._hash, pair.doc.uid, pair.label.uid)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`."""
        for pair in pairs:
            key, doc, label = self.key(pair), pair.doc.uid, pair.label.uid
            if (found := self._recorded.get((doc, label))) is None:
                yield Judgment(key, doc, label, Status.NOT_RECORDED)
            else:
                yield Judgment(key, doc, label, Status.OK, log_odds=found[0], label_mass=found[1])

    def close(self) -> None:
        """See `Teacher`."""


def _answer(row: dict[str, Any]) -> tuple[float, float | None] | None:
    if row.get("doc") in (None, "") or row.get("label") in (None, ""):
        return None
    try:
        log_odds = float(row["log_odds"])
        mass = None if row.get("mass") in (None, "") else float(row["mass"])
    except (KeyError, TypeError, ValueError):
        return None
    if not math.isfinite(log_odds) or (mass is not None and not 0 <= mass <= 1.001):
        return None
    return log_odds, mass if mass is None else min(mass, 1.0)
