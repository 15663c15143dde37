"""FP16 that is in the graph: every node's precision is decided here, and every Cast is placed here.

Such a file is strongly typed. TensorRT builds exactly these precisions (its builder flags for FP16 are gone since
version 11), ONNX Runtime and OpenVINO run the same arithmetic, and nothing depends on a converter's guess.

What stays in FP32 is what the model's family says, by module and with the reason (see `placement`). All else is
computed in FP16: convolutions, matrix products, attention. Inputs and outputs of the file keep their types.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rtdetr_deploy.errors import ExportError

MAX_FP16 = 65504.0
HEADROOM = 0.25
"""Share of FP16's range that values on calibration images may use; nodes beyond it stay in FP32."""


_MOVERS = frozenset({"Reshape", "Transpose", "Slice", "Gather", "Unsqueeze", "Squeeze", "Concat", "Split", "Expand"})
"""Operators that only move numbers: they take the precision of what they move, unless they must stay in FP32."""
_SCALED = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""INT8 pairs are in the precision of their reader; what stays in FP32 has none."""
_MOVED_INPUTS = {"Concat": slice(None)}
_FIXED_INPUTS = {"Resize": slice(1, None)}
"""Inputs that the operator's definition wants in FP32 whatever the data is."""
_FP32, _FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True)
class Fp16Report:
    """Where FP16 was placed: names of the float nodes in FP16 and in FP32, and the number of Casts.

    `max_value` is the maximum magnitude in FP16 on the images that were measured, with its node (None: not measured);
    `out_of_range` are nodes that stay in FP32 because their values come near FP16's limit.
    """

    fp16_nodes: tuple[str, ...]
    fp32_nodes: tuple[str, ...]
    casts: int
    max_value: tuple[str, float] | None
    out_of_range: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.fp16_nodes)} nodes in FP16, {len(self.fp32_nodes)} in FP32, {self.casts} casts"]
        if self.max_value is not None:
            lines.append(f"maximum in FP16: {self.max_value[1]:.4g} (limit {MAX_FP16:.0f}) at {self.max_value[0]}")
        lines += [f"stays in FP32, its values are too large: {name}" for name in self.out_of_range]
        return "\n".join(lines)


def to_fp16(
    model: ir.Model,
    *,
    keep: Collection[str] = (),
    keep_fp32: Sequence[str] = (),
    magnitudes: Mapping[str, float] | None = None,
) -> Fp16Report:
    """Turn an FP32 `model` into a mixed FP16 one in place.

    Nodes called as in `keep` stay in FP32 (`Placement.kept` has those of a model's family), and so do those whose name
    matches one of the regular expressions `keep_fp32`. `magnitudes` are the maximum absolute values by value name (see
    `measure_magnitudes`). Raises `ExportError` for a pattern that matches no node or isn't a regular expression, and
    for weights beyond FP16's range.
    """
    nodes = [node for node in model.graph if _is_float(node)]
    patterns = [compile_pattern(pattern, nodes) for pattern in keep_fp32]
    known = magnitudes or {}
    conversion = _Conversion(model)
    fp16: dict[str, float] = {}
    fp32, out_of_range = [], []
    for node in nodes:
        name = str(node.name)
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        magnitude = max((known.get(str(value.name), 0.0) for value in values), default=0.0)
        named = name in keep or any(pattern.search(name) for pattern in patterns)
        stays = named and node.op_type not in _SCALED
        too_large = magnitude > HEADROOM * MAX_FP16
        if conversion.convert(node, stays or too_large) == _FP16:
            fp16[name] = magnitude
        else:
            fp32.append(name)
            out_of_range += [name] if too_large and not stays else []
    casts = conversion.finish()
    top = max(fp16.items(), key=lambda item: item[1]) if fp16 and magnitudes is not None else None
    return Fp16Report(tuple(fp16), tuple(fp32), casts, top, tuple(out_of_range))


def compile_pattern(pattern: str, nodes: Sequence[ir.Node]) -> re.Pattern[str]:
    """Return the regular expression. Raises `ExportError` when it isn't one, or matches no node's name."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ExportError(f"`keep_fp32` {pattern!r} is not a regular expression: {error}") from error
    if not any(compiled.search(str(node.name)) for node in nodes):
        raise ExportError(
            f"`keep_fp32`: no node's name matches {pattern!r}; names are like /model/decoder/layers.0/norm1/..."
        )
    return compiled


def _is_float(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == _FP32 for value in (*node.inputs, *node.outputs))


class _Conversion:
    """Nodes are converted in graph order, so that the precision of what a node reads is known."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._versions: dict[tuple[str, ir.DataType], ir.Value] = {}
        self._casts = 0

    def convert(self, node: ir.Node, keep: bool) -> ir.DataType:
        """Give `node` its precision (FP32 where `keep`), cast what it reads, and return the precision."""
        target = self._decide(node, keep)
        fixed = range(*_FIXED_INPUTS.get(node.op_type, slice(0)).indices(len(node.inputs)))
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FP32, _FP16) and index not in fixed and value.dtype != target:
                node.replace_input_with(index, self._as(value, target))
        if node.op_type != "Cast":
            for value in node.outputs:
                if value.dtype == _FP32:
                    value.type = ir.TensorType(target)  # a new one: clones of a graph share their types
        return target

    def _decide(self, node: ir.Node, keep: bool) -> ir.DataType:
        if keep or node.op_type == "Cast":
            return _FP32
        if node.op_type in _MOVERS:
            moved = node.inputs[_MOVED_INPUTS.get(node.op_type, slice(0, 1))]
            return _FP16 if all(value is not None and value.dtype == _FP16 for value in moved) else _FP32
        return _FP16

    def _as(self, value: ir.Value, target: ir.DataType) -> ir.Value:
        """Return `value` in the precision `target`: a constant converted now, anything else through one Cast."""
        name = f"{value.name}_{'fp16' if target == _FP16 else 'fp32'}"
        key = (str(value.name), target)
        if key not in self._versions:
            if value.const_value is not None:
                self._versions[key] = self._constant(value.const_value.numpy(), name, target)
            else:
                cast = self._cast(value, name, target)
                producer = value.producer()
                if producer is None:
                    self._graph.insert_before(self._graph[0], cast)
                else:
                    self._graph.insert_after(producer, cast)
                self._versions[key] = cast.outputs[0]
        return self._versions[key]

    def _cast(self, value: ir.Value, name: str, target: ir.DataType) -> ir.Node:
        cast = ir.node("Cast", [value], {"to": int(target)}, name=f"cast_{name}")
        output = cast.outputs[0]
        output.name, output.dtype, output.shape = name, target, value.shape
        self._casts += 1
        return cast

    def _constant(self, array: np.ndarray, name: str, target: ir.DataType) -> ir.Value:
        if target == _FP16 and array.size and float(np.abs(array).max()) > MAX_FP16:
            raise ExportError(f"constant {name} does not fit into FP16; keep its node with `keep_fp32`")
        converted = ir.tensor(array.astype(target.numpy()), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(target), const_value=converted)
        self._graph.register_initializer(value)
        return value

    def finish(self) -> int:
        """Give outputs their FP32 back, drop constants that nobody reads any more, return the number of Casts."""
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == _FP16:
                name = str(value.name)
                value.name = f"{name}_fp16"
                cast = self._cast(value, name, _FP32)
                self._graph.append(cast)
                self._graph.outputs[index] = cast.outputs[0]
        for name, value in list(self._graph.initializers.items()):
            if not value.uses():
                del self._graph.initializers[name]
        return self._casts
