"""A detector so small that a kernel of a few lines computes it: an ONNX file, and the same in CUDA, bit for bit.

images   (B, H, W, 3) uint8, or (B, 3, H, W) float32 in [0, 1]
scores   (B, 8)     eight numbers of the image, spread over it, as levels in [0, 1]
labels   (B, 8)     int64, 0 to 3: three times the score, cut off
boxes    (B, 8, 4)  xyxy in [0, 1]: a quarter of the score twice, half of it and a half twice
pixels              the images as they came in: what reached the engine
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gpu_check.stub.kernels import INTEGER, POINTER

QUERIES = 8
BLOCK = 256
TYPES = (*(POINTER,) * 5, INTEGER, INTEGER)
SOURCE = r"""
// One thread per number of an image, one row of blocks per image; the first eight threads write a detection each.
extern "C" __global__ void detect(const unsigned char* images, unsigned char* pixels, float* scores, long long* labels,
                                  float* boxes, int numbers, int is_uint8)
{
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    size_t start = (size_t)blockIdx.y * numbers;
    if (index >= numbers)
        return;
    if (is_uint8)
        pixels[start + index] = images[start + index];
    else
        ((float*)pixels)[start + index] = ((const float*)images)[start + index];
    if (index >= 8)
        return;
    size_t from = start + (size_t)index * (numbers / 8), to = (size_t)blockIdx.y * 8 + index;
    float score = is_uint8 ? images[from] * (1.0f / 255.0f) : ((const float*)images)[from];
    scores[to] = score;
    labels[to] = (long long)(score * 3.0f);
    boxes[4 * to] = boxes[4 * to + 1] = score * 0.25f;
    boxes[4 * to + 2] = boxes[4 * to + 3] = score * 0.5f + 0.5f;
}
"""


def make_detector(height: int, width: int, *, raw: bool) -> bytes:
    """Return the ONNX file, of dynamic batch; `raw` takes uint8 pixels."""
    numbers = height * width * 3
    shape: list[str | int | None] = ["N", height, width, 3] if raw else ["N", 3, height, width]
    kind = TensorProto.UINT8 if raw else TensorProto.FLOAT
    constants: dict[str, NDArray[Any]] = {
        "scale": np.array(np.float32(1) / np.float32(255) if raw else 1, np.float32),
        "flat": np.array([0, -1], np.int64),
        "places": np.arange(QUERIES, dtype=np.int64) * (numbers // QUERIES),
        "three": np.array(3, np.float32),
        "quarter": np.array(0.25, np.float32),
        "half": np.array(0.5, np.float32),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Identity", ["images"], ["pixels"]),
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["levels"]),
        helper.make_node("Reshape", ["levels", "flat"], ["rows"]),
        helper.make_node("Gather", ["rows", "places"], ["scores"], axis=1),
        helper.make_node("Mul", ["scores", "three"], ["thrice"]),
        helper.make_node("Cast", ["thrice"], ["labels"], to=TensorProto.INT64),
        helper.make_node("Mul", ["scores", "quarter"], ["low0"]),
        helper.make_node("Mul", ["scores", "half"], ["halved"]),
        helper.make_node("Add", ["halved", "half"], ["high0"]),
        helper.make_node("Unsqueeze", ["low0", "last"], ["low"]),
        helper.make_node("Unsqueeze", ["high0", "last"], ["high"]),
        helper.make_node("Concat", ["low", "low", "high", "high"], ["boxes"], axis=2),
    ]
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["N", QUERIES]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", QUERIES, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", QUERIES]),
        helper.make_tensor_value_info("pixels", kind, shape),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", kind, shape)],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
