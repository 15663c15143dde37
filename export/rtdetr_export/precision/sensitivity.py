"""Which blocks go to INT8: measured, block by block, by what they do to detections.

Every block is quantized alone and the calibration images are detected again. Blocks are then added in the order of
sensitivity per multiplication, as many as keep enough detections where they were.
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
"""Calibration images on which blocks are tried."""
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
    """The whole curve, from the least sensitive block to all, and how many of its blocks are `chosen`."""

    curve: tuple[TradeOff, ...]
    chosen: int

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in INT8."""
        return self.curve[self.chosen - 1].blocks if self.chosen else ()

    @property
    def macs(self) -> float:
        """Share of the multiplications of all nodes that can be quantized which is in INT8."""
        return self.curve[self.chosen - 1].macs if self.chosen else 0.0

    def __str__(self) -> str:
        lines = [
            "INT8 share of the multiplications, and detections of the calibration images that stay within",
            f"{'INT8':>10} {'2 px, 0.05':>12} {'0.5 px, 0.01':>14}  block added",
        ]
        for index, point in enumerate(self.curve, start=1):
            mark = "  <- chosen" if index == self.chosen else ""
            shares = f"{point.agreement.match_rate(-1):>12.4f} {point.agreement.match_rate(0):>14.4f}"
            lines.append(f"{point.macs:>10.3f} {shares}  {point.blocks[-1]}{mark}")
        return "\n".join(lines)


def choose_blocks(
    model: ir.Model, scheme: Scheme, images: Sequence[ImageLike], on_done: Done | None = None
) -> QuantizationPlan:
    """Return which blocks of the FP32 `model` to quantize. `on_done` is called after each trial ("3 of 47: FP32")."""
    by_block: dict[str, list[QuantizableNode]] = {}
    for node in scheme.nodes:
        by_block.setdefault(node.block, []).append(node)
    trials = _Trials(model, scheme, evenly_spaced(images, MAX_IMAGES), 1 + 2 * len(by_block), on_done)
    trials.detect_reference()
    macs = count_macs(model, scheme.nodes)
    total = sum(macs.values())
    blocks = []
    for name, members in by_block.items():
        sensitivity = sensitivity_of(trials.agreement(name, members))
        share = sum(macs[node.name] for node in members) / total
        blocks.append(Block(name, tuple(members), share, sensitivity))
    blocks.sort(key=lambda block: block.sensitivity / max(block.macs, 1e-9))
    curve = []
    for count in range(1, len(blocks) + 1):
        added = blocks[:count]
        agreement = trials.agreement(
            f"{count} of {len(blocks)} blocks", [node for block in added for node in block.nodes]
        )
        curve.append(TradeOff(tuple(block.name for block in added), sum(block.macs for block in added), agreement))
    return QuantizationPlan(tuple(curve), count_chosen([point.agreement.match_rate(-1) for point in curve]))


class _Trials:
    """Detects on the same images with one graph after another; they are decoded and resized once."""

    def __init__(
        self, model: ir.Model, scheme: Scheme, images: Sequence[ImageLike], total: int, on_done: Done | None
    ) -> None:
        self._model, self._scheme, self._images = model, scheme, images
        self._total, self._on_done = total, on_done
        self._prepared: list[tuple[Any, list[tuple[int, int]]]] = []
        self._reference: list[Detections] = []
        self._done = 0

    def detect_reference(self) -> None:
        """Detect with the graph as it is: what trials are compared with."""
        self._reference = self._detect("FP32", ())

    def agreement(self, name: str, chosen: Sequence[QuantizableNode]) -> Agreement:
        """Return how many detections stay where they are when the `chosen` nodes are quantized."""
        return compare(self._reference, self._detect(name, chosen), at_least=MIN_COMPARED_IN_TRIALS)

    def _detect(self, name: str, chosen: Sequence[QuantizableNode]) -> list[Detections]:
        changed = self._model.clone()
        self._scheme.quantize(changed, chosen)
        with TemporaryDirectory() as folder:
            path = Path(folder, "trial.onnx")
            ir.save(changed, path)
            with Predictor(path, threshold=0.0, runtime="onnxruntime") as predictor:
                self._prepared = self._prepared or self._prepare(predictor)
                found = [
                    detections
                    for batch, sizes in self._prepared
                    for detections in predictor.decode(predictor.infer(batch), sizes)
                ]
        self._done += 1
        if self._on_done is not None:
            self._on_done(f"{self._done} of {self._total}: {name}")
        return found

    def _prepare(self, predictor: Predictor) -> list[tuple[Any, list[tuple[int, int]]]]:
        prepared, step = [], predictor.batch or BATCH
        for start in range(0, len(self._images), step):
            frames = predictor.load(self._images[start : start + step])
            prepared.append((predictor.prepare(frames), [frame.size for frame in frames]))
        return prepared


def count_chosen(shares: Sequence[float]) -> int:
    """Return how many blocks to choose: the largest number for which enough detections stay matched."""
    return max((count for count, share in enumerate(shares, start=1) if share >= MIN_PLAN_MATCH_RATE), default=0)


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
