"""INT8 that is in the graph: explicit QuantizeLinear and DequantizeLinear pairs, symmetric, with zero point 0.

Scales follow TensorRT's rules, which ONNX Runtime and OpenVINO accept too: one scale per activation tensor, one per
output channel for weights, all zero points 0. Weights are stored as INT8. A scale is chosen to minimize the squared
error of the values that it rounds and clips (arXiv 1810.05723, section 3), rather than to cover the largest of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from rtdetr_deploy.errors import ExportError
from rtdetr_export.precision.activations import collect_activations
from rtdetr_export.precision.placement import Placement
from rtdetr_export.precision.residual import ResidualAdd, find_residual_adds

Floats = NDArray[np.float32]

LEVELS = 127
"""Maximum INT8 value; -128 is left out, so that ranges are symmetric."""
CLIPS = np.linspace(0.2, 1.0, 41)
"""Shares of the maximum that are tried as the end of the range."""
MIN_SCALE = np.float16(2.0**-20)
SAMPLED = 4096
"""Values kept of each activation and image when ranges are chosen."""
StoredWeights = dict[str, tuple[NDArray[np.int8], Floats]]
"""INT8 levels and scales of weights, by name."""


@dataclass(frozen=True)
class QuantizableNode:
    """A convolution or matrix product with constant weights that may go to INT8.

    `name` of the node, the values that it reads (`activation`) and multiplies with (`weight`), the `axis` of the
    weights' output channels, and the `block` that goes to INT8 as a whole. `add` is the addition behind a convolution
    whose residual goes to INT8 with it, None where there is none.
    """

    name: str
    activation: str
    weight: str
    axis: int
    block: str
    add: ResidualAdd | None = None

    @property
    def quantized_values(self) -> tuple[str, ...]:
        """Names of the activations that get a Q/DQ pair when this node goes to INT8."""
        return (self.activation,) if self.add is None else (self.activation, self.add.residual)


class Scheme(Protocol):
    """How INT8 is placed for a kind of runtime: the `nodes` that may go to INT8, and how."""

    @property
    def nodes(self) -> Sequence[QuantizableNode]:
        """The nodes that may be chosen."""
        ...

    def quantize(self, model: ir.Model, chosen: Sequence[QuantizableNode]) -> None:
        """Quantize the `chosen` of the nodes in the FP32 `model`, in place."""
        ...


@dataclass(frozen=True)
class TensorRtScheme:
    """Pairs before convolutions, matrix products and residuals alone: TensorRT fuses what follows; see `quantize`."""

    nodes: tuple[QuantizableNode, ...]
    scales: Mapping[str, float]
    stored: StoredWeights = field(default_factory=dict, compare=False, repr=False)

    def quantize(self, model: ir.Model, chosen: Sequence[QuantizableNode]) -> None:
        """See `Scheme`."""
        quantize(model, chosen, self.scales, self.stored)


def find_quantizable(model: ir.Model, placement: Placement) -> list[QuantizableNode]:
    """Return the convolutions and matrix products with constant weights that `placement` doesn't keep from INT8.

    Convolutions come with the additions that they can take in. Raises `ExportError` for a node that belongs to no
    block.
    """
    found = []
    for node in model.graph:
        name = str(node.name)
        if node.op_type not in ("Conv", "MatMul") or name in placement.kept or name in placement.unquantized:
            continue
        activation, weight = node.inputs[:2]
        if activation is None or weight is None or weight.const_value is None:
            continue
        if name not in placement.blocks:
            raise ExportError(f"{name} is in no quantization block of the model's family")
        axis = 0 if node.op_type == "Conv" else len(weight.const_value.shape) - 1
        found.append(QuantizableNode(name, str(activation.name), str(weight.name), axis, placement.blocks[name]))
    adds = find_residual_adds(model.graph, {node.name for node in found})
    adds = {name: add for name, add in adds.items() if add.name not in placement.kept}
    return [replace(node, add=adds.get(node.name)) for node in found]


def measure_scales(content: bytes, names: Collection[str], batches: Iterable[NDArray[np.generic]]) -> dict[str, float]:
    """Return the scale of each activation, chosen on values sampled from every prepared input array."""
    rng = np.random.default_rng(0)
    wanted = sorted(names)
    samples: dict[str, list[Floats]] = {name: [] for name in wanted}
    for found in collect_activations(onnx.load_from_string(content), wanted, batches):
        for name in wanted:
            values = np.abs(found[name]).reshape(-1)
            kept = values[rng.integers(0, values.size, min(SAMPLED, values.size))]
            samples[name].append(np.append(kept, values.max()).astype(np.float32))
    return {name: float(choose_scale(np.concatenate(parts)[None])[0]) for name, parts in samples.items()}


def choose_scale(values: Floats) -> Floats:
    """Return the scale `(rows,)` with the minimum squared rounding and clipping error for each row of `values`."""
    max_values = np.abs(values).max(axis=1)
    best = np.maximum(max_values, 1e-12) / LEVELS
    min_error = np.full(len(values), np.inf)
    for clip in CLIPS:
        scale = np.maximum(max_values * clip, 1e-12) / LEVELS
        rounded = np.clip(np.rint(values / scale[:, None]), -LEVELS, LEVELS) * scale[:, None]
        error = ((rounded - values) ** 2).mean(axis=1)
        better = error < min_error
        best, min_error = np.where(better, scale, best), np.where(better, error, min_error)
    # Scales that FP16 holds too: what is not INT8 may be FP16, and then reads them in that type.
    result: Floats = np.maximum(best.astype(np.float16), MIN_SCALE).astype(np.float32)
    return result


def quantize_weight(weight: Floats, axis: int) -> tuple[NDArray[np.int8], Floats]:
    """Return `weight` as INT8 and its scale for each index of `axis`."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scale = choose_scale(rows)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8), scale


