"""Which operations run as one kernel, by plain rules of what TensorRT fuses.

Views      Reshape, Squeeze, Unsqueeze, Flatten, Identity, Slice, Split and Expand cost nothing: their reader reads the
           part that it needs. So does a Transpose that matrix products alone read, and DequantizeLinear, whose
           reader reads the INT8 numbers.
Chains     element-wise operations, Casts, Transposes and gathers by constant indices run as one kernel, together with
           reductions over a row (Softmax, LayerNormalization and what it is written out as, Reduce...) and behind a
           gather. A chain that one other chain alone reads is computed inside of that.
Epilogues  element-wise operations of the same size and type run at the end of the convolution or matrix product that
           they follow: bias, activation, residual addition, QuantizeLinear. A Cast or a Transpose does not: it starts a
           chain, which reads what the product wrote.
Attention  matrix product, softmax, matrix product run as one kernel without writing the scores, unless a Cast stands
           between them.
Concat     is free where its inputs are computed: they are written in place. Nothing fuses across it.
All else   (pooling, Resize, TopK, gathers) is a kernel of its own that reads its inputs and writes its outputs once.

What a kernel reads counts once, weights included; what it writes counts where another kernel or the caller reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rtdetr_bench.roofline.graph import Graph, Operation, Tensor, item_bytes
from rtdetr_bench.roofline.work import MATRIX, SCATTERED, bytes_read, flops_of, unit_of

VIEWS = frozenset({
    "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Expand", "Dropout", "DequantizeLinear",
})  # fmt: skip
EPILOGUE = frozenset({
    "Add", "Sub", "Mul", "Div", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSigmoid",
    "HardSwish", "Mish", "QuantizeLinear",
})  # fmt: skip
ELEMENTWISE = EPILOGUE | {
    "Abs", "And", "Cast", "Ceil", "Cos", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mod", "Neg", "Not", "Or", "Pow", "Reciprocal", "Round", "Sign", "Sin", "Softplus", "Sqrt",
    "Tile", "Transpose", "Where",
}  # fmt: skip
ROWS = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})

Form = Literal["matrix", "chain", "rows", "scattered", "whole"]


@dataclass(frozen=True)
class Kernel:
    """Operations that run together; the first is what the others were fused to.

    `flops` by the rate of `Gpu` that they run at; bytes `read` and `written`.
    """

    operations: tuple[Operation, ...]
    flops: Mapping[str, float]
    read: int
    written: int


@dataclass
class _Group:
    """A kernel while it grows; `domain` is the number of elements that it works through."""

    form: Form
    domain: int
    operations: list[Operation] = field(default_factory=list)


def fuse(graph: Graph) -> tuple[Kernel, ...]:
    """Return the kernels of `graph`, in an order in which they can run."""
    return tuple(_Fusion(graph).kernels())


class _Fusion:
    """Operations are taken in order, so that the kernel that computes an input is known."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._readers: dict[str, list[Operation]] = defaultdict(list)
        for operation in graph.operations:
            for value in operation.inputs:
                self._readers[value.name].append(operation)
        self._groups: list[_Group] = []
        self._home: dict[str, int] = {}
        """By name of a value: the group that computes it."""
        self._base: dict[str, Tensor] = {}
        """By name of a view: the value that it shows a part of."""
        for operation in graph.operations:
            self._place(operation)
        self._merge_chains()
        self._merge_attention()

    def _place(self, operation: Operation) -> None:
        if self._is_view(operation):
            for value in operation.outputs:
                self._base[value.name] = self._storage(operation.data[0])
            return
        if operation.operator == "Concat" and all(self._storage(value).name in self._home for value in operation.data):
            return
        latest = self._latest(operation)
        if latest is None or not _joins(operation, self._groups[latest]):
            latest = len(self._groups)
            self._groups.append(_Group(_form(operation), 0))
        group = self._groups[latest]
        group.operations.append(operation)
        sizes = (value.size for value in (*operation.outputs, *(operation.data if operation.operator in ROWS else ())))
        group.domain = max(group.domain, *sizes)
        if operation.operator in ROWS:
            group.form = "rows"
        self._home |= {value.name: latest for value in operation.outputs}

    def _is_view(self, operation: Operation) -> bool:
        if operation.operator != "Transpose":
            return operation.operator in VIEWS
        return all(reader.operator in ("MatMul", "Gemm") for reader in self._final_readers(operation.outputs[0]))

    def _final_readers(self, value: Tensor) -> Iterator[Operation]:
        """Yield what reads a value, views of it included."""
        for reader in self._readers[value.name]:
            if reader.operator in VIEWS:
                for output in reader.outputs:
                    yield from self._final_readers(output)
            else:
                yield reader

    def _storage(self, value: Tensor) -> Tensor:
        return self._base.get(value.name, value)

    def _latest(self, operation: Operation) -> int | None:
        """Return the last group that computes an input: to join an earlier one could close a circle."""
        homes = [self._home.get(self._storage(value).name) for value in operation.data]
        return max((home for home in homes if home is not None), default=None)

    def _readers_of(self, group: _Group) -> set[int | None]:
        """Return the groups that read what `group` computes; None stands for a Concat, or the caller."""
        found: set[int | None] = set()
        for operation in group.operations:
            for value in operation.outputs:
                if value.name in self._graph.outputs:
                    found.add(None)
                found |= {self._home.get(reader.outputs[0].name) for reader in self._final_readers_and_outputs(value)}
        return found

    def _final_readers_and_outputs(self, value: Tensor) -> Iterator[Operation]:
        for reader in self._readers[value.name]:
            if reader.outputs[0].name in self._base:
                for output in reader.outputs:
                    yield from self._final_readers_and_outputs(output)
                    if output.name in self._graph.outputs:
                        yield reader
            else:
                yield reader

    def _merge_chains(self) -> None:
        for index, group in enumerate(self._groups):
            if group.form not in ("chain", "scattered"):
                continue
            others = self._readers_of(group) - {index}
            if len(others) == 1 and (target := others.pop()) is not None:
                self._merge(index, target, ("chain", "rows"))

    def _merge(self, index: int, target: int, forms: Sequence[Form]) -> None:
        group, into = self._groups[index], self._groups[target]
        if into.form in forms:
            into.operations[:0] = group.operations
            into.domain = max(into.domain, group.domain)
            self._home |= {value.name: target for operation in group.operations for value in operation.outputs}
            group.operations = []

    def _merge_attention(self) -> None:
        for index, group in enumerate(self._groups):
            names = [operation.operator for operation in group.operations]
            if "Softmax" not in names or "Cast" in names:
                continue
            before = {self._home.get(self._storage(value).name) for item in group.operations for value in item.data}
            before = {home for home in before - {index, None} if self._groups[home or 0].operations}
            after = self._readers_of(group) - {index}
            if len(before) != 1 or len(after) != 1 or None in after:
                continue
            (first,), (last,) = before, after
            if first is None or last is None or self._readers_of(self._groups[first]) - {first} != {index}:
                continue
            if self._is_product(first) and self._is_product(last):
                self._merge(index, first, ("matrix",))
                self._merge(first, last, ("matrix",))

    def _is_product(self, index: int) -> bool:
        operations = self._groups[index].operations
        return any(item.operator == "MatMul" and not item.inputs[1].constant for item in operations)

    def kernels(self) -> Iterator[Kernel]:
        """Yield the groups with what they do."""
        storage = {name: value.kind for name, value in self._base.items()}
        for index, group in enumerate(self._groups):
            if group.operations:
                flops: dict[str, float] = defaultdict(float)
                for operation in group.operations:
                    if count := flops_of(operation):
                        flops[unit_of(operation, storage)] += count
                read, written = self._read(index, group), self._written(index, group)
                yield Kernel(tuple(group.operations), dict(flops), read, written)

    def _read(self, index: int, group: _Group) -> int:
        parts: dict[str, dict[str, int]] = defaultdict(dict)
        limits: dict[str, int] = {}
        for operation in group.operations:
            for value in operation.inputs:
                stored = self._storage(value)
                if self._home.get(stored.name) == index:
                    continue
                count = bytes_read(operation, value, stored.kind)
                scattered = operation.operator in SCATTERED and value is operation.inputs[0]
                limits[stored.name] = max(limits.get(stored.name, 0), count if scattered else stored.bytes)
                key = value.name if stored.bytes > value.size * item_bytes(stored.kind) else ""
                parts[stored.name][key] = max(parts[stored.name].get(key, 0), count)
        return sum(min(limits[name], sum(views.values())) for name, views in parts.items())

    def _written(self, index: int, group: _Group) -> int:
        total = 0
        for operation in group.operations:
            for value in operation.outputs:
                readers = {self._home.get(item.outputs[0].name) for item in self._final_readers_and_outputs(value)}
                if value.name in self._graph.outputs or readers - {index}:
                    total += value.bytes
        return total


def _form(operation: Operation) -> Form:
    if operation.operator in MATRIX:
        return "matrix"
    if operation.operator in ROWS:
        return "rows"
    if operation.operator in SCATTERED and "index" not in operation.attributes:
        return "scattered"
    return "chain" if _is_elementwise(operation) else "whole"


def _is_elementwise(operation: Operation) -> bool:
    return operation.operator in ELEMENTWISE or "index" in operation.attributes


def _joins(operation: Operation, group: _Group) -> bool:
    """Return whether `operation` can run at the end of `group`, which computes one of its inputs."""
    size = max(value.size for value in operation.outputs)
    if operation.operator in ROWS:
        return group.form in ("chain", "rows", "scattered") and operation.data[0].size <= group.domain
    if not _is_elementwise(operation) or group.form == "whole":
        return False
    if group.form == "matrix":
        last = group.operations[-1].outputs[0]
        same = operation.outputs[0].kind == last.kind or operation.operator == "QuantizeLinear"
        return operation.operator in EPILOGUE and size == group.domain and same
    return size <= group.domain or group.form == "chain"
