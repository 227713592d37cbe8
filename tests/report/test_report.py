"""The report page: complete, escaped, self-contained, small."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import escape
from pydantic import ValidationError
from support.fakes import FakeTeacher
from support.reports import EVIL, Page, full

from ezxmc.config import RunConfig
from ezxmc.data import Catalog, RowReport
from ezxmc.feedback.store import FeedbackStore
from ezxmc.pipeline.findings import RunResults, assemble
from ezxmc.records import Document, Judgment, Label, Prediction, Status
from ezxmc.report import RunReport, render_report, write_report
from ezxmc.report.story import story


def svgs(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]


@pytest.mark.usefixtures("drawn")
def test_sections_in_order_and_numbers() -> None:
    html = render_report(full())
    page = Page(html)
    assert page.sections == [
        "examples",
        "quality",
        "calibration",
        "teacher",
        "log-odds",
        "training",
        "data",
        "cost",
        "configuration",
    ]
    assert "201 documents, 426 possible tags" in page.text
    assert (
        "the student's first tag is right for 55 % (42 % before training, 33 % by always answering"
        in page.text
    )
    assert (
        "In 8 minutes the LLM Qwen2.5-Coder-1.5B-Instruct, the teacher, answered 4,010 questions" in page.text
    )
    assert "off by 4.1 points on average, judged by the LLM teacher" in page.text
    assert "The run took 10 minutes" in page.text
    assert "no person was asked" in page.text
    assert "documents.jsonl 17 bad JSON at 3" in page.text
    assert len(svgs(html)) == 6


def test_the_story_is_of_documents_never_trained_on_and_tells_what_is_doubtful() -> None:
    plain = " ".join(story(full()))
    assert "On the 145 documents that people tagged, the" in plain and "no better" not in plain
    assert plain.endswith("`ezxmc serve run/bundle`")
    held_out = {
        "before": {"P@1": 0.5, "R@10": 0.2},
        "after": {"P@1": 0.4, "P@5": 0.3, "R@10": 0.6, "ECE@5": 0.25},
        "constant": {"P@1": 0.4, "P@5": 0.2, "R@10": 0.7},
        "change_intervals": {"P@1": [-0.3, 0.1]},
        "documents": 20,
    }
    told = " ".join(story(full(held_out=held_out)))
    assert "On the 20 documents that people tagged and that were not trained on, the" in told
    assert "By P@1 and R@10 the student is no better than always answering the most frequent tags." in told
    assert "its 95 % interval holds 0" in told and "and by 25.0 points judged by people's tags" in told
    teacher = full().model_dump()["teacher"] | {"failures": 1_000}
    assert "Of 4,012 questions 1,000 got no usable answer." in " ".join(story(full(teacher=teacher)))
    worse = held_out | {"change_intervals": {"P@1": [-0.3, -0.1]}}
    assert "worse than before training" in " ".join(story(full(held_out=worse)))
    few = " ".join(story(full(held_out=held_out | {"documents": 19})))
    assert "145 documents" in few, "so few say less than all"
    assert "are few" in " ".join(story(full(held_out=held_out | {"documents": 19}, evaluation=None)))
    moved = full(config={"run_dir": "it's here"}, calibration=None)
    assert story(moved)[-1].endswith("""`ezxmc serve 'it'"'"'s here/bundle'`""")
    assert "no probabilities" in " ".join(story(moved))


@pytest.mark.usefixtures("drawn")
def test_without_gold_the_story_is_of_the_teachers_agreement_and_shows_its_plot() -> None:
    report = full(evaluation=None)
    assert (
        "orders tags as the teacher does to 0.61 of 1 (nDCG@5), 0.51 before this training" in story(report)[1]
    )
    html = render_report(report)
    first = html.index("<svg")
    assert "Training: held-out score" in html[first : first + 500] and html.count("Training: held-out") == 1
    assert story(RunReport(title="t", created="2026-05-04")) == []


def test_a_report_of_an_earlier_release_is_read() -> None:
    raw = full().model_dump(mode="json")
    for one in raw["calibration"]["bins"]:
        one["count"] = one.pop("n")
    assert RunReport.model_validate(raw) == full()


def test_change_is_good_when_errors_fall_and_bad_when_precision_falls() -> None:
    rows = {
        metric: (verdict, change)
        for metric, verdict, change in re.findall(
            r"<tr><td>([^<]+)</td>.*?<td class=\"n (good|bad|)\">([^<]*)</td></tr>",
            render_report(full()),
            re.S,
        )
    }
    assert rows["P@1"] == ("good", "+13.0")
    assert rows["P@3"] == ("bad", "-2.0")
    assert rows["ECE@5"] == ("good", "-14.0")
    assert rows["NLL"] == ("good", "-0.300")


@pytest.mark.usefixtures("drawn")
def test_against_gold_there_is_a_diagram_for_every_depth() -> None:
    raw = full().model_dump(mode="json")
    raw["evaluation"]["reliability"] = {k: raw["calibration"]["bins"] for k in (1, 3, 5)}
    html = render_report(RunReport.model_validate(raw))
    assert len(svgs(html)) == 7 and "calibration-gold" in Page(html).sections
    titles = ("first tag", "first 3 tags", "first 5 tags")
    assert all(html.count(f">{title}</text>") == 1 for title in titles)
    assert html.count("came true, %") == 1 + len(titles)


def test_human_target_has_another_text() -> None:
    calibration = {"target": "human", "n": 10, "ece_cross_fitted": 0.1}
    text = Page(render_report(full(calibration=calibration))).text
    assert "no person was asked" not in text and "person gave the tag" in text


@pytest.mark.usefixtures("drawn")
def test_json_round_trip_even_with_a_diverged_loss() -> None:
    report = full(
        cycles=[{"number": 1, "pairs_new": 1, "training": {"epochs": 1, "losses": [math.nan, math.inf]}}]
    )
    again = RunReport.model_validate_json(report.model_dump_json())
    assert again.cycles[0].training is not None
    assert math.isnan(again.cycles[0].training.losses[0])
    assert again.model_dump_json() == report.model_dump_json()
    assert full() == RunReport.model_validate_json(full().model_dump_json())
    assert svgs(render_report(again))


def test_unknown_keys_and_crooked_histograms_are_refused() -> None:
    with pytest.raises(ValidationError):
        full(surprise=1)
    with pytest.raises(ValidationError, match="need 3 edges"):
        full(log_odds_histogram={"edges": [0, 1], "counts": [1, 2]})


@pytest.mark.usefixtures("drawn")
def test_what_peoples_decisions_gain_is_drawn_and_what_is_expected_is_dashed() -> None:
    points = [
        {"documents": n, "values": {"P@1": p, "P@5": p / 2}, "expected": n > 60}
        for n, p in ((0, 0.5), (24, 0.6), (48, 0.62), (110, 0.65))
    ]
    told = "ranks follow people's decisions on 60 documents"
    page = render_report(
        RunReport.model_validate({**full().model_dump(), "people": [told], "people_curve": points})
    )
    drawn = page[page.index('aria-label="Quality over the documents that people decided on') :]
    drawn = drawn[: drawn.index("</svg>")]
    assert "stroke-dasharray" in drawn and "dashed: expected" in drawn and "P@5" in drawn
    without = render_report(RunReport.model_validate({**full().model_dump(), "people": [told]}))
    assert "Quality over the documents" not in without


@pytest.mark.parametrize(("read", "told"), [(None, False), (0.1234, True), (0.9499, True), (0.95, False)])
def test_a_student_that_reads_beginnings_only_is_told(read: float | None, told: bool) -> None:
    report = full(data={**full().model_dump()["data"], "read": read})
    sentences = [line for line in story(report) if "of the text" in line]
    assert bool(sentences) is told
    if read == 0.1234:
        assert "The student read 12.3 % of the text" in sentences[0]
        assert "The student read 12.3\xa0% of the text" in render_report(report)


def test_everything_optional_is_hidden() -> None:
    page = Page(render_report(RunReport(title="t", created="2026-05-04")))
    assert page.sections == []
    assert not [tag for tag, _ in page.tags if tag in ("svg", "table", "article")]


def test_a_teacher_that_says_no_to_everything_is_told_on_the_page(tmp_path: Path) -> None:
    found = RunResults(
        Catalog(
            [Document("d1", "t", "")], [Label("l", "L")], {}, [0], [], [], RowReport(), RowReport(), None
        ),
        predictions=[Prediction("d1", ("l",), ("L",), (0.5,))],
        judgments=[Judgment("0" * 64, f"d{n}", "l", Status.OK, -2 - n / 50, 0.9) for n in range(200)],
    )
    config = RunConfig.model_validate({"data": {"documents": "d.jsonl", "labels": "l.jsonl"}})
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        report = assemble(config, found, tmp_path, FakeTeacher(), store, 0.0)
    told = [line for line in story(report) if 'WARNING: the teacher said "no" to 200 of 200 pairs' in line]
    assert told and "ezxmc prompts check" in told[0]
    assert escape(told[0].partition("`")[0]) in render_report(report)


def test_user_text_is_escaped_everywhere() -> None:
    problem = {"file": EVIL, "line": 1, "kind": EVIL, "detail": EVIL}
    html = render_report(
        full(
            title=EVIL,
            created=EVIL,
            config={EVIL: {"prompt": EVIL}},
            data={
                "documents": {"rows": 1, "kept": 0, "counts": {EVIL: 1}, "problems": [problem]},
                "labels": {"rows": 1, "kept": 1},
            },
            teacher={
                "judgments": 1,
                "statuses": {EVIL: 1},
                "description": {"m": EVIL},
                "problem_docs": [EVIL],
            },
            evaluation={
                "before": {EVIL: 0.1, "$x$": 0.2},
                "after": {EVIL: 0.2, "$x$": 0.1},
                "documents": 1,
                "note": EVIL,
            },
            examples=[{"uid": EVIL, "title": EVIL, "text": EVIL, "tags": [{"title": EVIL}], "gold": [EVIL]}],
            cost={"seconds": {EVIL: 1.0}},
            versions={EVIL: EVIL},
        )
    )
    assert not [tag for tag, _ in Page(html).tags if tag == "script"]
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 15


def test_texts_of_any_script_stay_whole_and_apart() -> None:
    """Writing from right to left turns nothing beside it round; no character is cut in two."""
    family, arabic, japanese = "👩\u200d👩\u200d👧", "أدوات التحرير", "文字編集"
    tags = [{"title": arabic, "probability": 0.5}, {"title": japanese}]
    example = {"uid": "1", "title": arabic, "text": family * 600, "tags": tags, "gold": [arabic, japanese]}
    page = render_report(full(examples=[example]))
    assert f'<h3 dir="auto">{arabic}</h3>' in page and f'<p dir="auto">{family * 500}…</p>' in page
    assert f"<bdi>{arabic}</bdi> <b>50 %</b>" in re.sub(r"\s+", " ", page)
    assert f"Given by people: <bdi>{arabic}</bdi>; <bdi>{japanese}</bdi>" in page


@pytest.mark.parametrize(("documents", "rough"), [(19, True), (20, False)])
def test_intervals_of_few_documents_say_so(documents: int, rough: bool) -> None:
    evaluation = full().model_dump()["evaluation"] | {"documents": documents, "reliability": {}}
    one = evaluation | {"after_intervals": {"P@1": (0.4, 0.7)}}
    html = render_report(RunReport.model_validate({"title": "t", "created": "now", "evaluation": one}))
    assert (f"Of {documents} documents, intervals are rough." in html) == rough


def test_nothing_is_loaded_and_nothing_runs() -> None:
    html = render_report(full())
    for tag, attrs in Page(html).tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "base", "form"}
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name.endswith(("href", "src")):
                assert (value or "").startswith("#")
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique_and_references_resolve() -> None:
    html = render_report(full())
    ids = [attrs["id"] for _, attrs in Page(html).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", html)) <= set(ids)


def test_figures_take_the_colours_of_the_page() -> None:
    html = render_report(full())
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        assert "currentColor" in svg and 'role="img"' in svg
        assert not re.findall(r"#0102\d\d", svg)
        # A colour left in black would vanish on a dark page.
        assert "#000000" not in svg and not re.search(r"<svg[^>]* width=", svg)


def test_same_data_same_bytes_and_small(tmp_path: Path) -> None:
    many = [
        {"uid": str(i), "title": "t" * 5000, "text": "x" * 100_000, "tags": [{"title": "y" * 9000}] * 50}
        for i in range(60)
    ]
    path = tmp_path / "new" / "report.html"
    write_report(full(examples=many), path)
    first = path.read_bytes()
    write_report(full(examples=many), path)
    assert path.read_bytes() == first
    assert len(first) < 500_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_lone_surrogate_does_not_cost_the_report(tmp_path: Path) -> None:
    write_report(full(title="broken \ud800 title"), tmp_path / "r.html")
    assert "broken ? title" in (tmp_path / "r.html").read_text("utf-8")
