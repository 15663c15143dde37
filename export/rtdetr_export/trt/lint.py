"""Checks of an ONNX graph against what TensorRT's parser documents, before anybody waits for a build.

Limits are those of the parser of TensorRT 10.15 to 11.1 (onnx-tensorrt, docs/operators.md) and of strongly typed
networks, plus known miscompilations and fusions that a graph misses. Bodies of If and Loop are not looked into. A
finding is an "error" when TensorRT refuses the graph or computes something else, a "warning" when it is known to go
wrong on some versions, or is slower than it could be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import require_file
from rtdetr_export.trt.fusions import MHA, RESIDUAL, split_attention, unfused_additions
from rtdetr_export.trt.linted_graph import LintedGraph, attribute, name_of

Severity = Literal["error", "warning"]

MAX_TOP_K = 3840
OPSETS = range(9, 25)
OPERATORS = "onnx-tensorrt docs/operators.md"
STRONG = "TensorRT documentation, strongly typed networks"

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_TYPES = _FLOATS | {
    TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL, TensorProto.INT4,
    TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.DOUBLE,
}  # fmt: skip
_UNSUPPORTED = frozenset({
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder",
    "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss",
    "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
    "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit",
    "TfIdfVectorizer", "Unique",
})  # fmt: skip
_RESIZE = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
}  # fmt: skip
_SAME_TYPE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "MatMul", "Gemm", "Conv", "Concat", "Where", "LayerNormalization",
    "Clip", "PRelu", "Sum", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "GridSample", "ScatterND",
    "QuantizeLinear",
})  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What is wrong with the node (or input, or constant) `where`, by which rule, and where the rule comes from."""

    rule: str
    severity: Severity
    where: str
    message: str
    source: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message} [{self.rule}; {self.source}]"


@dataclass(frozen=True)
class Rule:
    """`check` yields where and what; `source` is the document or thread that the limit comes from."""

    name: str
    severity: Severity
    source: str
    check: Callable[[LintedGraph], Iterator[tuple[str, str]]]


def lint_file(path: str | Path) -> list[Finding]:
    """Return what TensorRT would refuse or get wrong in an ONNX file. Raises `ArtifactError` when it isn't one."""
    return lint(load_model(Path(path)))


def load_model(path: Path) -> onnx.ModelProto:
    """Return the content of an ONNX file. Raises `ArtifactError` when it isn't a valid one."""
    require_file(path, ArtifactError)
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, onnx and the checker each have their own
        raise ArtifactError(f"{path} is not a valid ONNX model: {str(error).splitlines()[0]}") from error
    return model


def lint(model: onnx.ModelProto) -> list[Finding]:
    """Return the findings of every rule, in the order of the rules."""
    graph = LintedGraph(model)
    return [
        Finding(rule.name, rule.severity, where, message, rule.source)
        for rule in RULES
        for where, message in rule.check(graph)
    ]


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return one finding per rule and message: where several nodes have it, the first and how many more."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.message), []).append(finding)
    return [
        first if not others else replace(first, where=f"{first.where} and {len(others)} more")
        for first, *others in groups.values()
    ]


