"""How much slower one model is than another, with a confidence interval.

Models are timed in turn, round by round, so a round's times share what the machine was doing. The interval is a
percentile bootstrap: whole rounds are drawn with replacement, and the ratio of the medians is taken each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """Ratio of two medians, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1.0 <= self.high


def compare_medians(times: NDArray[np.float64], base: NDArray[np.float64], seed: int = 0) -> Ratio:
    """Return median(`times`) / median(`base`); both hold one sample per round, in the same order."""
    if len(times) != len(base) or not len(times):
        raise ValueError(f"{len(times)} and {len(base)} samples; expected as many on both sides, and at least one")
    draws = np.random.default_rng(seed).integers(0, len(times), (DRAWS, len(times)))
    ratios = np.median(times[draws], axis=1) / np.median(base[draws], axis=1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Ratio(float(np.median(times) / np.median(base)), float(low), float(high))
