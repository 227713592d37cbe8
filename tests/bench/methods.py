"""Which way to tag is best on one catalog, from no information to gold labels, under one evaluation?

    python tests/bench/methods.py DOCUMENTS LABELS GOLD --judgments FEEDBACK.SQLITE --out OUT.json
    python tests/bench/methods.py --help

A method is a function of a task and a seed (`task.py`): `baselines.py` and `contrastive.py` have them,
`benchmark.py` makes the task of files and judges the rankings. What each costs is measured with it; finished
runs in OUT.json are not run again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from baselines import (
    BM25,
    STUDENT,
    STUDENT_TITLES,
    SUPERVISED,
    TEACHER,
    TFIDF_CHAR,
    TFIDF_WORD,
    UNTRAINED,
)
from benchmark import PAIRED, Benchmark, difference, human_equivalent, load_benchmark
from contrastive import LMTX, LMTX4, LMTX_SMALL, MACLR, RTS
from numpy.typing import NDArray
from task import Method, Task

from ezxmc.cli.bench import show_figures
from ezxmc.cli.console import Json, bad_rows, emit, show_progress, table
from ezxmc.config import TrainingConfig
from ezxmc.errors import ConfigError, DataError, EzxmcError
from ezxmc.files import check_file, loads, write_file
from ezxmc.hashing import text_hash
from ezxmc.progress import Progress

METHODS: dict[str, Method] = {
    "untrained": UNTRAINED,
    "tfidf-word": TFIDF_WORD,
    "tfidf-char": TFIDF_CHAR,
    "bm25": BM25,
    "rts": RTS,
    "maclr": MACLR,
    "lmtx": LMTX,
    "lmtx4": LMTX4,
    "lmtx-small": LMTX_SMALL,
    "student": STUDENT,
    "student-titles": STUDENT_TITLES,
    "teacher": TEACHER,
    "supervised": SUPERVISED,
}
"""In the order of the table: from no information to gold labels."""

_WHAT = "a file of results"


@dataclass
class Result:
    """What one method reached.

    Attributes:
        name: Of `METHODS`, perhaps with `@` and an amount.
        uses: The information it uses.
        key: Hash of what went in; a stored result with another key is void.
        judgments: Judgments it used.
        labelled: Documents with gold labels it used.
        runs: One per seed: `seed`, `seconds`, `values` (metrics in [0, 1]) and
            `by_document` (`PAIRED`; `None` where the method left a document out).
    """

    name: str
    uses: str
    key: str
    judgments: int = 0
    labelled: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mean(self) -> dict[str, float]:
        """Metrics, averaged over seeds."""
        return {name: float(np.mean(self._over_runs(name))) for name in self.runs[0]["values"]}

    @property
    def spread(self) -> dict[str, float]:
        """Standard deviation over seeds (n − 1); absent with a single one."""
        if len(self.runs) < 2:
            return {}
        return {name: float(np.std(self._over_runs(name), ddof=1)) for name in self.runs[0]["values"]}

    @property
    def seconds(self) -> float:
        """Mean wall time of a run, the teacher's time excluded."""
        return float(np.mean([run["seconds"] for run in self.runs]))

    def by_document(self, metric: str) -> NDArray[np.float64]:
        """(N,) a metric of `PAIRED` averaged over seeds; NaN where a document was left out."""
        runs = np.array([run["by_document"][metric] for run in self.runs], dtype=np.float64)
        values: NDArray[np.float64] = runs.mean(axis=0)
        return values

    def _over_runs(self, metric: str) -> list[float]:
        return [run["values"][metric] for run in self.runs]


def run_methods(
    benchmark: Benchmark, names: Sequence[str], *, seeds: int, out: Path | None, watch: Progress
) -> tuple[list[Result], dict[str, str]]:
    """Run methods, keeping every finished run in `out`.

    Args:
        benchmark: The catalog.
        names: Of `METHODS`; `student@1000` gives a method 1,000 judgments,
            `supervised@100` one 100 documents with gold.
        seeds: Runs of each method that depends on one.
        out: JSON file, written after every run; runs it holds of the same
            inputs are not run again. Void it by hand after changing a method's code.
        watch: Sees the parts.

    Returns:
        Results in the order of `names`, and why the missing ones were skipped.

    Raises:
        ConfigError: No such method.
        DataError: `out` holds something else.
    """
    chosen = {name: _parsed(name) for name in dict.fromkeys(names)}
    stored = _read(out) if out is not None and out.exists() and out.stat().st_size else {}
    results: list[Result] = []
    skipped: dict[str, str] = {}
    for name, (method, amount) in chosen.items():
        if missing := _missing(method, benchmark.task):
            skipped[name] = missing
            watch.say(f"{name}: skipped, {missing}")
            continue
        key = text_hash(benchmark.hashes["texts"], *(benchmark.hashes[need] for need in method.needs))
        result = stored.get(name)
        if result is None or result.key != key:
            result = Result(name, method.uses, key)
        wanted = seeds if method.seeded or amount is not None else 1
        try:
            while len(result.runs) < wanted:
                seed = len(result.runs)
                watch.say(f"{name}, seed {seed}")
                task = _limited(benchmark.task, method, amount, seed)
                result.judgments, result.labelled = _used(task, method)
                result.runs.append(_run(method, task, seed, benchmark))
                stored[name] = result
                if out is not None:
                    _write(out, stored)
        except EzxmcError as error:
            skipped[name] = error.message
            watch.say(f"{name}: skipped, {error.message}")
        else:
            # Runs of more seeds than asked for now stay in the file.
            results.append(replace(result, runs=result.runs[:wanted]))
    return results, skipped


