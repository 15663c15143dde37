"""Latency of models, span by span, timed in turn so that the machine's drift falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.machine import gpu_memory, resident_memory
from rtdetr_bench.models.contestants import PAPER_SPAN, SPANS, Contestant, Entry, check_applies, open_contestant
from rtdetr_deploy import OptionError
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.words import plural

SYNTHETIC_SHAPE = (720, 1280, 3)
PERCENTILES = (50, 90, 99)
WINDOW = 3
"""Calls whose median is compared with that of the calls before, to tell whether a model has warmed up."""
STABLE = 0.05
MOST_WARMUP = 40
LEAST_ROUNDS = 3
MOST_RUNS = 1_000_000
LONGEST = 86_400
"""Seconds of a day: more rounds, or a longer measurement or pause, are taken for typing errors."""
LIBRARIES = {".onnx": "onnxruntime", ".engine": "tensorrt", ".plan": "tensorrt", ".pth": "torch", ".pt": "torch"}

Milliseconds = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """How long to measure: `runs` rounds, or as many as begin within `duration` seconds, at least 3.

    `warmup` is a number of calls, or None: until two windows of 3 calls differ by less than 5 %, at most 40 calls.
    `pause` is slept between rounds, in seconds, for machines that get hot.
    """

    runs: int = 100
    duration: float | None = None
    warmup: int | None = None
    pause: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("runs", self.runs), ("warmup", self.warmup)):
            if value is not None and not 1 <= value <= MOST_RUNS:
                raise OptionError(f"{name} is {value}, expected a number from 1 to {MOST_RUNS}")
        if self.duration is not None and not 0 < self.duration <= LONGEST:
            raise OptionError(f"duration is {self.duration}, expected seconds above 0 and up to {LONGEST}")
        if not 0 <= self.pause <= LONGEST:
            raise OptionError(f"pause is {self.pause}, expected seconds from 0 to {LONGEST}")


@dataclass(frozen=True)
class Opened:
    """A contestant, the seconds to open it, and the bytes that the process and the GPU's use grew by until it ran."""

    contestant: Contestant
    seconds: float
    memory: int | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call and span, one sample per round, of `batch` images per call.

    `boxes` is the mean number per image that had to be suppressed outside the graph; None where nothing is.
    """

    name: str
    batch: int
    opened: float
    memory: int | None
    warmup: int
    samples: dict[str, Milliseconds]
    facts: dict[str, str] = field(default_factory=dict)
    boxes: float | None = None
    gpu_memory: int | None = None

    def total(self, spans: Sequence[str] = SPANS) -> Milliseconds:
        """Return the sum of `spans` for each round."""
        return np.sum([self.samples[span] for span in spans if span in self.samples], axis=0)  # type: ignore[no-any-return]

    @property
    def paper(self) -> Milliseconds:
        """The span that the paper times, for each round."""
        return self.total(PAPER_SPAN)

    def rows(self) -> dict[str, dict[str, float]]:
        """Return p50, p90, p99, mean and min of each span, of the paper's span and of the whole call."""
        spans = {span: self.total((span,)) for span in self.samples}
        spans |= {"paper's span": self.paper, "whole call": self.total()}
        return {name: _statistics(values) for name, values in spans.items()}

    @property
    def throughput(self) -> float:
        """Images per second at the median of the whole call."""
        return 1000.0 * self.batch / float(np.median(self.total()))


@contextmanager
def open_all(paths: Sequence[Path], entry: Entry) -> Iterator[list[Opened]]:
    """Open the models one after the other, run each once, and close all of them at the end."""
    for module in {LIBRARIES[path.suffix.lower()] for path in paths if path.suffix.lower() in LIBRARIES}:
        with suppress(ImportError):  # said when the model is opened; the first one shall not pay for the import
            import_module(module)
    with ExitStack() as stack:
        opened = []
        for path in paths:
            before, used, start = resident_memory(), gpu_memory(), time.perf_counter()
            contestant = open_contestant(path, entry)
            seconds = time.perf_counter() - start
            stack.callback(contestant.close)
            contestant.call([_synthetic()] * (contestant.batch or 1))
            opened.append(Opened(contestant, seconds, _grown(before, resident_memory()), _grown(used, gpu_memory())))
            contestant.inspect()
        check_applies([one.contestant for one in opened], entry)
        yield opened


