"""Ranges of activations that are stored as unsigned 8-bit numbers with a zero point, chosen on calibration images.

A range is chosen to minimize the squared error of the values that it rounds and clips, rather than to cover the extreme
ones. Before a SiLU the error that counts is the one behind it: SiLU makes nearly nothing of what is far below zero, so
that part of the range is given up for finer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from rtdetr_export.precision.activations import collect_activations

Floats = NDArray[np.float32]
Function = Callable[[Floats], Floats]

LEVELS = 255
"""Steps of an unsigned range."""
CLIPS = np.linspace(0.2, 1.0, 33, dtype=np.float32)
"""Shares of the extreme values that are tried as an end of the range."""
SAMPLED = 1024
"""Values kept of each activation and image."""


@dataclass(frozen=True)
class Range:
    """Unsigned 8-bit levels `q` stand for `scale * (q - zero_point)`; `zero_point` is 0 .. 255."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """Return the range from `low` (at most 0) to `high` (at least 0), moved so that 0 is a level."""
        scale = np.float32(max(high - low, 1e-6) / LEVELS)
        return cls(float(scale), int(np.clip(np.rint(-low / scale), 0, LEVELS)))

    def round(self, values: Floats) -> Floats:
        """Return what `values` are after they were stored and restored."""
        levels = np.clip(np.rint(values / np.float32(self.scale)) + self.zero_point, 0, LEVELS)
        rounded: Floats = ((levels - self.zero_point) * np.float32(self.scale)).astype(np.float32)
        return rounded


def silu(values: Floats) -> Floats:
    """Return `x * sigmoid(x)`."""
    result: Floats = values * np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * values))
    return result


def choose_range(values: Floats, function: Function | None = None) -> Range:
    """Return the range with the minimum squared error of `values`, or of `function` of them.

    Its upper end is chosen first, then its lower one; both are shares of the extreme values.
    """
    low, high = min(float(values.min(initial=0.0)), 0.0), max(float(values.max(initial=0.0)), 0.0)
    exact = values if function is None else function(values)

    def error(candidate: Range) -> float:
        rounded = candidate.round(values)
        return float((((rounded if function is None else function(rounded)) - exact) ** 2).mean())

    high = min((float(clip) * high for clip in CLIPS[::-1]), key=lambda end: error(Range.of(low, end)))
    low = min((float(clip) * low for clip in CLIPS[::-1]), key=lambda end: error(Range.of(end, high))) if low else low
    return Range.of(low, high)


def measure_ranges(
    content: bytes, functions: Mapping[str, Function | None], batches: Iterable[NDArray[np.generic]]
) -> dict[str, Range]:
    """Return the range of each value that is named, chosen on samples of it from every prepared input array.

    `functions` has what each value goes through before its error counts, None where it counts itself.
    """
    wanted = sorted(functions)
    samples: dict[str, list[Floats]] = {name: [] for name in wanted}
    for found in collect_activations(onnx.load_from_string(content), wanted, batches):
        for name in wanted:
            samples[name].append(sample(found[name].reshape(-1)))
    return {name: choose_range(np.concatenate(parts), functions[name]) for name, parts in samples.items()}


def sample(values: Floats) -> Floats:
    """Return up to `SAMPLED` of `values` at distances that follow no pattern of theirs, and the extreme ones."""
    places = np.random.default_rng(0).integers(0, values.size, min(SAMPLED, values.size))
    return np.concatenate([values[places], values.min(keepdims=True), values.max(keepdims=True)])
