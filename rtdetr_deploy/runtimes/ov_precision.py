"""What stays in FP32 when OpenVINO computes a model in BF16 on a CPU.

`INFERENCE_PRECISION_HINT=bf16` rounds every operator's inputs and output to 8 bits, coordinates and the scores that
select included. OpenVINO leaves an operator in FP32 where its runtime information says so, which its own passes write
(`DisablePrecisionConversion`), and nothing in its Python interface; so the mark is read from a model of one node and
copied. An operator that OpenVINO replaces by another while it compiles loses its mark. Those among them that matter are
replaced here by forms that it leaves as they are, and that compute the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rtdetr_deploy.errors import MissingPackageError
from rtdetr_deploy.packages import install_command

MARK = "DisablePrecisionConversion_0"
_CARRIER = """<?xml version="1.0"?>
<net name="mark" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1">
      <data shape="1" element_type="f32"/>
      <rt_info><attribute name="precise" version="0"/></rt_info>
      <output><port id="0" precision="FP32"><dim>1</dim></port></output>
    </layer>
    <layer id="1" name="y" type="Result" version="opset1">
      <input><port id="0" precision="FP32"><dim>1</dim></port></input>
    </layer>
  </layers>
  <edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges>
</net>
"""
_DATA = ("Constant", "Parameter", "Result")


def keep_fp32(model: Any, names: Sequence[str]) -> int:
    """Mark what stays in FP32 in an `openvino.Model`, in place, before it is compiled; return how many operators do.

    `names` are those of the file's metadata (`ArtifactInfo.fp32_nodes`): a node's name, or the start of several
    ("/model/decoder/refinement/"). Nodes without a name in the file, which stand for a part of one that has, stay in
    FP32 with what they are for. Without names nothing is marked. Raises `MissingPackageError` for versions of OpenVINO
    that have another mark.
    """
    starts, exact = tuple(name for name in names if name.endswith("/")), frozenset(names)
    if not names:
        return 0
    kept: set[str] = set()
    marked = 0
    for node in reversed(model.get_ordered_ops()):
        if node.get_type_name() in _DATA or not _is_kept(node, starts, exact, kept):
            continue
        kept.add(node.friendly_name)
        for stands in _durable(node):
            stands.set_rt_info(_mark(), MARK)
        marked += 1
    model.validate_nodes_and_infer_types()
    return marked


def _is_kept(node: Any, starts: tuple[str, ...], exact: frozenset[str], kept: set[str]) -> bool:
    name = node.friendly_name
    if name.startswith("/"):
        plain = name.removesuffix("/WithoutBiases")
        return plain in exact or (bool(starts) and name.startswith(starts))
    readers = {port.get_node().friendly_name for output in node.outputs() for port in output.get_target_inputs()}
    return bool(readers) and readers <= kept


def _durable(node: Any) -> list[Any]:
    """Return the operators that compute what `node` does and that keep a mark; it is replaced where it doesn't."""
    make = _FORMS.get(node.get_type_name())
    made = [] if make is None else make(node)
    if not made:
        return [node]
    made[-1].set_friendly_name(node.friendly_name)
    for port in node.output(0).get_target_inputs():
        port.replace_source_output(made[-1].output(0))
    return made


def _matmul(node: Any) -> list[Any]:
    """Exchange the sides of a product with constant weights, which would become FullyConnected."""
    from openvino import opset13 as ops

    x, weights = node.input_values()
    rank = x.get_partial_shape().rank
    if weights.get_node().get_type_name() != "Constant" or rank.is_dynamic or len(weights.get_shape()) != 2:
        return []
    flags = node.get_attributes()
    product = ops.matmul(weights, x, not flags["transpose_b"], not flags["transpose_a"])
    axes = list(range(rank.get_length()))
    axes[-2:] = axes[:-3:-1]
    return [product, ops.transpose(product, ops.constant(np.array(axes, np.int64)))]


def _convolution(node: Any) -> list[Any]:
    """Divide the weights in place of the pixels: OpenVINO does that too, and makes a convolution without mark."""
    from openvino import opset13 as ops

    divide, weights = (value.get_node() for value in node.input_values())
    if divide.get_type_name() == "Divide" and weights.get_type_name() == "Constant":
        by = divide.input_value(1).get_node()
        if by.get_type_name() == "Constant" and by.data.size == 1:
            node.set_argument(1, ops.constant(weights.data / by.data.reshape(-1)[0]).output(0))
            node.set_argument(0, divide.input_value(0))
    return []


def _reshape(node: Any) -> list[Any]:
    """Write Unsqueeze and Squeeze as Reshape, which stays; with several dynamic axes they are left alone."""
    from openvino import opset13 as ops

    shape = [axis.get_length() if axis.is_static else -1 for axis in node.get_output_partial_shape(0)]
    if shape.count(-1) > 1:
        return []
    return [ops.reshape(node.input_value(0), ops.constant(np.array(shape, np.int64)), False)]


def _slice(node: Any) -> list[Any]:
    """Gather the places of a slice: several Slices of one tensor would become VariadicSplit."""
    from openvino import opset13 as ops

    found = [_number(value.get_node()) for value in node.input_values()[1:]]
    numbers = [number for number in found if number is not None]
    if len(numbers) != 4:
        return []
    start, stop, step, axis = numbers
    size = node.get_input_partial_shape(0)[axis]
    if size.is_dynamic:
        return []
    places = np.arange(size.get_length())[start:stop:step].astype(np.int32)
    return [ops.gather(node.input_value(0), ops.constant(places), ops.constant(np.int32(axis)))]


def _number(node: Any) -> int | None:
    """Return the one number that a constant holds, or one that is spread over a shape; None for anything else."""
    if node.get_type_name() == "Broadcast":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.data.size != 1:
        return None
    return int(node.data.reshape(-1)[0])


_FORMS: dict[str, Callable[[Any], list[Any]]] = {
    "Convolution": _convolution,
    "MatMul": _matmul,
    "Unsqueeze": _reshape,
    "Squeeze": _reshape,
    "Slice": _slice,
}


@lru_cache(maxsize=1)
def _mark() -> Any:
    """Return OpenVINO's mark. Raises `MissingPackageError` where its version has another one."""
    import openvino

    carrier = openvino.Core().read_model(io.BytesIO(_CARRIER.encode()))
    for node in carrier.get_ordered_ops():
        if _has_mark(node):
            return dict(node.get_rt_info().items())[MARK]
    raise MissingPackageError(
        f"OpenVINO {openvino.__version__.partition('-')[0]} does not mark what stays in FP32 beside lower precisions "
        f"as OpenVINO 2026.4 does; install that version: {install_command('openvino', whole=True)}; or "
        'compute in FP32: `precision="fp32"`'
    )


def _has_mark(node: Any) -> bool:
    return MARK in list(node.get_rt_info().keys())
