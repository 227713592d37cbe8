"""Labels below labels: as a column `parent` says it, or as titles that are paths show it.

A parent is another label's uid or title; or the name of a group that is no label. Which of the two a list
means, most of its parents tell: where less than half of them are labels, all are names of groups, and the
list is flat, as it is where nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ezxmc.data.matching import Names, some, trim, twin
from ezxmc.errors import DataError
from ezxmc.records import Label

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SEPARATORS = (">", "::", "»", "→", "/", ":")
_MOST = 0.5  # of the titles are paths, of the paths go on from a label, of the parents are labels
_FEWEST = 5  # titles that are paths


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees of labels.

    Attributes:
        uids: Of L labels.
        parent: (L,) int64, the place of the label above each; −1 at roots.
        depth: (L,) int64, how many labels are above each.
    """

    uids: tuple[str, ...]
    parent: NDArray[np.int64]
    depth: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Sequence[Label]) -> Forest | None:
        """The forest of labels whose parents are uids; `None` where the list is flat.

        Args:
            labels: L labels of different uids, see `with_parents`.

        Raises:
            DataError: Labels are above one another in a circle.
        """
        given = {label.parent for label in labels if label.parent}
        if not given:
            return None
        place = {label.uid: row for row, label in enumerate(labels)}
        if sum(uid in place for uid in given) < _MOST * len(given):
            return None
        above = np.array([place.get(label.parent or "", -1) for label in labels], dtype=np.int64)
        # As some lists write a root.
        above[above == np.arange(len(above))] = -1
        if (above < 0).all():
            return None
        return cls(tuple(place), above, _depths(labels, above))

    @property
    def leaves(self) -> NDArray[np.bool_]:
        """(L,) whether no label is below."""
        found = np.ones(len(self.parent), dtype=np.bool_)
        found[self.parent[self.parent >= 0]] = False
        return found

    def ancestors(self, row: int) -> list[int]:
        """The places of the labels above one, nearest first."""
        return ancestors(self.parent, row)

    def closure(self) -> csr_array:
        """(L, L) of 1 where a column's label is the row's, or above it."""
        from scipy.sparse import csr_array

        rows = place = np.arange(len(self.parent))
        pairs = [(rows, place)]
        while len(rows):
            place = self.parent[place]
            rows, place = rows[place >= 0], place[place >= 0]
            pairs.append((rows, place))
        row, column = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return csr_array((np.ones(len(row), np.int64), (row, column)), (len(self.parent),) * 2)

    def line(self) -> str:
        """What it looks like, for a person."""
        below, leaves = int((self.parent >= 0).sum()), int(self.leaves.sum())
        return (
            f"a hierarchy: {below:,} of {len(self.uids):,} labels lie below another one, in "
            f"{int(self.depth.max()) + 1} levels; {leaves:,} have none below them"
        )


def ancestors(above: NDArray[np.int64], row: int) -> list[int]:
    """The places above one, nearest first: `above` gives the next of each, −1 at roots."""
    found = []
    while (row := int(above[row])) >= 0:
        found.append(row)
    return found


def _depths(labels: Sequence[Label], above: NDArray[np.int64]) -> NDArray[np.int64]:
    depth, jump = (above >= 0).astype(np.int64), above.copy()
    for _ in range(len(above).bit_length() + 1):
        rows = np.flatnonzero(jump >= 0)
        if not len(rows):
            return depth
        # Of where a jump leads all is known that a jump of this length can tell: lengths double.
        depth[rows] += depth[jump[rows]]
        jump[rows] = jump[jump[rows]]
    circle, row = [int(np.flatnonzero(jump >= 0)[0])], -1
    while row not in circle:
        circle += [row] if row >= 0 else []
        row = int(above[circle[-1]])
    names = [labels[one].uid for one in (*circle[circle.index(row) :], row)]
    raise DataError(
        f"labels are above one another in a circle: {' below '.join(map(repr, names[:8]))}",
        "give one of them another `parent`, or none",
    )


@dataclass(frozen=True, slots=True)
class Related:
    """Labels with the uids of their parents.

    Attributes:
        labels: As given, but for `parent`: the uid of a label, or the name of a group.
        forest: What they form; `None` where the list is flat.
        unknown: By uid of a label its parent, and why that is no label, where most parents are.
        notes: What a person should know, a sentence each.
    """

    labels: list[Label]
    forest: Forest | None
    unknown: Mapping[str, str]
    notes: tuple[str, ...]


