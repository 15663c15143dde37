"""What a sweep varies, in one table: of the file, what `ExportOptions` calls so, and how the file is run.

To add an axis of the file: a line in `AXES`, a field of `ModelFile` and an option of `SweepOptions`, all of one name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rtdetr_bench.machine import gpu_name, instruction_sets
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.input_size import MIN_SIDE, STRIDE
from rtdetr_deploy.options import find_options
from rtdetr_deploy.runtimes import RUNTIMES, RuntimeOptions

FEW_QUERIES = 100
SMALLER = 0.75
"""Share of the trained size's sides around which two smaller sizes are tried."""
ARITHMETICS = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16"), "tensorrt": ("",)}
"""The arithmetics of each runtime that a sweep tries; engines have theirs inside."""


@dataclass(frozen=True)
class Way:
    """How a file is run: a runtime, and its arithmetic ("" where the file alone decides)."""

    runtime: str
    arithmetic: str = ""

    def __str__(self) -> str:
        usual = ARITHMETICS[self.runtime][0]
        return self.runtime if self.arithmetic == usual else f"{self.runtime}:{self.arithmetic}"

    @property
    def where(self) -> dict[str, Any]:
        """The fields of `RuntimeOptions` that choose it."""
        return {} if self.arithmetic in ("", ARITHMETICS[self.runtime][0]) else {"precision": self.arithmetic}

    @property
    def suffix(self) -> str:
        """The suffix of the files that it runs."""
        return ".engine" if self.runtime == "tensorrt" else ".onnx"

    def missing(self) -> str:
        """Return why it can't be used on this machine; empty where it can."""
        if find_spec(self.runtime) is None:
            return f"{self.runtime} is not installed"
        if self.runtime == "tensorrt" and gpu_name() is None:
            return "there is no NVIDIA GPU"
        if self.arithmetic == "bf16" and "precision" not in find_options(RuntimeOptions):
            return "this version's OpenVINO runtime has no choice of arithmetic"
        if self.arithmetic == "bf16" and "bf16" not in instruction_sets():
            return "this processor has no BF16 instructions"
        return ""


def parse_way(text: str) -> Way:
    """Return the runtime and arithmetic in "openvino" or "openvino:bf16". Raises `OptionError`."""
    runtime, _, arithmetic = text.partition(":")
    known = ARITHMETICS.get(runtime)
    if known is None or (arithmetic or known[0]) not in known:
        choices = ", ".join(str(Way(name, one)) for name, every in ARITHMETICS.items() for one in every)
        raise OptionError(f"`runtime` is {text!r}, expected one of {choices}")
    return Way(runtime, arithmetic or known[0])


def usual_ways() -> tuple[Way, ...]:
    """Return every way to run a file that this machine has."""
    every = (Way(name, one) for name, arithmetics in ARITHMETICS.items() for one in arithmetics)
    return tuple(way for way in every if not way.missing())


@dataclass(frozen=True)
class Subject:
    """The checkpoint: what it is, and what its defaults are.

    `size` is (height, width) in pixels; `seconds` is what torch takes for an image, from which times are estimated.
    """

    weights: Path
    digest: str
    class_names: tuple[str, ...]
    layers: int
    max_layers: int
    queries: int
    size: tuple[int, int]
    calibrated: bool = False
    seconds: float = 0.1


@dataclass(frozen=True)
class Axis:
    """A property of the exported file: its `name` as an argument of `ExportOptions`.

    `usual` gives the values that are tried without the option, `label` what a value adds to names.
    """

    name: str
    usual: Callable[[Subject, tuple[Way, ...]], tuple[Any, ...]]
    label: Callable[[Any], str]


def usual_layers(subject: Subject) -> tuple[int, ...]:
    """Return all numbers of layers from those that run by default down to half of them."""
    return tuple(range(subject.layers, (subject.layers - 1) // 2, -1))


def usual_queries(subject: Subject) -> tuple[int, ...]:
    """Return the model's queries, and fewer."""
    return (subject.queries, *([FEW_QUERIES] if subject.queries > FEW_QUERIES else []))


def usual_sizes(subject: Subject) -> tuple[tuple[int, int], ...]:
    """Return the trained size, and the two around three quarters of it, multiples of 32 from 64 up."""
    low = [int(SMALLER * side) // STRIDE * STRIDE for side in subject.size]
    sizes = [subject.size]
    for more in (STRIDE, 0):
        smaller = (low[0] + more, low[1] + more)
        if min(smaller) >= MIN_SIDE and all(a < b for a, b in zip(smaller, sizes[-1], strict=True)):
            sizes.append(smaller)
    return tuple(sizes)


def usual_precisions(subject: Subject, ways: tuple[Way, ...]) -> tuple[str, ...]:
    """Return FP32, FP16 where engines are built, and INT8 where there are images for its calibration."""
    engines = any(way.runtime == "tensorrt" for way in ways)
    return ("fp32", *(["fp16"] if engines else []), *(["int8"] if subject.calibrated else []))


AXES = (
    Axis("layers", lambda subject, _: usual_layers(subject), lambda value: f"l{value}"),
    Axis("queries", lambda subject, _: usual_queries(subject), lambda value: f"q{value}"),
    Axis("cascade", lambda *_: (None,), lambda value: "" if value is None else f"c{value.replace(':', 'x')}"),
    Axis("size", lambda subject, _: usual_sizes(subject), lambda value: f"{value[0]}x{value[1]}"),
    Axis("precision", usual_precisions, str),
    Axis("batch", lambda *_: (1,), lambda value: {None: "bn", 1: ""}.get(value, f"b{value}")),
)
"""In the order of names; batch: see `plan`, which gives engines a dynamic one."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file that is exported: a value per axis, and the suffix."""

    layers: int
    queries: int
    cascade: str | None = None
    size: tuple[int, int]
    precision: str = "fp32"
    batch: int | None = 1
    suffix: str = ".onnx"

    @property
    def stem(self) -> str:
        """What the file is called, without the suffix: l3-q300-640x640-int8."""
        return "-".join(label for axis in AXES if (label := axis.label(getattr(self, axis.name))))

    @property
    def name(self) -> str:
        """The file's name."""
        return self.stem + self.suffix

    def choices(self) -> dict[str, Any]:
        """Return the arguments of `ExportOptions` that make it; a cascade only where there is one."""
        values = {axis.name: getattr(self, axis.name) for axis in AXES}
        return {name: value for name, value in values.items() if name != "cascade" or value is not None}


@dataclass(frozen=True)
class Candidate:
    """What may be deployed: a file, and the way to run it."""

    file: ModelFile
    way: Way

    @property
    def name(self) -> str:
        """Its name in tables: l3-q300-640x640-int8@openvino:bf16."""
        return f"{self.file.stem}@{self.way}"


assert {axis.name for axis in AXES} == {field.name for field in fields(ModelFile)} - {"suffix"}
assert set(ARITHMETICS) <= set(RUNTIMES)
