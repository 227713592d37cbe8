"""What ezxmc's numbers promise beside what comes true, in simulated worlds whose law is known.

    python tests/bench/promises.py [--draws 400]

The worlds are those of `support/promises.py`: few documents or one, one label, (nearly) all right or wrong,
ties, probabilities that are too sure or upside down. Printed is, of each promise, the world that kept it
worst; a row for each world with --all.

40, 120 or 300 draws; 120 of all take some two minutes of one core:

| promise | promised, at most | realised | draws | world |
|---|---|---|---|---|
| 95 % interval of P@1 | 0.05 | 0.063 | 300 | 7 documents, usual |
| 95 % interval of R | 0.05 | 0.033 | 300 | 60 documents, nearly all right |
| 95 % interval of a difference | 0.05 | 0.030 | 300 | 60 documents, usual |
| p <= .05 of equal runs | 0.05 | 0.030 | 300 | 60 documents, usual |
| mean probability by an old review less the rate | 0.04 | 0.025 | 40 | like students, 10% skipped |
| the rate less the mean probability by an old review | 0.03 | 0.005 | 40 | near students, 10% skipped |
| mean probability less the rate | 0.03 | 0.066 | 120 | 2 documents, 10 labels, hard and easy documents |
| the rate less the mean probability | 0.06 | 0.036 | 120 | 2 documents, 10 labels, nearly all right |
| true error less the stated one (ECE) | 0.01 | 0.009 | 120 | 20 documents, 10 labels, nearly all wrong |
| worst loss less that of the rate, nats | 0.60 | 0.429 | 120 | 2 documents, 10 labels, hard and easy ones |
| missed labels, mean rate | 0.50 | 0.517 | 120 | 30 documents, 1 label, upside down |
| missed labels, promised though out of reach | 0.20 | 0.008 | 120 | 30 documents, 1 label, nearly all wrong |
| false tags, above the target | 0.10 | 0.000 | 120 | every world |
| wrong first tag, above the target | 0.10 | 0.000 | 120 | every world |
| an offer refused | 0.00 | 0.000 | 120 | every world |
| drift where there is none | 0.05 | 0.067 | 120 | 20 and 20 documents, 1 label, usual |
| 95 % interval of the error, all pairs | 0.05 | 0.100 | 120 | 20 and 20 documents, 1 label, usual |
| 95 % interval of the error, a label | 0.08 | 0.100 | 120 | 20 and 20 documents, 1 label, usual |

No row is further off than chance allows once in a thousand. The first are of 200 resamples, which move ends a
little: of 7 documents without a right one the exact interval ends at .41, and the truth is .40. An old review
is one of a former student's lists (100 documents), and people's decisions are completed; by the decided pairs
alone like students are off by .099, near ones by .034, a better one by .097 (6 draws). What is left comes of
lists that count once half of them is decided: students agree on these. The stated error (ECE) is that of
documents left out of the fit; what one rate of all of them is off by it cannot see, about .01 of 200 pairs.

With --shapes: intervals of means of many shapes, how often they fail (.05 is promised), how often the plain
percentiles of resampled documents do, and how wide ours are beside these (200 draws, 400 resamples):

| values | 5 documents | 20 | 60 | 300 |
|---|---|---|---|---|
| right: 0.5 | .000 .075 1.12 | .045 .055 1.10 | .050 .055 1.05 | .025 .030 1.04 |
| right: 0.7 | .000 .200 1.20 | .035 .045 1.11 | .020 .035 1.06 | .050 .055 1.04 |
| right: 0.9 | .005 .565 2.24 | .020 .130 1.34 | .025 .055 1.16 | .055 .060 1.07 |
| right: 0.97 | .000 .835 5.82 | .005 .510 2.52 | .025 .215 1.56 | .030 .045 1.13 |
| all right but 5 %, uniform | .010 .840 9.40 | .020 .440 3.13 | .020 .110 1.64 | .020 .080 1.19 |
| all right but 20 %, a third | .010 .360 2.14 | .010 .070 1.32 | .030 .045 1.18 | .015 .020 1.08 |
| thirds | .000 .180 1.55 | .020 .065 1.25 | .020 .040 1.15 | .045 .055 1.06 |
| uniform | .000 .165 1.47 | .025 .085 1.23 | .025 .060 1.14 | .035 .045 1.06 |
| skewed, beta(1, 9) | .000 .190 4.68 | .010 .070 2.66 | .015 .060 1.87 | .010 .050 1.30 |
| narrow, beta(5, 5) | .000 .180 2.61 | .005 .080 1.73 | .010 .075 1.37 | .010 .045 1.14 |
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import promises

from ezxmc.metrics import Terms, intervals

Shape = Callable[[np.random.Generator, int], np.ndarray]


def _some(q: float, of: Callable[[np.random.Generator, int], np.ndarray]) -> Shape:
    """All right but a share q, which `of` draws."""
    return lambda rng, n: np.where(rng.random(n) < q, of(rng, n), 1.0)


SHAPES: dict[str, tuple[Shape, float]] = {
    **{f"right: {p}": (lambda rng, n, p=p: 1.0 * (rng.random(n) < p), p) for p in (0.5, 0.7, 0.9, 0.97)},
    "all right but 5 %, uniform": (_some(0.05, lambda rng, n: rng.random(n)), 0.975),
    "all right but 20 %, a third": (_some(0.2, lambda rng, n: np.full(n, 1 / 3)), 1 - 0.4 / 3),
    "thirds": (lambda rng, n: rng.binomial(3, 0.4, n) / 3, 0.4),
    "uniform": (lambda rng, n: rng.random(n), 0.5),
    "skewed, beta(1, 9)": (lambda rng, n: rng.beta(1, 9, n), 0.1),
    "narrow, beta(5, 5)": (lambda rng, n: rng.beta(5, 5, n), 0.5),
}


def shapes(draws: int, resamples: int = 400) -> None:
    """How often intervals of a mean fail, and how wide they are beside the percentiles of resamples."""
    print("| values | documents | fails | of percentiles | width |\n|---|---|---|---|---|")
    for name, (draw, mean) in SHAPES.items():
        for documents in (5, 20, 60, 300):
            rng = np.random.default_rng(documents)
            fails, plain, widths = 0, 0, [0.0, 0.0]
            for _ in range(draws):
                values = draw(rng, documents)
                terms = Terms(("mean",), values[:, None], np.ones((documents, 1)))
                low, high = intervals(terms, resamples=resamples)["mean"]
                drawn = rng.multinomial(documents, np.full(documents, 1 / documents), resamples) @ values
                least, most = np.percentile(drawn / documents, (2.5, 97.5))
                fails += not low <= mean <= high
                plain += not least - 1e-12 <= mean <= most + 1e-12
                widths[0] += high - low
                widths[1] += most - least
            print(
                f"| {name} | {documents} | {fails / draws:.3f} | {plain / draws:.3f} | "
                f"{widths[0] / widths[1]:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--all", action="store_true", help="a row for each world")
    parser.add_argument("--shapes", action="store_true", help="intervals of means, of many shapes, instead")
    given = parser.parse_args()
    if given.shapes:
        return shapes(given.draws)
    print("| promise | promised, at most | realised | draws | world | |\n|---|---|---|---|---|---|")
    for play in (
        promises.metric_intervals,
        promises.probabilities,
        promises.reviews,
        promises.guarantees,
        promises.drift,
    ):
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
