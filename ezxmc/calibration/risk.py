"""Statistics behind the decisions with a guarantee: conformal risk control, and tests of many thresholds.

All of it rests on one assumption: the reviewed documents and the documents to
come are exchangeable (drawn in the same way, in any order). It holds for no
other catalog, and not for the same one after a change of what comes in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr


def conformal_bound(losses: ArrayLike, worst: float = 1.0) -> float:
    """Expected loss of one more document, bounded from the losses of n others.

    (Σ losses + B) / (n + 1), which is n/(n+1) · R̂ + B/(n+1) of conformal risk
    control (Angelopoulos et al., arXiv 2208.02814). The most lenient
    setting with a bound of at most α has an expected loss of at most α, over
    the draw of the n documents and the new one, if every document's loss never
    falls as the setting becomes more lenient.

    Args:
        losses: (n,) losses in [0, B] at one setting.
        worst: B, the greatest loss possible.
    """
    values = np.asarray(losses, dtype=np.float64)
    return float((values.sum() + worst) / (len(values) + 1))


def binomial_p_value(total: ArrayLike, n: ArrayLike, rate: float) -> NDArray[np.float64]:
    """Exact p-values of "the error rate is above `rate`": P(Bin(n, rate) ≤ total).

    Args:
        total: (m,) errors in n independent cases.
        n: (m,) cases; where 0, the p-value is 1.
        rate: In (0, 1).
    """
    from scipy.stats import binom

    # The distribution of no cases is all at 0.
    return np.asarray(binom.cdf(total, n, rate), dtype=np.float64)


def hoeffding_bentkus_p_value(total: ArrayLike, n: ArrayLike, rate: float) -> NDArray[np.float64]:
    """P-values of "the expected loss is above `rate`", from n independent losses in [0, 1].

    min(exp(−n h(min(m, rate), rate)), e · P(Bin(n, rate) ≤ ⌈total⌉)) with the
    mean m = total / n and h(a, b) = a ln(a/b) + (1−a) ln((1−a)/(1−b)):
    Learn-Then-Test (Angelopoulos et al., arXiv 2110.01052), after Bates et al.,
    arXiv 2101.02703.

    Args:
        total: (m,) sums of the losses.
        n: (m,) how many; where 0, the p-value is 1.
        rate: In (0, 1).
    """
    from scipy.stats import binom

    sums, counts = np.asarray(total, dtype=np.float64), np.asarray(n, dtype=np.float64)
    mean = np.minimum(sums / np.maximum(counts, 1), rate)
    divergence = rel_entr(mean, rate) + rel_entr(1 - mean, 1 - rate)
    tail = np.e * binom.cdf(np.ceil(sums), counts, rate)
    return np.asarray(np.minimum(np.exp(-counts * divergence), tail), dtype=np.float64)


def fixed_sequence(p_values: ArrayLike, shares: ArrayLike, delta: float) -> NDArray[np.bool_]:
    """Which hypotheses of a sequence may be rejected, with a chance of at most `delta` of any error.

    Each hypothesis has its share of δ, and one that is rejected hands all it
    had to the next: the fallback procedure (Wiens, Pharmaceutical Statistics
    2, 2003), which is the fixed-sequence testing of arXiv 2110.01052 if the
    first has all of δ. Order and shares must not depend on the data that the
    p-values are from; the p-values may depend on each other in any way.

    Args:
        p_values: (m,) in the order of testing.
        shares: (m,) non-negative, of sum 1 at most.
        delta: In (0, 1).

    Returns:
        (m,) bool.
    """
    own = delta * np.asarray(shares, dtype=np.float64)
    rejected = np.zeros(len(own), dtype=np.bool_)
    level = 0.0
    for position, value in enumerate(np.asarray(p_values, dtype=np.float64)):
        level += own[position]
        rejected[position] = level > 0 and value <= level
        if not rejected[position]:
            level = 0.0
    return rejected
