"""Which blocks go to INT8: measured, block by block, by what they do to detections.

Every block is quantized alone and the calibration images are detected again. Blocks are then taken in the order of
damage per work, as many as keep enough detections where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from rtdetr_deploy import Detections, Predictor
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_export.precision.int8 import Layer, StoredWeights, quantize
from rtdetr_export.verify.agreement import Agreement, compare

WANTED = 0.97
"""Share of detections within the widest tolerance (2 px, 0.05) that a choice must keep on the calibration images."""
LEAST = 10
IMAGES = 16
"""Calibration images on which blocks are tried."""

Scales = dict[str, float]
Evaluate = Callable[[ir.Model], list[Detections]]
Done = Callable[[str], None]


@dataclass(frozen=True)
class Block:
    """A part of the model: its layers, its share of the work of all layers, and its `damage` when quantized alone.

    Damage is the mean distance of a detection from the reference's, 1 at the edge of the widest tolerance and beyond.
    """

    name: str
    layers: tuple[Layer, ...]
    work: float
    damage: float


@dataclass(frozen=True)
class Point:
    """The trade-off when the first `blocks` are quantized: their share of the work, and what they do to detections."""

    blocks: tuple[str, ...]
    work: float
    agreement: Agreement


@dataclass(frozen=True)
class Choice:
    """The whole curve, from the least harmful block to all, and how many of its points' blocks are taken."""

    curve: tuple[Point, ...]
    taken: int

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in INT8."""
        return self.curve[self.taken - 1].blocks if self.taken else ()

    @property
    def work(self) -> float:
        """Share of the multiplications of all layers that is in INT8."""
        return self.curve[self.taken - 1].work if self.taken else 0.0

    def __str__(self) -> str:
        lines = [
            "INT8 share of the multiplications, and detections of the calibration images that stay within",
            f"{'INT8':>10} {'2 px, 0.05':>12} {'0.5 px, 0.01':>14}  block added",
        ]
        for index, point in enumerate(self.curve, start=1):
            mark = "  <- chosen" if index == self.taken else ""
            shares = f"{point.agreement.match_rate(-1):>12.4f} {point.agreement.match_rate(0):>14.4f}"
            lines.append(f"{point.work:>10.3f} {shares}  {point.blocks[-1]}{mark}")
        return "\n".join(lines)


def choose_blocks(
    model: ir.Model,
    layers: Sequence[Layer],
    scales: Scales,
    images: Sequence[ImageLike],
    on_done: Done | None = None,
) -> Choice:
    """Return which blocks of the FP32 `model` to quantize. `on_done` is called after each trial ("3 of 47: FP32")."""
    images = _some(images)
    stored: StoredWeights = {}
    with TemporaryDirectory() as folder:

        def detect(name: str, chosen: Sequence[Layer]) -> list[Detections]:
            changed = model.clone()
            quantize(changed, chosen, scales, stored)
            path = Path(folder, "trial.onnx")
            ir.save(changed, path)
            with Predictor(path, threshold=0.0) as predictor:
                found = predictor.detect_batch(images)
            trials.append(name)
            if on_done is not None:
                on_done(f"{len(trials)} of {1 + 2 * len(names)}: {name}")
            return found

        names = list(dict.fromkeys(layer.block for layer in layers))
        trials: list[str] = []
        reference = detect("FP32", ())
        blocks = []
        work = work_of(model, layers)
        total = sum(work.values())
        for name in names:
            members = tuple(layer for layer in layers if layer.block == name)
            agreement = compare(reference, detect(name, members), at_least=LEAST)
            share = sum(work[layer.node] for layer in members) / total
            blocks.append(Block(name, members, share, damage_of(agreement)))
        blocks.sort(key=lambda block: block.damage / max(block.work, 1e-9))
        curve = []
        for count in range(1, len(blocks) + 1):
            taken = blocks[:count]
            chosen = [layer for block in taken for layer in block.layers]
            agreement = compare(reference, detect(f"{count} of {len(blocks)} blocks", chosen), at_least=LEAST)
            curve.append(Point(tuple(block.name for block in taken), sum(block.work for block in taken), agreement))
    return Choice(tuple(curve), count_taken([point.agreement.match_rate(-1) for point in curve]))


def count_taken(shares: Sequence[float]) -> int:
    """Return how many blocks to take: the most for which enough detections stay matched."""
    return max((count for count, share in enumerate(shares, start=1) if share >= WANTED), default=0)


def damage_of(agreement: Agreement) -> float:
    """Return the mean distance of the wanted detections, in widest tolerances; what is not matched counts 1."""
    if not agreement.expected:
        return 0.0
    widest = agreement.tolerances[-1]
    distance = np.maximum(agreement.boxes / widest.pixels, agreement.scores / widest.score)
    lost = agreement.expected - len(distance)
    return float((distance.sum() + lost) / agreement.expected)


def work_of(model: ir.Model, layers: Sequence[Layer]) -> dict[str, float]:
    """Return the multiplications of each layer for one image, by node name."""
    nodes = {str(node.name): node for node in model.graph}
    work = {}
    for layer in layers:
        node = nodes[layer.node]
        weight, output = node.inputs[1], node.outputs[0]
        assert weight is not None
        assert weight.shape is not None
        assert output.shape is not None
        places = np.prod([size for size in output.shape[1:] if isinstance(size, int)])
        size = float(np.prod([axis for axis in weight.shape if isinstance(axis, int)]))
        channels = weight.shape[layer.axis]
        assert isinstance(channels, int)
        work[layer.node] = float(places) * size / channels
    return work


def _some(images: Sequence[ImageLike]) -> list[ImageLike]:
    step = max(1.0, len(images) / IMAGES)
    return [images[int(index * step)] for index in range(min(len(images), IMAGES))]
