"""What ezxmc's numbers promise beside what comes true, in simulated worlds whose law is known.

    python tests/bench/promises.py [--draws 400]

The worlds are those of `support/promises.py`: few documents or one, one label, (nearly) all right or wrong,
ties, probabilities that are too sure or upside down. Printed is, of each promise, the world that kept it
worst; a row for each world with --all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import promises


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--all", action="store_true", help="a row for each world")
    given = parser.parse_args()
    print("| promise | promised, at most | realised | draws | world | |\n|---|---|---|---|---|---|")
    for play in (promises.metric_intervals, promises.probabilities, promises.guarantees, promises.drift):
        rows = list(play(given.draws))
        if not given.all:
            worst: dict[str, promises.Row] = {}
            for row in rows:
                former = worst.get(row.promise)
                if former is None or row.realised - row.promised > former.realised - former.promised:
                    worst[row.promise] = row
            rows = [*worst.values()]
        for row in rows:
            print(
                f"| {row.promise} | {row.promised:.2f} | {row.realised:.3f} | {row.draws} | {row.world} "
                f"| {'' if row.kept else 'BROKEN'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
