"""Forms that TensorRT computes in one kernel, and what in a graph keeps it from doing so.

Convolution + addition + ReLU in INT8: the addition's other input is quantized, the convolution's own output is not.
Attention: product, softmax, product of FP16 or BF16 values, with nothing but the scale and a mask between them.
TensorRT decides by measuring, so the form is necessary and not sufficient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto

from rtdetr_export.trt.linted_graph import LintedGraph, name_of

RESIDUAL = "TensorRT documentation, explicit quantization, Q/DQ placement: quantize the residual input"
MHA = "TensorRT documentation, fused attention; TensorRT issue 2981"

_BETWEEN = frozenset({"Add", "Mul", "Div"})
"""What may stand between the first product and the softmax: a mask, a scale."""
_PASSED = _BETWEEN | {
    "Cast", "Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear", "Sub",
    "Where", "Clip",
}  # fmt: skip
"""What is looked through for the products around a softmax."""
_FUSED_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

Neighbours = Callable[[onnx.NodeProto], list[onnx.NodeProto]]


def int8_convolution(graph: LintedGraph, name: str) -> onnx.NodeProto | None:
    """Return the INT8 convolution that makes the value, None where nothing of the kind does."""
    node = graph.made_by(name, "Conv")
    read = () if node is None else node.input[:2]
    return node if read and all(graph.made_by(value, "DequantizeLinear") is not None for value in read) else None


def find_additions(graph: LintedGraph) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield each addition right behind an INT8 convolution, and whether its other input is quantized."""
    for node in graph.of("Add"):
        if any(graph.is_constant(name) for name in node.input):
            continue
        behind = [index for index in (0, 1) if int8_convolution(graph, node.input[index]) is not None]
        if behind:
            yield node, any(graph.made_by(node.input[1 - index], "DequantizeLinear") is not None for index in behind)


def unfused_additions(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    """Yield additions that an INT8 convolution before them can't take in."""
    for node, fits in find_additions(graph):
        if not fits:
            yield name_of(node), "its residual is not quantized: conv + add + ReLU won't fuse into one INT8 kernel"


def split_attention(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    """Yield the softmax of each attention that is not in the form that TensorRT fuses.

    Graphs without FP16 and BF16 have none: the fused kernel doesn't compute in FP32.
    """
    if not _FUSED_TYPES & set(graph.types.values()):
        return
    for node in graph.of("Softmax"):
        before, first = _walk(node, graph.computed_before)
        behind, second = _walk(node, graph.computed_from)
        if first is None or second is None or not (_is_product(graph, first) and _is_product(graph, second)):
            continue
        reasons = [
            *(f"{operator} between its first product and Softmax" for operator in before if operator not in _BETWEEN),
            *(f"{operator} between Softmax and its second product" for operator in behind),
            *(reason for product in (first, second) for reason in _unfit_inputs(graph, product)),
        ]
        if reasons:
            yield name_of(node), f"attention won't fuse into one kernel: {', '.join(dict.fromkeys(reasons))}"


def _walk(node: onnx.NodeProto, neighbours: Neighbours) -> tuple[list[str], onnx.NodeProto | None]:
    """Return the operators between `node` and the nearest MatMul in one direction, and that MatMul, None without.

    All ways are followed: an addition's first input may be a mask that was computed, and the scores its second.
    """
    ways: deque[tuple[onnx.NodeProto, list[str]]] = deque([(node, [])])
    seen: set[str] = set()
    while ways:
        current, passed = ways.popleft()
        around = neighbours(current)
        product = next((other for other in around if other.op_type == "MatMul"), None)
        if product is not None:
            return passed, product
        for other in around:
            if other.op_type in _PASSED and other.output[0] not in seen:
                seen.add(other.output[0])
                ways.append((other, [*passed, other.op_type]))
    return [], None


def _is_product(graph: LintedGraph, node: onnx.NodeProto) -> bool:
    """Whether both factors are computed: the products of attention, not a linear layer."""
    return not any(graph.is_constant(name) for name in node.input)


def _unfit_inputs(graph: LintedGraph, product: onnx.NodeProto) -> Iterator[str]:
    kinds = {graph.types.get(name, TensorProto.UNDEFINED) for name in product.input} - {TensorProto.UNDEFINED}
    if kinds - _FUSED_TYPES:
        names = " and ".join(sorted(TensorProto.DataType.Name(kind) for kind in kinds))
        yield f"{name_of(product)} multiplies {names}, FP16 or BF16 is needed"
