"""What the processor can do: the rate of a large convolution, measured in the runtime, by precision.

Four 3x3 convolutions of 256 channels on 80x80 cells, 30 GFLOP, in the form that the runtime's fastest kernels want.
Nothing in a detector is faster; its FLOPs over this rate are the floor of its time.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes.onnx_file import read_graph
from rtdetr_deploy.runtimes.options import Arithmetic, RuntimeOptions

CHANNELS, CELLS, LAYERS, CALLS = 256, 80, 4, 4
GFLOP = 2 * CHANNELS * CHANNELS * 9 * CELLS * CELLS * LAYERS / 1e9
FP32, BF16, INT8 = "fp32", "bf16", "int8"


def measure_peaks(runtime: str, threads: int | None = None) -> dict[str, float]:
    """Return GFLOP/s by precision, those that the runtime computes in: FP32, INT8, and in OpenVINO BF16.

    BF16 is left out on processors that don't have it. Takes about five seconds on two cores.
    """
    with TemporaryDirectory() as folder:
        single, quantized = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        save(convolutions(), single)
        save(convolutions(quantized=True), quantized)
        if runtime == "onnxruntime":
            return {FP32: _rate_onnxruntime(single, threads), INT8: _rate_onnxruntime(quantized, threads)}
        openvino = require("openvino", "measuring OpenVINO", "openvino")
        core = openvino.Core()
        peaks = {FP32: _rate_openvino(core, single, FP32, threads)}
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            peaks[BF16] = _rate_openvino(core, single, BF16, threads)
        return peaks | {INT8: _rate_openvino(core, quantized, FP32, threads)}


def convolutions(*, quantized: bool = False) -> ModelProto:
    """Return the model that is timed; `quantized` with inputs and weights of each convolution in INT8 (Q/DQ)."""
    random = np.random.default_rng(0)
    shape = [1, CHANNELS, CELLS, CELLS]
    nodes, constants = [], [
        numpy_helper.from_array(np.float32(0.02), "scale"),
        numpy_helper.from_array(np.uint8(0), "zero"),
        numpy_helper.from_array(np.zeros(CHANNELS, np.float32), "bias"),
        numpy_helper.from_array(np.full(CHANNELS, 0.01, np.float32), "steps"),
        numpy_helper.from_array(np.zeros(CHANNELS, np.int8), "zeros"),
    ]  # fmt: skip
    value = "images"
    for layer in range(LAYERS):
        weight = random.integers(-9, 10, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8 if quantized else np.float32)
        constants.append(numpy_helper.from_array(weight if quantized else weight / np.float32(100), f"w{layer}"))
        name = f"w{layer}"
        if quantized:
            nodes += [
                helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"q{layer}"]),
                helper.make_node("DequantizeLinear", [f"q{layer}", "scale", "zero"], [f"d{layer}"]),
                helper.make_node("DequantizeLinear", [name, "steps", "zeros"], [f"r{layer}"], axis=0),
            ]
            value, name = f"d{layer}", f"r{layer}"
        nodes += [
            helper.make_node("Conv", [value, name, "bias"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"a{layer}"]),
        ]
        value = f"a{layer}"
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _rate_onnxruntime(path: Path, threads: int | None) -> float:
    onnxruntime = require("onnxruntime", "measuring ONNX Runtime", "cpu")
    from rtdetr_deploy.runtimes.ort import session_options

    settings = session_options(RuntimeOptions(threads=threads), read_graph(path))
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    images = _images()
    return _rate(lambda: session.run(None, {"images": images}))


def _rate_openvino(core: Any, path: Path, precision: str, threads: int | None) -> float:
    from rtdetr_deploy.runtimes.ov_settings import make_settings

    options = RuntimeOptions(threads=threads, precision=cast("Arithmetic", precision))
    settings = make_settings(options, "CPU", precision)
    request = core.compile_model(str(path), "CPU", settings).create_infer_request()
    images = _images()
    return _rate(lambda: request.infer([images]))


def _images() -> Any:
    return np.random.default_rng(0).random((1, CHANNELS, CELLS, CELLS), dtype=np.float32)


def _rate(call: Any) -> float:
    """Return the GFLOP/s of the fastest call: what disturbs a measurement makes it slower, never faster."""
    times = []
    for _ in range(1 + CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(GFLOP / min(times))
