"""The same graph with FP16 everywhere: what lower precision could cost at best, whatever it would do to detections."""

from __future__ import annotations

from dataclasses import replace

from rtdetr_bench.roofline.graph import Graph, Operation, Tensor
from rtdetr_bench.roofline.model_parts import INPUT

_FLOATS = frozenset({"float32", "float64"})
HALF = frozenset({"float16", "bfloat16"})
FLOATS = _FLOATS | HALF


def in_fp16(graph: Graph) -> Graph:
    """Return `graph` with all floats in FP16; images that are given in FP32 are cast once."""
    given = {
        value.name: value
        for operation in graph.operations
        for value in operation.inputs
        if value.name in graph.inputs and value.kind in _FLOATS
    }
    casts = [
        Operation(f"{INPUT}{name}", "Cast", (value,), (_halved(replace(value, name=_given(name))),), {})
        for name, value in given.items()
    ]
    operations = [_convert(operation, set(given)) for operation in graph.operations]
    return replace(graph, operations=(*casts, *operations))


def is_cast_between_floats(operation: Operation) -> bool:
    """Return whether an operation changes nothing but the precision of floats."""
    kinds = {value.kind for value in (*operation.inputs, *operation.outputs)}
    return operation.operator == "Cast" and kinds <= FLOATS


def _convert(operation: Operation, given: set[str]) -> Operation:
    inputs = (replace(value, name=_given(value.name)) if value.name in given else value for value in operation.inputs)
    return replace(
        operation,
        operator="Identity" if is_cast_between_floats(operation) else operation.operator,
        inputs=tuple(map(_halved, inputs)),
        outputs=tuple(map(_halved, operation.outputs)),
    )


def _halved(value: Tensor) -> Tensor:
    return replace(value, kind="float16") if value.kind in _FLOATS else value


def _given(name: str) -> str:
    """Return a name for an input's FP16 copy that no exporter gives."""
    return f"{name} in FP16"
