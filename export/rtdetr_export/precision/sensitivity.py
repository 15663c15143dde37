"""Which blocks go to INT8: measured, block by block, by what they do to detections.

Every block is quantized alone and a few calibration images are detected again. That gives an order: sensitivity per
multiplication. Then the most sensitive blocks are taken out again, one after another, until enough detections of more
images stay where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from rtdetr_deploy import Detections, Predictor
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_export.precision.activations import evenly_spaced
from rtdetr_export.precision.int8 import QuantizableNode, Scheme
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.tolerances import MIN_COMPARED_IN_TRIALS, MIN_PLAN_MATCH_RATE

MAX_IMAGES = 16
"""Calibration images on which numbers of blocks are tried."""
MAX_IMAGES_ALONE = 4
"""Those on which each block is tried alone, for the order."""
BATCH = 8
"""Images that go through a model of dynamic batch at once."""

Done = Callable[[str], None]


@dataclass(frozen=True)
class Block:
    """A part of the model: its nodes, its share of all multiplications, and its `sensitivity` when quantized alone.

    Sensitivity is the mean distance of a detection from the reference's, 1 at the edge of the widest tolerance and
    beyond.
    """

    name: str
    nodes: tuple[QuantizableNode, ...]
    macs: float
    sensitivity: float


@dataclass(frozen=True)
class TradeOff:
    """What the first `blocks` do to detections when they are quantized, and their share of all multiplications."""

    blocks: tuple[str, ...]
    macs: float
    agreement: Agreement


@dataclass(frozen=True)
class QuantizationPlan:
    """The measured points of the curve, up to all blocks, and of how many blocks the one is that was `chosen`.

    0 stands for none. Points of fewer blocks than were chosen are measured only where the whole curve is asked for.
    """

    curve: tuple[TradeOff, ...]
    chosen: int

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in INT8."""
        return () if self._point is None else self._point.blocks

    @property
    def macs(self) -> float:
        """Share of the multiplications of all nodes that can be quantized which is in INT8."""
        return 0.0 if self._point is None else self._point.macs

    @property
    def _point(self) -> TradeOff | None:
        return next((point for point in self.curve if len(point.blocks) == self.chosen), None)

    def __str__(self) -> str:
        lines = [
            "INT8 share of the multiplications, and detections of the calibration images that stay within",
            f"{'INT8':>10} {'2 px, 0.05':>12} {'0.5 px, 0.01':>14}  block added",
        ]
        for point in self.curve:
            mark = "  <- chosen" if len(point.blocks) == self.chosen else ""
            shares = f"{point.agreement.match_rate(-1):>12.4f} {point.agreement.match_rate(0):>14.4f}"
            lines.append(f"{point.macs:>10.3f} {shares}  {point.blocks[-1]}{mark}")
        return "\n".join(lines)


def choose_blocks(
    model: ir.Model,
    scheme: Scheme,
    images: Sequence[ImageLike],
    on_done: Done | None = None,
    *,
    whole_curve: bool = False,
) -> QuantizationPlan:
    """Return which blocks of the FP32 `model` to quantize.

    `on_done` is called after each trial ("3 of at most 47: FP32"). With `whole_curve` numbers of blocks below the
    chosen one are tried too.
    """
    names = {node.block for node in scheme.nodes}
    trials = _Trials(model, scheme, evenly_spaced(images, MAX_IMAGES), 1 + 2 * len(names), on_done)
    trials.detect_reference()
    blocks = _order(trials, scheme, count_macs(model, scheme.nodes))
    curve: list[TradeOff] = []
    chosen = 0
    for count in range(len(blocks), 0, -1):
        added = blocks[:count]
        agreement = trials.agreement(
            f"{count} of {len(blocks)} blocks", [node for block in added for node in block.nodes]
        )
        curve.append(TradeOff(tuple(block.name for block in added), sum(block.macs for block in added), agreement))
        if not chosen and agreement.match_rate(-1) >= MIN_PLAN_MATCH_RATE:
            chosen = count
        if chosen and not whole_curve:
            break
    return QuantizationPlan(tuple(curve[::-1]), chosen)


