"""A traced graph made plain: constants folded and stored as initializers, nothing computed twice, nothing unused.

The passes are those of onnxscript and onnx-ir. Precondition: a valid model below 2 GiB. Postcondition: the same
function, opset, input and output names; no Constant or Identity nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir
from onnx_ir.passes import common
from onnxscript import optimizer

from rtdetr_deploy.errors import ExportError
from rtdetr_export.batch_axis import unify_batch_axis

ITERATIONS = 2


def simplify(content: bytes) -> onnx_ir.Model:
    """Return the serialized model `content` simplified. Raises `ExportError` for an infinite or NaN constant."""
    model = onnx_ir.serde.deserialize_model(onnx.load_from_string(content))
    optimizer.optimize_ir(model, num_iterations=ITERATIONS, onnx_shape_inference=True)
    for graph_pass in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
    ):
        graph_pass(model)
    unify_batch_axis(model)
    _drop_detours(model)
    common.RemoveUnusedNodesPass()(model)
    _check_constants(model)
    return model


def _drop_detours(model: onnx_ir.Model) -> None:
    """Read int32 directly that is sent through int64 and back, or has 0 added (the first row of one image)."""
    outputs = set(model.graph.outputs)
    for node in model.graph:
        source = _through_int64(node) or _plus_zero(node)
        if source is not None and source.shape == node.outputs[0].shape and not outputs & set(node.outputs):
            node.outputs[0].replace_all_uses_with(source)


def _through_int64(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """Return the int32 that a Cast gives back after another Cast made it int64."""
    wide = node.inputs[0] if node.op_type == "Cast" else None
    first = None if wide is None or wide.dtype != onnx_ir.DataType.INT64 else wide.producer()
    source = first.inputs[0] if first is not None and first.op_type == "Cast" else None
    return source if source is not None and _are_int32(source, node.outputs[0]) else None


def _plus_zero(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """Return the int32 that an Add of the constant 0 gives back."""
    if node.op_type != "Add" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    constant = node.inputs[1].const_value
    zero = constant is not None and constant.size == 1 and not constant.numpy().any()
    return node.inputs[0] if zero and _are_int32(node.inputs[0]) else None


def _are_int32(*values: onnx_ir.Value) -> bool:
    return all(value.dtype == onnx_ir.DataType.INT32 for value in values)


def serialize(model: onnx_ir.Model, metadata: Mapping[str, str], producer_version: str) -> bytes:
    """Return `model` as the content of a file, with `metadata` alone; the same bytes for the same model."""
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version, model.doc_string = "rtdetr-deploy", producer_version, None
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
    proto: onnx.ModelProto = onnx_ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


def _check_constants(model: onnx_ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        constant = value.const_value
        array = constant.numpy() if constant is not None else np.zeros(0)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(f"constant {name} of the graph is not finite; FP16 engines would turn it into NaN")
