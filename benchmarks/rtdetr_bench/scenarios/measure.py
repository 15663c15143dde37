"""Keeps models busy: back to back, or as a scenario of MLPerf inference asks.

Images are prepared before the clock starts, as MLPerf's rules allow for resizing and layout; a query is what is left:
copies, the model, decoding. Where a runtime overlaps calls, as many threads call it as it has slots for.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from rtdetr_bench.models.timed_model import TimedModel
from rtdetr_bench.options import TimingOptions
from rtdetr_bench.scenarios.results import SCENARIOS, ScenarioResult, Throughput
from rtdetr_bench.timing import MAX_WARMUP, choose_images, is_stable
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.predictor import MAX_BATCH

POOL = 4
"""Queries that are prepared and asked in turn: memory for a few batches, and not always the same image."""
SHORT = 3.0
"""Seconds that the throughput beside latencies is measured at most."""
GPU_CALLS = 50
"""Calls that are queued at once for the time on the GPU alone."""
WARM = TimingOptions(warmup=4)
"""For models that have just been timed at this batch: each slot shall have run twice, and recorded its CUDA graph."""

Call = Callable[[], object]


def batch_of(model: TimedModel) -> int:
    """Return how many images the model takes at once: those of a fixed batch, else its maximum, or 8."""
    return model.batch or model.max_batch or MAX_BATCH


def measure_throughput(
    model: TimedModel,
    batch: int,
    sources: Sequence[ImageLike],
    *,
    calls: int | None,
    seconds: float | None,
    warmup: TimingOptions = WARM,
) -> Throughput:
    """Call the model on `batch` images at a time, without a pause, until `calls` or `seconds` are reached.

    Before that all of its slots are called at once, as often as `warmup` says: each may have to warm up.
    """
    pool = [model.query(choose_images(sources, turn, batch)) for turn in range(POOL)]
    warm_up(lambda: _keep_busy(pool, model.slots, model.slots, None), warmup)
    done, elapsed = _keep_busy(pool, model.slots, calls, seconds)
    gpu = model.back_to_back(choose_images(sources, 0, batch), GPU_CALLS)
    return Throughput(done * batch, elapsed, batch, model.slots, gpu)


def measure_scenario(
    name: str, model: TimedModel, timing: TimingOptions, sources: Sequence[ImageLike]
) -> ScenarioResult:
    """Measure one of `SCENARIOS`: as many queries as `timing` has rounds, or as begin within its duration.

    Offline is a single query of so many batches.
    """
    scenario = SCENARIOS[name]
    if scenario.percentile is None:
        batch = batch_of(model)
        calls, seconds = timing.rounds, timing.duration
        flow = measure_throughput(model, batch, sources, calls=calls, seconds=seconds, warmup=timing)
        return ScenarioResult(model.name, name, np.empty(0), flow)
    batch = min(scenario.images, batch_of(model))
    with _helper(model.slots if scenario.images > batch else 1) as helper:
        pool = [_query(model, choose_images(sources, turn, scenario.images), batch, helper) for turn in range(POOL)]
        warm_up(pool[0], timing)
        start = time.perf_counter()
        times = _ask_in_turn(pool, timing)
        elapsed = time.perf_counter() - start
    threads = 1 if helper is None else model.slots
    flow = Throughput(len(times) * scenario.images, elapsed, batch, threads)
    return ScenarioResult(model.name, name, np.array(times), flow)


def warm_up(query: Call, timing: TimingOptions) -> int:
    """Ask until answers come as fast as they will, at most as often as `timing` says; return how often."""
    times: list[float] = []
    while len(times) < (timing.warmup or MAX_WARMUP):
        times.append(_timed(query))
        if timing.warmup is None and is_stable(times):
            break
    return len(times)


def _helper(threads: int) -> AbstractContextManager[ThreadPoolExecutor | None]:
    return ThreadPoolExecutor(threads) if threads > 1 else nullcontext()


def _query(model: TimedModel, images: Sequence[ImageLike], batch: int, helper: ThreadPoolExecutor | None) -> Call:
    """Return what answers a query: one call, or several where the model takes fewer images at once."""
    parts = [model.query(images[start : start + batch]) for start in range(0, len(images), batch)]
    if len(parts) == 1:
        return parts[0]
    if helper is None:
        return lambda: [part() for part in parts]
    return lambda: list(helper.map(lambda part: part(), parts))


def _ask_in_turn(pool: Sequence[Call], timing: TimingOptions) -> list[float]:
    """Ask the next query as soon as the last is answered; return the milliseconds of each."""
    times: list[float] = []
    end = None if timing.duration is None else time.perf_counter() + timing.duration
    while timing.rounds is None or len(times) < timing.rounds:
        if end is not None and times and time.perf_counter() >= end:
            break
        times.append(_timed(pool[len(times) % len(pool)]))
    return times


def _timed(query: Call) -> float:
    start = time.perf_counter()
    query()
    return 1000.0 * (time.perf_counter() - start)


def _keep_busy(pool: Sequence[Call], threads: int, calls: int | None, seconds: float | None) -> tuple[int, float]:
    """Call from `threads` threads, each going on at once, until a limit is reached; return calls and seconds."""
    turns, lock, done = itertools.count(), threading.Lock(), [0] * threads
    start = time.perf_counter()

    def work(worker: int) -> None:
        while True:
            with lock:
                turn = next(turns)
            late = seconds is not None and turn >= threads and time.perf_counter() - start >= seconds
            if late or (calls is not None and turn >= calls):
                return
            pool[turn % len(pool)]()
            done[worker] += 1

    if threads == 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as helper:
            list(helper.map(work, range(threads)))
    return sum(done), time.perf_counter() - start
