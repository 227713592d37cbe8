"""Labels found by what a person types: bounded, whatever is typed, and the very title first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezxmc.records import Label
from ezxmc.review import material as module
from ezxmc.review.material import LabelSearch

NAMES = st.text(st.sampled_from("aAbßéÉe\u0301İ ĳﬁ\n\t+😀कि\ud800\0ﷺ"), max_size=6) | st.text(max_size=12)
LABELS = st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=2)), max_size=30).map(
    lambda rows: [Label(f"l{i}", title, aliases=tuple(names)) for i, (title, names) in enumerate(rows)]
)


@given(LABELS, NAMES | st.text(), st.integers(1, 5))
def test_whatever_is_typed_few_labels_are_found_and_each_once(
    labels: list[Label], typed: str, most: int
) -> None:
    found = LabelSearch(labels)(typed, most)
    assert len(found) <= most and len({label.uid for label in found}) == len(found)
    if not typed.strip():
        assert found == []


@given(LABELS, st.data())
def test_a_title_that_is_typed_whole_is_the_first(labels: list[Label], data: st.DataObject) -> None:
    titles = [label.title for label in labels if label.title.strip()]
    if titles:
        typed = data.draw(st.sampled_from(titles))
        found = LabelSearch(labels)(typed, 3)
        assert found[0].title.split() == typed.split()


@given(LABELS, st.data())
def test_what_is_part_of_a_name_finds_it_in_any_case(labels: list[Label], data: st.DataObject) -> None:
    names = [(label, name) for label in labels for name in (label.title, *label.aliases) if name.isascii()]
    if names:
        label, name = data.draw(st.sampled_from(names))
        begin = data.draw(st.integers(0, len(name)))
        typed = name[begin : data.draw(st.integers(begin, len(name)))]
        if typed.strip():
            for said in (typed, typed.upper()):
                assert label in LabelSearch(labels)(said, len(labels))


def found(typed: str, *titles: str, most: int = 20, aliases: tuple[str, ...] = ()) -> list[str]:
    labels = [Label(str(i), title, aliases=aliases if not i else ()) for i, title in enumerate(titles)]
    return [label.title for label in LabelSearch(labels)(typed, most)]


def test_the_nearest_names_come_first() -> None:
    titles = ("bluegrass", "Grass, dry", "weed::grass", "Grass", "gráss", "dry old grass")
    assert found("grass", *titles) == [
        *("Grass", "gráss", "Grass, dry", "weed::grass", "dry old grass", "bluegrass")
    ]
    assert found("GRÁSS", *titles)[:2] == ["Grass", "gráss"] and found("gráss", *titles)[0] == "gráss"
    assert found("grass dry", *titles) == ["Grass, dry", "dry old grass"]
    assert found("gras\u0301s", *titles, most=1) == ["Grass"]
    assert found("strasse", "Straße", "street") == ["Straße"]
    assert found("meadow", "Grass", "Meadow land", aliases=("the meadow",)) == ["Meadow land", "Grass"]
    assert found("grass\nweed", *titles) == ["weed::grass"] and found("nothing", *titles) == []
    assert found("x") == [] and LabelSearch([])("") == []


def test_of_very_many_labels_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PLACES", 50)
    titles = [f"a common name {number}" for number in range(1_000)]
    assert len(found("common", *titles)) == 20
    # A name of its own is found wherever it is.
    assert found("A Common Name 999", *titles) == ["a common name 999"]
    assert found("common", *titles, "Common")[0] == "Common"
