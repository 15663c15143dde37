"""Small ONNX graphs in ONNX's own text form, for tests of the cost model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser


def graph(inputs: str, outputs: str, nodes: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    """Return a model of opset 19 with these lines of nodes; `constants` are its initializers."""
    return graph_of_opset(19, inputs, outputs, nodes, **constants)


def graph_of_opset(number: int, inputs: str, outputs: str, nodes: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    """As `graph`, of another opset."""
    head = f'<ir_version: 9, opset_import: ["" : {number}]>'
    model = parser.parse_model(f"{head} test ({inputs}) => ({outputs}) {{ {nodes} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    return model


def half(*shape: int) -> NDArray[Any]:
    """Return an FP16 constant."""
    return np.full(shape, 0.5, np.float16)


def product(kind: str = "float16") -> onnx.ModelProto:
    """Return a model of one matrix product, (1024, 1024) by (1024, 1024)."""
    weights = half(1024, 1024).astype(kind)
    return graph(
        f"{kind.replace('32', '')}[1024,1024] x",
        f"{kind.replace('32', '')}[1024,1024] y",
        "y = MatMul(x, w)",
        w=weights,
    )
