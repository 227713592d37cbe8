"""Numbers that promise something keep it, in small and degenerate worlds whose law is known.

Intervals, p values, guarantees and drift alarms of usual sizes are simulated beside the functions that
make them; `bench/promises.py` plays the same worlds at length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support import promises
from support.promises import Row


@pytest.mark.parametrize(
    ("promise", "draws"),
    [
        (promises.metric_intervals, 40),
        (promises.probabilities, 8),
        (promises.reviews, 6),
        (promises.guarantees, 16),
        (promises.drift, 40),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_what_is_promised_comes_true(promise: Callable[[int], Iterator[Row]], draws: int) -> None:
    rows = list(promise(draws))
    assert sum(row.draws for row in rows) >= 10 * draws, "hardly anything was promised"
    assert [row for row in rows if not row.kept] == []
