"""Every method on one catalog under one evaluation, resumable, with what it costs.

A method is a function of a task and a seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.bench.baselines import (
    BM25,
    STUDENT,
    STUDENT_TITLES,
    SUPERVISED,
    TEACHER,
    TFIDF_CHAR,
    TFIDF_WORD,
    UNTRAINED,
)
from ezxmc.bench.benchmark import PAIRED, Benchmark, difference, human_equivalent, load_benchmark
from ezxmc.bench.contrastive import LMTX, LMTX4, LMTX_SMALL, MACLR, RTS
from ezxmc.bench.task import Method, Task
from ezxmc.errors import ConfigError, DataError, EzxmcError
from ezxmc.files import Inputs, check_file, loads, write_file
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


def check_results(out: Path, inputs: Inputs = ()) -> None:
    """Whether `run_methods` may keep its runs in a file; raises ConfigError as `check_file`."""
    check_file(out, _WHAT, made=loads(_read), inputs=inputs)


def bench_methods(
    documents: str,
    labels: str,
    gold: str,
    *,
    names: Sequence[str] = (),
    judgments_at: Sequence[str] = (),
    labelled: Sequence[str] = (),
    seeds: int = 3,
    pairs_per_second: float | None = None,
    out: Path | None = None,
    watch: Progress,
    **parts: Any,
) -> tuple[dict[str, Any], int]:
    """Compare methods on files: `load_benchmark`, `run_methods` and `summary`.

    Args:
        documents: All documents.
        labels: Their labels.
        gold: Gold tags of as many documents as there are.
        names: Methods; all by default.
        judgments_at: Numbers of judgments that methods fed by them are run on, too.
        labelled: Numbers of documents that the supervised method is trained on, too.
        seeds: As for `run_methods`.
        pairs_per_second: The teacher's speed; by default what its store tells.
        out: As for `run_methods`.
        watch: Sees the parts.
        **parts: What else `load_benchmark` takes.

    Returns:
        What `summary` gives, with the methods `skipped`; and the number of bad rows.

    Raises:
        ConfigError, DataError: As for these three.
    """
    if out:
        sources = (
            documents,
            labels,
            gold,
            *(parts[name] for name in ("judgments", "report_judgments", "report")),
        )
        check_results(out, sources)
    names = list(names or METHODS)
    fed = [name for name in names if name in METHODS and METHODS[name].amount == "judgments"]
    names += [f"{name}@{count}" for count in judgments_at for name in fed]
    names += [f"supervised@{count}" for count in labelled if "supervised" in names]
    benchmark = load_benchmark(documents, labels, gold, watch=watch, **parts)
    for name, count in benchmark.counts.items():
        watch.say(f"  {name}: {count:,}")
    results, skipped = run_methods(benchmark, names, seeds=seeds, out=out, watch=watch)
    speed = 1 / pairs_per_second if pairs_per_second else benchmark.seconds_per_judgment
    return {**summary(results, benchmark, speed), "skipped": skipped}, benchmark.bad_rows


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
