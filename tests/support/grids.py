"""Judgments of every pair of a small catalog."""

from __future__ import annotations

import numpy as np

from ezxmc.records import Judgment, Status


def ok(doc: str, label: str, z: float) -> Judgment:
    return Judgment("0" * 64, doc, label, Status.OK, z, 1.0)


def grid(documents: int = 30, labels: int = 14, shift: float = 0.0) -> list[Judgment]:
    rng = np.random.default_rng(0)
    return [
        ok(f"d{i:02}", f"l{j:02}", float(rng.normal(shift, 2)))
        for i in range(documents)
        for j in range(labels)
    ]
