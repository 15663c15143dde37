"""What is around a model: the parts of a call, the stream beside the runtime alone, and memory.

parts      one 1920x1080 frame in memory: load, prepare, infer, decode; everything but `infer` is the pipeline
stream     images per second of `Predictor.stream`, over frames in memory and over JPEG files, against as many
threads as there are slots that do nothing but call the runtime with a prepared batch; alternated
memory     what the process holds before, once the model is open, at its peak, and how far calls make it grow
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.accuracy import open_any
from rtdetr_bench.machine import resident_memory
from rtdetr_bench.options import PipelineOptions
from rtdetr_deploy import OutputError, Predictor
from rtdetr_deploy.images.frame import ImageLike

SHAPE = (1080, 1920, 3)
PARTS = ("load", "prepare", "infer", "decode")
WARMUP = 5
JPEGS = 8
"""Files that are read in turn, so that none stays in a processor's cache."""


@dataclass(frozen=True)
class Pipeline:
    """`parts`: p50 and p90 in ms by name. `rates`: images per second by source; "runtime" is the runtime alone.

    Memory is in bytes, None where it can't be told; `grown` is by how much `calls` of detect made the process grow.
    """

    runtime: str
    slots: int
    batch: int
    parts: Mapping[str, tuple[float, float]]
    rates: Mapping[str, float]
    before: int | None
    opened: int | None
    peak: int | None
    grown: int | None
    calls: int

    @property
    def around(self) -> float:
        """Milliseconds of everything but the model."""
        return sum(p50 for name, (p50, _) in self.parts.items() if name != "infer")

    def to_json(self) -> dict[str, Any]:
        """Return the figures as they are written to result files."""
        return {**asdict(self), "around_ms": self.around}


def study_pipeline(options: PipelineOptions) -> Pipeline:
    """Measure what is around a model. Raises what `Predictor` does."""
    before = resident_memory()
    with open_any(options.engine, options.run) as predictor:
        opened = resident_memory()
        frame = _photograph()
        for _ in range(WARMUP):
            predictor.detect(frame)
        parts = _time_parts(predictor, frame, options.runs)
        start = resident_memory()
        for _ in range(options.calls):
            predictor.detect(frame)
        end = resident_memory()
        batch = options.batch or predictor.batch or 1
        rates = _rates(predictor, frame, batch, options.seconds)
        return Pipeline(
            predictor.runtime,
            predictor.slots,
            batch,
            parts,
            rates,
            before,
            opened,
            _peak_memory(),
            None if start is None or end is None else end - start,
            options.calls,
        )


def format_pipeline(found: Pipeline) -> str:
    """Return the figures as lines of text."""
    lines = [f"{found.runtime}, {found.slots} at once, batch {found.batch}", "ms for a 1920x1080 frame    p50     p90"]
    lines += [f"  {name:<22} {p50:>7.3f} {p90:>7.3f}" for name, (p50, p90) in found.parts.items()]
    lines.append(f"  {'all but infer':<22} {found.around:>7.3f}")
    alone = found.rates["runtime"]
    lines += [f"{name:<24} {rate:>7.2f} images/s {rate / alone:>7.3f}" for name, rate in found.rates.items()]
    memory = (("before", found.before), ("opened", found.opened), ("peak", found.peak))
    told = "   ".join(f"{name} {size / 1e6:.0f}" for name, size in memory if size is not None)
    grown = "" if found.grown is None else f"   {found.calls} calls: {found.grown / 1e6:+.1f}"
    return "\n".join([*lines, f"memory, MB: {told}{grown}"])


def _photograph() -> NDArray[np.uint8]:
    """Return a frame that compresses as photographs do: noise that was blurred."""
    coarse = np.random.default_rng(0).integers(0, 256, (SHAPE[0] // 8, SHAPE[1] // 8, 3), dtype=np.uint8)
    frame: NDArray[np.uint8] = cv2.resize(coarse, SHAPE[1::-1], interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
    return frame


def _time_parts(predictor: Predictor, frame: NDArray[np.uint8], runs: int) -> dict[str, tuple[float, float]]:
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        marks = [time.perf_counter()]
        frames = predictor.load([frame])
        marks.append(time.perf_counter())
        batch = predictor.prepare(frames)
        marks.append(time.perf_counter())
        outputs = predictor.infer(batch)
        marks.append(time.perf_counter())
        predictor.decode(outputs, [frames[0].size])
        marks.append(time.perf_counter())
        for name, took in zip(PARTS, np.diff(marks), strict=True):
            samples[name].append(1000.0 * took)
    return {name: (float(np.median(taken)), float(np.percentile(taken, 90))) for name, taken in samples.items()}


def _rates(predictor: Predictor, frame: NDArray[np.uint8], batch: int, seconds: float) -> dict[str, float]:
    """Return images per second of each source, the median of three turns."""
    with TemporaryDirectory() as folder:
        files = _write_jpegs(Path(folder), frame)
        contestants: dict[str, Callable[[], float]] = {
            "runtime": lambda: _runtime_rate(predictor, frame, batch, seconds),
            "stream of frames": lambda: _stream_rate(predictor, repeat(frame), batch, seconds),
            "stream of JPEG files": lambda: _stream_rate(predictor, _forever(files), batch, seconds),
        }
        turns = [{name: rate() for name, rate in contestants.items()} for _ in range(3)]
    return {name: float(np.median([turn[name] for turn in turns])) for name in contestants}


def _write_jpegs(folder: Path, frame: NDArray[np.uint8]) -> list[Path]:
    files = [folder / f"{number}.jpg" for number in range(JPEGS)]
    for file in files:
        if not cv2.imwrite(str(file), frame):
            raise OutputError(f"can't write {file}")
    return files


def _forever(files: Sequence[Path]) -> Iterator[ImageLike]:
    return chain.from_iterable(repeat(files))


def _runtime_rate(predictor: Predictor, frame: NDArray[np.uint8], batch: int, seconds: float) -> float:
    """Return images per second where as many threads as there are slots call the model with a prepared batch."""
    prepared = predictor.prepare(predictor.load([frame] * batch))
    start = time.perf_counter()
    done: list[int] = []

    def call() -> None:
        while time.perf_counter() < start + seconds:
            predictor.infer(prepared)
            done.append(batch)

    threads = [Thread(target=call) for _ in range(predictor.slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def _stream_rate(predictor: Predictor, images: Iterator[ImageLike], batch: int, seconds: float) -> float:
    """Return images per second of a stream; the first batches fill it, and are not counted."""
    results = predictor.stream(images, batch=batch)
    try:
        for _ in range(batch * (predictor.slots + 1)):
            next(results)
        start, done = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            for _ in range(batch):
                next(results)
            done += batch
        return done / (time.perf_counter() - start)
    finally:
        results.close()


def _peak_memory() -> int | None:
    """Return the maximum of bytes that the process has held; None where the system does not tell it (Windows)."""
    with suppress(ImportError):
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None
