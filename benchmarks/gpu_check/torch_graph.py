"""Runs an ONNX file of ours with torch, node by node, each in the type that the file gives it.

ONNX Runtime's CPU kernels emulate FP16 by FP32; a GPU's tensor cores multiply FP16 and add in FP32, as TensorRT's
layers do. So this shows what a placement of precisions does there, without TensorRT. It is slow, and no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_deploy.runtimes.protocol import Array, Feed

Attributes = Mapping[str, Any]
TYPES = {1: torch.float32, 2: torch.uint8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16}


@dataclass(frozen=True)
class Operand:
    """An input of a node: its tensor, and its numbers on the host where the file has them as a constant."""

    tensor: Tensor
    constant: Array | None = None

    def numbers(self) -> list[Any]:
        """Return the numbers of a small tensor: a shape, axes, a count."""
        values = self.constant if self.constant is not None else self.tensor.cpu().numpy()
        return list(np.atleast_1d(values).tolist())


Inputs = Sequence[Operand | None]
Operator = Callable[[Inputs, Attributes], Any]


class TorchGraph:
    """An ONNX file as a runtime for the Predictor, computed on `device`."""

    def __init__(self, path: Path, device: str | torch.device) -> None:
        with_types = open_runtime(path)
        self.inputs, self.outputs = with_types.inputs, with_types.outputs
        self.info, self.metadata = with_types.info, with_types.metadata
        self.min_batch, self.max_batch = with_types.min_batch, with_types.max_batch
        with_types.close()
        self.file, self.name = path.name, f"torch {torch.__version__} ({device})"
        graph = onnx.load(str(path)).graph
        self._device = torch.device(device)
        self._constants = {one.name: self._operand(numpy_helper.to_array(one)) for one in graph.initializer}
        self._nodes = list(graph.node)
        unknown = sorted({node.op_type for node in self._nodes} - OPERATORS.keys())
        if unknown:
            raise ArtifactError(f"{path.name} has operators that are not known here: {', '.join(unknown)}")
        self._attributes = [
            {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            for node in self._nodes
        ]
        self._last = {name: index for index, node in enumerate(self._nodes) for name in node.input}

    def _operand(self, array: Array) -> Operand:
        return Operand(torch.from_numpy(np.array(array)).to(self._device), array)

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`."""
        values = dict(self._constants)
        values |= {name: Operand(torch.from_numpy(np.asarray(array)).to(self._device)) for name, array in feed.items()}
        wanted = [spec.name for spec in self.outputs]
        with torch.no_grad():
            for index, (node, attributes) in enumerate(zip(self._nodes, self._attributes, strict=True)):
                inputs = [values[name] if name else None for name in node.input]
                results = OPERATORS[node.op_type](inputs, {**attributes, "outputs": len(node.output)})
                many = results if isinstance(results, (tuple, list)) else (results,)
                values |= {name: Operand(one) for name, one in zip(node.output, many, strict=False) if name}
                for name in node.input:
                    if self._last.get(name) == index and name not in wanted:
                        values.pop(name, None)
        return {name: values[name].tensor.cpu().numpy() for name in wanted}

    def close(self) -> None:
        """See `Runtime.close`."""
        self._constants.clear()


def _tensor(operand: Operand | None) -> Tensor:
    assert operand is not None
    return operand.tensor


def _numbers(operand: Operand | None) -> list[Any]:
    assert operand is not None
    return operand.numbers()


def _plain(function: Callable[..., Any]) -> Operator:
    """Return the operator of a function of tensors alone."""
    return lambda inputs, _: function(*(_tensor(one) for one in inputs))


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight = _tensor(inputs[0]), _tensor(inputs[1])
    bias = _tensor(inputs[2]) if len(inputs) > 2 else None
    x, padding = _pad(x, attributes, 0.0)
    how = (attributes.get("strides", [1, 1]), padding, attributes.get("dilations", [1, 1]), attributes.get("group", 1))
    return functional.conv2d(x, weight, bias, *how)


