"""What a percentile of few queries proves: the early-stopping estimate of MLPerf inference.

A percentile of n samples is a guess, better or worse. The rules (inference_rules.adoc, "Early Stopping Criterion", with
tolerance 0 and confidence 0.99) replace it by a latency that the percentile lies below with that confidence: of n
queries, t may be slower than the limit of a system that just fails, and no more, for it to be this unlikely; the
t - 1 slowest are set aside, and the slowest of the others is reported.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99


@cache
def max_slow_queries(count: int, percentile: float) -> int:
    """Return how many of `count` queries may exceed a latency that `percentile` % stay below; 0: too few queries.

    It is the maximum t for which a binomial of `count` trials at rate 1 - `percentile` / 100 gives t or fewer with a
    probability of at most 1 - `CONFIDENCE`.
    """
    rate = 1.0 - percentile / 100.0
    number = np.arange(math.ceil(count * rate) + 1, dtype=np.float64)
    steps = np.log((count - number[:-1]) / (number[:-1] + 1.0)) + math.log(rate / (1.0 - rate))
    logarithms = count * math.log(1.0 - rate) + np.concatenate(([0.0], np.cumsum(steps)))
    below = np.cumsum(np.exp(logarithms))
    return max(0, int(np.searchsorted(below, 1.0 - CONFIDENCE, side="right")) - 1)


@cache
def min_queries(percentile: float) -> int:
    """Return the minimum number of queries from which a bound can be told: 64 at 90 %, 662 at 99 %."""
    count = 1
    while max_slow_queries(count, percentile) < 1:
        count += 1
    return count


def latency_bound(milliseconds: NDArray[np.float64], percentile: float) -> float | None:
    """Return the latency that `percentile` % of queries stay below, with `CONFIDENCE`; None for too few samples."""
    slow = max_slow_queries(len(milliseconds), percentile)
    return float(np.sort(milliseconds)[-slow]) if slow else None
