"""Latency of one model, stage by stage, through the Predictor that applications use.

    load      read and decode the image file (absent for the synthetic image)
    prepare   resize, layout, scale
    infer     the engine: model, query selection and top-k included
    decode    threshold, class names, scaling of boxes to the image

`infer + decode` on prepared input is the span that the paper times (arXiv 2304.08069, section 5.1); RT-DETR has no NMS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy import OptionError, Predictor
from rtdetr_deploy.preprocess import Resizer

STAGES = ("load", "prepare", "infer", "decode")
PAPER_SPAN = ("infer", "decode")
SYNTHETIC_SHAPE = (720, 1280, 3)
PERCENTILES = (50, 90, 99)

T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call and stage, one sample per run; `batch` images per call; `opened` seconds to open."""

    batch: int
    opened: float
    samples: dict[str, NDArray[np.float64]]

    def total(self, stages: Sequence[str] = STAGES) -> NDArray[np.float64]:
        """Return the sum of `stages` for each run."""
        return np.sum([self.samples[stage] for stage in stages if stage in self.samples], axis=0)  # type: ignore[no-any-return]

    def rows(self) -> dict[str, dict[str, float]]:
        """Return p50, p90, p99, mean and min of each stage, of the paper's span and of the whole call."""
        spans = {stage: self.total((stage,)) for stage in self.samples}
        spans |= {"paper's span": self.total(PAPER_SPAN), "whole call": self.total()}
        return {name: _statistics(values) for name, values in spans.items()}

    @property
    def throughput(self) -> float:
        """Images per second at the median of the whole call."""
        return 1000.0 * self.batch / float(np.median(self.total()))


def measure_latency(
    engine: str | Path,
    *,
    images: Sequence[Path] = (),
    runs: int = 100,
    warmup: int = 5,
    threads: int | None = None,
    resizer: Resizer = "opencv",
    size: tuple[int, int] | None = None,
    on_run: Callable[[], object] | None = None,
) -> Latency:
    """Time `runs` calls of the model `engine` after `warmup` unmeasured ones.

    `images` are used in turn; without them, one synthetic 1280x720 frame is. `threads`, `resizer` and `size` are those
    of `Predictor`. `on_run` is called after every call.
    Raises `ArtifactError` when the engine can't be run and `OptionError` for numbers below 1.
    """
    for name, value in (("runs", runs), ("warmup", warmup)):
        if value < 1:
            raise OptionError(f"{name} is {value}, expected a number from 1 up")
    start = time.perf_counter()
    with Predictor(engine, threads=threads, resizer=resizer, size=size) as predictor:
        opened = time.perf_counter() - start
        batch = predictor.batch or 1
        frame = np.random.default_rng(0).integers(0, 256, SYNTHETIC_SHAPE, dtype=np.uint8)
        samples: dict[str, list[float]] = {stage: [] for stage in STAGES[0 if images else 1 :]}
        for run in range(warmup + runs):
            sources = [images[(run + row) % len(images)] for row in range(batch)] if images else [frame] * batch
            times = _time_call(predictor, sources)
            if run >= warmup:
                for stage, values in samples.items():
                    values.append(times[stage])
            if on_run is not None:
                on_run()
    return Latency(batch, opened, {stage: np.array(values) for stage, values in samples.items()})


def _time_call(predictor: Predictor, sources: Sequence[Path] | Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the milliseconds of each stage of one call."""
    times: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        times[stage] = 1000.0 * (time.perf_counter() - start)
        return result

    frames = timed("load", lambda: predictor.load(sources))
    prepared = timed("prepare", lambda: predictor.prepare(frames))
    outputs = timed("infer", lambda: predictor.infer(prepared))
    timed("decode", lambda: predictor.decode(outputs, [frame.size for frame in frames]))
    return times


def _statistics(values: NDArray[np.float64]) -> dict[str, float]:
    result = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    return {**result, "mean": float(values.mean()), "min": float(values.min())}
