"""The precisions that the layers of a TensorRT engine really have, read off the engine inspector's list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_KINDS = {"fp32": r"\b(fp32|float32|float)\b", "fp16": r"\b(fp16|float16|half)\b", "int8": r"\bint8\b"}
_COMPUTE = re.compile(r"conv|gemm|matrix|matmul|myelin", re.IGNORECASE)
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
_TACTICS = {"int8": r"i8i8|imma", "fp16": r"f16f16|h16|hmma|_h\d", "fp32": r"f32f32|sgemm|ffma"}


def count_precisions(layers: Sequence[Any]) -> dict[str, int]:
    """Return how many computing layers of the inspector's list have each precision.

    It is read off the types of a layer's inputs (one field up to TensorRT 10, two from 11 on), else off its weights,
    else off the kernel's name. Layers given as bare names tell nothing.
    """
    counts: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, dict) or not _COMPUTE.search(str(layer.get("LayerType", ""))):
            continue
        inputs = [value for value in layer.get("Inputs") or [] if isinstance(value, dict)]
        types = " ".join(str(value[key]) for value in inputs for key in _TYPE_KEYS if key in value)
        weights = layer.get("Weights")
        stored = str(weights.get("Type", "")) if isinstance(weights, dict) else ""
        sources = ((types, _KINDS), (stored, _KINDS), (str(layer.get("TacticName", "")), _TACTICS))
        kind = next((found for text, kinds in sources if (found := _lowest(text, kinds)) is not None), None)
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _lowest(text: str, kinds: dict[str, str]) -> str | None:
    """Return the lowest precision that `text` names."""
    return next((name for name in ("int8", "fp16", "fp32") if re.search(kinds[name], text, re.IGNORECASE)), None)
