"""What the report says of the tags, counted again by hand; two runs compared; the page in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.browser import Browser
from support.reports import EVIL, Page, full
from support.serving import write_bundle
from typer.testing import CliRunner

from ezxmc.bundle.bundle import add_decision
from ezxmc.calibration.decisions import Decision, Guarantee
from ezxmc.cli.app import _register, app
from ezxmc.data import Catalog, RowReport
from ezxmc.pipeline.findings import disagreements, examples, thresholds, unused
from ezxmc.records import Document, Label, Prediction
from ezxmc.report import RunReport, compared, render_comparison, render_report

UIDS = "abcdef"
LABELS = [Label(uid, uid.upper()) for uid in UIDS]


def catalog(gold: dict[str, set[str]], documents: int = 4) -> Catalog:
    return Catalog(
        documents=[Document(f"d{i}", f"title {i}", "text") for i in range(documents)],
        labels=LABELS,
        gold=gold,
        document_rows=RowReport(),
        label_rows=RowReport(),
        gold_rows=RowReport(),
        to_train=[],
        to_select=[],
        to_calibrate=[],
    )


def tagged(number: int, labels: str, *probabilities: float) -> Prediction:
    return Prediction(f"d{number}", tuple(labels), tuple(labels.upper()), (), probabilities)


FOUND = [
    tagged(0, "abc", 0.95, 0.55, 0.2),
    tagged(1, "bad", 0.75, 0.4, 0.35),
    tagged(2, "cab", 0.3, 0.1, 0.05),
    tagged(3, "abe", 0.65, 0.5, 0.45),
]
GOLD = {"d0": {"a", "c"}, "d1": {"a"}, "d3": {"e", "f"}}


def test_thresholds_count_what_would_be_kept() -> None:
    rows = {row.threshold: row for row in thresholds(catalog(GOLD), FOUND, 2)}
    half = rows[0.5]
    # .95, .55 of d0, .75 of d1, .65 and .5 of d3: five tags, three documents; a of d0 alone is right.
    assert half.tags_per_document == 5 / 4 and half.answered == 3 / 4
    assert half.stated == pytest.approx((0.95 + 0.55 + 0.75 + 0.65 + 0.5) / 5)
    assert half.precision == 1 / 5 and half.recall == 1 / 5
    # d1's second, a, is right as well; d2 has no gold and counts for neither.
    assert rows[0.4].precision == 2 / 6 and rows[0.4].recall == 2 / 5
    assert rows[0.1].tags_per_document == 2 and rows[0.1].precision == 2 / 6
    # Reviewed, and nothing fits: each of its tags is a false one.
    none = {row.threshold: row for row in thresholds(catalog({**GOLD, "d2": set()}), FOUND, 2)}
    assert none[0.1].precision == 2 / 8 and none[0.1].recall == rows[0.1].recall
    best = thresholds(catalog({}), [tagged(0, "a", 0.5)], 2)
    assert [row.stated for row in best if row.threshold > 0.5] == [None] * 4
    assert all(row.precision is None and row.recall is None for row in best)


def test_without_probabilities_there_are_no_thresholds_and_no_disagreements() -> None:
    found = [tagged(i, "ab") for i in range(4)]
    assert thresholds(catalog(GOLD), found, 2) == []
    assert disagreements(catalog(GOLD), found, lambda doc, label: 0.5) == []


def test_the_widest_disagreements_come_first_one_a_document_and_side() -> None:
    said = {("d0", "a"): 0.1, ("d0", "b"): 0.3, ("d0", "c"): 0.9, ("d1", "b"): 0.7, ("d3", "e"): 0.44}
    found = disagreements(catalog(GOLD), FOUND, lambda doc, label: said.get((doc, label)))
    assert [(one.uid, one.label) for one in found] == [
        ("d0", "A"),
        ("d1", "B"),
        ("d3", "E"),
        ("d0", "C"),
    ]
    assert found[0].student == 0.95 and found[0].teacher == 0.1 and found[0].title == "title 0"


def test_labels_nobody_gets() -> None:
    found = unused(catalog(GOLD), FOUND, 2)
    # Among the first two: a, b, c; d and e stand third, f nowhere; people gave e and f.
    assert (found.count, found.labels, found.with_gold, found.titles) == (3, 6, 2, ["D", "E", "F"])
    assert unused(catalog({}), FOUND, 3).with_gold is None


def test_examples_are_thirty_and_those_with_gold_first() -> None:
    many = [tagged(i, "ab", 0.9, 0.8) for i in range(200)]
    gold = {f"d{i}": {"a"} for i in range(0, 200, 3)}
    shown = examples(catalog(gold, 200), many, 1)
    assert len(shown) == 30 and all(one.gold == ["A"] and len(one.tags) == 1 for one in shown)
    assert len(examples(catalog({}, 200), many, 1)) == 30


def tables(**changes: Any) -> RunReport:
    raw = full().model_dump(mode="json")
    raw["thresholds"] = [one.model_dump() for one in thresholds(catalog(GOLD), FOUND, 2)]
    raw["disagreements"] = [
        {"uid": EVIL, "title": EVIL, "label": EVIL, "student": 0.9, "teacher": 0.123},
    ]
    raw["unused"] = {"k": 5, "count": 70, "labels": 426, "with_gold": 3, "titles": [EVIL, "Framework: Zope"]}
    raw["label_mass_histogram"] = {"edges": [0, 0.5, 1], "counts": [2, 4010]}
    raw["evaluation"]["groups"] = {"head": [0.4, 0.6], "tail": [0.1, 0.125]}
    return RunReport.model_validate(raw | changes)


def test_the_page_shows_them_escaped() -> None:
    page = Page(render_report(tables()))
    assert {"thresholds", "disagreements", "unused"} <= set(page.sections)
    assert "70 of 426 tags are among no document's first 5; people gave 3 of these" in page.text
    assert "90 % 12 %" in page.text and "Framework: Zope" in page.text
    assert "head 40.0 % 60.0 %" in page.text and "tail 10.0 % 12.5 %" in page.text
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "No row is a promise" in page.text
    promised = Page(render_report(tables(decision="At most 20 % are false")))
    assert "At most 20 % are false" in promised.text and "No row is a promise" not in promised.text


def test_two_runs_side_by_side() -> None:
    first = full()
    second = full(
        evaluation={"before": {}, "after": {"P@1": 0.6, "NLL@5": 0.5}, "documents": 9},
        config={"run_dir": EVIL, "teacher": {"kind": "vllm", "prompt": "software"}, "cycles": 3},
    )
    found = compared(first, second)
    quality = {row["name"]: (row["first"], row["second"]) for row in found["quality"]}
    assert (
        quality["P@1"] == (0.55, 0.6) and quality["NLL@5"] == (None, 0.5) and quality["P@3"] == (0.28, None)
    )
    settings = {row["name"]: (row["first"], row["second"]) for row in found["settings"]}
    assert settings == {"run_dir": ("run", EVIL), "cycles": (None, "3")}
    page = Page(render_comparison(first, second))
    assert page.sections == ["quality", "cost", "settings"]
    assert "P@1 55.0 % 60.0 % +5.0" in page.text and "NLL@5 – 0.500" in page.text
    assert not [tag for tag, _ in page.tags if tag == "script"]


def test_the_command_compares_and_shows_the_decision(tmp_path: Path, tiny_encoder: Path) -> None:
    _register()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(tables().model_dump_json())
    bundle = write_bundle(tmp_path / "two/bundle", tiny_encoder)
    promise = Guarantee(target=0.2, documents=300, confidence=0.9)
    add_decision(bundle, Decision.top_k(3))
    # The second one lies under another name.
    add_decision(bundle, Decision("false_tag_rate", threshold=0.6, depth=50, promise=promise))
    runner, out = CliRunner(), tmp_path / "c.html"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    done = runner.invoke(app, ["report", "--compare", one, two, "-o", str(out)])
    assert done.exit_code == 0 and "Two runs compared" in out.read_text()
    told = json.loads(runner.invoke(app, ["report", "--compare", one, two, "--json"]).stdout)
    assert set(told) == {"quality", "held_out", "groups", "cost", "settings"} and told["settings"] == []
    assert runner.invoke(app, ["report", two]).exit_code == 0
    assert "with confidence 90 %" in (tmp_path / "two/report.html").read_text()
    assert runner.invoke(app, ["report", one, two]).exit_code == 2
    assert runner.invoke(app, ["report", "--compare", one]).exit_code == 2


def test_the_pages_fit_wide_and_narrow_windows_and_need_nothing_else(
    browser: Browser, tmp_path: Path
) -> None:
    pages = {"report.html": render_report(tables()), "compare.html": render_comparison(full(), tables())}
    for name, html in pages.items():
        (tmp_path / name).write_text(html)
        browser.open((tmp_path / name).as_uri())
        for width in (1400, 390):
            browser.resize(width)
            shown = browser.run("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert shown[0] <= shown[1], (name, width)
        colours = []
        for dark in (False, True):
            browser.dark(dark)
            colours.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        assert len(set(colours)) == 2
        asked = [url for url in browser.requested() if not url.startswith("file:")]
        assert asked == []