def _order(trials: _Trials, scheme: Scheme, macs: dict[str, float]) -> list[Block]:
    """Return the blocks, those first that lose the least for each multiplication."""
    by_block: dict[str, list[QuantizableNode]] = {}
    for node in scheme.nodes:
        by_block.setdefault(node.block, []).append(node)
    total = sum(macs.values())
    blocks = []
    for name, members in by_block.items():
        sensitivity = sensitivity_of(trials.agreement(name, members, MAX_IMAGES_ALONE))
        share = sum(macs[node.name] for node in members) / total
        blocks.append(Block(name, tuple(members), share, sensitivity))
    return sorted(blocks, key=lambda block: block.sensitivity / max(block.macs, 1e-9))


class _Trials:
    """Detects on the same images with one graph after another; they are decoded and resized once."""

    def __init__(
        self, model: ir.Model, scheme: Scheme, images: Sequence[ImageLike], total: int, on_done: Done | None
    ) -> None:
        self._model, self._scheme, self._images = model, scheme, images
        self._total, self._on_done = total, on_done
        self._prepared: list[tuple[Any, tuple[int, int]]] = []
        self._reference: list[Detections] = []
        self._done = 0

    def detect_reference(self) -> None:
        """Detect with the graph as it is: what trials are compared with."""
        self._reference = self._detect("FP32", (), range(len(self._images)))

    def agreement(self, name: str, chosen: Sequence[QuantizableNode], count: int | None = None) -> Agreement:
        """Return how many detections of `count` images (None: of all) stay when the `chosen` nodes are quantized."""
        indices = evenly_spaced(range(len(self._images)), count or len(self._images))
        found = self._detect(name, chosen, indices)
        return compare([self._reference[index] for index in indices], found, at_least=MIN_COMPARED_IN_TRIALS)

    def _detect(self, name: str, chosen: Sequence[QuantizableNode], indices: Sequence[int]) -> list[Detections]:
        changed = self._model.clone()
        self._scheme.quantize(changed, chosen)
        with TemporaryDirectory() as folder:
            path = Path(folder, "trial.onnx")
            ir.save(changed, path)
            with Predictor(path, threshold=0.0, runtime="onnxruntime") as predictor:
                self._prepared = self._prepared or self._prepare(predictor)
                found = [
                    detections
                    for start in range(0, len(indices), step_of(predictor))
                    for detections in self._detect_batch(predictor, indices[start : start + step_of(predictor)])
                ]
        self._done += 1
        if self._on_done is not None:
            self._on_done(f"{self._done} of at most {self._total}: {name}")
        return found

    def _prepare(self, predictor: Predictor) -> list[tuple[Any, tuple[int, int]]]:
        """Return each image in the form that the model takes, a single row, and its size."""
        frames = predictor.load(self._images)
        return [(np.asarray(predictor.prepare([frame]))[:1], frame.size) for frame in frames]

    def _detect_batch(self, predictor: Predictor, indices: Sequence[int]) -> list[Detections]:
        rows, sizes = zip(*(self._prepared[index] for index in indices), strict=True)
        missing = (predictor.batch or len(rows)) - len(rows)
        batch = np.concatenate([*rows, *rows[:1] * missing])
        return predictor.decode(predictor.infer(batch), list(sizes))


def step_of(predictor: Predictor) -> int:
    """Return how many images go through the model at once."""
    return predictor.batch or BATCH


def sensitivity_of(agreement: Agreement) -> float:
    """Return the mean distance of the expected detections, in widest tolerances; what is not matched counts 1."""
    if not agreement.expected:
        return 0.0
    widest = agreement.tolerances[-1]
    distance = np.maximum(agreement.boxes / widest.pixels, agreement.scores / widest.score)
    lost = agreement.expected - len(distance)
    return float((distance.sum() + lost) / agreement.expected)


def count_macs(model: ir.Model, nodes: Sequence[QuantizableNode]) -> dict[str, float]:
    """Return the multiplications of each node for one image, by its name."""
    by_name = {str(node.name): node for node in model.graph}
    macs = {}
    for target in nodes:
        node = by_name[target.name]
        weight, output = node.inputs[1], node.outputs[0]
        assert weight is not None
        assert weight.shape is not None
        assert output.shape is not None
        places = np.prod([size for size in output.shape[1:] if isinstance(size, int)])
        size = float(np.prod([axis for axis in weight.shape if isinstance(axis, int)]))
        channels = weight.shape[target.axis]
        assert isinstance(channels, int)
        macs[target.name] = float(places) * size / channels
    return macs
