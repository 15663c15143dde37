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
    _check_constants(model)
    return model


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
