"""What a file of reduced precision is made of: nodes by precision, Casts and what they move, additions that fuse."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from rtdetr_export.trt.fusions import find_additions, int8_convolution
from rtdetr_export.trt.linted_graph import LintedGraph

_BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}
_NOT_COUNTED = frozenset({"Cast", "Constant", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class GraphCounts:
    """Counts over the nodes of an ONNX graph.

    `fp32`, `fp16`: nodes that give a float of that type, without Casts, constants and Q/DQ. `int8`: convolutions and
    matrix products whose inputs are both dequantized. `casts`: Casts from a float type to another one, which read and
    write `cast_megabytes` (MB, for a batch of 1 where the batch is open). `fused_additions`, `additions`: those right
    behind an INT8 convolution that its kernel can take in, and all of them.
    """

    fp32: int
    fp16: int
    int8: int
    casts: int
    cast_megabytes: float
    fused_additions: int
    additions: int

    def to_json(self) -> dict[str, float]:
        """Return the counts as plain numbers."""
        return {**asdict(self), "cast_megabytes": round(self.cast_megabytes, 2)}


def count_graph(path: Path) -> GraphCounts:
    """Return the counts of an ONNX file."""
    graph = LintedGraph(onnx.load(str(path)))
    kinds = [
        {graph.types.get(name) for name in node.output} for node in graph.nodes if node.op_type not in _NOT_COUNTED
    ]
    casts = [
        node
        for node in graph.of("Cast")
        if {graph.types.get(node.input[0]), graph.types.get(node.output[0])} <= {*_BYTES}
    ]
    additions = [fits for _, fits in find_additions(graph)]
    return GraphCounts(
        fp32=sum(TensorProto.FLOAT in found for found in kinds),
        fp16=sum(TensorProto.FLOAT16 in found for found in kinds),
        int8=sum(_is_int8(graph, node) for node in graph.nodes),
        casts=len(casts),
        cast_megabytes=sum(_bytes(graph, name) for node in casts for name in (node.input[0], node.output[0])) / 1e6,
        fused_additions=sum(additions),
        additions=len(additions),
    )


def _is_int8(graph: LintedGraph, node: onnx.NodeProto) -> bool:
    if node.op_type == "Conv":
        return int8_convolution(graph, node.output[0]) is not None
    dequantized = [graph.made_by(name, "DequantizeLinear") is not None for name in node.input[:2]]
    return node.op_type in ("MatMul", "Gemm") and all(dequantized)


def _bytes(graph: LintedGraph, name: str) -> int:
    count = 1
    for size in graph.shapes.get(name, (0,)):
        count *= 1 if size is None else size
    return count * _BYTES[graph.types[name]]
