"""INT8 for CPUs: unsigned activations with a zero point, quantized where they are written; see `integer_kernels`.

Weights are signed, with one scale per output channel and zero point 0; biases are 32-bit integers in steps of
activation times weight. That is the pair of types (u8 times s8) for which processors have an instruction (VNNI), and
ONNX Runtime (MLAS) and OpenVINO (oneDNN) their kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rtdetr_export.precision.int8 import (
    Floats,
    QuantizableNode,
    StoredWeights,
    constant,
    describe,
    drop_unread_constants,
    store_weight,
)
from rtdetr_export.precision.integer_kernels import SIGMOID, SILU, QuantizedValues
from rtdetr_export.precision.ranges import Range, measure_ranges, silu

SIGMOID_RANGE = Range.of(0.0, 1.0)
MAX_BIAS = 2**31 - 2**7
"""Maximum of a bias in steps: what FP32 and INT32 hold exactly."""


@dataclass(frozen=True)
class CpuScheme:
    """The `nodes` that may go to INT8, and the ranges of all values that are quantized then, by name."""

    nodes: tuple[QuantizableNode, ...]
    ranges: Mapping[str, Range]
    stored: StoredWeights = field(default_factory=dict, compare=False, repr=False)

    def quantize(self, model: ir.Model, chosen: Sequence[QuantizableNode]) -> None:
        """Put Q/DQ pairs around the `chosen` nodes of `model` and between them, in place."""
        graph = model.graph
        values = QuantizedValues(graph, {node.name for node in chosen})
        by_name = {str(node.name): node for node in graph}
        found = {str(value.name): value for value in (*graph.inputs, *(node.outputs[0] for node in graph))}
        ranges = {name: self._range(name, values.kinds) for name in values.kinds}
        readers = {str(node.name) for node in chosen}
        copies: Counter[str] = Counter()
        for name, span in ranges.items():
            _add_pair(
                graph, found[name], span, None if name in values.from_integers else readers | _integer(values, graph)
            )
        for target in chosen:
            node, weight = by_name[target.name], by_name[target.name].inputs[1]
            assert weight is not None
            # A copy for each reader: where ONNX Runtime is asked for exact sums, it changes weights in place, and fails
            # at those that two nodes share.
            restored = store_weight(graph, node, weight, target.axis, self.stored, copies[target.weight])
            copies[target.weight] += 1
            node.replace_input_with(1, restored)
            bias = bias_of(node)
            if bias is not None:
                steps = np.float32(ranges[target.activation].scale) * self.stored[target.weight][1]
                _store_bias(graph, *bias, steps)
        drop_unread_constants(graph)

    def _range(self, name: str, kinds: Mapping[str, str | None]) -> Range:
        kind = kinds[name]
        if kind == SIGMOID:
            return SIGMOID_RANGE
        return self.ranges[name] if kind in (None, SILU) else self._range(str(kind), kinds)


def _integer(values: QuantizedValues, graph: ir.Graph) -> set[str]:
    """Return the names of the nodes that write integers."""
    return {str(node.name) for node in graph if node.outputs[0].name in values.from_integers}


def make_cpu_scheme(
    graph: ir.Graph, nodes: Sequence[QuantizableNode], content: bytes, batches: Iterable[NDArray[np.generic]]
) -> CpuScheme:
    """Return the scheme for the `nodes` of `graph`, whose serialized file is `content`, with ranges measured there."""
    kinds = QuantizedValues(graph, {node.name for node in nodes}).kinds
    functions = {name: silu if kind == SILU else None for name, kind in kinds.items() if kind in (None, SILU)}
    functions |= {node.activation: functions.get(node.activation) for node in nodes}
    return CpuScheme(tuple(nodes), measure_ranges(content, functions, batches))


def _add_pair(graph: ir.Graph, value: ir.Value, span: Range, readers: set[str] | None) -> None:
    """Let the `readers` of `value`, or all of them, read it through a Q/DQ pair."""
    uses = [use for use in value.uses() if readers is None or use.node.name in readers]
    name = value.name
    zero = np.uint8(span.zero_point)
    constants = [constant(graph, f"{name}_scale", np.float32(span.scale)), constant(graph, f"{name}_zero", zero)]
    quantized = ir.node("QuantizeLinear", [value, *constants], name=f"quantize_{name}")
    describe(quantized.outputs[0], f"{name}_uint8", ir.DataType.UINT8, value)
    restored = ir.node("DequantizeLinear", [quantized.outputs[0], *constants], name=f"dequantize_{name}")
    describe(restored.outputs[0], f"{name}_restored", ir.DataType.FLOAT, value)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantized, restored])
    else:
        graph.insert_after(producer, [quantized, restored])
    for use in uses:
        use.node.replace_input_with(use.idx, restored.outputs[0])


def bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return who reads the bias of a convolution or matrix product, and as which input; None where there is none."""
    if node.op_type == "Conv":
        return (node, 2) if len(node.inputs) > 2 else None
    readers = list(node.outputs[0].uses())
    add = readers[0].node if len(readers) == 1 and readers[0].node.op_type == "Add" else None
    if add is None:
        return None
    index = 1 - readers[0].idx
    other = add.inputs[index]
    shape = None if other is None or other.const_value is None else other.const_value.shape
    return None if shape is None or len(shape) != 1 else (add, index)


def _store_bias(graph: ir.Graph, reader: ir.Node, index: int, steps: Floats) -> None:
    """Store the bias that `reader` has as its input `index` as INT32 in the steps of sums, with a DQ behind it."""
    bias = reader.inputs[index]
    assert bias is not None
    assert bias.const_value is not None
    name = f"{reader.name}_bias"
    levels = np.clip(np.rint(bias.const_value.numpy() / steps), -MAX_BIAS, MAX_BIAS).astype(np.int32)
    inputs = [
        constant(graph, f"{name}_int32", levels),
        constant(graph, f"{name}_scale", steps.astype(np.float32)),
        constant(graph, f"{name}_zero", np.zeros(levels.shape, np.int32)),
    ]
    restored = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"dequantize_{name}")
    describe(restored.outputs[0], f"{name}_restored", ir.DataType.FLOAT, bias)
    graph.insert_before(reader, restored)
    reader.replace_input_with(index, restored.outputs[0])