def summary(
    results: Sequence[Result], benchmark: Benchmark, seconds_per_judgment: float | None
) -> dict[str, Any]:
    """All results as plain JSON values: quality, cost, intervals, and the worth in human labels.

    Args:
        results: Of `run_methods`.
        benchmark: Its catalog.
        seconds_per_judgment: The teacher's speed, for the cost; `None` if not known.
    """
    methods = {}
    for result in results:
        methods[result.name] = {
            "uses": result.uses,
            "judgments": result.judgments,
            "labelled_documents": result.labelled,
            "seeds": len(result.runs),
            "seconds": result.seconds,
            "teacher_minutes": result.judgments * seconds_per_judgment / 60 if seconds_per_judgment else None,
            "mean": result.mean,
            "spread": result.spread,
        }
    student = next((result for result in results if result.name == "student"), None)
    return {
        "catalog": benchmark.counts,
        "methods": methods,
        "student_minus": _differences(student, results) if student else {},
        "human_equivalent": _equivalents(results),
    }


def _differences(student: Result, results: Sequence[Result]) -> dict[str, Any]:
    return {
        other.name: {
            metric: difference(student.by_document(metric), other.by_document(metric)) for metric in PAIRED
        }
        for other in results
        if other is not student
    }


def _equivalents(results: Sequence[Result]) -> dict[str, dict[str, tuple[str, float]]]:
    """For every method fed by judgments, how many human-labelled documents it equals, by metric."""
    people = [result for result in results if _parsed(result.name)[0] is METHODS["supervised"]]
    if not people:
        return {}
    return {
        result.name: {
            metric: human_equivalent(
                result.mean[metric], {other.labelled: other.mean[metric] for other in people}
            )
            for metric in PAIRED
        }
        for result in results
        if result.judgments
    }


def _parsed(name: str) -> tuple[Method, int | None]:
    base, _, count = name.partition("@")
    method = METHODS.get(base)
    if method is None or (count and (not count.isdecimal() or not int(count) or method.amount is None)):
        limited = ", ".join(name for name, method in METHODS.items() if method.amount)
        raise ConfigError(
            f"no method {name!r}", f"there are {', '.join(METHODS)}; NAME@COUNT goes with {limited}"
        )
    return method, int(count) if count else None


def _missing(method: Method, task: Task) -> str | None:
    if "report_judgments" in method.needs and not task.report_judgments:
        return "no judgments of the documents reported on"
    if method.amount == "judgments" and not task.judgments:
        return "no judgments"
    return None


def _limited(task: Task, method: Method, amount: int | None, seed: int) -> Task:
    if amount is None:
        return task
    if method.amount == "gold":
        return task.with_gold(amount, seed)
    return task.with_judgments(amount, seed, priors="training" in method.needs)


def _used(task: Task, method: Method) -> tuple[int, int]:
    """Judgments and labelled documents a method uses."""
    labelled = len(task.gold) if "gold" in method.needs else 0
    if "report_judgments" in method.needs:
        return len(task.report_judgments) + len(task.context), labelled
    if "judgments" not in method.needs:
        return 0, labelled
    return len(task.judgments) + (len(task.context) if "training" in method.needs else 0), labelled


def _run(method: Method, task: Task, seed: int, benchmark: Benchmark) -> dict[str, Any]:
    started = time.perf_counter()
    ranking = method.rank(task, seed)
    seconds = time.perf_counter() - started
    uids = [label.uid for label in task.labels]
    ranked = [None if rows is None else [uids[row] for row in rows] for rows in ranking]
    values, by_document = benchmark.judge.score(ranked)
    return {"seed": seed, "seconds": seconds, "values": values, "by_document": by_document}


def _read(path: Path) -> dict[str, Result]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["methods"]
        return {row["name"]: Result(**row) for row in rows}
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} holds no results of methods: {error}", "name another --out") from error


def _write(path: Path, results: dict[str, Result]) -> None:
    """In one step: a reader sees the old file or the whole new one."""
    rows = {"methods": [vars(result) for result in results.values()]}
    write_file(path, json.dumps(rows).encode(), _WHAT, made=loads(_read))


