"""Tiny ONNX files with chosen inputs and outputs, as other exporters write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Value = tuple[str, int, Sequence[str | int | None]]
"""Name, element type and shape of an input or output."""

IMAGES: Value = ("images", TensorProto.FLOAT, ["N", 3, 64, 96])
SIZES: Value = ("orig_target_sizes", TensorProto.INT64, ["N", 2])


def write_released_style(path: Path) -> Path:
    """Write a file with the released exporter's interface: two boxes, scaled by `orig_target_sizes` (width, height)."""
    constants: dict[str, NDArray[Any]] = {
        "labels0": np.array([[1, 0]], np.int64),
        "scores0": np.array([[0.8, 0.4]], np.float32),
        "boxes0": np.array([[[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]]], np.float32),
    }
    nodes = [
        helper.make_node("ReduceMin", ["images"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["scores0", "nothing"], ["scores"]),
        helper.make_node("Identity", ["labels0"], ["labels"]),
        helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["sizes", "sizes"], ["scale0"], axis=1),
        helper.make_node("Unsqueeze", ["scale0", "one"], ["scale"]),
        helper.make_node("Mul", ["boxes0", "scale"], ["boxes"]),
    ]
    constants |= {"zero": np.array(0.0, np.float32), "one": np.array([1], np.int64)}
    outputs: list[Value] = [
        ("labels", TensorProto.INT64, ["N", 2]),
        ("boxes", TensorProto.FLOAT, ["N", 2, 4]),
        ("scores", TensorProto.FLOAT, ["N", 2]),
    ]
    return write_model(path, [IMAGES, SIZES], outputs, nodes, constants)


def write_raw_style(path: Path, logits: NDArray[np.float32], boxes: NDArray[np.float32], size: str | int = 64) -> Path:
    """Write a file that returns these logits (1, Q, K) and boxes (1, Q, 4), under Hugging Face's names."""
    nodes = [
        helper.make_node("ReduceMin", ["pixel_values"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits0", "nothing"], ["logits"]),
        helper.make_node("Add", ["boxes0", "nothing"], ["pred_boxes"]),
    ]
    constants = {"zero": np.array(0.0, np.float32), "logits0": logits, "boxes0": boxes}
    outputs: list[Value] = [
        ("logits", TensorProto.FLOAT, list(logits.shape)),
        ("pred_boxes", TensorProto.FLOAT, list(boxes.shape)),
    ]
    return write_model(path, [("pixel_values", TensorProto.FLOAT, [1, 3, size, size])], outputs, nodes, constants)


def write_model(
    path: Path,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
) -> Path:
    """Write a checked ONNX model."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
