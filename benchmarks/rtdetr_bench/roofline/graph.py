"""An ONNX model as operations on tensors of known shape and type (see `shapes` for how these are found).

What depends on constants alone is left out: TensorRT computes it when an engine is built. The INT8 weights behind
a DequantizeLinear stay INT8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from onnx import ModelProto, TensorProto, helper, numpy_helper

from rtdetr_bench.roofline.shapes import Shapes, find_shapes
from rtdetr_deploy.errors import ArtifactError


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
    """A node: its name and operator, its inputs without those that are left out, and its outputs.

    `attributes` are those of the node; a Gather by constants has them as `index` too.
    """

    name: str
    operator: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]

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

    Raises `OptionError` for another batch than the file's, `ArtifactError` for a model whose shapes can't be known
    or that lacks a weight.
    """
    shapes = find_shapes(model, batch)
    inputs = tuple(value.name for value in model.graph.input if value.name not in shapes.constants)
    outputs = tuple(value.name for value in model.graph.output)
    return Graph(tuple(_operations(shapes)), inputs, outputs)


def _operations(shapes: Shapes) -> Iterator[Operation]:
    tensors = {
        name: Tensor(name, shape, _kind(elem_type), name in shapes.constants)
        for name, (shape, elem_type) in shapes.tensors.items()
    }
    computed = {name for node in shapes.nodes for name in node.output}
    for node in shapes.nodes:
        names, results = [name for name in node.input if name], [name for name in node.output if name]
        unknown = [name for name in (*names, *results) if name not in tensors]
        if unknown:
            told = f"{node.op_type} {node.name}".rstrip()
            if unknown[0] not in computed:
                raise ArtifactError(f"the weight {unknown[0]} is missing from the file ({told} reads it)")
            raise ArtifactError(f"the shape of {unknown[0]} can't be known ({told})")
        inputs = tuple(tensors[name] for name in names)
        constant = all(value.constant for value in inputs)
        if constant and node.op_type == "DequantizeLinear":
            tensors[results[0]] = replace(tensors[results[0]], kind=inputs[0].kind)
        tensors |= {name: replace(tensors[name], constant=constant) for name in results}
        if not constant:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Gather" and names[1] in shapes.small:
                attributes["index"] = numpy_helper.to_array(shapes.small[names[1]])
            outputs = tuple(tensors[name] for name in results)
            yield Operation(node.name or results[0], node.op_type, inputs, outputs, attributes)


def _kind(elem_type: int) -> str:
    name: str = TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