def measure(
    opened: Sequence[Opened],
    plan: Plan,
    *,
    batch: int | None = None,
    images: Sequence[ImageLike] = (),
    on_round: Callable[[], object] | None = None,
) -> list[Latency]:
    """Time the models in turn, a call of each per round, on the same images of each round.

    `images` are used in turn; without them, one synthetic 1280x720 frame is. `batch` None is the first model's own
    batch. Raises `OptionError` when a model can't take `batch` images.
    """
    batch = batch or opened[0].contestant.batch or 1
    for one in opened:
        check_batch(one.contestant, batch)
    sources = images or [_synthetic()]
    boxes: list[list[int | None]] = [[] for _ in opened]
    warmups = [_warm_up(one.contestant, sources, batch, plan) for one in opened]
    samples: list[list[dict[str, float]]] = [[] for _ in opened]
    for turn in _rounds(plan):
        chosen = _choose(sources, turn, batch)
        for one, kept, counts in zip(opened, samples, boxes, strict=True):
            spans = one.contestant.call(chosen)[1]
            if not images:
                spans.pop("decode", None)
            kept.append(spans)
            counts.append(one.contestant.boxes)
        if on_round is not None:
            on_round()
    return [
        Latency(
            one.contestant.name,
            batch,
            one.seconds,
            one.memory,
            calls,
            _columns(kept),
            one.contestant.facts,
            _mean(counts, batch),
            one.gpu_memory,
        )
        for one, calls, kept, counts in zip(opened, warmups, samples, boxes, strict=True)
    ]


def measure_latency(
    engine: str | Path, *, images: Sequence[ImageLike] = (), plan: Plan | None = None, entry: Entry | None = None
) -> Latency:
    """Time one model. Raises `ArtifactError` when it can't be run."""
    with open_all([Path(engine)], entry or Entry()) as opened:
        return measure(opened, plan or Plan(), images=images)[0]


def check_batch(contestant: Contestant, batch: int) -> None:
    """Raise `OptionError` when a model can't take `batch` images at once."""
    if contestant.batch is not None and contestant.batch != batch:
        raise OptionError(f"{contestant.name} takes {plural(contestant.batch, 'image')} at once, not {batch}")
    limit = contestant.max_batch
    if limit is not None and batch > limit:
        raise OptionError(f"{contestant.name} takes up to {plural(limit, 'image')} at once, not {batch}")


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _mean(counts: Sequence[int | None], batch: int) -> float | None:
    """Return the mean per image; None where nothing was counted."""
    known = [count for count in counts if count is not None]
    return sum(known) / (len(known) * batch) if known else None


def _synthetic() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SYNTHETIC_SHAPE, dtype=np.uint8)


def _choose(sources: Sequence[ImageLike], turn: int, batch: int) -> list[ImageLike]:
    return [sources[(turn * batch + row) % len(sources)] for row in range(batch)]


def _rounds(plan: Plan) -> Iterator[int]:
    """Yield the numbers of the rounds."""
    start = time.perf_counter()
    turn = 0
    while True:
        if plan.duration is None:
            if turn >= plan.runs:
                return
        elif turn >= LEAST_ROUNDS and time.perf_counter() - start >= plan.duration:
            return
        if turn and plan.pause:
            time.sleep(plan.pause)
        yield turn
        turn += 1


def _warm_up(contestant: Contestant, sources: Sequence[ImageLike], batch: int, plan: Plan) -> int:
    """Call the model until it is as fast as it gets, and return the number of calls."""
    times: list[float] = []
    while len(times) < (plan.warmup or MOST_WARMUP):
        spans = contestant.call(_choose(sources, len(times), batch))[1]
        times.append(spans["infer"])
        if plan.warmup is None and is_stable(times):
            break
    return len(times)


def is_stable(times: Sequence[float]) -> bool:
    """Tell whether the last calls took as long as those before them."""
    if len(times) < 2 * WINDOW:
        return False
    now, before = np.median(times[-WINDOW:]), np.median(times[-2 * WINDOW : -WINDOW])
    return bool(abs(now - before) <= STABLE * before)


def _columns(samples: Sequence[dict[str, float]]) -> dict[str, Milliseconds]:
    return {span: np.array([row[span] for row in samples]) for span in SPANS if span in samples[0]}


def _statistics(values: Milliseconds) -> dict[str, float]:
    result = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    return {**result, "mean": float(values.mean()), "min": float(values.min())}
