"""A graph with what checks of it ask for: types, shapes and makers of values, constants, attributes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper


class LintedGraph:
    """The nodes of a model, types and shapes by value name, constants, and who makes and reads a value.

    `shapes` hold None for axes that are open.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        graph = inferred.graph
        self.nodes = list(graph.node)
        self.constants = {item.name: item for item in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.constants]
        self.ends = {value.name for value in (*graph.input, *graph.output)}
        self.types: dict[str, int] = {name: item.data_type for name, item in self.constants.items()}
        self.shapes: dict[str, tuple[int | None, ...]] = {
            name: tuple(item.dims) for name, item in self.constants.items()
        }
        for value in (*graph.value_info, *graph.input, *graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape"):
                self.shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
                )
        for node in self.nodes:
            if node.op_type == "Constant":
                value = onnx.helper.get_attribute_value(node.attribute[0])
                tensor = value if node.attribute[0].name == "value" else numpy_helper.from_array(np.asarray(value))
                self.constants[node.output[0]] = tensor
                self.types[node.output[0]] = tensor.data_type
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.opset = next((int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of these operators."""
        return (node for node in self.nodes if node.op_type in operators)

    def made_by(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """Return the node that makes the value; None where none does, or one of other operators than those given."""
        maker = self.makers.get(name)
        return maker if maker is not None and (not operators or maker.op_type in operators) else None

    def is_constant(self, name: str) -> bool:
        """Whether the value is a constant, or dequantized from one."""
        maker = self.made_by(name, "DequantizeLinear")
        return name in self.constants or (maker is not None and maker.input[0] in self.constants)

    def computed_before(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that make what `node` reads, constants left out."""
        names = [name for name in node.input if not self.is_constant(name)]
        return [maker for name in names if (maker := self.made_by(name)) is not None]

    def computed_from(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that read the first output of `node`."""
        return self.readers.get(node.output[0], [])

    def number(self, name: str) -> np.ndarray | None:
        """Return the constant called `name`, or None when it is computed."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    """Return the attribute `name` of `node`, text as str."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def name_of(node: onnx.NodeProto) -> str:
    """Return the node's name, or its operator and first output."""
    return node.name or f"{node.op_type} of {node.output[0]}"
