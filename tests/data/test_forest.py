"""Labels below labels: what a list means by parents and paths, and what is no tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.debtags import DEBTAGS
from support.rows import found, put

from ezxmc.data import read_labels
from ezxmc.data.catalog import labels_in
from ezxmc.data.forest import Forest, with_parents
from ezxmc.errors import DataError
from ezxmc.records import Label

TREE = "uid,title,parent\nsci,Science,\nphy,Physics,Science\nopt,Optics,phy\nart,Art,\npnt,Painting,art\n"


def parents_of(labels: list[Label]) -> dict[str, str | None]:
    return {label.uid: label.parent for label in labels}


def test_a_parent_is_a_uid_or_a_title(tmp_path: Path) -> None:
    labels, report = read_labels(put(tmp_path / "l.csv", TREE.encode()))
    assert parents_of(labels) == {"sci": None, "phy": "sci", "opt": "phy", "art": None, "pnt": "art"}
    assert (
        "a hierarchy: 3 of 5 labels lie below another one, in 3 levels; 2 have none below them"
        in report.notes
    )
    assert not report.counts
    forest = Forest.of(labels)
    assert forest is not None
    assert forest.parent.tolist() == [-1, 0, 1, -1, 3]
    assert forest.depth.tolist() == [0, 1, 2, 0, 1]
    assert forest.ancestors(2) == [1, 0]
    assert forest.leaves.tolist() == [False, False, True, False, True]
    assert forest.closure().toarray()[2].tolist() == [1, 1, 1, 0, 0]


def test_most_parents_tell_whether_they_are_labels_or_groups(tmp_path: Path) -> None:
    lost = TREE + "mus,Music,Arts\nfilm,Film,science\noth,Other,sci\noth2,Other,art\nx,X,Other\n"
    labels, report = read_labels(put(tmp_path / "l.csv", lost.encode()))
    assert parents_of(labels)["film"] == "sci"
    assert parents_of(labels)["mus"] == "Arts"
    assert found(report) == [(10, "equal_title"), (7, "unknown_parent"), (11, "unknown_parent")]
    assert "label 'mus': parent 'Arts': no label has this uid or title" in str(report.problems[1])
    assert "2 labels have this title ('oth', 'oth2')" in str(report.problems[2])
    assert any(note.startswith("1 titles stand below several parents ('Other')") for note in report.notes)
    # One facet of three is called as a label: they are groups all the same.
    facets = "uid,title,parent\na,Web,web\nb,Arcade,game\nc,Text,works\nd,Browser,web\n"
    labels, report = read_labels(put(tmp_path / "f.csv", facets.encode()))
    assert parents_of(labels) == {"a": "web", "b": "game", "c": "works", "d": "web"}
    assert Forest.of(labels) is None
    assert not report.counts
    assert len(report.notes) == 1  # on columns


@pytest.mark.parametrize(
    ("rows", "circle"),
    [
        ("a,A,b\nb,B,c\nc,C,a\nd,D,a\n", "'a' below 'b' below 'c' below 'a'"),
        ("a,A,\nb,B,c\nc,C,b\nd,D,a\n", "'b' below 'c' below 'b'"),
    ],
)
def test_a_circle_is_named(tmp_path: Path, rows: str, circle: str) -> None:
    with pytest.raises(DataError, match=f"in a circle: {circle}"):
        read_labels(put(tmp_path / "l.csv", f"uid,title,parent\n{rows}".encode()))


def test_a_label_above_itself_is_a_root() -> None:
    labels = [Label("a", "A", parent="a"), Label("b", "B", parent="a"), Label("c", "C", parent="b")]
    forest = with_parents(labels).forest
    assert forest is not None
    assert forest.depth.tolist() == [0, 1, 2]


@pytest.mark.parametrize("separator", [" > ", " :: ", "/", ": ", " » "])
def test_titles_may_be_paths(separator: str) -> None:
    paths = ["A", "A>B", "A>B>C", "A>D", "E>F", "E>F>G>H", "E>F>I"]
    titles = [path.replace(">", separator) for path in paths]
    labels, report = labels_in(titles)
    above = {label.title: label.parent for label in labels}
    assert [above[title] for title in titles] == [
        None,
        titles[0],
        titles[1],
        titles[0],
        None,
        titles[4],
        titles[4],
    ]
    assert [label.title for label in labels] == titles
    assert report.notes[0].startswith(f"titles are paths at {separator.strip()!r}")


@pytest.mark.parametrize(
    "titles",
    [
        ["C", "C/C++", "Text", "Text/HTML", "Input/Output", "TCP/IP", "Client/Server", "Web", "Mail"],
        [
            "works-with::text",
            "works-with::image",
            "role::program",
            "role::library",
            "use::editing",
            "use::web",
        ],
        ["Text: plain", "Text: rich", "Image: raster", "Image: vector", "Sound: MIDI", "Sound: speech"],
        ["A", "A > B"],  # too few to tell
        ["a/b", "c/d", "e/f", "g/h", "i/j", "k/l"],
    ],
)
def test_not_everything_with_a_separator_is_a_path(titles: list[str]) -> None:
    related = with_parents([Label(title, title) for title in titles])
    assert (related.forest, related.notes) == (None, ())
    assert {label.parent for label in related.labels} == {None}


@pytest.mark.skipif(not DEBTAGS.exists(), reason="needs debtags")
@pytest.mark.parametrize("name", ["labels.jsonl", "labels_faceted.jsonl"])
def test_debtags_is_flat(name: str) -> None:
    labels, _ = read_labels(DEBTAGS / name)
    assert not any(label.parent for label in labels)
    facets = [Label(label.uid, label.title, parent=label.uid.partition("::")[0]) for label in labels]
    assert with_parents(facets).labels == facets
    assert with_parents(facets).forest is None


def test_labels_added_later_find_those_that_are_there(tmp_path: Path) -> None:
    known, _ = read_labels(put(tmp_path / "l.csv", TREE.encode()))
    more, _ = read_labels(
        put(tmp_path / "m.csv", b"uid,title,parent\nlas,Laser,Optics\nsci,Science,Art\n"), known=known[1:]
    )
    assert parents_of(more) == {"las": "opt", "sci": "art"}
    with pytest.raises(DataError, match="circle"):
        read_labels(put(tmp_path / "c.csv", b"uid,title,parent\nsci,Science,Optics\n"), known=known)


@given(st.lists(st.integers(-1, 30), max_size=31))
def test_depths_and_ancestors_are_those_of_walking_up(above: list[int]) -> None:
    above = [parent if parent < len(above) else -1 for parent in above]
    labels = [Label(str(i), str(i), parent=None if up < 0 else str(up)) for i, up in enumerate(above)]

    def walk(row: int) -> list[int] | None:
        up, seen = above[row], []
        while up >= 0 and up != (seen[-1] if seen else row):
            if up in (row, *seen):
                return None
            seen.append(up)
            up = above[up]
        return seen

    walks = [walk(row) for row in range(len(above))]
    if any(one is None for one in walks):
        with pytest.raises(DataError, match="circle"):
            Forest.of(labels)
    elif (forest := Forest.of(labels)) is None:
        assert all(one == [] for one in walks)
    else:
        assert [forest.ancestors(row) for row in range(len(above))] == walks
        assert forest.depth.tolist() == [len(one or []) for one in walks]
        expected = np.eye(len(above))
        for row, one in enumerate(walks):
            expected[row, one] = 1
        assert (forest.closure().toarray() == expected).all()
