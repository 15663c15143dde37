"""Which values of a graph are quantized, so that CPUs run it in integers from one convolution to the next.

ONNX Runtime makes a convolution with its ReLU one integer kernel (QLinearConv) where its input, weights, bias and
*output* are quantized, and so additions, concatenations, poolings and SiLUs between them. A convolution whose output
is not quantized runs in float behind DequantizeLinear, which is slower than no INT8 at all. OpenVINO needs the inputs
alone; quantized outputs cost it nothing.

    conv -> relu -> Q                 one kernel: with an unsigned range that begins at 0, Q does what the ReLU did
    conv -> Q -> sigmoid -> Q -> mul -> Q      a table and a product (integer kernels take no SiLU in)
    add, concat, pool, resize         in integers where all they read is quantized and a quantized node reads them
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

JOINING = frozenset({"Add", "Concat", "AveragePool"})
"""Operators between quantized maps that are computed in integers, with a range of their own behind them."""
MOVING = frozenset({"MaxPool", "Resize"})
"""Those that only move values: what they give has the range of what they take."""
SILU = "silu"
"""Kind of a value that a SiLU reads."""
SIGMOID = "sigmoid"
"""Kind of the sigmoid inside a SiLU: its range is 0 to 1."""


class QuantizedValues:
    """The values that get a Q/DQ pair when the nodes called `chosen` go to INT8.

    `kinds` has them in the order of the graph, each with its kind: `SILU`, `SIGMOID`, the name of the value whose range
    it shares, or None. `from_integers` are those that a kernel writes as integers: whoever reads them reads the
    restored value, as the float one is never written.
    """

    def __init__(self, graph: ir.Graph, chosen: Collection[str]) -> None:
        self._chosen = chosen
        self.kinds: dict[str, str | None] = {}
        self.from_integers: set[str] = set()
        self._possible: set[str] = set()
        nodes = list(graph)
        for node in nodes:
            self._find_possible(node)
        self._needed: set[str] = set()
        for node in reversed(nodes):
            self._find_needed(node)
        for value in (*graph.inputs, *(node.outputs[0] for node in nodes)):
            if str(value.name) in self._needed:
                self.kinds[str(value.name)] = self._kind(value)

    def _is_chosen(self, node: ir.Node) -> bool:
        return node.name in self._chosen

    def _find_possible(self, node: ir.Node) -> None:
        """Note what `node` gives if it could be computed in integers, given what it reads."""
        if (node.op_type == "Conv" and self._is_chosen(node)) or (
            _is_between(node) and all(self._readable(value) for value in _maps(node))
        ):
            value = behind_relu(node)
            if not value.is_graph_output():
                self._possible.add(str(value.name))

    def _readable(self, value: ir.Value) -> bool:
        """Whether `value` is possible, or quantized for a chosen node that reads it."""
        return value.name in self._possible or any(self._is_chosen(use.node) and use.idx == 0 for use in value.uses())

    def _find_needed(self, node: ir.Node) -> None:
        """Note what `node` has to read and give as integers, given what is read of it."""
        given = str(behind_relu(node).name)
        if self._is_chosen(node):
            self._needed.add(str(_input(node).name))
            if node.op_type == "Conv" and given in self._possible:
                self._needed.add(given)
                self.from_integers.add(given)
        elif _is_between(node) and given in self._possible and given in self._needed:
            self.from_integers.add(given)
            self._needed |= {str(value.name) for value in _maps(node)}
            if is_silu(node):
                sigmoid = str(sigmoid_of(node).name)
                self._needed.add(sigmoid)
                self.from_integers.add(sigmoid)

    def _kind(self, value: ir.Value) -> str | None:
        producer = value.producer()
        if producer is not None and producer.op_type in MOVING and value.name in self.from_integers:
            return str(_input(producer).name)
        if producer is not None and producer.op_type == "Sigmoid":
            return SIGMOID
        readers = list(value.consumers())
        feeds = readers and all(reader.op_type in ("Sigmoid", "Mul") for reader in readers)
        return SILU if feeds and any(is_silu(reader) for reader in readers) else None


def _is_between(node: ir.Node) -> bool:
    """Whether `node` is of a kind that has an integer kernel between quantized maps."""
    return node.op_type in JOINING | MOVING or is_silu(node)


def behind_relu(node: ir.Node) -> ir.Value:
    """Return what a ReLU makes of the output of `node` where nothing else reads that, else the output itself."""
    value = node.outputs[0]
    readers = list(value.uses())
    if len(readers) == 1 and readers[0].node.op_type == "Relu" and not value.is_graph_output():
        return readers[0].node.outputs[0]
    return value


def is_silu(node: ir.Node) -> bool:
    """Whether `node` is the product of a value with its own sigmoid."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return False
    return any(_is_sigmoid_of(node.inputs[i], node.inputs[1 - i]) for i in range(2))


def sigmoid_of(silu: ir.Node) -> ir.Value:
    """Return the sigmoid that a SiLU multiplies with."""
    one, other = silu.inputs
    value = one if _is_sigmoid_of(one, other) else other
    assert value is not None
    return value


def _is_sigmoid_of(value: ir.Value | None, source: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "Sigmoid" and producer.inputs[0] is source


def _maps(node: ir.Node) -> list[ir.Value]:
    """Return what `node` computes with: all inputs of additions and concatenations, else the first map."""
    if is_silu(node):
        return [value for value in node.inputs if value is not None and value is not sigmoid_of(node)]
    if node.op_type in ("Add", "Concat"):
        return [value for value in node.inputs if value is not None]
    return [_input(node)]


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
