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
from rtdetr_bench.models.contestant import Contestant
from rtdetr_bench.models.open import check_applies, open_timed_model
from rtdetr_bench.models.timed_model import PAPER_SPAN, SPANS, TimedModel
from rtdetr_bench.options import RunOptions, TimingOptions
from rtdetr_deploy import OptionError
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.words import plural

SYNTHETIC_SHAPE = (720, 1280, 3)
PERCENTILES = (50, 90, 99)
WINDOW = 3
"""Calls whose median is compared with that of the calls before, to tell whether a model has warmed up."""
STABLE = 0.05
MAX_WARMUP = 40
MIN_ROUNDS = 3

Milliseconds = NDArray[np.float64]


@dataclass(frozen=True)
class LoadedModel:
    """A model, the seconds to open it, and the bytes that the process and the GPU's use grew by until it ran."""

    model: TimedModel
    seconds: float
    memory: int | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call and span, one sample per round, of `batch` images per call.

    `nms_input_boxes` is the mean number per image that NMS was given; None where there is no NMS outside the graph.
    """

    name: str
    batch: int
    opened: float
    memory: int | None
    warmup: int
    samples: dict[str, Milliseconds]
    facts: dict[str, str] = field(default_factory=dict)
    nms_input_boxes: float | None = None
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
def open_all(models: Sequence[Path | Contestant], run: RunOptions) -> Iterator[list[LoadedModel]]:
    """Open the models one after the other, run each once, and close all of them at the end."""
    contestants = [Contestant.of(model) for model in models]
    run.check_runtime([one.path for one in contestants if one.runtime is None])
    for name in {one.apply(run).runtime_of(one.path) for one in contestants} - {None}:
        with suppress(ImportError):  # said when the model is opened; the first one shall not pay for the import
            import_module(str(name))  # runtimes are called like their packages
    with ExitStack() as stack:
        loaded = []
        for one in contestants:
            before, used, start = resident_memory(), gpu_memory(run.where.device), time.perf_counter()
            model = open_timed_model(one.path, one.apply(run))
            model.name = str(one)
            seconds = time.perf_counter() - start
            stack.callback(model.close)
            model.call([synthetic_image()] * (model.batch or 1))
            grown = _grown(before, resident_memory()), _grown(used, gpu_memory(run.where.device))
            loaded.append(LoadedModel(model, seconds, *grown))
            model.inspect()
        check_applies([one.model for one in loaded], run)
        yield loaded


def measure(
    loaded: Sequence[LoadedModel],
    timing: TimingOptions,
    *,
    batch: int | None = None,
    images: Sequence[ImageLike] = (),
    on_round: Callable[[], object] | None = None,
) -> list[Latency]:
    """Time the models in turn, a call of each per round, on the same images of each round.

    `images` are used in turn; without them, one synthetic 1280x720 frame is. `batch` None is the first model's own
    batch. Raises `OptionError` when a model can't take `batch` images.
    """
    batch = batch or loaded[0].model.batch or 1
    for one in loaded:
        check_batch(one.model, batch)
    sources = images or [synthetic_image()]
    boxes: list[list[int | None]] = [[] for _ in loaded]
    warmups = [_warm_up(one.model, sources, batch, timing) for one in loaded]
    samples: list[list[dict[str, float]]] = [[] for _ in loaded]
    for turn in _rounds(timing):
        chosen = choose_images(sources, turn, batch)
        for one, kept, counts in zip(loaded, samples, boxes, strict=True):
            spans = one.model.call(chosen)[1]
            if not images:
                spans.pop("load", None)
            kept.append(spans)
            counts.append(one.model.nms_input_boxes)
        if on_round is not None:
            on_round()
    return [
        Latency(
            one.model.name,
            batch,
            one.seconds,
            one.memory,
            calls,
            _columns(kept),
            one.model.facts,
            _mean(counts, batch),
            one.gpu_memory,
        )
        for one, calls, kept, counts in zip(loaded, warmups, samples, boxes, strict=True)
    ]


def measure_latency(
    engine: str | Path,
    *,
    images: Sequence[ImageLike] = (),
    timing: TimingOptions | None = None,
    run: RunOptions | None = None,
) -> Latency:
    """Time one model, also on images in memory. Raises `ArtifactError` when it can't be run."""
    with open_all([Path(engine)], run or RunOptions()) as loaded:
        return measure(loaded, timing or TimingOptions(), images=images)[0]


def check_batch(model: TimedModel, batch: int) -> None:
    """Raise `OptionError` when a model can't take `batch` images at once."""
    if model.batch is not None and model.batch != batch:
        raise OptionError(f"{model.name} takes {plural(model.batch, 'image')} at once, not {batch}")
    limit = model.max_batch
    if limit is not None and batch > limit:
        raise OptionError(f"{model.name} takes up to {plural(limit, 'image')} at once, not {batch}")


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _mean(counts: Sequence[int | None], batch: int) -> float | None:
    """Return the mean per image; None where nothing was counted."""
    known = [count for count in counts if count is not None]
    return sum(known) / (len(known) * batch) if known else None


def synthetic_image() -> NDArray[np.uint8]:
    """Return the 1280x720 frame of noise that models are timed on without a folder of images."""
    return np.random.default_rng(0).integers(0, 256, SYNTHETIC_SHAPE, dtype=np.uint8)


def choose_images(sources: Sequence[ImageLike], turn: int, batch: int) -> list[ImageLike]:
    """Return the images of a turn: `batch` of them, the next ones of `sources`, from the start again after the last."""
    return [sources[(turn * batch + row) % len(sources)] for row in range(batch)]


def _rounds(timing: TimingOptions) -> Iterator[int]:
    """Yield the numbers of the rounds."""
    start = time.perf_counter()
    turn = 0
    while True:
        if timing.rounds is not None and turn >= timing.rounds:
            return
        limit = timing.duration
        if limit is not None and turn >= MIN_ROUNDS and time.perf_counter() - start >= limit:
            return
        if turn and timing.pause:
            time.sleep(timing.pause)
        yield turn
        turn += 1


def _warm_up(model: TimedModel, sources: Sequence[ImageLike], batch: int, timing: TimingOptions) -> int:
    """Call the model until it is as fast as it gets, and return the number of calls."""
    times: list[float] = []
    while len(times) < (timing.warmup or MAX_WARMUP):
        spans = model.call(choose_images(sources, len(times), batch))[1]
        times.append(spans["infer"])
        if timing.warmup is None and is_stable(times):
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
