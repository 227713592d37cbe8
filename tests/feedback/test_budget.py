"""Budgets: who gets how much, and that a limit is kept over any number of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.fakes import Clock, FakeTeacher, catalog

from ezxmc.config import BudgetConfig, RunConfig
from ezxmc.feedback.annotate import annotate, pairs_of
from ezxmc.feedback.budget import LEAST_CANDIDATES, Budget, allocate, in_hash_order, spread
from ezxmc.feedback.store import FeedbackStore

SIZES = st.lists(st.integers(0, 20), max_size=60)


@given(SIZES, st.integers(0, 1500))
def test_shares_spend_the_budget_and_no_more(sizes: list[int], pairs: int) -> None:
    given = spread(sizes, pairs)
    assert sum(given) == min(pairs, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(given, sizes, strict=True))


def test_shares_are_even_and_never_thin() -> None:
    assert spread([14] * 10, 200) == [14] * 10
    assert spread([14] * 10, 75) == [8] * 5 + [7] * 5
    thin = spread([14] * 10, 2 * LEAST_CANDIDATES + 1)
    assert thin == [LEAST_CANDIDATES + 1, LEAST_CANDIDATES] + [0] * 8
    # What short documents leave goes to the others.
    assert spread([2, 14, 14], 20) == [2, 10, 8]


@given(SIZES, st.integers(0, 300))
def test_a_cut_keeps_the_best_and_counts_what_it_leaves(sizes: list[int], pairs: int) -> None:
    rows = [list(range(size)) for size in sizes]
    order = in_hash_order([str(i) for i in range(len(rows))], range(len(rows)))
    found = allocate(rows, order, pairs)
    assert all(kept == row[: len(kept)] for kept, row in zip(found.rows, rows, strict=True))
    assert found.unasked_pairs == sum(sizes) - sum(map(len, found.rows))
    assert found.unasked_documents == sum(bool(r) and not k for r, k in zip(rows, found.rows, strict=True))
    assert found.order == [i for i in order if found.rows[i]]


def test_a_cut_keeps_the_part_that_explores() -> None:
    rows = [list(range(14)) for _ in range(140)]
    found = allocate(rows, range(140), 140 * 7, 1 / 14)
    assert {len(row) for row in found.rows} == {7}
    explored = [row for row in found.rows if 13 in row]
    assert len(explored) == 70 and all(row == [0, 1, 2, 3, 4, 5, 13] for row in explored)
    assert all(row == list(range(7)) for row in found.rows if 13 not in row)


def test_the_order_is_random_and_stays_when_documents_are_added() -> None:
    uids = [f"d{i}" for i in range(200)]
    order = [uids[i] for i in in_hash_order(uids, range(200))]
    assert sorted(order) == sorted(uids) and order != uids
    more = [f"e{i}" for i in range(50)] + uids
    again = [more[i] for i in in_hash_order(more, range(250))]
    assert [uid for uid in again if uid.startswith("d")] == order


def test_cycles_share_evenly_and_calibration_has_its_part() -> None:
    uids = [f"d{i}" for i in range(100)]
    rows = [list(range(14)) for _ in uids]
    budget = Budget(
        BudgetConfig(max_pairs=1000), uids, calibration=range(10), depth=10, size=14, explore=1, cycles=2
    )
    assert budget.reserved == 100
    one, two = budget.allocate(1, rows), budget.allocate(2, rows)
    assert [sum(map(len, part.rows)) for part in (one, two)] == [450, 450]
    # No student learns from the calibration part: a cut job does not ask about it in a cycle.
    assert all(not part.rows[i] for part in (one, two) for i in range(10))
    assert one.unasked_pairs == 90 * 14 - 450 and one.unasked_documents == 0
    # Never most of a small budget.
    small = Budget(BudgetConfig(max_pairs=100), uids, calibration=range(50), depth=10, size=14)
    assert small.reserved == 25


@given(st.integers(1, 60), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 2000)))
def test_what_calibrates_is_capped_by_number_and_by_a_share_of_the_cycles(
    most: int, cycles: int, pairs: int | None
) -> None:
    uids = [f"d{i}" for i in range(200)]
    calibration, selection = range(0, 200, 5), range(1, 200, 5)
    parts: Any = {"calibration": calibration, "selection": selection, "depth": 10, "size": 7}

    def made(cap: int | None, **limits: Any) -> Budget:
        return Budget(BudgetConfig(calibration=cap, max_pairs=pairs, **limits), uids, cycles=cycles, **parts)

    budget, whole = made(most), made(None)
    assert budget.reserved <= min(most, 40) * 10 and budget.reserved <= whole.reserved
    assert budget.reserved * 3 <= budget.pairs(cycles) + 1
    assert budget.calibrating == -(-budget.reserved // 10) <= min(most, 40) and whole.calibrating == 40
    # Nobody asks about those that neither calibrate nor select; a larger cap takes the same and more.
    assert len(budget.idle & set(calibration)) == max(0, 40 - most)
    assert len(budget.idle & set(selection)) == max(0, 40 - 2 * most)
    assert made(most + 1).idle <= budget.idle and not whole.idle
    assert set(budget.documents(1)) == set(range(200)) - budget.idle
    assert not budget.idle & set(made(most, documents=50).documents(1))


def test_comparing_students_takes_nothing_from_the_cycles() -> None:
    uids = [f"d{i}" for i in range(400)]
    parts: Any = {"calibration": range(30), "selection": range(30, 90), "depth": 10, "size": 7}

    def made(cycles: int = 2, head: bool = False, few: bool = False, **limits: Any) -> Budget:
        selection = {"selection": range(30, 50)} if few else {}
        return Budget(BudgetConfig(**limits), uids, cycles=cycles, head=head, **(parts | selection))

    # Five labels of each student on each document that selects, at most a tenth of what is asked.
    assert [made(cycles, few=True).comparing for cycles in (1, 2, 3)] == [0, 20 * 5 * 2, 20 * 5 * 3]
    assert [made(cycles).comparing for cycles in (1, 2, 3)] == [0, 560, 840]
    assert made(1, head=True).comparing == 280 and made(1, head=True).comparisons == 1
    free = made()
    assert free.most == 5600 + 300 + 560 and free.pairs(2) == 5600
    free.compared = 500
    assert free.calibrating == 30, "without a limit of pairs it comes on top"
    # Where pairs are limited, it is taken from what is kept to calibrate, half of that at most.
    tight, thin = made(max_pairs=1000), made(max_pairs=4000)
    assert (tight.reserved, tight.pairs(2), tight.comparing, tight.most) == (250, 750, 100, 1000)
    assert (thin.reserved, thin.pairs(2), thin.comparing) == (300, 3700, 150)
    before, tight.compared = tight.calibrating, 100
    assert (before, tight.calibrating) == (25, 15)
    # The first documents in random order, as many as are paid for; a later comparison may use more.
    three = made(3, max_pairs=1000)
    costs = [4] * 60
    assert three.to_compare(costs, 2) == three.selecting[:12] and len(three.to_compare(costs, 3)) == 25
    assert three.selecting == in_hash_order(uids, range(30, 90))


def test_a_small_budget_of_documents_calibrates_on_few() -> None:
    uids = [f"d{i}" for i in range(7101)]
    apart, select = range(0, 7101, 13), range(1, 7101, 13)
    budget = Budget(
        BudgetConfig(documents=250), uids, calibration=apart, selection=select, depth=10, size=7, cycles=2
    )
    assert budget.pairs(2) == 3500 and budget.reserved == 1166 and budget.calibrating == 117
    # Without a limit on the cycles it is the cap that counts.
    assert Budget(BudgetConfig(), uids, calibration=apart, depth=10, size=7, cycles=2).reserved == 1500


def test_what_a_cycle_does_not_use_goes_to_the_next() -> None:
    uids = [f"d{i}" for i in range(10)]
    budget = Budget(BudgetConfig(max_pairs=100), uids, size=14, cycles=2)
    assert sum(map(len, budget.allocate(1, [[0, 1]] * 10).rows)) == 20
    assert sum(map(len, budget.allocate(2, [list(range(14))] * 10).rows)) == 80


def test_every_cycle_needs_its_part() -> None:
    data = {"documents": "d", "labels": "l"}
    RunConfig.model_validate({"data": data, "cycles": 2, "budget": {"cycle_parts": [1, 3]}})
    for parts in ([1], [1, 2, 3], [0, 1]):
        with pytest.raises(ValidationError, match="cycle_parts"):
            RunConfig.model_validate({"data": data, "cycles": 2, "budget": {"cycle_parts": parts}})


def test_parts_of_cycles_are_as_asked() -> None:
    uids = [f"d{i}" for i in range(100)]
    config = BudgetConfig(max_pairs=401, cycle_parts=[1, 3])
    budget = Budget(config, uids, size=14, cycles=2)
    rows = [list(range(14)) for _ in uids]
    assert [sum(map(len, budget.allocate(number, rows).rows)) for number in (1, 2)] == [100, 301]


@given(st.integers(1, 70), st.booleans(), st.integers(1, 4))
def test_a_limit_of_documents_draws_them_at_random(most: int, fresh: bool, cycle: int) -> None:
    uids = [f"d{i}" for i in range(60)]
    apart = range(0, 60, 6)
    budget = Budget(
        BudgetConfig(documents=most, fresh_documents=fresh), uids, calibration=apart, size=4, cycles=4
    )
    turns = [budget.documents(number) for number in range(1, cycle + 1)]
    for chosen in turns:
        assert len(chosen) == len(set(chosen)) == min(most, 50) and not set(chosen) & set(apart)
        assert chosen == sorted(chosen)
    # Others each time, and nobody twice before everybody's turn.
    assert len(set().union(*turns)) == min(50, most * (cycle if fresh else 1))
    # Of any size, a smaller draw is part of a larger one.
    assert set(turns[0]) <= set(
        Budget(BudgetConfig(documents=most + 1), uids, calibration=apart).documents(1)
    )


def test_a_limit_of_documents_asks_all_candidates_of_these() -> None:
    uids = [f"d{i}" for i in range(10)]
    budget = Budget(BudgetConfig(documents=3), uids, size=4)
    assert budget.limited
    chosen = budget.documents(1)
    rows = [[1, 2, 3, 4] if i in chosen else [] for i in range(10)]
    found = budget.allocate(1, rows)
    assert found.rows == rows and sorted(found.order) == chosen and found.unasked_pairs == 0
    assert Budget(BudgetConfig(), uids, size=4).documents(1) == list(range(10))


def test_without_limits_nothing_changes() -> None:
    rows = [[3, 1], [], [2]]
    budget = Budget(BudgetConfig(), ["a", "b", "c"], size=2)
    found = budget.allocate(1, rows)
    assert (found.order, found.rows, found.unasked_pairs) == ([0, 2], rows, 0)
    assert not budget.limited and budget.stop(None, "x") is None  # type: ignore[arg-type]


def test_a_limit_of_pairs_holds_over_all_sessions(tmp_path: Path) -> None:
    documents, labels = catalog(20, 5)
    rows = [list(range(5))] * 20
    budget = Budget(BudgetConfig(max_pairs=37), [d.uid for d in documents], size=5)
    asked: list[str] = []
    for _ in range(3):
        teacher = FakeTeacher()
        with FeedbackStore(tmp_path / "f.sqlite") as store:
            summary = annotate(
                lambda: pairs_of(documents, labels, rows),
                teacher,
                store,
                stop=budget.stop(store, teacher.fingerprint),
            )
            asked += teacher.asked
            assert summary.stopped and store.judged(teacher.fingerprint) == 37
    assert len(asked) == len(set(asked)) == 37


def test_a_limit_of_hours_counts_the_time_of_all_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ezxmc.feedback.budget._LOOK_SECONDS", 0.0)
    Clock(monkeypatch)
    documents, labels = catalog(400, 5)
    rows = [list(range(5))] * 400
    budget = Budget(BudgetConfig(max_hours=0.5 / 3600), [d.uid for d in documents], size=5)
    counts = []
    for _ in range(2):
        teacher = FakeTeacher(delay=0.002)
        with FeedbackStore(tmp_path / "f.sqlite") as store:
            stop = budget.stop(store, teacher.fingerprint)
            annotate(lambda: pairs_of(documents, labels, rows), teacher, store, stop=stop)
            counts.append(len(teacher.asked))
            assert 0.5 <= store.judging_seconds(teacher.fingerprint) < 0.6
    assert counts == [256, 0]  # .5 s / .002 s, in batches of 64


def test_each_cycle_has_its_part_of_the_hours(tmp_path: Path) -> None:
    teacher = FakeTeacher()
    budget = Budget(BudgetConfig(max_hours=1.0), ["a"], calibration=[0], depth=10, size=10, cycles=3)
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        session = store.open_session(teacher.fingerprint, teacher.description)
        store.append(session, [], 3600 * 0.4)  # past the first cycle's quarter, not past the second's half
        reached = [budget.stop(store, teacher.fingerprint, cycle)() for cycle in (1, 2, 3, None)]  # type: ignore[misc]
        # Students may be compared in half of what the calibration leaves.
        compared = [budget.stop(store, teacher.fingerprint, cycle, compares=True)() for cycle in (1, 2)]  # type: ignore[misc]
    assert reached == [True, False, False, False] and compared == [True, False]


def test_hours_follow_the_parts_of_cycles(tmp_path: Path) -> None:
    teacher = FakeTeacher()
    budget = Budget(BudgetConfig(max_hours=1.0, cycle_parts=[3, 1]), ["a"], size=10, cycles=2)
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        session = store.open_session(teacher.fingerprint, teacher.description)
        store.append(session, [], 3600 * 0.7)
        assert not budget.stop(store, teacher.fingerprint, 1)()  # type: ignore[misc]
        store.append(session, [], 3600 * 0.1)
        assert budget.stop(store, teacher.fingerprint, 1)()  # type: ignore[misc]
        assert not budget.stop(store, teacher.fingerprint, 2)()  # type: ignore[misc]