def _pad(x: Tensor, attributes: Attributes, value: float) -> tuple[Tensor, list[int]]:
    """Return what is left for torch to pad: the same on both sides; other paddings are done here."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) == (bottom, right):
        return x, [top, left]
    return functional.pad(x, (left, right, top, bottom), value=value), [0, 0]


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, padding = _pad(_tensor(inputs[0]), attributes, float("-inf"))
    ceil = bool(attributes.get("ceil_mode", 0))
    return functional.max_pool2d(x, attributes["kernel_shape"], attributes["strides"], padding, ceil_mode=ceil)


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    ceil, counted = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    x, padding = _pad(_tensor(inputs[0]), attributes, 0.0)
    return functional.avg_pool2d(x, attributes["kernel_shape"], attributes["strides"], padding, ceil, counted)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _tensor(inputs[0])
    shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(_numbers(inputs[1]))]
    return torch.reshape(x, shape)


def _slice(inputs: Inputs, _: Attributes) -> Tensor:
    x, starts, ends = _tensor(inputs[0]), _numbers(inputs[1]), _numbers(inputs[2])
    axes = _numbers(inputs[3]) if len(inputs) > 3 else range(len(starts))
    steps = _numbers(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = x.index_select(axis, torch.tensor(range(x.shape[axis])[start:end:step], dtype=torch.int64, device=x.device))
    return x


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, index = _tensor(inputs[0]), _tensor(inputs[1])
    axis = attributes.get("axis", 0) % x.dim()
    flat = torch.where(index < 0, index + x.shape[axis], index).reshape(-1)
    return torch.reshape(x.index_select(axis, flat), (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _unsqueeze(inputs: Inputs, _: Attributes) -> Tensor:
    x, axes = _tensor(inputs[0]), _numbers(inputs[1])
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(inputs: Inputs, _: Attributes) -> Tensor:
    x = _tensor(inputs[0])
    axes = _numbers(inputs[1]) if len(inputs) > 1 else [axis for axis, size in enumerate(x.shape) if size == 1]
    return x.squeeze(tuple(axes))


def _clip(inputs: Inputs, _: Attributes) -> Tensor:
    low, high = (_numbers(inputs[i])[0] if len(inputs) > i and inputs[i] is not None else None for i in (1, 2))
    return _tensor(inputs[0]).clamp(low, high)


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _tensor(inputs[0])
    weight, bias = _tensor(inputs[1]), _tensor(inputs[2]) if len(inputs) > 2 else None
    return functional.layer_norm(x, x.shape[attributes.get("axis", -1) :], weight, bias, attributes["epsilon"])


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Nearest by a whole factor, as the encoder does it; anything else is refused."""
    x = _tensor(inputs[0])
    if len(inputs) > 3 and inputs[3] is not None:
        factors = [size / old for size, old in zip(_numbers(inputs[3])[2:], x.shape[2:], strict=True)]
    else:
        factors = _numbers(inputs[2])[2:]
    if attributes.get("mode", b"nearest") != b"nearest" or any(factor != int(factor) for factor in factors):
        raise ArtifactError(f"Resize by {factors} is not known here, whole factors of nearest are")
    for axis, factor in zip((2, 3), factors, strict=True):
        x = x.repeat_interleave(int(factor), axis)
    return x


def _topk(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, Tensor]:
    count, axis = _numbers(inputs[1])[0], attributes.get("axis", -1)
    values, index = torch.sort(_tensor(inputs[0]), dim=axis, descending=bool(attributes.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def apply(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = attributes.get("axes") or _numbers(inputs[1])
        return function(_tensor(inputs[0]), dim=list(axes), keepdim=bool(attributes.get("keepdims", 1)))

    return apply


def _split(inputs: Inputs, attributes: Attributes) -> list[Tensor]:
    x, axis = _tensor(inputs[0]), attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return list(torch.split(x, _numbers(inputs[1]), axis))
    return list(x.tensor_split(attributes["outputs"], axis))


def _expand(inputs: Inputs, _: Attributes) -> Tensor:
    x = _tensor(inputs[0])
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_numbers(inputs[1]))))


def _divide(one: Tensor, other: Tensor) -> Tensor:
    return one / other if one.is_floating_point() else torch.div(one, other, rounding_mode="trunc")


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.tensor(_tensor(inputs[0]).shape)[attributes.get("start", 0) : attributes.get("end")]


def _range(inputs: Inputs, _: Attributes) -> Tensor:
    start, end, step = (_numbers(one)[0] for one in inputs)
    first = _tensor(inputs[0])
    return torch.arange(start, end, step, dtype=first.dtype, device=first.device)


OPERATORS: Mapping[str, Operator] = {
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul), "Div": _plain(_divide),
    "MatMul": _plain(torch.matmul), "Min": _plain(torch.minimum), "Max": _plain(torch.maximum),
    "Equal": _plain(torch.eq), "Where": _plain(torch.where), "Relu": _plain(torch.relu), "Erf": _plain(torch.erf),
    "Sigmoid": _plain(torch.sigmoid), "Floor": _plain(torch.floor), "Exp": _plain(torch.exp), "Log": _plain(torch.log),
    "Neg": _plain(torch.neg), "Sqrt": _plain(torch.sqrt), "Identity": _plain(torch.clone), "Less": _plain(torch.lt),
    "Greater": _plain(torch.gt),
    "Abs": _plain(torch.abs), "Ceil": _plain(torch.ceil), "And": _plain(torch.logical_and), "Pow": _plain(torch.pow),
    "Softmax": lambda inputs, given: torch.softmax(_tensor(inputs[0]), given.get("axis", -1)),
    "Cast": lambda inputs, given: _tensor(inputs[0]).to(TYPES[given["to"]]),
    "Concat": lambda inputs, given: torch.cat([_tensor(one) for one in inputs], given["axis"]),
    "Transpose": lambda inputs, given: _tensor(inputs[0]).permute(given["perm"]),
    "ReduceMax": _reduce(torch.amax), "ReduceSum": _reduce(torch.sum),
    "ReduceMin": _reduce(torch.amin), "ReduceMean": _reduce(torch.mean),
    "Conv": _conv, "MaxPool": _max_pool, "AveragePool": _average_pool, "Reshape": _reshape, "Slice": _slice,
    "Gather": _gather, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Clip": _clip, "LayerNormalization": _layer_norm,
    "Resize": _resize, "TopK": _topk, "Split": _split, "Expand": _expand, "Shape": _shape, "Range": _range,
}  # fmt: skip
"""What our files are made of, by ONNX's definition at opset 17 and later."""
