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
    """Read integers directly that are sent through int64 and back, or have 0 added (the first row of one image)."""
    for node in model.graph:
        source = _same_integer(node)
        if source is not None:
            node.outputs[0].replace_all_uses_with(source)


def _same_integer(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """Return the int32 that `node` gives back as it is, or None."""
    if not node.inputs or node.inputs[0] is None or node.outputs[0].dtype != onnx_ir.DataType.INT32:
        return None
    source: onnx_ir.Value | None = node.inputs[0]
    if node.op_type == "Cast":
        first = node.inputs[0].producer()
        source = first.inputs[0] if first is not None and first.op_type == "Cast" else None
    elif node.op_type != "Add" or not _is_zero(node.inputs[1]):
        return None
    return source if source is not None and source.dtype == onnx_ir.DataType.INT32 else None


def _is_zero(value: onnx_ir.Value | None) -> bool:
    constant = None if value is None else value.const_value
    return constant is not None and constant.size == 1 and not constant.numpy().any()


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
