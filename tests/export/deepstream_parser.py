"""Builds DeepStream's output parser with its own Makefile, and calls it as nvinfer does."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtdetr_export.formats import deepstream

HEADERS = Path(__file__).parent / "deepstream"
WARNINGS = "-O2 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "int64": 4}
"""NvDsInferDataType."""
FAILED = -1

Array = NDArray[Any]


class _Layer(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("type", ctypes.c_int), ("dims_count", ctypes.c_uint),
        ("dims", ctypes.c_uint * 8), ("content", ctypes.c_void_p),
    )  # fmt: skip


class _Object(ctypes.Structure):
    _fields_ = (
        ("label", ctypes.c_uint), ("left", ctypes.c_float), ("top", ctypes.c_float), ("width", ctypes.c_float),
        ("height", ctypes.c_float), ("score", ctypes.c_float), ("rotation", ctypes.c_float),
    )  # fmt: skip


@dataclass(frozen=True)
class Objects:
    """What the parser found: `labels (N,)`, `boxes (N, 4)` left, top, width, height in pixels, `scores (N,)`."""

    labels: Array
    boxes: Array
    scores: Array
    rotations: Array


@dataclass(frozen=True)
class Parser:
    """A built parser; `null` names layers that are given without content."""

    library: Path
    bridge: ctypes.CDLL
    null: frozenset[str] = field(default=frozenset())

    def parse(
        self, outputs: dict[str, Array], thresholds: Sequence[float], size: tuple[int, int] = (288, 288)
    ) -> Objects | int:
        """Return what one frame's `outputs` hold for a network input of `size` (height, width), or the error."""
        layers = (_Layer * len(outputs))(*(self._layer(name, array) for name, array in outputs.items()))
        found = (_Object * 512)()
        limits = np.array(thresholds, np.float32)
        count = self.bridge.call_parser(
            str(self.library).encode(), deepstream.FUNCTION.encode(), layers, len(outputs), size[1], size[0],
            limits.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(limits), found,
        )  # fmt: skip
        if count < 0:
            return int(count)
        rows = found[:count]
        boxes = np.array([(row.left, row.top, row.width, row.height) for row in rows], np.float32).reshape(-1, 4)
        return Objects(
            np.array([row.label for row in rows], np.int64),
            boxes,
            np.array([row.score for row in rows], np.float32),
            np.array([row.rotation for row in rows], np.float32),
        )

    def _layer(self, name: str, array: Array) -> _Layer:
        content = None if name in self.null else array.ctypes.data
        assert array.flags.c_contiguous
        return _Layer(name.encode(), TYPES[str(array.dtype)], array.ndim, (ctypes.c_uint * 8)(*array.shape), content)


def build_parser(folder: Path, flags: str = "") -> Parser:
    """Build the parser in `folder`, which holds its source and Makefile; skip the test without a compiler."""
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so DeepStream's output parser can't be built")
    run(["make", "-C", folder, f"DEEPSTREAM={HEADERS}", f"CXXFLAGS={WARNINGS} {flags}"])
    bridge = folder / "call_parser.so"
    include = f"-I{HEADERS / 'sources' / 'includes'}"
    source = HEADERS / "call_parser.cpp"
    run(
        [
            "g++",
            "-std=c++14",
            *WARNINGS.split(),
            *flags.split(),
            include,
            "-shared",
            "-fPIC",
            "-o",
            bridge,
            source,
            "-ldl",
        ]
    )
    return Parser(folder / deepstream.LIBRARY, ctypes.CDLL(str(bridge)))


def run(command: Sequence[str | Path]) -> None:
    """Run a command; what it says is part of the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
