"""What a scenario measured: MLPerf inference's metric of it, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.scenarios.bounds import CONFIDENCE, latency_bound, min_queries
from rtdetr_deploy.words import plural

NOTE = (
    "metrics of MLPerf inference's scenarios, on images prepared in memory; copies, model and decoding are timed. "
    "This is not an MLPerf result: its load generator, data set, quality target and durations are not used"
)

SPEED = "images/s"
"""The metric of a scenario that has no latency: its value is the throughput, which is not told twice."""


@dataclass(frozen=True)
class Scenario:
    """A scenario of MLPerf inference: images per query, and the percentile of latency (None: throughput is told)."""

    title: str
    images: int
    percentile: float | None

    @property
    def metric(self) -> str:
        """What is told about a model."""
        return SPEED if self.percentile is None else f"p{self.percentile:g} ms"


SCENARIOS: Mapping[str, Scenario] = {
    "single-stream": Scenario("SingleStream", 1, 90.0),
    "multi-stream": Scenario("MultiStream", 8, 99.0),
    "offline": Scenario("Offline", 0, None),
}
"""Section "Scenarios" of the rules (github.com/mlcommons/inference_policies, inference_rules.adoc), by our names."""


@dataclass(frozen=True)
class Throughput:
    """So many `images` in `seconds`, in calls of `batch`, from `threads` threads, none waiting for the next image.

    `gpu_ms` is the mean time of a call on the GPU, calls queued without a gap and copies left out; None on others.
    """

    images: int
    seconds: float
    batch: int
    threads: int
    gpu_ms: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images per second of the clock."""
        return self.images / self.seconds

    def __str__(self) -> str:
        told = f"{plural(self.images, 'image')}, {self.batch} per call, {plural(self.threads, 'thread')}"
        text = f"back to back {self.images_per_second:.1f} images per second ({told})"
        if self.gpu_ms is None:
            return text
        return (
            f"{text}; on the GPU alone {self.gpu_ms:.3f} ms per call, {1000 * self.batch / self.gpu_ms:.1f} per second"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {**vars(self), "images_per_second": self.images_per_second}


@dataclass(frozen=True)
class ScenarioResult:
    """A model in one of `SCENARIOS`: milliseconds of each query where latency is told, and the throughput."""

    model: str
    scenario: str
    milliseconds: NDArray[np.float64]
    throughput: Throughput

    @property
    def value(self) -> float:
        """The metric: a percentile of the queries' milliseconds, or images per second."""
        percentile = SCENARIOS[self.scenario].percentile
        if percentile is None:
            return self.throughput.images_per_second
        return float(np.percentile(self.milliseconds, percentile))

    @property
    def bound(self) -> float | None:
        """MLPerf's early-stopping estimate of the percentile; None where there is none, or too few queries."""
        percentile = SCENARIOS[self.scenario].percentile
        return None if percentile is None else latency_bound(self.milliseconds, percentile)

    @property
    def doubt(self) -> str:
        """What the figure does not prove, in words; empty where it stands."""
        percentile, count = SCENARIOS[self.scenario].percentile, len(self.milliseconds)
        if percentile is None or count >= min_queries(percentile):
            return ""
        return f"a guess: p{percentile:g} of {count} queries, {min_queries(percentile)} are needed"

    def to_json(self) -> dict[str, Any]:
        """Return it for a JSON file, each query included."""
        scenario = SCENARIOS[self.scenario]
        return {
            "model": self.model,
            "scenario": scenario.title,
            "metric": scenario.metric,
            "value": self.value,
            "bound": self.bound,
            "confidence": CONFIDENCE,
            "doubt": self.doubt,
            **self.throughput.to_json(),
            "samples": self.milliseconds.round(4).tolist(),
        }


def format_scenarios(results: Sequence[ScenarioResult]) -> str:
    """Return the table of all models and scenarios, with a note on what it is."""
    width = max(len(result.model) for result in results)
    head = f"{'':<{width}}  {'scenario':<14}{'metric':>10}{'value':>10}{'at most':>10}{'queries':>9}{'images':>8}"
    lines = [f"{head}{'batch':>7}{'threads':>9}{'images/s':>10}"]
    for result in results:
        scenario, flow, bound = SCENARIOS[result.scenario], result.throughput, result.bound
        told = f"{'-' if bound is None else f'{bound:.2f}':>10}{len(result.milliseconds) or 1:>9}"
        speed = "-" if scenario.metric == SPEED else f"{flow.images_per_second:.1f}"
        told += f"{flow.images:>8}{flow.batch:>7}{flow.threads:>9}{speed:>10}"
        lines.append(
            f"{result.model:<{width}}  {scenario.title:<14}{scenario.metric:>10}{result.value:>10.2f}{told}"
            + (f"  {result.doubt}" if result.doubt else "")
        )
    lines.append(f"at most: MLPerf's early-stopping estimate, {100 * CONFIDENCE:.0f} % confidence")
    return "\n".join([*lines, *(f"{part}." for part in NOTE.split(". "))])
