"""The same graph in FP16: what lower precision could cost at best, whatever it would do to detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from rtdetr_bench.roofline.graph import Graph, Operation, Tensor
from rtdetr_bench.roofline.model_parts import CAST, INPUT, POSTPROCESSING, part_of_operation

_FLOATS = frozenset({"float32", "float64"})
HALF = frozenset({"float16", "bfloat16"})
FLOATS = _FLOATS | HALF


def in_fp16(graph: Graph, kept: Callable[[Operation], bool] = lambda _: False) -> Graph:
    """Return `graph` with all floats in FP16, except those of the operations that are `kept` as they are.

    Casts between floats are left out, and placed anew where a kept operation's floats or FP32 images need them.
    """
    return replace(graph, operations=tuple(_Conversion(graph, kept).operations()))


def is_postprocessing(operation: Operation) -> bool:
    """Return whether names tell that an operation selects among detections, which stays in FP32 in every placement."""
    return part_of_operation(operation) == POSTPROCESSING


def is_cast_between_floats(operation: Operation) -> bool:
    """Return whether an operation changes nothing but the precision of floats."""
    kinds = {value.kind for value in (*operation.inputs, *operation.outputs)}
    return operation.operator == "Cast" and kinds <= FLOATS


class _Conversion:
    """Operations in order, with the type that each value has by then."""

    def __init__(self, graph: Graph, kept: Callable[[Operation], bool]) -> None:
        self._graph = graph
        self._kept = kept
        readers = (value for operation in graph.operations for value in operation.inputs)
        self._computed = {value.name: value for value in readers if value.name in graph.inputs}
        """By name: values as they are given or computed now; constants are in any precision."""
        self._casts: dict[tuple[str, str], Tensor] = {}
        """By name and type: values that were cast for a reader."""

    def operations(self) -> Iterator[Operation]:
        """Yield the operations, and before them the Casts that they need."""
        for operation in self._graph.operations:
            stays = self._kept(operation)
            inputs = []
            for value in operation.inputs:
                wanted = value if stays else _halved(value)
                yield from self._cast(wanted)
                inputs.append(self._casts.get((value.name, wanted.kind), wanted))
            outputs = operation.outputs if stays else tuple(map(_halved, operation.outputs))
            self._computed |= {value.name: value for value in outputs}
            freed = not stays and is_cast_between_floats(operation)
            yield replace(
                operation,
                operator="Identity" if freed else operation.operator,
                inputs=tuple(inputs),
                outputs=outputs,
            )

    def _cast(self, wanted: Tensor) -> Iterator[Operation]:
        """Yield the Cast that makes a float what is `wanted`, where it is something else and was not cast before."""
        now, key = self._computed.get(wanted.name, wanted), (wanted.name, wanted.kind)
        if now.kind == wanted.kind or key in self._casts or not {now.kind, wanted.kind} <= FLOATS:
            return
        self._casts[key] = replace(wanted, name=f"{wanted.name} in {wanted.kind}")  # no exporter gives such a name
        prefix = INPUT if wanted.name in self._graph.inputs else CAST
        yield Operation(f"{prefix}{wanted.name}", "Cast", (now,), (self._casts[key],), {})


def _halved(value: Tensor) -> Tensor:
    return replace(value, kind="float16") if value.kind in _FLOATS else value
