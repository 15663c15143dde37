"""An ONNX model as operations on tensors of known shape and type.

Shapes come from ONNX's shape inference, helped where a graph computes them: what depends on constants and shapes alone
is evaluated, and inference goes on from there. Large constants are never copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from rtdetr_deploy.errors import ArtifactError, OptionError

SMALL = 4096
"""Elements of a constant that may say something about shapes; larger ones are weights."""

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """A value of the graph: `kind` is its type as NumPy names it ("float16"), `constant` whether it needs no image."""

    name: str
    shape: tuple[int, ...]
    kind: str
    constant: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return self.size * item_bytes(self.kind)


@dataclass(frozen=True)
class Operation:
    """A node: operator, inputs (left-out ones are missing) and outputs; small constant inputs by name in `values`."""

    name: str
    operator: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: Attributes

    @property
    def data(self) -> tuple[Tensor, ...]:
        """The inputs that are computed for each image."""
        return tuple(value for value in self.inputs if not value.constant)


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can run; names of the inputs and outputs of the whole."""

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def item_bytes(kind: str) -> int:
    """Return the bytes of one element of a type such as "float16", "bool" or "float8e4m3fn"; at least one."""
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1


def read_graph(model: ModelProto, batch: int | None = None) -> Graph:
    """Return the operations of `model` for `batch` images (None: what the file fixes, else 1).

    Raises `OptionError` for another batch than the file's, `ArtifactError` for a model whose shapes can't be known.
    """
    light = _without_weights(model)
    _fix_batch(light, batch)
    constants = _fold(light)
    tensors = dict(_tensors(light, constants))
    return Graph(
        tuple(_operations(light, tensors, constants)),
        tuple(value.name for value in model.graph.input if value.name not in constants),
        tuple(value.name for value in model.graph.output),
    )


def _without_weights(model: ModelProto) -> ModelProto:
    """Return a copy in which large constants are inputs, so that it is small."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "light"
    light.graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output)
    given = {tensor.name for tensor in model.graph.initializer}
    light.graph.input.extend(value for value in model.graph.input if value.name not in given)
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ArtifactError(f"{node.name or node.op_type} holds a graph of its own; expected a model without loops")
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            _add_constant(light, node.attribute[0].t, node.output[0])
        else:
            light.graph.node.append(node)
    for tensor in model.graph.initializer:
        _add_constant(light, tensor, tensor.name)
    return light


def _add_constant(light: ModelProto, tensor: TensorProto, name: str) -> None:
    if prod(tensor.dims) > SMALL:
        light.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        light.metadata_props.add(key=name)
    else:
        light.graph.initializer.append(tensor)
        light.graph.initializer[-1].name = name


def _fix_batch(light: ModelProto, batch: int | None) -> None:
    weights = {entry.key for entry in light.metadata_props}
    for value in light.graph.input:
        if value.name in weights:
            continue
        first, *others = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in others):
            raise ArtifactError(f"input {value.name} leaves its size open; export the model for a fixed input size")
        if first.HasField("dim_value") and batch not in (None, first.dim_value):
            raise OptionError(f"`batch` is {batch}, but the model takes {first.dim_value}; leave it out")
        if not first.HasField("dim_value"):
            first.dim_value = batch or 1


def _fold(light: ModelProto) -> set[str]:
    """Evaluate in place what depends on shapes and small constants alone; return the names of all constants."""
    constants = {entry.key for entry in light.metadata_props}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in light.graph.initializer}
    while True:
        inferred = shape_inference.infer_shapes(light, data_prop=True).graph
        del light.graph.value_info[:]
        light.graph.value_info.extend(inferred.value_info)
        shapes = {value.name: _shape(value) for value in (*light.graph.input, *inferred.value_info)}
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
            return constants | set(known)
        del light.graph.node[:]
        light.graph.node.extend(rest)
        light.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())


def _evaluate(node: NodeProto, known: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the outputs of a node that is small and constant, else None."""
    import numpy as np

    if node.op_type == "Shape" and shapes.get(node.input[0]) is not None and not node.attribute:
        return {node.output[0]: np.array(shapes[node.input[0]], np.int64)}
    if node.domain or not all(name in known for name in node.input if name):
        return None
    sizes = [shapes.get(name) for name in node.output]
    if any(size is not None and prod(size) > SMALL for size in sizes):
        return None
    outputs = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input if name})
    arrays = [np.asarray(value) for value in outputs]
    if any(array.size > SMALL for array in arrays):
        return None
    return dict(zip(node.output, arrays, strict=False))


def _shape(value: ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _tensors(light: ModelProto, constants: set[str]) -> Iterator[tuple[str, Tensor]]:
    inferred = shape_inference.infer_shapes(light, data_prop=True).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = _shape(value)
        if shape is not None and value.type.tensor_type.elem_type:
            kind = _kind(value.type.tensor_type.elem_type)
            yield value.name, Tensor(value.name, shape, kind, value.name in constants)
    for tensor in inferred.initializer:
        yield tensor.name, Tensor(tensor.name, tuple(tensor.dims), _kind(tensor.data_type), True)


def _kind(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type).lower().replace("double", "float64") if elem_type != 1 else "float32"


def _operations(light: ModelProto, tensors: Mapping[str, Tensor], constants: set[str]) -> Iterator[Operation]:
    computed = dict(tensors)
    small = {tensor.name: tensor for tensor in light.graph.initializer}
    for node in light.graph.node:
        names = [name for name in node.input if name]
        outputs = [name for name in node.output if name]
        missing = [name for name in (*names, *outputs) if name not in computed]
        if missing:
            raise ArtifactError(f"the shape of {missing[0]} ({node.op_type} {node.name}) is not known")
        inputs = tuple(computed[name] for name in names)
        constant = all(value.constant for value in inputs)
        for name in outputs:
            value = computed[name]
            computed[name] = Tensor(name, value.shape, value.kind, constant)
        if not constant:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Gather" and names[1] in small:
                attributes["index"] = numpy_helper.to_array(small[names[1]])
            yield Operation(
                node.name or node.output[0], node.op_type, inputs, tuple(computed[name] for name in outputs), attributes
            )
