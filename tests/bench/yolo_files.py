"""Small ONNX files with the outputs of YOLOs: whatever image they are given, they return what they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 64


def write_yolo(
    path: Path,
    *outputs: tuple[str, NDArray[Any]],
    size: int = SIZE,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a model that takes (B, 3, size, size) float32 and returns the given arrays, B being the first one's."""
    batch = outputs[0][1].shape[0]
    nodes, constants, values = [], [], []
    for name, array in outputs:
        constants.append(numpy_helper.from_array(array, f"{name}_values"))
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(helper.make_node("Cast", ["nothing"], [f"{name}_nothing"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_values", f"{name}_nothing"], [name]))
        values.append(helper.make_tensor_value_info(name, kind, array.shape))
    constants.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    nodes.insert(0, helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    nodes.insert(0, helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, (batch, 3, size, size))
    graph = helper.make_graph(nodes, "yolo", [images], values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def channels(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], places: int = 84
) -> tuple[str, NDArray[np.float32]]:
    """Return YOLOv8's output (1, 4 + K, places) with boxes (N, 4) cxcywh and scores (N, K) in the first places."""
    output = np.zeros((1, 4 + scores.shape[1], places), np.float32)
    output[0, :4, : len(boxes)], output[0, 4:, : len(boxes)] = boxes.T, scores.T
    return "output0", output


def crowd(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return boxes (N, 4) cxcywh in clusters that overlap, and scores (N, K)."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(12, 52, (8, 2))[rng.integers(0, 8, count)] + rng.normal(0, 2, (count, 2))
    boxes = np.concatenate([centres, rng.uniform(8, 16, (count, 2))], axis=1).astype(np.float32)
    return boxes, rng.uniform(0, 1, (count, classes)).astype(np.float32) ** 2
