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

    Columns: `doc` and `label` (uids), `log_odds` (nats); optional are `mass`, `status` (a pair that was
    recorded without a score has none here either) and `teacher`, as `ezxmc judgments export` writes them. A
    pair that was not recorded gets the status `not_recorded`, never a guess.

    Args:
        path: The recorded judgments.

    Raises:
        DataError: The file is missing, holds no usable judgment, or mixes the judgments of several teachers.
    """

    def __init__(self, path: Path) -> None:
        report = RowReport()
        self._recorded: dict[tuple[str, str], _Answer] = {}
        teacher: Any = None
        for file, line, row in iter_rows(path, report):
            answer = _answer(row)
            if answer is None:
                detail = "needs doc, label, and a finite log_odds where the status is ok"
                report.add(file, line, "bad_judgment", detail)
                continue
            teacher = teacher or row.get("teacher")
            if row.get("teacher") != teacher:
                raise DataError(
                    f"{file}:{line}: judgments of a second teacher, whose scores do not compare",
                    "export one of them: `ezxmc judgments export --teacher FINGERPRINT`",
                )
            self._recorded[str(row["doc"]), str(row["label"])] = answer
            report.kept += 1
        if not self._recorded:
            raise DataError(f"{path} holds no judgment", "columns are doc, label, log_odds and mass")
        self.report = report
        self.fingerprint = file_hash(path)
        self.description = {
            "backend": "replay",
            "judgments": len(self._recorded),
            "sha256": self.fingerprint,
        }

    def key(self, pair: Pair) -> str:
        """See `Teacher`. Recordings are matched by uid, so uids are what is shown."""
        return judgment_key(self.fingerprint, pair.doc.uid, pair.label.uid)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`."""
        for pair in pairs:
            key, doc, label = self.key(pair), pair.doc.uid, pair.label.uid
            if (found := self._recorded.get((doc, label))) is None:
                yield Judgment(key, doc, label, Status.NOT_RECORDED)
            else:
                status, log_odds, mass = found
                yield Judgment(key, doc, label, status, log_odds=log_odds, label_mass=mass)

    def close(self) -> None:
        """See `Teacher`."""


_Answer = tuple[Status, float | None, float | None]


def _answer(row: dict[str, Any]) -> _Answer | None:
    """Status, log-odds and label mass of a row; `None` if it is no judgment."""
    if row.get("doc") in (None, "") or row.get("label") in (None, ""):
        return None
    try:
        status = Status(row.get("status") or Status.OK)
        log_odds = float(row["log_odds"]) if status is Status.OK else None
        mass = None if row.get("mass") in (None, "") else float(row["mass"])
    except (KeyError, TypeError, ValueError):
        return None
    if log_odds is not None and not math.isfinite(log_odds):
        return None
    if mass is not None and not 0 <= mass <= 1.001:
        return None
    return status, log_odds, mass if mass is None else min(mass, 1.0)
