"""Shapes and types of every value of an ONNX model.

They come from ONNX's shape inference. Where a graph computes shapes (exports with a dynamic batch do), what depends on
shapes and small constants alone is evaluated, and inference goes on from there. Large constants are never copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from rtdetr_deploy.errors import ArtifactError, OptionError

SMALL = 4096
"""Elements of a constant that may say something about shapes; larger ones are weights."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """What is known of a model: `nodes` that are left to run, shape and ONNX type of `tensors` by name.

    `constants` are the names of values that need no image, `small` those among them whose numbers are known.
    """

    nodes: tuple[NodeProto, ...]
    tensors: Mapping[str, tuple[Shape, int]]
    constants: frozenset[str]
    small: Mapping[str, TensorProto]


def find_shapes(model: ModelProto, batch: int | None) -> Shapes:
    """Return the shapes of `model` for `batch` images (None: what the file fixes, else 1).

    Raises `OptionError` for another batch than the file's, `ArtifactError` for an open input size, an input without a
    batch, or a loop.
    """
    light, weights = _without_weights(model)
    for value in light.graph.input:
        if value.name not in weights:
            _fix_batch(value, batch)
    inferred = _fold(light)
    tensors = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = _shape(value)
        if shape is not None and value.type.tensor_type.elem_type:
            tensors[value.name] = (shape, value.type.tensor_type.elem_type)
    small = {tensor.name: tensor for tensor in inferred.initializer}
    tensors |= {name: (tuple(tensor.dims), tensor.data_type) for name, tensor in small.items()}
    return Shapes(tuple(inferred.node), tensors, frozenset(weights | set(small)), small)


def _without_weights(model: ModelProto) -> tuple[ModelProto, set[str]]:
    """Return a small copy in which large constants are inputs, and the names of these."""
    light, weights = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import), set()
    light.graph.name = "light"
    light.graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    light.graph.input.extend(value for value in model.graph.input if value.name not in constants)
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ArtifactError(f"{node.name or node.op_type} holds a graph of its own; expected a model without loops")
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
        else:
            light.graph.node.append(node)
    for name, tensor in constants.items():
        if prod(tensor.dims) > SMALL or tensor.data_location == TensorProto.EXTERNAL:
            light.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
            weights.add(name)
        else:
            light.graph.initializer.append(tensor)
            light.graph.initializer[-1].name = name
    return light, weights


def _fix_batch(value: ValueInfoProto, batch: int | None) -> None:
    if not value.type.tensor_type.shape.dim:  # a scalar, a sequence, or no shape at all
        raise ArtifactError(f"input {value.name} has no batch axis; expected a tensor whose first axis counts images")
    first, *others = value.type.tensor_type.shape.dim
    if any(not dim.HasField("dim_value") for dim in others):
        raise ArtifactError(f"input {value.name} leaves its size open; export the model for a fixed input size")
    if first.HasField("dim_value") and batch not in (None, first.dim_value):
        raise OptionError(
            f"`batch` is {batch}, but the model takes {first.dim_value}; leave it out, or export with a dynamic batch: "
            "rtdetr-export --weights ... --batch dynamic"
        )
    if not first.HasField("dim_value"):
        first.dim_value = batch or 1


def _fold(light: ModelProto) -> Any:
    """Evaluate in place what depends on shapes and small constants alone; return the graph with all shapes."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in light.graph.initializer}
    while True:
        inferred = shape_inference.infer_shapes(light, data_prop=True).graph
        told = (*light.graph.input, *inferred.value_info, *inferred.output)
        shapes = {value.name: _shape(value) for value in told} | {name: value.shape for name, value in known.items()}
        rest: list[NodeProto] = []
        found: dict[str, Any] = {}
        for node in light.graph.node:
            values = _evaluate(node, known, shapes)
            if values is None:
                rest.append(node)
            else:
                found |= values
                known |= values
        if not found:
            return inferred
        del light.graph.node[:]
        light.graph.node.extend(rest)
        light.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())


def _evaluate(
    node: NodeProto, known: Mapping[str, Any], shapes: Mapping[str, Shape | None]
) -> dict[str, np.ndarray] | None:
    """Return the outputs of a node that needs no image, where they are small; else None."""
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        limits = {item.name: item.i for item in node.attribute}
        return (
            None if shape is None else {node.output[0]: np.array(shape[limits.get("start") : limits.get("end")], "i8")}
        )
    if node.domain or node.op_type == "DequantizeLinear" or not all(name in known for name in node.input if name):
        return None
    if any(prod(shapes.get(name) or ()) > SMALL for name in node.output):
        return None
    given = {name: known[name] for name in node.input if name}
    try:
        with np.errstate(all="ignore"):
            arrays = [np.asarray(value) for value in ReferenceEvaluator(node).run(None, given)]
    except Exception:  # operators raise what they like; a node that can't be evaluated is left to run
        return None
    return None if any(array.size > SMALL for array in arrays) else dict(zip(node.output, arrays, strict=False))


def _shape(value: ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)
