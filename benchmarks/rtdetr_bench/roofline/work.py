"""What an operation does: FLOPs by the unit that runs them, and the bytes of an input that it really reads.

A multiply-add of a convolution or matrix product is two operations. Element-wise work is none: it takes less time than
reading its operands. The exception is a softmax, which in fused attention reads nothing, and which attention over
thousands of tokens spends much of its time in: `SOFTMAX` operations of the CUDA cores per element.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from rtdetr_bench.roofline.graph import Operation, Tensor, item_bytes

SECTOR = 32
"""Bytes that a GPU's memory moves at least, wherever an address lies."""
MATRIX = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
SCATTERED = frozenset({"Gather", "GatherElements", "GatherND", "GridSample"})
SOFTMAX = 16
"""FLOPs that the CUDA cores could do in the time of a softmax's work on one score. Special function units have a
quarter of their rate (Turing whitepaper: 16 beside 64 per multiprocessor), so that an exponential takes as long as
four multiply-adds, 8 FLOPs; maximum, scaled difference, sum and conversion are four instructions, 8 more."""
_EIGHT_BITS = frozenset({"int8", "uint8", "float8e4m3fn", "float8e5m2"})
"""FP8, where a GPU has it, runs at the rate of INT8."""
_HALF = frozenset({"float16", "bfloat16"})


def flops_of(operation: Operation) -> float:
    """Return the FLOPs of an operation."""
    out = operation.outputs[0].size
    if operation.operator == "Softmax":
        return float(SOFTMAX * out)
    if operation.operator not in MATRIX:
        return 0.0
    data, weights = operation.inputs[:2]
    if operation.operator == "Conv":
        return 2.0 * out * prod(weights.shape[1:])
    if operation.operator == "ConvTranspose":
        return 2.0 * data.size * prod(weights.shape[1:])
    if operation.operator == "Gemm" and operation.attributes.get("transA"):
        return 2.0 * out * data.shape[0]
    return 2.0 * out * data.shape[-1]


def unit_of(operation: Operation, storage: Mapping[str, str]) -> str:
    """Return the rate of `Gpu` that an operation runs at; `storage` is the type that a view's numbers are stored in."""
    if operation.operator not in MATRIX:
        return "fp32"
    kinds = {storage.get(value.name, value.kind) for value in operation.inputs[:2]}
    floats = kinds - _EIGHT_BITS  # INT8 weights beside floats are turned into these
    if not floats:
        return "int8"
    if not floats <= _HALF:
        return "fp32"
    return "fp16_vector" if _is_depthwise(operation) else "fp16"


def _is_depthwise(operation: Operation) -> bool:
    return (
        operation.operator == "Conv" and operation.attributes.get("group", 1) > 1 and operation.inputs[1].shape[1] == 1
    )


def bytes_read(operation: Operation, value: Tensor, kind: str) -> int:
    """Return what `operation` reads of its input `value`, which is stored as `kind`, in bytes."""
    if operation.operator not in SCATTERED or value is not operation.inputs[0]:
        return value.size * item_bytes(kind)
    out, item = operation.outputs[0], item_bytes(kind)
    if operation.operator == "GridSample":
        nearest = operation.attributes.get("mode", b"bilinear") == b"nearest"
        return out.size * _sectors(item if nearest else 2 * item) * (1 if nearest else 2)
    row = _row(operation)
    return out.size // row * _sectors(row * item)


def _row(operation: Operation) -> int:
    """Return how many neighbouring elements a gather reads at each of its places."""
    data = operation.inputs[0]
    if operation.operator == "GatherND":
        depth = operation.attributes.get("batch_dims", 0) + operation.inputs[1].shape[-1]
        return prod(data.shape[depth:])
    axis = operation.attributes.get("axis", 0) % len(data.shape)
    return max(1, prod(data.shape[axis + 1 :]))


def _sectors(count: int) -> int:
    return int(np.ceil(count / SECTOR)) * SECTOR