def quantize(
    model: ir.Model,
    chosen: Sequence[QuantizableNode],
    scales: Mapping[str, float],
    stored: StoredWeights | None = None,
) -> None:
    """Put Q/DQ pairs before the activations, weights and residuals of `chosen`, in place.

    One pair serves all readers: a block's input is quantized once for its first convolution and its shortcut. `stored`
    keeps quantized weights for other calls with the same weights.
    """
    stored = {} if stored is None else stored
    graph = model.graph
    nodes = {str(node.name): node for node in graph}
    restored: dict[str, ir.Value] = {}
    weights: dict[str, ir.Value] = {}
    for target in chosen:
        node = nodes[target.name]
        _quantize_input(graph, node, 0, scales, restored)
        if target.add is not None:
            _quantize_input(graph, nodes[target.add.name], target.add.index, scales, restored)
        weight = node.inputs[1]
        assert weight is not None
        if target.weight not in weights:
            weights[target.weight] = store_weight(graph, node, weight, target.axis, stored)
        node.replace_input_with(1, weights[target.weight])
    drop_unread_constants(graph)


def _quantize_input(
    graph: ir.Graph, node: ir.Node, index: int, scales: Mapping[str, float], restored: dict[str, ir.Value]
) -> None:
    """Let `node` read its input number `index` through a Q/DQ pair; `restored` has those that are there by name."""
    value = node.inputs[index]
    assert value is not None
    name = str(value.name)
    if name not in restored:
        restored[name] = _add_pair(graph, value, scales[name])
    node.replace_input_with(index, restored[name])


def _add_pair(graph: ir.Graph, value: ir.Value, scale: float) -> ir.Value:
    """Insert Q and DQ behind `value` and return what DQ gives."""
    constants = [constant(graph, f"{value.name}_scale", np.float32(scale)), _zero(graph, f"{value.name}_zero", ())]
    quantized = ir.node("QuantizeLinear", [value, *constants], name=f"quantize_{value.name}")
    describe(quantized.outputs[0], f"{value.name}_int8", ir.DataType.INT8, value)
    restored = ir.node("DequantizeLinear", [quantized.outputs[0], *constants], name=f"dequantize_{value.name}")
    describe(restored.outputs[0], f"{value.name}_restored", ir.DataType.FLOAT, value)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantized, restored])
    else:
        graph.insert_after(producer, [quantized, restored])
    return restored.outputs[0]


def store_weight(
    graph: ir.Graph, reader: ir.Node, weight: ir.Value, axis: int, stored: StoredWeights, copy: int = 0
) -> ir.Value:
    """Store `weight` as INT8 with a DQ per channel before `reader`, and return what DQ gives.

    `copy` counts the copies of a weight that several nodes read, each its own.
    """
    assert weight.const_value is not None
    name = str(weight.name)
    if name not in stored:
        stored[name] = quantize_weight(weight.const_value.numpy(), axis)
    levels, scale = stored[name]
    name = f"{name}_{copy}" if copy else name
    inputs = [
        constant(graph, f"{name}_int8", levels),
        constant(graph, f"{name}_scale", scale),
        _zero(graph, f"{name}_zero", scale.shape),
    ]
    restored = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"dequantize_{name}")
    describe(restored.outputs[0], f"{name}_restored", ir.DataType.FLOAT, weight)
    graph.insert_before(reader, restored)
    return restored.outputs[0]


def drop_unread_constants(graph: ir.Graph) -> None:
    """Take what no node reads any more out of the file."""
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def describe(value: ir.Value, name: str, dtype: ir.DataType, like: ir.Value) -> None:
    """Give a new `value` its name, its type and the shape of another."""
    value.name, value.dtype, value.shape = name, dtype, like.shape


def constant(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """Return `array` as a constant that is stored in the file."""
    tensor = ir.tensor(np.asarray(array), name=name)
    shape, kind = ir.Shape(np.shape(array)), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def _zero(graph: ir.Graph, name: str, shape: tuple[int, ...]) -> ir.Value:
    return constant(graph, name, np.zeros(shape, np.int8))
