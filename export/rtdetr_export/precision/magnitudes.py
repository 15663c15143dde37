"""The largest absolute value of every float tensor of a graph over some images: what FP16 has to hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rtdetr_deploy.errors import ExportError

PREFIX = "magnitude_of_"


def measure_magnitudes(content: bytes, batches: Iterable[NDArray[np.generic]]) -> dict[str, float]:
    """Run the serialized FP32 model on prepared input arrays and return max |x| by value name.

    Raises `ExportError` when a value is not finite on one of them.
    """
    import onnxruntime

    model = onnx.load_from_string(content)
    names = _watch(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    largest = dict.fromkeys(names, 0.0)
    for batch in batches:
        found = session.run([PREFIX + name for name in names], {source: batch})
        for name, value in zip(names, found, strict=True):
            if not np.isfinite(value):
                raise ExportError(f"{name} of the FP32 model is not finite on a calibration image")
            largest[name] = max(largest[name], float(value))
    return largest


def _watch(model: onnx.ModelProto) -> list[str]:
    """Add an output max |x| for every float value that a node makes, and return the values' names."""
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    floats = {
        info.name
        for info in (*inferred.graph.value_info, *inferred.graph.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    names = [name for node in graph.node for name in node.output if name in floats]
    for name in names:
        graph.node.append(helper.make_node("Abs", [name], [f"{PREFIX}{name}_abs"]))
        graph.node.append(helper.make_node("ReduceMax", [f"{PREFIX}{name}_abs"], [PREFIX + name], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(PREFIX + name, TensorProto.FLOAT, []))
    return names
