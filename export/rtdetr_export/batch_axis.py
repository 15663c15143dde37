"""One batch axis in files of dynamic batch: what engines must prove to be the batch is written down as the batch.

A traced graph asks many tensors for their number of rows, and its Reshapes say -1 for it. An engine then has to prove
that all of these are one number, or to look at each broadcast while it runs.

    Reshape to (-1, 300, 8, 32)   ->   to (0, 300, 8, 32), which is as many as before
    Shape of any tensor           ->   Shape of the input, once
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common


def unify_batch_axis(model: ir.Model) -> None:
    """Let all of `model`, whose inputs' first axis is the batch, take the batch from its first input, in place."""
    images = model.graph.inputs[0]
    if images.shape is None or isinstance(images.shape[0], int):
        return
    batch = images.shape[0]
    common.ShapeInferencePass()(model)
    for node in model.graph:
        if node.op_type == "Reshape":
            _copy_first_axis(model.graph, node)
    _infer_again(model, batch)
    for node in model.graph:
        if node.op_type == "Shape" and _is_batch(node.inputs[0], batch) and _reads_first_axis(node):
            node.replace_input_with(0, images)
            node.outputs[0].shape = ir.Shape([len(images.shape)])
    common.CommonSubexpressionEliminationPass()(model)


def _infer_again(model: ir.Model, batch: ir.SymbolicDim) -> None:
    """Infer shapes anew, now that Reshapes tell where the batch goes."""
    told = True
    while told:
        for value in _with_other_axis(model, batch):
            value.shape = None
        common.ShapeInferencePass()(model)
        told = _tell(model, batch)


def _with_other_axis(model: ir.Model, batch: ir.SymbolicDim) -> list[ir.Value]:
    """Return the values whose first axis is neither a number nor known to be the batch."""
    values = [value for node in model.graph for value in node.outputs if value.shape]
    return [value for value in values if not isinstance(value.shape[0], int) and not _is_batch(value, batch)]  # type: ignore[index]


def _tell(model: ir.Model, batch: ir.SymbolicDim) -> bool:
    """Say what inference doesn't see, since it takes arithmetic on sizes; return whether there was anything to say.

    A Resize that scales the batch by 1 leaves it alone, and a Range up to the batch has as many numbers.
    """
    found = False
    for value in _with_other_axis(model, batch):
        node = value.producer()
        if node is not None and value.shape is not None and (_keeps_batch(node, batch) or _counts_batch(node, batch)):
            value.shape = ir.Shape([batch, *value.shape[1:]])
            found = True
    return found


def _keeps_batch(node: ir.Node, batch: ir.SymbolicDim) -> bool:
    scales = _constant(node, 2) if node.op_type == "Resize" else None
    return scales is not None and scales.size > 0 and scales[0] == 1 and _is_batch(node.inputs[0], batch)


def _counts_batch(node: ir.Node, batch: ir.SymbolicDim) -> bool:
    if node.op_type != "Range" or _constant(node, 0) != 0 or _constant(node, 2) != 1:
        return False
    read = None if node.inputs[1] is None else node.inputs[1].producer()
    if read is None or read.op_type != "Gather" or _constant(read, 1) != 0 or read.inputs[0] is None:
        return False
    shape = read.inputs[0].producer()
    return shape is not None and shape.op_type == "Shape" and _is_batch(shape.inputs[0], batch)


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    """Return a constant input, or None."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _copy_first_axis(graph: ir.Graph, node: ir.Node) -> None:
    """Write 0 (as in the input) for the -1 of a Reshape that leaves the first axis alone."""
    data, target = node.inputs[0], node.inputs[1]
    if data is None or target is None or data.shape is None or target.const_value is None:
        return
    sizes = target.const_value.numpy().tolist()
    rest = data.shape[1:]
    if sizes[0] != -1 or not all(isinstance(size, int) for size in rest) or prod(sizes[1:]) != prod(rest):
        return
    name = f"{target.name}_copied"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array([0, *sizes[1:]], np.int64), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=target.shape, type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
        )
    node.replace_input_with(1, graph.initializers[name])


def _is_batch(value: ir.Value | None, batch: ir.SymbolicDim) -> bool:
    return value is not None and value.shape is not None and len(value.shape) > 0 and value.shape[0] == batch


def _reads_first_axis(node: ir.Node) -> bool:
    """Whether nothing but the first number of a shape is read."""
    readers = [use.node for use in node.outputs[0].uses()]
    return all(reader.op_type == "Gather" and _constant(reader, 1) == 0 for reader in readers)