def with_parents(labels: Sequence[Label], known: Iterable[Label] = ()) -> Related:
    """Find the label that each label lies below.

    Titles are paths where most of them hold one separator and most of those go on from another label's
    title: `Science > Physics` beside `Science`. "C/C++" and "text::html" beside labels of any other kind
    are no paths. A `parent` of any label says more than titles do.

    Args:
        labels: L labels of different uids.
        known: Labels that are there already, and stay but for those of the same uids.

    Raises:
        DataError: Labels are above one another in a circle.
    """
    fresh = {label.uid for label in labels}
    every = [*labels, *(label for label in known if label.uid not in fresh)]
    if any(label.parent for label in labels):
        above, unknown = _of_column(every)
        notes: tuple[str, ...] = ()
    else:
        above, unknown, notes = *_of_paths(every), ()
        if above:
            notes = (
                f"titles are paths at {unknown.pop('')!r}: a label lies below the one its title goes on from",
            )
    if not above:
        return Related(list(labels), None, {}, ())
    every = [
        replace(one, parent=above[one.uid]) if above.get(one.uid, one.parent) != one.parent else one
        for one in every
    ]
    forest = Forest.of(every)
    unknown = {uid: why for uid, why in unknown.items() if uid in fresh}
    if forest is not None:
        notes += (forest.line(), *_of_twins(every))
    return Related(every[: len(labels)], forest, unknown if forest else {}, notes if forest else ())


def _of_column(labels: Sequence[Label]) -> tuple[dict[str, str], dict[str, str]]:
    """Parents by uid, and why those of others are no labels; nothing where parents are groups."""
    titles = {label.uid: label.title for label in labels}
    names, given = Names(titles), {label.parent for label in labels if label.parent}
    uid_of = {name: names.find(name)[0] for name in given}
    if sum(uid is not None for uid in uid_of.values()) < _MOST * len(given):
        return {}, {}
    alike: dict[str, list[str]] = {}
    for uid, title in titles.items():
        alike.setdefault(twin(title), []).append(uid)
    above, unknown = {}, {}
    for label in labels:
        if not label.parent:
            continue
        found = uid_of[label.parent]
        if found is not None and found != label.uid:
            above[label.uid] = found
        elif found is None:
            of_title, why = alike.get(twin(label.parent), []), "no label has this uid or title"
            if of_title:
                why = (
                    f"{len(of_title)} labels have this title ({some(of_title)}): its uid tells which is meant"
                )
            unknown[label.uid] = f"parent {label.parent!r}: {why}"
    return above, unknown


def _of_paths(labels: Sequence[Label]) -> tuple[dict[str, str], dict[str, str]]:
    """Parents by uid, and "" with the separator; nothing where titles are no paths."""
    for separator in _SEPARATORS:
        if sum(separator in label.title for label in labels) < max(_FEWEST, _MOST * len(labels)):
            continue
        path_of = {label.uid: tuple(_steps(label.title, separator)) for label in labels}
        label_at: dict[tuple[str, ...], str] = {}
        for uid, path in path_of.items():
            label_at.setdefault(path, uid)
        paths = {uid: path for uid, path in path_of.items() if len(path) > 1 and all(path)}
        above = {}
        for uid, path in paths.items():
            shorter = (path[:end] for end in range(len(path) - 1, 0, -1))
            if found := next((label_at[start] for start in shorter if start in label_at), None):
                above[uid] = found
        if len(paths) >= max(_FEWEST, _MOST * len(labels)) and len(above) >= _MOST * len(paths):
            return above, {"": separator}
    return {}, {}


def _steps(title: str, separator: str) -> list[str]:
    return [twin(trim(step)) for step in re.split(re.escape(separator), title)]


def _of_twins(labels: Sequence[Label]) -> list[str]:
    """Of titles that stand below several parents."""
    parents: dict[str, set[str]] = {}
    for label in labels:
        parents.setdefault(twin(label.title), set()).add(label.parent or "")
    alike = [title for title, above in parents.items() if len(above) > 1]
    if not alike:
        return []
    return [
        f"{len(alike):,} titles stand below several parents ({some(alike)}): models see a label's title "
        "alone, and cannot tell these apart"
    ]
