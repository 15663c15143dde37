"""How long a sweep will take: from what torch takes for one image. Real times correct the guess as steps are done."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.sweep.axes import Candidate, ModelFile, Subject
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.sweep.speed import QUERIES, QUICK_QUERIES, QUICK_ROUNDS
from rtdetr_deploy import OptionError, Predictor
from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE
from rtdetr_deploy.artifacts.weights_file import is_exported
from rtdetr_deploy.packages import needed_for

LOADING = 0.02
"""Seconds to read, resize and score an image."""
OPENING = 2.0
WARMUP = 12
SPEEDUP = {"int8": 0.5, "bf16": 0.5, "fp16": 0.1}
EXPORT = {"fp32": (8.0, 15.0), "fp16": (12.0, 40.0), "int8": (20.0, 400.0)}
"""Seconds of an export, and images that it runs: tracing, verification, and INT8's trials."""
ENGINE = 120.0


def read_subject(options: SweepOptions) -> Subject:
    """Return what the checkpoint is, and time torch on an image.

    Raises `CheckpointError` for what is not a checkpoint, `OptionError` for a model file.
    """
    if is_exported(options.weights):
        raise OptionError(
            f"`weights` is {options.weights.name}, a model file; expected a checkpoint, which a sweep exports"
        )
    with needed_for("a sweep", "export"):
        from rtdetr_deploy.model import load_checkpoint
    checkpoint = load_checkpoint(options.weights)
    size = checkpoint.input_size or DEFAULT_INPUT_SIZE
    model = checkpoint.model
    return Subject(
        options.weights, checkpoint.digest, checkpoint.class_names, model.layers, checkpoint.variant.max_layers,
        checkpoint.variant.queries, size, options.calibration is not None, _time_torch(options, size),
    )  # fmt: skip


def _time_torch(options: SweepOptions, size: tuple[int, int]) -> float:
    image = np.zeros((*size, 3), np.uint8)
    with Predictor(options.weights, runtime="torch", size=size) as predictor:
        predictor.detect(image)
        return min(_timed(predictor, image) for _ in range(3))


def _timed(predictor: Predictor, image: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    predictor.detect(image)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Estimate:
    """Seconds of each step, for a checkpoint and so many `images`; `measured` are those of one image, once known."""

    subject: Subject
    options: SweepOptions
    images: int
    measured: float | None = None

    def image(self, candidate: Candidate) -> float:
        """Seconds of an image."""
        if self.measured is not None:
            return self.measured
        file = candidate.file
        area = file.size[0] * file.size[1] / (self.subject.size[0] * self.subject.size[1])
        lower = min(SPEEDUP.get(name, 1.0) for name in (file.precision, candidate.way.arithmetic))
        return self.subject.seconds * area * (0.1 if file.suffix == ".engine" else lower)

    def export(self, file: ModelFile) -> float:
        """Seconds to export a file."""
        fixed, images = EXPORT[file.precision]
        return fixed + images * self.subject.seconds + ENGINE * (file.suffix == ".engine")

    def brief(self, candidate: Candidate) -> float:
        """Seconds to time a candidate briefly."""
        return OPENING + (QUICK_ROUNDS * QUICK_QUERIES + WARMUP) * self.image(candidate)

    def evaluate(self, candidate: Candidate) -> float:
        """Seconds to evaluate a candidate."""
        return OPENING + self.images * (LOADING + self.image(candidate))

    def time(self, candidate: Candidate) -> float:
        """Seconds to time a candidate at length."""
        single, multi, offline = QUERIES.values()
        rounds = self.options.rounds * (single + 8 * (multi + 1) + offline + 2)
        return OPENING + (rounds + 10 * WARMUP) * self.image(candidate)
