"""Tagging long files: rows per second and peak memory of `ezxmc predict`, by number of lines.

    python tests/bench/predict_memory.py BUNDLE --lines 10000,100000,1000000 [--bad 1000]

Every line is a short document of its own; every so-and-so-many-th one is no JSON at all.
The order of the output is checked line by line, and that every bad line has its place in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

EZXMC = str(Path(sys.executable).with_name("ezxmc"))
WORDS = ("edits", "plays", "reads", "writes", "sends", "sorts", "packs", "mail", "music", "maps", "tables")


def line(number: int, bad: int) -> str:
    if number % bad == bad - 1:
        return "{not json\n"
    words = (WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(6))
    return json.dumps({"uid": f"u{number}", "title": " ".join(words)}) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lines", default="10000,100000,1000000")
    parser.add_argument("--bad", type=int, default=1000)
    args = parser.parse_args()
    print(f"{'lines':>10} {'seconds':>8} {'rows/s':>8} {'peak MB':>8} {'out MB':>7}")
    for count in map(int, args.lines.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
            with source.open("w") as handle:
                handle.writelines(line(number, args.bad) for number in range(count))
            began = time.perf_counter()
            command = [EZXMC, "predict", str(args.bundle), str(source), "-o", str(out)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            assert os.waitstatus_to_exitcode(status) == (3 if count >= args.bad else 0)
            with out.open() as handle:
                for number, row in enumerate(map(json.loads, islice(handle, count))):
                    bad = number % args.bad == args.bad - 1
                    assert (row["line"] == number + 1) if bad else (row["uid"] == f"u{number}"), row
                assert number == count - 1 and not handle.readline()
            size = out.stat().st_size / 1e6
            print(
                f"{count:10,} {seconds:8.0f} {count / seconds:8.0f} {usage.ru_maxrss / 1024:8.0f} {size:7.0f}"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
