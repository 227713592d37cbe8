"""How a budget is spent: which documents get how many of their candidates, and when to stop asking.

Everything is decided by the configuration and by content hashes, nothing by
what is already stored: a job killed and started again chooses the same pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ezxmc.config import BudgetConfig, RunConfig
from ezxmc.data import Catalog
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import context_size
from ezxmc.hashing import text_hash

LEAST_CANDIDATES = 4
"""A document is asked about at least this many labels before another one gets its first."""
JUDGED_TOP = 5
"""Ranks by which students are compared (nDCG@5): of each one's own, the teacher judges so many."""
# Probabilities need some judgments too, but never most of them.
_MOST_RESERVED = 0.25
# Most of what students are compared by, the cycles ask anyway.
_MOST_COMPARED = 0.1
# Of two close students, that which agrees better with the teacher is picked in 89 % of the draws; with as
# many documents as calibrate, in 83 % (tests/bench/calibration_size.py).
_SELECTING = 2
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Allocation:
    """The part of a job its budget pays for.

    Attributes:
        order: Positions of documents, in the order they are asked about;
            wherever the job stops, it has asked about a random sample.
        rows: Of every document, the candidates it is asked about; may be empty.
        unasked_documents: Documents a student could learn from that keep none of their candidates.
        unasked_pairs: Candidates left out of such documents, kept or not.
    """

    order: list[int]
    rows: list[list[int]]
    unasked_documents: int = 0
    unasked_pairs: int = 0


def in_hash_order(uids: Sequence[str], positions: Iterable[int]) -> list[int]:
    """Positions in an order that is random, repeatable, and stays when documents are added."""
    return sorted(positions, key=lambda position: text_hash("budget", uids[position]))


