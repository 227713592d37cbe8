"""Words and pieces of texts in any script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezxmc.progress import printable
from ezxmc.records import Label
from ezxmc.retrieval import LexicalIndex
from ezxmc.text import cut, fold, words

ANY = st.text(max_size=40)


@given(ANY)
def test_spellings_of_a_text_have_the_same_words(text: str) -> None:
    found = words(text)
    assert all(found)
    for form in ("NFC", "NFD"):
        assert words(unicodedata.normalize(form, text)) == found
    assert words(text.lower()) == found and words(text.upper()) == found
    assert words(fold(text)) == found and fold(fold(text)) == fold(text)


@given(st.lists(st.from_regex(r"[A-Za-z0-9]+", fullmatch=True)))
def test_ascii_words_are_unchanged(typed: list[str]) -> None:
    assert words(" ".join(typed)) == [word.lower() for word in typed]
    beside_another_script = words(" ".join([*typed, "日"]))
    assert beside_another_script == [*(word.lower() for word in typed), "日"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("libfoo2-dev", "libfoo2-dev libfoo2 dev"),
        ("C++, C# (.NET): node.js!", "c++ c c# c .net net node.js node js"),
        ("UTF-8 snake_case __init__", "init utf-8 utf 8 snake_case snake case"),
        ("libstdc++6-dev. End", "end libstdc++6-dev libstdc 6 dev"),
        ("C++ für é-mail", "fur c++ c e mail"),  # folded it is ASCII
        ("C++ по-русски", "c++ c по русски"),
        ("l'Éditeur d’Œuvres", "l editeur d oeuvres"),
        ("Straße Łódź Ёлка ΣΊΣΥΦΟΣ", "strasse lodz елка σισυφοσ"),
        ("日本語", "日本 本語"),
        ("猫 ﾃｷｽﾄ", "猫 テキ キス スト"),
        ("Python3で書く", "python3 で書 書く"),
        ("がか", "がか"),
        ("ภาษาไทย", "ภา าษ ษา าไ ไท ทย"),
        ("ที่นี่", "ที่นี่"),
        ("हिन्दी में", "हिन्दी में"),
        ("שָׁלוֹם مُحَمَّد", "שלום محمد"),
        ("می\u200cخواهم co\u00adop", "میخواهم coop"),
        ("한국어 편집 도구를2", "한국어 한국 국어 편집 도구를2 도구 구를"),
        ("🎸 👩‍💻 — …", ""),
    ],
)
def test_words_by_example(text: str, expected: str) -> None:
    assert words(text) == unicodedata.normalize("NFC", expected).split()


def test_labels_are_found_in_scripts_without_spaces() -> None:
    labels = [Label("edit", "文字編集"), Label("music", "音楽再生"), Label("thai", "ดนตรี"), Label("c", "C++")]
    texts = ["動画や文字を編集する", "音楽を聴く", "เครื่องเล่นดนตรีที่ดี", "written in c++", "écrit en C"]
    found = LexicalIndex(labels).search(texts, 1)
    assert found == [[0], [1], [2], [3], [3]]


FAMILY, FLAG, HEART = "👩\u200d👩\u200d👧", "🇰🇷", "❤\ufe0f"
SHADDA = "م\u0651"  # with a mark


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("plain text", 10, "plain text"),
        ("plain text", 6, "plain…"),
        (FAMILY * 3, 3, FAMILY * 3),
        (FAMILY * 4, 3, FAMILY * 2 + "…"),
        (FLAG + HEART + "👋🏽" + "x", 3, FLAG + HEART + "…"),
        ("e\u0301te\u0301s", 3, "e\u0301t…"),
        (SHADDA * 5, 3, SHADDA * 2 + "…"),
        ("日本語の文", 4, "日本語…"),
        ("が" * 3, 2, "が…"),
        ("नमस्ते दुनिया", 3, "नम…"),
        ("a" + "\u0301" * 100, 3, "a" + "\u0301" * 59 + "…"),  # no language's; still short
    ],
)
def test_texts_are_cut_between_characters(text: str, most: int, expected: str) -> None:
    assert cut(text, most) == expected


@given(st.text(max_size=60), st.integers(1, 20))
def test_a_cut_text_is_short_and_begins_as_the_text_does(text: str, most: int) -> None:
    short = cut(text, most)
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))
    assert cut(text, most, "") == text[: len(cut(text, most, ""))]
    if text.isascii():
        assert len(short) <= most and (len(text) > most or short == text)


def test_a_line_of_a_text_keeps_what_joins_letters() -> None:
    assert printable(f"{FAMILY}\tمی\u200cخواهم \u202ex\x1b[2J") == f"{FAMILY} می\u200cخواهم x [2J"
