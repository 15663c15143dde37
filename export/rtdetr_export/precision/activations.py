"""Values inside a graph on calibration images: one way to collect them, and their maximum magnitudes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rtdetr_deploy.errors import ExportError

PREFIX = "magnitude_of_"

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items at even distances, in their order; all of them where that is all there are."""
    step = max(1.0, len(items) / count)
    return [items[int(index * step)] for index in range(min(len(items), count))]


def collect_activations(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterable[NDArray[Any]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run the FP32 `model` on prepared arrays of its one input, and yield the values called `names` for each.

    The model gets these values as outputs. The input itself may be among the names.
    """
    import onnxruntime

    source = model.graph.input[0].name
    known = {source, *(output.name for output in model.graph.output)}
    for name in names:
        if name not in known:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    asked = [name for name in names if name != source]
    for batch in batches:
        values = dict(zip(asked, session.run(asked, {source: batch}), strict=True))
        yield {name: values.get(name, batch) for name in names}


def measure_magnitudes(content: bytes, batches: Iterable[NDArray[Any]]) -> dict[str, float]:
    """Run the serialized FP32 model on prepared input arrays and return max |x| by name of every float value.

    That is what FP16 has to hold. Raises `ExportError` when a value is not finite on one of them.
    """
    model = onnx.load_from_string(content)
    names = _add_magnitudes(model)
    magnitudes = dict.fromkeys(names, 0.0)
    for found in collect_activations(model, [PREFIX + name for name in names], batches):
        for name in names:
            value = float(found[PREFIX + name])
            if not np.isfinite(value):
                raise ExportError(f"{name} of the FP32 model is not finite on a calibration image")
            magnitudes[name] = max(magnitudes[name], value)
    return magnitudes


def _add_magnitudes(model: onnx.ModelProto) -> list[str]:
    """Add nodes that compute max |x| of every float value that a node makes, and return the values' names."""
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
    return names