def methods(
    documents: Annotated[str, typer.Argument(help="All documents.")],
    labels: Annotated[str, typer.Argument(help="Their labels.")],
    gold: Annotated[str, typer.Argument(help="Gold tags of as many documents as there are.")],
    judgments: Annotated[
        Path | None, typer.Option(help="The teacher's: a feedback store, or recorded ones.")
    ] = None,
    report_judgments: Annotated[
        Path | None, typer.Option(help="The same, of documents reported on: for teacher re-ranking.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Some, with commas; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method that depends on one.")] = 3,
    report_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of documents reported on, by hash of the uid.")
    ] = 0.2,
    report: Annotated[
        Path | None, typer.Option(help="Instead of a share: a file of the uids reported on.")
    ] = None,
    proposer: Annotated[
        str | None, typer.Option(help="The former student that proposed the pairs: fused with the teacher.")
    ] = None,
    judgments_at: Annotated[
        str, typer.Option(help="Also run the judgment-fed methods on so many judgments: 1000,2000,...")
    ] = "",
    labelled: Annotated[
        str, typer.Option(help="Train the supervised method also on so many documents.")
    ] = "100,300,1000,3000",
    encoder: Annotated[str, typer.Option(help="The initial encoder.")] = TrainingConfig().encoder,
    pairs_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="The teacher's speed; default: what the store tells.")
    ] = None,
    propensity: Annotated[
        tuple[float, float], typer.Option(help="A and B of PSP; .5 .4 for Wikipedia, .6 2.6 for Amazon.")
    ] = (0.55, 1.5),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON; finished runs in it are not run again.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare ways to tag under one evaluation, from no information to gold labels.

    Documents reported on are never judged and never trained on. Methods:
    untrained, tfidf-word, tfidf-char, bm25, rts, maclr, lmtx, lmtx4,
    lmtx-small, student, student-titles, teacher, supervised.

    Example: python tests/bench/methods.py documents.jsonl labels.jsonl gold.tsv --judgments feedback.sqlite
    """
    if out:
        inputs = (documents, labels, gold, judgments, report_judgments, report)
        check_file(out, _WHAT, made=loads(_read), inputs=inputs)
    names = _listed(methods or "") or list(METHODS)
    fed = [name for name in names if name in METHODS and METHODS[name].amount == "judgments"]
    names += [f"{name}@{count}" for count in _listed(judgments_at) for name in fed]
    names += [f"supervised@{count}" for count in _listed(labelled) if "supervised" in names]
    with show_progress() as watch:
        benchmark = load_benchmark(
            documents,
            labels,
            gold,
            judgments=judgments,
            report_judgments=report_judgments,
            config=TrainingConfig(encoder=encoder),
            proposer=proposer,
            report_share=report_share,
            report=report,
            propensity=propensity,
            watch=watch,
        )
        for name, count in benchmark.counts.items():
            watch.say(f"  {name}: {count:,}")
        results, skipped = run_methods(benchmark, names, seeds=seeds, out=out, watch=watch)
    speed = 1 / pairs_per_second if pairs_per_second else benchmark.seconds_per_judgment
    found = {**summary(results, benchmark, speed), "skipped": skipped}
    if json:
        emit(found)
    else:
        _show_methods(found)
    bad_rows(benchmark.bad_rows)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show_methods(found: dict[str, Any]) -> None:
    rows = [{"method": name, **row} for name, row in found["methods"].items()]

    def percent(metric: str) -> Callable[[dict[str, Any]], str]:
        def cell(row: dict[str, Any]) -> str:
            spread = f" ±{100 * row['spread'][metric]:.1f}" if metric in row["spread"] else ""
            return f"{100 * row['mean'][metric]:.1f}{spread}" if metric in row["mean"] else ""

        return cell

    first = ("P@1", "P@3", "P@5", "R@5", "R@10", "R@50", "nDCG@5", "PSP@5")
    groups = [f"{metric} {group}" for metric in ("P@5", "R@10") for group in ("head", "torso", "tail")]
    for title, metrics in (("quality, %", first), ("by frequency of the label, %", groups)):
        show_figures(title, rows, ("method", "method"), *((metric, percent(metric)) for metric in metrics))
    show_figures(
        "cost",
        [
            {**row, **{name: row[name] or None for name in ("judgments", "labelled_documents")}}
            for row in rows
        ],
        ("method", "method"),
        ("uses", "uses"),
        ("judgments", "judgments", ","),
        ("labelled documents", "labelled_documents", ","),
        ("teacher, minutes", "teacher_minutes", ".1f"),
        ("this machine, minutes", "seconds", ".1f", 1 / 60),
    )
    if found["student_minus"]:
        table(
            "student minus, points, 95% interval over documents",
            ["method", "P@1", "P@5", "R@10", "documents"],
            [
                [name, *(_interval(value) for value in row.values()), str(row["P@1"]["documents"])]
                for name, row in found["student_minus"].items()
            ],
        )
    if found["human_equivalent"]:
        table(
            "equals a supervised model on so many human-labelled documents",
            ["method", "by P@1", "by P@5", "by R@10"],
            [
                [name, *(f"{'' if sign == '=' else sign}{count:,.0f}" for sign, count in row.values())]
                for name, row in found["human_equivalent"].items()
            ],
        )


def _interval(value: dict[str, Any]) -> str:
    if not value["documents"]:
        return ""
    return f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


if __name__ == "__main__":
    try:
        typer.run(methods)
    except EzxmcError as error:
        sys.exit(f"error: {error}")
