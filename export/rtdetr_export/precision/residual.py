"""Additions that can become part of the convolution before them: a shortcut added to a convolution's output.

TensorRT computes convolution, addition and ReLU in one INT8 kernel when the addition's other input, the residual, is
quantized too, and the convolution's own output is not ("quantize the residual input in skip connections": TensorRT
documentation, explicit quantization, recommendations for Q/DQ placement). With a residual in FP16 that kernel has to
write FP16, and quantizing what comes next is another pass over the map.

Only an addition right behind a convolution is meant. Where an activation stands between them, as in the fusion blocks
of the encoder (SiLU) and in HGNetv2 (ReLU), there is no such kernel, and quantizing would cost accuracy for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class ResidualAdd:
    """The addition `name`, whose input number `index` is the residual, the value `residual`."""

    name: str
    index: int
    residual: str


def find_residual_adds(graph: ir.Graph, convolutions: Collection[str]) -> dict[str, ResidualAdd]:
    """Return the addition that each of the `convolutions` can take in, by name of the convolution.

    Where both inputs come from convolutions, as at a projected shortcut, the residual is that of the shorter branch.
    """
    found = {}
    for node in graph:
        if node.op_type != "Add":
            continue
        branches = [value for value in node.inputs if value is not None and value.const_value is None]
        if len(branches) != 2 or branches[0] is branches[1]:
            continue
        main = _longer(branches[0], branches[1])
        conv, residual = branches[main].producer(), branches[1 - main]
        if conv is not None and conv.op_type == "Conv" and conv.name in convolutions and _read_once(branches[main]):
            found[str(conv.name)] = ResidualAdd(str(node.name), 1 - main, str(residual.name))
    return found


def _longer(one: ir.Value, other: ir.Value) -> int:
    """Return 1 where the branch that ends in `other` is longer, from where both begin; else 0."""
    distances = {id(value): distance for distance, value in enumerate(_back(one))}
    for distance, value in enumerate(_back(other)):
        if id(value) in distances:
            return int(distance > distances[id(value)])
    return 0


def _back(value: ir.Value) -> Iterator[ir.Value]:
    """Yield `value`, what it was computed from, and so on: the first input that is not a constant, each time."""
    current: ir.Value | None = value
    while current is not None:
        yield current
        producer = current.producer()
        inputs = () if producer is None else producer.inputs
        current = next((item for item in inputs if item is not None and item.const_value is None), None)


def _read_once(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()