def _opset(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    if graph.opset not in OPSETS:
        yield "opset", f"{graph.opset}; the parser knows {OPSETS[0]} to {OPSETS[-1]}"


def _operators(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of(*_UNSUPPORTED):
        yield name_of(node), f"{node.op_type} is not supported"


def _domains(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield name_of(node), f"{node.domain}::{node.op_type} needs a plugin of that name on the machine that builds"


def _types(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for name, kind in graph.types.items():
        if kind not in _TYPES and kind != TensorProto.UNDEFINED:
            yield name, f"type {TensorProto.DataType.Name(kind)} is not supported"


def _bytes(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            continue  # see `_zero_points`
        inner = [name for name in node.output if graph.types.get(name) == TensorProto.UINT8 and name not in graph.ends]
        if inner:
            yield name_of(node), "UINT8 is for inputs and outputs of the network only; cast first"


def _finite(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for name, constant in graph.constants.items():
        if constant.data_type == TensorProto.FLOAT and TensorProto.FLOAT16 not in graph.types.values():
            continue  # infinite masks are harmless where everything is FP32
        is_float = constant.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        if is_float and not np.isfinite(numpy_helper.to_array(constant)).all():
            yield name, "constant with infinity or NaN, which FP16 kernels turn into NaN outputs"


def _one_float_type(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of(*_SAME_TYPE):
        kinds = {graph.types[name] for name in node.input if graph.types.get(name) in _FLOATS}
        if len(kinds) > 1:
            names = " and ".join(sorted(TensorProto.DataType.Name(kind) for kind in kinds))
            yield name_of(node), f"{node.op_type} of {names}; a strongly typed network inserts no cast"


def _dynamic_axes(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for value in graph.inputs:
        open_axes = [axis for axis, dim in enumerate(value.type.tensor_type.shape.dim) if not dim.HasField("dim_value")]
        if open_axes not in ([], [0]):
            yield value.name, f"axes {open_axes} are dynamic; the optimization profile made here covers the batch alone"


def _grid_mode(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("GridSample"):
        if graph.opset >= 20 and attribute(node, "mode", "linear") != "nearest":
            yield name_of(node), "from opset 20 on the mode has another name, and the parser samples nearest"


def _grid_shape(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("GridSample"):
        if len(graph.shapes.get(node.input[0], (None,) * 4)) != 4:
            yield name_of(node), f"GridSample of {len(graph.shapes[node.input[0]])} axes; 4 are supported"


def _half_or_single(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("GridSample", "NonMaxSuppression"):
        kind = graph.types.get(node.input[0], TensorProto.FLOAT)
        if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            yield name_of(node), f"{node.op_type} of {TensorProto.DataType.Name(kind)}; FP32 and FP16 are supported"


def _grid_at_all(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("GridSample"):
        yield (
            name_of(node),
            '10.14 and 11.1 computed deformable attention with GridSample wrongly; export with `sampler="gather"`',
        )


def _top_k(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("TopK"):
        count = graph.number(node.input[1]) if len(node.input) > 1 else np.asarray(attribute(node, "k", 0))
        if count is not None and count.max() > MAX_TOP_K:
            yield name_of(node), f"K is {int(count.max())}; at most {MAX_TOP_K} are supported"
        if attribute(node, "sorted", 1) != 1:
            yield name_of(node), "unsorted results are not supported"


def _norm_outputs(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("LayerNormalization"):
        if any(node.output[1:]):
            yield name_of(node), "only the first output Y is supported"


def _pool_indices(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("MaxPool"):
        if any(node.output[1:]):
            yield name_of(node), "the output Indices is not supported"


def _scatter(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("ScatterND"):
        if attribute(node, "reduction", "none") != "none":
            yield name_of(node), "reductions are not supported"


def _axes(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        reduces = node.op_type.startswith("Reduce") or node.op_type == "CumSum"
        if reduces and len(node.input) > 1 and node.input[1] and node.input[1] not in graph.constants:
            yield name_of(node), "axes must be a constant"


def _resize(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("Resize"):
        for name, known in _RESIZE.items():
            value = attribute(node, name, None)
            if value is not None and value not in known:
                yield name_of(node), f"{name} {value} is not supported"
        if attribute(node, "antialias", 0):
            yield name_of(node), "antialias is not supported"


def _zero_points(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        if len(node.input) > 2 and node.input[2]:
            zero = graph.number(node.input[2])
            if zero is not None and zero.dtype == np.uint8:
                yield name_of(node), 'unsigned INT8, which is for CPUs; export with `target="tensorrt"`'
            elif zero is None or zero.any():
                yield name_of(node), "the zero point must be 0"


def _per_channel(graph: LintedGraph) -> Iterator[tuple[str, str]]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.number(node.input[1])
        if scale is None:
            yield name_of(node), "the scale must be a constant"
        elif scale.size > 1:
            source = node.input[0]
            quantized = graph.made_by(source, "QuantizeLinear")
            if quantized is not None:
                source = quantized.input[0]
            if source not in graph.constants:
                yield name_of(node), "one scale per channel is for weights only"


RULES = (
    Rule("opset", "error", OPERATORS, _opset),
    Rule("operator", "error", OPERATORS, _operators),
    Rule("plugin", "warning", OPERATORS, _domains),
    Rule("type", "error", OPERATORS, _types),
    Rule("uint8", "error", OPERATORS, _bytes),
    Rule("finite", "error", "IEEE 754: infinity times zero is NaN", _finite),
    Rule("strong-typing", "error", STRONG, _one_float_type),
    Rule("dynamic-axes", "error", "TensorRT documentation, optimization profiles", _dynamic_axes),
    Rule("gridsample-mode", "error", "onnx-tensorrt pull 1060, TensorRT issue 4646", _grid_mode),
    Rule("gridsample-rank", "error", OPERATORS, _grid_shape),
    Rule("float-only", "error", OPERATORS, _half_or_single),
    Rule("gridsample", "warning", "TensorRT issue 4813, lightly-train pull 917", _grid_at_all),
    Rule("topk", "error", OPERATORS, _top_k),
    Rule("layernorm-outputs", "error", OPERATORS, _norm_outputs),
    Rule("maxpool-indices", "error", OPERATORS, _pool_indices),
    Rule("scatter-reduction", "error", OPERATORS, _scatter),
    Rule("constant-axes", "error", OPERATORS, _axes),
    Rule("resize", "error", OPERATORS, _resize),
    Rule("zero-point", "error", OPERATORS, _zero_points),
    Rule("per-channel", "error", OPERATORS, _per_channel),
    Rule("residual", "warning", RESIDUAL, unfused_additions),
    Rule("attention", "warning", MHA, split_attention),
)