def spread(sizes: Sequence[int], pairs: int) -> list[int]:
    """How many candidates each document is asked about.

    All documents get equally many, the first of them one more; if that were
    fewer than `LEAST_CANDIDATES`, the first documents get so many and the
    others none. On recorded judgments few candidates of many documents taught most (tests/bench/budget.py).

    Args:
        sizes: Candidates of each document, in the order they are served.
        pairs: Candidates in all.
    """
    if pairs >= sum(sizes):
        return list(sizes)
    given = [0] * len(sizes)
    left = pairs
    # Again for what documents with few candidates left over.
    while left:
        wanting = [place for place, size in enumerate(sizes) if given[place] < size]
        begun = [place for place in wanting if given[place]]
        served = begun or wanting[: max(1, left // LEAST_CANDIDATES)]
        level, extra = divmod(left, len(served))
        for nth, place in enumerate(served):
            more = min(level + (nth < extra), sizes[place] - given[place])
            given[place] += more
            left -= more
    return given


class Budget:
    """What a run may still spend on judgments, over its cycles and its calibration.

    Cycles get their parts of what the calibration leaves; what one does not use goes to the next.

    Args:
        config: The limits.
        uids: Document uids.
        calibration: Positions in `uids` of the documents kept for calibration;
            no student learns from them, so a cut job leaves them to it.
        selection: Positions of those that choose between students.
        depth: Pairs the calibration asks about each of these.
        size: Candidates per document and cycle.
        explore: Of these, how many are explored.
        cycles: How many cycles there are.
        head: Whether a student with a sparse head is compared with one without.
        prior: Pairs asked for the labels' priors, before the first cycle.

    Attributes:
        compared: Pairs asked to compare students so far, beside what the cycles asked.
    """

    def __init__(
        self,
        config: BudgetConfig,
        uids: Sequence[str],
        *,
        calibration: Sequence[int] = (),
        selection: Sequence[int] = (),
        depth: int = 0,
        size: int = 1,
        explore: int = 0,
        cycles: int = 1,
        head: bool = False,
        prior: int = 0,
    ) -> None:
        self.config = config
        self._uids, self._apart = uids, set(calibration)
        self._parts = config.cycle_parts or [1] * cycles
        self._explored = explore / size
        most = config.calibration
        self.idle = set[int]()
        """Documents kept apart beyond what calibrates and selects: nobody asks about them."""
        if most is not None:
            self.idle.update(in_hash_order(uids, calibration)[most:])
            self.idle.update(in_hash_order(uids, selection)[_SELECTING * most :])
        reserve = len(self._apart - self.idle) * depth
        asked = asked_documents(config, len(uids) - len(self.idle)) * size * cycles
        if config.max_pairs is not None:
            limit = max(1, config.max_pairs - prior)
            reserve = min(reserve, int(_MOST_RESERVED * limit))
        else:
            if most is not None:
                reserve = min(reserve, int(asked * _MOST_RESERVED / (1 - _MOST_RESERVED)))
            limit = asked + reserve
        self.reserved = reserve
        """Pairs kept for the calibration; where pairs are limited, also for comparing students."""
        self._calibration, self._depth = len(calibration), max(1, depth)
        self.selecting = in_hash_order(uids, (i for i in selection if i not in self.idle))
        """Documents that students may be compared on, in random order."""
        self.comparisons = cycles - 1 + head
        """How often students are compared."""
        rankings = (cycles if cycles > 1 else 0) + 2 * head
        self.comparing = min(
            len(self.selecting) * JUDGED_TOP * rankings,
            int(_MOST_COMPARED * asked)
            if config.max_pairs is None
            else min(int(_MOST_COMPARED * limit), reserve // 2),
        )
        """Pairs that this may ask beside what the cycles ask."""
        self.compared = 0
        self._for_cycles = limit - self.reserved
        self._cycle_share = self._for_cycles / limit
        self._allotted = 0
        self.prior = prior
        """Pairs asked for the labels' priors."""

    @classmethod
    def of(cls, config: RunConfig, catalog: Catalog) -> Budget:
        """The budget of a whole run."""
        labels, documents = len(catalog.labels), len(catalog.documents)
        size, most = min(config.shortlist.size, labels), config.budget.max_pairs
        # A limit holds for priors and shortlists together.
        whole = asked_documents(config.budget, documents) * size * config.cycles
        pairs = whole if most is None else most * 2 // 3
        context = min(context_size(config.training, labels, pairs), len(catalog.to_train))
        return cls(
            config.budget,
            [document.uid for document in catalog.documents],
            calibration=catalog.to_calibrate,
            selection=catalog.to_select,
            depth=min(config.inference.calibration_depth, labels),
            size=size,
            explore=config.shortlist.explore,
            cycles=config.cycles,
            head=config.head.enabled,
            prior=context * labels,
        )

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return any(
            limit is not None
            for limit in (self.config.max_pairs, self.config.max_hours, self.config.documents)
        )

    @property
    def calibrating(self) -> int:
        """Documents the calibration asks about, the first in hash order: of more, the same ones again."""
        if self.config.calibration is None:
            return self._calibration
        return -(-self.kept_to_calibrate // self._depth)

    @property
    def kept_to_calibrate(self) -> int:
        """Pairs kept for the calibration that comparing students has not taken."""
        return self.reserved - (0 if self.config.max_pairs is None else self.compared)

    @property
    def most(self) -> int:
        """The most pairs that a run asks about, its calibration included."""
        whole = self._for_cycles + self.reserved + self.prior
        return whole if self.config.max_pairs is not None else whole + self.comparing

    def to_compare(self, pairs: Sequence[int], cycle: int | None = None) -> list[int]:
        """Positions of the documents that students are compared on: the first of `selecting`.

        Args:
            pairs: What each of `selecting` costs beside what the cycles asked.
            cycle: After which all students so far are compared, whatever was asked to compare the
                earlier ones included; `None`: after the last comparison of cycles.
        """
        left = self.comparing - self.compared
        if cycle is not None:
            left = self.comparing * (cycle - 1) // self.comparisons
        return [i for i, cost in zip(self.selecting, accumulate(pairs), strict=True) if cost <= left]

    def pairs(self, cycle: int) -> int:
        """The most pairs that cycles 1 to `cycle` may ask about together."""
        return self._for_cycles * sum(self._parts[:cycle]) // sum(self._parts)

    def documents(self, cycle: int) -> list[int]:
        """Positions of the documents a cycle may ask about, in their order: all, or those its turn draws."""
        most = self.config.documents
        if most is None:
            return [i for i in range(len(self._uids)) if i not in self.idle]
        learnt = self._learnt()
        first = (cycle - 1) * most if self.config.fresh_documents else 0
        return sorted(learnt[(first + i) % len(learnt)] for i in range(min(most, len(learnt))))

    def _learnt(self) -> list[int]:
        apart = self._apart | self.idle
        return in_hash_order(self._uids, (i for i in range(len(self._uids)) if i not in apart))

    def allocate(self, cycle: int, rows: Sequence[Sequence[int]]) -> Allocation:
        """Choose what a cycle asks; call it for cycle 1, 2, ... in turn.

        Args:
            cycle: From 1.
            rows: Candidate labels of every document, best first, explored ones last.
        """
        if not self.limited:
            return Allocation([i for i, row in enumerate(rows) if row], [list(row) for row in rows])
        learnt = self._learnt()
        left = self.pairs(cycle) - self._allotted
        if left >= sum(map(len, rows)):
            order = [*learnt, *in_hash_order(self._uids, self._apart)]
            found = Allocation([i for i in order if rows[i]], [list(row) for row in rows])
        else:
            found = allocate(rows, learnt, left, self._explored)
        self._allotted += sum(map(len, found.rows))
        return found

    def stop(
        self, store: FeedbackStore, teacher: str, cycle: int | None = None, *, compares: bool = False
    ) -> Callable[[], bool] | None:
        """Tells `annotate` when the limits are reached; `None` without limits.

        Args:
            store: Counts what all sessions spent.
            teacher: Whose judgments are counted.
            cycle: Whose part of the hours counts; `None`: all of them.
            compares: Whether students are compared after this cycle, for which half of the
                calibration's hours may be used.
        """
        if not self.limited:
            return None
        reached = sum(self._parts[:cycle]) / sum(self._parts)
        part = 1.0 if cycle is None else self._cycle_share * reached
        if compares:
            part += (1 - self._cycle_share) / 2
        seconds = None if self.config.max_hours is None else self.config.max_hours * 3600 * part
        return _Limit(store, teacher, self.config.max_pairs, seconds)


def asked_documents(config: BudgetConfig, documents: int) -> int:
    """How many of `documents` one cycle asks about."""
    return documents if config.documents is None else min(documents, config.documents)


def allocate(
    rows: Sequence[Sequence[int]], order: Sequence[int], pairs: int, explored: float = 0.0
) -> Allocation:
    """Take `pairs` candidates of a job.

    Args:
        rows: Candidate labels of every document.
        order: Positions in `rows`, the first served first.
        pairs: How many candidates to take.
        explored: Share of the taken ones that is taken from the end of a row.
    """
    given = spread([len(rows[i]) for i in order], pairs)
    taken: list[list[int]] = [[] for _ in rows]
    owed = 0.0
    for position, share in zip(order, given, strict=True):
        # Fractions add up: of shares of 4 with 1 of 14 explored, every third or fourth holds one.
        owed += explored * share
        tail = min(int(owed), share)
        owed -= tail
        row = rows[position]
        taken[position] = [*row[: share - tail], *row[len(row) - tail :]]
    return Allocation(
        [position for position in order if taken[position]],
        taken,
        unasked_documents=sum(bool(rows[i]) and not taken[i] for i in order),
        unasked_pairs=sum(len(rows[i]) for i in order) - sum(given),
    )


class _Limit:
    """True once the pairs handed out, or the seconds judged, reach a limit.

    What other processes stored meanwhile counts; what they have in hand at the end may come on top.
    """

    def __init__(self, store: FeedbackStore, teacher: str, pairs: int | None, seconds: float | None) -> None:
        self._store, self._teacher, self._pairs, self._seconds = store, teacher, pairs, seconds
        self._before = store.answered
        self._handed = self._elsewhere = 0
        self._looked, self._over = -math.inf, False

    def __call__(self) -> bool:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._seconds is not None:
                self._over = self._store.judging_seconds(self._teacher) >= self._seconds
            if self._pairs is not None:
                # All but those of this call, which count from when they are handed out.
                mine = self._store.answered - self._before
                self._elsewhere = self._store.judged(self._teacher) - mine
        if self._over or (self._pairs is not None and self._elsewhere + self._handed >= self._pairs):
            return True
        self._handed += 1
        return False
