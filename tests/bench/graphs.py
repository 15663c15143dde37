"""Small ONNX graphs in ONNX's own text form, for tests of the cost model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser


def graph(inputs: str, outputs: str, nodes: str, opset: int = 19, **constants: np.ndarray) -> onnx.ModelProto:
    """Return a model with these lines of nodes; `constants` are its initializers."""
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> test ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    return model


def half(*shape: int) -> np.ndarray:
    """Return an FP16 constant."""
    return np.full(shape, 0.5, np.float16)
