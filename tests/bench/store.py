"""How the feedback store behaves with many judgments.

Fills a store through its public methods, then opens it, goes on with a job of
which a hundredth is missing, exports and counts: rates, bytes and peak memory
of each, every step in a process of its own.

    python tests/bench/store.py --rows 10_000_000

Takes about 300 bytes of disk a row, in a temporary folder removed at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.fakes import FakeTeacher

from ezxmc.feedback.annotate import annotate
from ezxmc.feedback.exchange import export_judgments
from ezxmc.feedback.store import FeedbackStore
from ezxmc.records import Document, Judgment, Label, Pair, Status

PER_DOCUMENT, LABELS = 20, 13_000
MISSING = 100  # one document in so many is not judged when the job goes on
TEACHER = FakeTeacher()


def pairs(rows: int) -> Iterator[Pair]:
    labels = [Label(f"label-{i:05d}", f"Label {i}") for i in range(LABELS)]
    for number in range(rows // PER_DOCUMENT):
        document = Document(f"doc-{number:09d}", f"Title {number}", f"the text of document {number} " * 20)
        for i in range(PER_DOCUMENT):
            yield Pair(document, labels[(number * PER_DOCUMENT + i) * 7_919 % LABELS])


def judgments(rows: int) -> Iterator[Judgment]:
    draw = random.Random(0)
    for position, pair in enumerate(pairs(rows)):
        if position // PER_DOCUMENT % MISSING:
            key = TEACHER.key(pair)
            yield Judgment(
                key, pair.doc.uid, pair.label.uid, Status.OK, draw.gauss(-1, 3), draw.random(), 260, 224
            )


def fill(path: Path, rows: int) -> dict[str, Any]:
    """Batches of 10,000 as an import makes them; the last 64,000 rows in 64s as annotation does."""
    seconds = {10_000: 0.0, 64: 0.0}
    counts = dict.fromkeys(seconds, 0)
    small = rows - rows // MISSING - 64_000
    stream = judgments(rows)
    with FeedbackStore(path) as store:
        session = store.open_session(TEACHER.fingerprint, TEACHER.description)
        done = 0
        while batch := list(islice(stream, 10_000 if done < small else 64)):
            size = 10_000 if done < small else 64
            started = time.perf_counter()
            store.append(session, batch, 0.0)
            seconds[size] += time.perf_counter() - started
            counts[size] += len(batch)
            done += len(batch)
            if done % 1_000_000 == 0:
                print(f"  {done:,} rows, {counts[10_000] / seconds[10_000]:,.0f}/s so far", file=sys.stderr)
    return {
        "rows": done,
        "inserts/s, batches of 10,000": counts[10_000] / max(seconds[10_000], 1e-9),
        "inserts/s, last 64,000 in batches of 64": counts[64] / max(seconds[64], 1e-9),
        "bytes": path.stat().st_size,
        "bytes per judgment": path.stat().st_size / done,
    }


def look(path: Path, rows: int) -> dict[str, Any]:
    started = time.perf_counter()
    with FeedbackStore(path) as store:
        opened = time.perf_counter() - started
        started = time.perf_counter()
        store.totals(TEACHER.fingerprint)
        totals = time.perf_counter() - started
        # The job asks about neighbours in it, which lie anywhere in the store.
        keys = [TEACHER.key(pair) for pair in islice(pairs(rows), rows // 2, rows // 2 + 200_000)]
        started = time.perf_counter()
        store.known(keys)
        known = len(keys) / (time.perf_counter() - started)
    return {"open, s": opened, "totals, s": totals, "known/s": known}


def resume(path: Path, rows: int) -> dict[str, Any]:
    started = time.perf_counter()
    first: float | None = None

    def progress(done: int, total: int) -> None:
        nonlocal first
        first = first or time.perf_counter() - started

    with FeedbackStore(path) as store:
        summary = annotate(lambda: pairs(rows), TEACHER, store, progress=progress)
    return {
        "resume: pairs wanted": summary.wanted,
        "resume: known": summary.known,
        "resume: asked": summary.asked,
        "resume: s until the first question": first,
        "resume: s in all": time.perf_counter() - started,
    }


def export(path: Path, suffix: str) -> dict[str, Any]:
    out = path.with_suffix(suffix)
    started = time.perf_counter()
    with FeedbackStore(path) as store:
        rows = export_judgments(store, out)
    seconds = time.perf_counter() - started
    size = out.stat().st_size
    out.unlink()
    return {f"export {suffix}, rows/s": rows / seconds, f"export {suffix}, bytes per row": size / rows}


def alone(step: Callable[..., dict[str, Any]], *values: Any) -> dict[str, Any]:
    """Run a step; adds its process's CPU time and peak memory, and what the imports alone take."""
    imports, used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = step(*values)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = " ".join([step.__name__, *(value for value in values if isinstance(value, str))])
    return {
        **found,
        f"{name}: CPU s": time.process_time() - used,
        f"{name}: peak MiB (imports alone {imports // 1024})": peak / 1024,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--folder", help="where the temporary folder is made")
    chosen = arguments.parse_args()
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        path = Path(folder) / "store.sqlite"
        steps = [(fill, chosen.rows), (look, chosen.rows), (resume, chosen.rows), (export, ".parquet")]
        for step, value in [*steps, (export, ".jsonl")]:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                done = pool.submit(alone, step, path, value).result()
            print(step.__name__, json.dumps(done), file=sys.stderr)
            found |= done
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
