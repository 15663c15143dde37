"""What an `.onnx` file says in its graph and metadata, read from its bytes where no runtime can tell.

Runtimes give inputs and outputs of a file that they have opened; how to open it, and how many classes its labels stand
for, lie in the graph, and OpenVINO gives no metadata of ONNX files. This reads the few protocol buffer fields that hold
them (wire format: protobuf.dev, "Encoding"; field numbers: onnx.proto) and skips the weights, so that the runtimes need
no further package.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import reason

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _METADATA = 7, 14
_NODE, _INITIALIZER = 1, 5
_FLOAT16 = 10
"""TensorProto.DataType."""
_BYTES = {6: 4, 7: 8}
"""Size of one INT32 or INT64, by TensorProto.DataType."""
_SAME_NUMBER = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"})


@dataclass(frozen=True)
class Node:
    """An operator with the names of what it reads and makes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """Nodes by the values that they make; data types of constants by name, and values of those that are one integer.

    `metadata` are the text entries that are stored with the model.
    """

    makers: dict[str, Node] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    integers: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def dequantizes(self) -> bool:
        """Tell whether something is computed in INT8: values are quantized and restored."""
        return any(node.operator == "DequantizeLinear" for node in self.makers.values())

    def dequantizes_to_half(self) -> bool:
        """Tell whether INT8 values are restored to FP16 somewhere: a scale has the type of what it restores."""
        scales = (node.inputs[1:2] for node in self.makers.values() if node.operator == "DequantizeLinear")
        return any(self.types.get(name) == _FLOAT16 for names in scales for name in names)

    def count_classes(self, labels: str) -> int | None:
        """Return K where the output `labels` is the index of a query-class pair modulo K; None for other labels.

        Both forms that exporters write are known: Mod(pair, K), and pair - pair / K * K.
        """
        node = self._maker(labels)
        if node is not None and node.operator == "Sub" and len(node.inputs) > 1:
            node = self._maker(node.inputs[1])
        if node is None or node.operator not in ("Mod", "Mul"):
            return None
        return next((self.integers[name] for name in node.inputs if name in self.integers), None)

    def _maker(self, name: str) -> Node | None:
        """Return the node that computes the value `name`, looking through those that don't change it."""
        node = self.makers.get(name)
        seen = 0
        while node is not None and node.operator in _SAME_NUMBER and node.inputs and seen < len(self.makers):
            seen += 1  # a damaged file may hold a circle
            node = self.makers.get(node.inputs[0])
        return node


def read_graph(model: Path | bytes) -> Graph:
    """Return what is known of an ONNX file, or of the content of one.

    Raises `ArtifactError` when its content is damaged.
    """
    graph = Graph()
    name = model.name if isinstance(model, Path) else "the ONNX model"
    try:
        with model.open("rb") if isinstance(model, Path) else io.BytesIO(model) as file:
            end = file.seek(0, io.SEEK_END)
            file.seek(0)
            for number, _, size in _fields(file, end):
                if number == _GRAPH:
                    _read_graph(file, file.tell() + size, graph)
                elif number == _METADATA:
                    _read_entry(file, file.tell() + size, graph)
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{name} is not a loadable ONNX model: its content is damaged") from error
    except OSError as error:
        raise ArtifactError(f"can't read {model!s}: {reason(error)}") from error
    return graph


def _read_entry(file: BinaryIO, end: int, graph: Graph) -> None:
    """Read a key and its value."""
    entry = {number: _text(file, size) for number, kind, size in _fields(file, end) if kind == _LENGTH}
    graph.metadata[entry.get(1, "")] = entry.get(2, "")


def _read_graph(file: BinaryIO, end: int, graph: Graph) -> None:
    for number, _, size in _fields(file, end):
        if number == _NODE:
            _read_node(file, file.tell() + size, graph)
        elif number == _INITIALIZER:
            _read_tensor(file, file.tell() + size, graph)


def _read_node(file: BinaryIO, end: int, graph: Graph) -> None:
    inputs: list[str] = []
    outputs: list[str] = []
    operator = ""
    for number, kind, size in _fields(file, end):
        if number in (1, 2) and kind == _LENGTH:
            (inputs if number == 1 else outputs).append(_text(file, size))
        elif number == 4:
            operator = _text(file, size)
        elif number == 5 and operator in ("", "Constant"):
            _read_attribute(file, file.tell() + size, graph, outputs)
    node = Node(operator, tuple(inputs), tuple(outputs))
    graph.makers.update(dict.fromkeys(outputs, node))


def _read_attribute(file: BinaryIO, end: int, graph: Graph, outputs: list[str]) -> None:
    """Read the tensor of a Constant, which has the name of the node's output."""
    for number, kind, size in _fields(file, end):
        if number == 5 and kind == _LENGTH and outputs:
            _read_tensor(file, file.tell() + size, graph, outputs[0])


def _read_tensor(file: BinaryIO, end: int, graph: Graph, name: str = "") -> None:
    data_type, stored = 0, None
    for number, kind, size in _fields(file, end):
        if number == 2:
            data_type = size
        elif number == 8 and not name:
            name = _text(file, size)
        elif number == 9:
            stored = file.read(size) if size == _BYTES.get(data_type) else None  # raw_data
        elif number in (5, 7) and kind == _LENGTH:  # int32_data, int64_data; packed
            after = file.tell() + size
            integer = _varint(file)
            stored = integer.to_bytes(8, "little") if file.tell() == after else None
    graph.types[name] = data_type
    if stored is not None and data_type in _BYTES:
        graph.integers[name] = int.from_bytes(stored, "little", signed=True)


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, kind and value of the fields up to `end`; where there is content, its size, `file` being there."""
    while file.tell() < end:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            yield number, kind, _varint(file)
            continue
        if kind not in (_LENGTH, _FIXED64, _FIXED32):
            raise ValueError(f"wire type {kind}")
        size = _varint(file) if kind == _LENGTH else 8 if kind == _FIXED64 else 4
        start = file.tell()
        if start + size > end:
            raise ValueError("a field is longer than what holds it")
        yield number, kind, size
        file.seek(start + size)


def _varint(file: BinaryIO) -> int:
    value, shift = 0, 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _text(file: BinaryIO, size: int) -> str:
    return file.read(size).decode("utf-8")
